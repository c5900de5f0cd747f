"""A manager at one site: what does not answer there is lost, and nothing else."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rbdtree import errors, memory
from rbdtree.manager import keeper, tenure
from rbdtree.manager.keeper import Keeper
from rbdtree.manager.spread import Peer
from rbdtree.model.document import Kind, object_name
from rbdtree.ports import EDGE

from .forest import Grove, until

WELL, ILL = ("p", ""), ("q", "")


class Faults:
    """What does not answer: a place's list, or the locks of an object; and how long every answer takes."""

    def __init__(self) -> None:
        self.lists: set[tuple[str, str]] = set()
        self.objects: set[str] = set()
        self.seconds = 0.0
        self.asked: list[str] = []
        self.mended = threading.Event()

    def wait(self, silent: bool) -> None:
        if silent and not self.mended.wait(20):
            raise errors.Unreachable("no answer in time")
        time.sleep(self.seconds)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faults]:
    """With times that are a fifth of the real ones."""
    made = Faults()
    monkeypatch.setattr(keeper, "LEASE_SECONDS", 4.0)
    monkeypatch.setattr(keeper, "_RENEW", 1.0)
    monkeypatch.setattr(keeper, "_SILENT", 2.4)
    renewing = threading.local()
    enlist, claim, renew = memory.Pool.enlist, memory.Pool.claim, memory.Pool.renew_claim

    def enlisted(self: memory.Pool, *words: Any) -> None:
        made.wait((self.name, self.namespace) in made.lists)
        enlist(self, *words)

    def claimed(self: memory.Pool, name: str, *words: Any) -> None:
        if EDGE in words and not getattr(renewing, "now", False):
            made.asked.append(name)
            made.wait(name in made.objects)
        claim(self, name, *words)

    def renewed(self: memory.Pool, name: str, *words: Any) -> None:
        if EDGE in words:
            made.wait(name in made.objects)
        # In memory that is a claim, too.
        renewing.now = True
        try:
            renew(self, name, *words)
        finally:
            renewing.now = False

    monkeypatch.setattr(memory.Pool, "enlist", enlisted)
    monkeypatch.setattr(memory.Pool, "claim", claimed)
    monkeypatch.setattr(memory.Pool, "renew_claim", renewed)
    yield made
    made.mended.set()


class Site:
    """Two pools with documents; a keeper that is told as a manager tells it."""

    def __init__(self) -> None:
        self.storage = memory.Storage("b", [WELL, ILL])
        self.lost: list[str] = []
        me = Peer("me", frozenset("b"), 0)
        self.keeper = Keeper(memory.Sites({"b": self.storage}), "b", lambda: me, self.lost.append, lambda: None)
        self.keeper.start()

    def take(self, place: tuple[str, str], *names: str) -> None:
        for name in names:
            self.storage.places[place].documents[name] = (1, "")
            assert self.keeper.take(place, name) is None

    def locked(self, place: tuple[str, str], name: str) -> bool:
        held = self.storage.places[place].claims.get((name, EDGE))
        return held is not None and held.expires > self.storage.clock()

    def during(self, seconds: float) -> Iterator[None]:
        """Again and again; what is too old is given up, as the manager sees to."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keeper.forget()
            yield
            time.sleep(0.05)


@pytest.fixture
def site(faults: Faults) -> Iterator[Site]:
    made = Site()
    yield made
    faults.mended.set()
    made.keeper.close()


def test_a_pool_that_does_not_answer_silences_no_other(site: Site, faults: Faults) -> None:
    site.keeper.watch_over({WELL, ILL})
    until(lambda: site.keeper.hears(WELL) and site.keeper.hears(ILL), "both lists are read")
    site.take(WELL, "well")
    site.take(ILL, "ill")
    faults.lists, faults.objects = {ILL}, {"ill"}
    for _ in site.during(5):
        assert site.keeper.answers()
        assert site.keeper.hears(WELL)
        assert site.keeper.holds("well")
        assert site.locked(WELL, "well")
        if not site.locked(ILL, "ill"):
            assert not site.keeper.holds("ill"), "it counted as held when others could take it"
    assert site.lost == ["ill"]
    assert not site.keeper.hears(ILL)
    assert site.keeper.peers(ILL) == ()
    assert [peer.manager for peer in site.keeper.peers(WELL)] == ["me"]
    faults.mended.set()
    until(lambda: site.keeper.hears(ILL), "it answers again")
    assert site.keeper.take(ILL, "ill") is None


def test_a_document_that_does_not_answer_loses_its_lock_only(site: Site, faults: Faults) -> None:
    site.keeper.watch_over({WELL})
    until(lambda: site.keeper.hears(WELL), "the list is read")
    names = [f"n{number}" for number in range(20)]
    site.take(WELL, *names)
    faults.objects = {"n0", "n7"}
    for _ in site.during(5):
        assert site.keeper.answers()
        assert site.keeper.hears(WELL)
        for name in names:
            assert site.locked(WELL, name) or not site.keeper.holds(name)
    assert sorted(site.lost) == ["n0", "n7"]


def test_many_edges_on_a_long_link_are_kept(site: Site, faults: Faults) -> None:
    """One after another they would take longer than the site may be silent for."""
    site.keeper.watch_over({WELL})
    until(lambda: site.keeper.hears(WELL), "the list is read")
    site.take(WELL, *[f"n{number}" for number in range(100)])
    faults.seconds = 0.04
    for _ in site.during(5):
        assert site.keeper.answers()
        assert site.keeper.hears(WELL)
    assert not site.lost


def test_who_answers_slowly_is_not_given_a_rest_as_well(site: Site, faults: Faults) -> None:
    site.keeper.watch_over({WELL})
    until(lambda: site.keeper.hears(WELL), "the list is read")
    site.take(WELL, "slow")
    faults.seconds = 0.8
    for _ in site.during(5):
        assert site.keeper.answers()
        assert site.keeper.hears(WELL)
    assert not site.lost


def test_lists_are_fresh_when_all_that_answer_were_read_anew(site: Site, faults: Faults) -> None:
    """By them edges are given away: locks that answer tell nothing of who has how many."""
    site.keeper.watch_over({WELL, ILL})
    until(lambda: site.keeper.hears(WELL) and site.keeper.hears(ILL), "both lists are read")
    site.take(WELL, "well")
    faults.lists = {ILL}
    time.sleep(0.2)
    asked = time.monotonic()
    site.keeper.look()
    until(lambda: site.keeper._listed[WELL] > asked, "the one was read anew")
    assert site.keeper.answered < asked, "the other may say otherwise than it did"
    until(lambda: not site.keeper.hears(ILL), "it tells nothing any more")
    assert asked <= site.keeper.answered < time.monotonic()


@pytest.fixture
def grove() -> Iterator[Grove]:
    made = Grove()
    made.add("m", "root", Kind.MIRROR, "b")
    made.add("ill", "root", Kind.MIRROR, "b")
    yield made
    made.close()


def test_a_manager_goes_on_beside_a_document_that_does_not_answer(grove: Grove, faults: Faults) -> None:
    running = grove.run(poll=60.0)
    until(lambda: len(running.held()) == 3, "it has all")
    faults.objects = {object_name(grove.document("ill").ref.node_id)}
    until(lambda: ("ill", "lost") in running.heard.edges, "that lock is lost", 10)
    grove.add("late", "root", Kind.MIRROR, "b")
    until(lambda: "late" in running.held(), "the lock on another at the same site is taken meanwhile", 10)
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(lambda: grove.document("m").newest and grove.document("late").newest, "these are brought on")
    assert running.held() == {"root", "m", "late"}
    assert [edge for edge in running.heard.edges if edge[1] != "taken"] == [("ill", "lost")]
    faults.mended.set()
    until(grove.level, "and that in the end")


def test_a_lock_that_was_asked_for_in_vain_is_left_for_a_while(
    grove: Grove, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However often its parent's document is written; and not when there is an answer again."""
    monkeypatch.setattr(tenure, "_MUTE_SECONDS", 6.0)
    ill = object_name(grove.document("ill").ref.node_id)
    take = Keeper.take

    def silent(self: Keeper, place: tuple[str, str], name: str) -> str | None:
        if name == ill:
            faults.asked.append("in vain")
            if not faults.mended.is_set():
                raise errors.Unreachable("no answer in time")
        return take(self, place, name)

    monkeypatch.setattr(Keeper, "take", silent)
    running = grove.run(poll=60.0)
    until(lambda: running.held() == {"root", "m"}, "it has the others")
    until(lambda: "in vain" in faults.asked, "it asked for that")
    for number in range(12):
        grove.write(number * 4096, b"one" * 1000)
        grove.cut()
        time.sleep(0.4)
    assert faults.asked.count("in vain") == 1
    faults.mended.set()
    until(lambda: "ill" in running.held(), "it is asked for again", 10)


def test_nobody_asks_for_locks_where_the_list_does_not_answer(grove: Grove, faults: Faults) -> None:
    """They would not answer either, and keep those waiting that do."""
    running = grove.run(poll=60.0)
    until(lambda: len(running.held()) == 3, "it has all")
    unit = next(u for u in running.manager.units.values() if u.ref.name == "ill")
    keep = running.manager.tenure._keepers["b"]
    faults.lists = {unit.place}
    until(lambda: not keep.hears(unit.place), "the list is silent", 10)
    assert keep.answers()
    assert running.held() == {"root", "m", "ill"}, "locks that are renewed are kept"
    lock = keep.lock(object_name(unit.ref.node_id))
    assert lock
    faults.asked.clear()
    running.manager.tenure.lock_lost(lock.object)
    keep.drop(lock)
    unit.mute_until = time.monotonic() + 60
    time.sleep(2.5)
    assert not faults.asked
    faults.mended.set()
    until(lambda: "ill" in running.held(), "it is taken at once, though it had been asked for in vain", 10)
