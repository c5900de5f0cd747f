"""Managers over a tree in memory: what wakes them, whose edges are whose, what becomes of errors."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest

from rbdtree import errors, memory
from rbdtree.engine import branch as branches
from rbdtree.engine import claim, forest, scrub
from rbdtree.engine.clone import beside
from rbdtree.engine.loss import Window
from rbdtree.engine.sync import Sync
from rbdtree.manager import keeper, uplinks
from rbdtree.manager.service import Manager
from rbdtree.manager.spread import Peer
from rbdtree.manager.wish import Wish
from rbdtree.model.document import DIRECTORY, Hold, Kind, Push, PushState, Summary
from rbdtree.ports import EDGE, WORK

from .forest import PLACE, Grove, until


def test_a_cut_travels_at_once(grove: Grove) -> None:
    grove.run(poll=60.0)
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(grove.level, "everybody has the first generation")
    grove.write(4096, b"two" * 1000)
    grove.cut()
    until(grove.level, "everybody has the second one, long before the next poll")


@pytest.mark.parametrize("kind", [Kind.MIRROR, Kind.CLONE])
def test_a_cut_travels_at_once_past_a_clone_that_stays(grove: Grove, kind: Kind) -> None:
    """Its branch is in use, so it does not move, and its document is not written."""
    grove.add("below", "c", kind, "b" if kind is Kind.MIRROR else "a")
    grove.run(poll=60.0)
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(grove.level, "everybody has the first generation")
    _, branch = branches.ensure(grove.sites, grove.node("c"), branches.SNAPSHOT, None)
    user = memory.Sites(grove.storages).cluster("a").pool("p").open(branch.image_id, read_only=False)
    grove.write(4096, b"two" * 1000)
    grove.cut()
    newest = grove.document("root").newest_position
    until(lambda: grove.document("below").newest_position == newest, "it comes by the clone")
    assert grove.document("c").newest_position != newest
    user.close()


def test_a_new_node_is_met_long_before_the_next_poll(grove: Grove) -> None:
    grove.run(poll=60.0)
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(grove.level, "everybody has the first generation")
    grove.add("late", "m", Kind.MIRROR, "a")
    until(grove.level, "the new one has it, too")


def test_a_watch_that_was_lost_is_registered_long_before_the_next_poll(grove: Grove) -> None:
    grove.run(poll=60.0)
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(grove.level, "everybody has the first generation")
    watches = grove.storages["a"].places[PLACE].watches
    watched = set(watches)
    for name in watched - {DIRECTORY}:
        for watch in watches.pop(name):
            watch.lose()
    until(lambda: set(watches) == watched, "all are there again")
    grove.write(4096, b"two" * 1000)
    grove.cut()
    until(grove.level, "and wake it")


def test_a_tree_that_is_not_there_is_said(grove: Grove) -> None:
    """Mistyped, or yet to come: then it is taken up."""
    running = grove.run(poll=0.2, trees=frozenset({"t", "u"}))
    until(lambda: running.heard.problems, "what is missing")
    assert str(running.heard.problems[0]) == "there is no tree u"
    assert {str(problem) for problem in running.heard.problems} == {"there is no tree u"}
    until(lambda: running.held() == {"root", "m", "leaf", "c"}, "the other one is looked after")


def test_a_schedule_cuts_when_something_changed(grove: Grove) -> None:
    grove.policy("root", tree=True, schedule="1s")
    grove.write(0, b"one" * 1000)
    running = grove.run(poll=60.0)
    until(lambda: grove.document("root").generations, "the first generation")
    until(grove.level, "everybody has it")
    ticks = until(lambda: len([c for n, c in running.heard.cycles if n == "root"]) > 4, "more ticks")
    assert ticks
    assert len(grove.document("root").generations) == 1


def uplinked(monkeypatch: pytest.MonkeyPatch, failure: errors.Error) -> tuple[threading.Event, list[float]]:
    """Uplinks fail of this until the event is set; when each was tried."""
    works, tries = threading.Event(), list[float]()

    class Uplinked:
        def __init__(self, *_: Any, show: Callable[[Window], None], **more: Any) -> None:
            self.show, self.stop = show, threading.Event()

        def run(self) -> None:
            tries.append(time.monotonic())
            if not works.is_set():
                raise failure
            self.show(Window(0, 0, 0.0, None))
            self.stop.wait()

    monkeypatch.setattr(uplinks, "Uplink", Uplinked)
    return works, tries


def test_what_an_uplink_fails_of_is_its_nodes_trouble(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kept in its document once a failure, and gone when an uplink goes on."""
    works, _ = uplinked(monkeypatch, errors.NoSpace("the pool is full"))
    grove.write(0, b"one" * 1000)
    grove.cut()
    grove.run(poll=0.2)
    until(grove.level, "everybody has the first generation")
    _, branch = branches.ensure(grove.sites, grove.node("leaf"), branches.SNAPSHOT, None)
    grove.node("leaf").update(lambda d: replace(d, branch=replace(branch, uplink=branches.JOURNAL)))
    found = until(lambda: grove.document("leaf").trouble, "its trouble is told")
    assert (found.kind, found.message) == ("NoSpace", "the pool is full")
    until(lambda: grove.document("leaf").trouble.count > found.count, "and counted")
    assert grove.document("m").trouble is None
    grove.node("leaf").update(lambda d: replace(d, branch=replace(branch, uplink=branches.SNAPSHOT)))
    until(lambda: grove.document("leaf").trouble is None, "none is wanted any more")
    grove.node("leaf").update(lambda d: replace(d, branch=replace(branch, uplink=branches.JOURNAL)))
    until(lambda: grove.document("leaf").trouble, "it fails again")
    works.set()
    until(lambda: grove.document("leaf").trouble is None, "it is over")


def test_an_uplink_that_waits_for_a_person_hears_that_one_acted(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved, tries = uplinked(monkeypatch, errors.Conflict("somebody else wrote there"))
    monkeypatch.setattr(uplinks, "_PERSON_SECONDS", 0.2)
    grove.write(0, b"one" * 1000)
    grove.cut()
    grove.run(poll=0.5)
    until(grove.level, "everybody has the first generation")
    _, branch = branches.ensure(grove.sites, grove.node("leaf"), branches.SNAPSHOT, None)
    grove.node("leaf").update(lambda d: replace(d, branch=replace(branch, uplink=branches.JOURNAL)))
    document = grove.document("leaf")
    assert document.newest_position
    until(lambda: grove.document("leaf").trouble, "its trouble is told")
    time.sleep(1)
    assert len(tries) == 1, "it waits"
    resolved.set()
    told = Push(document.ref.node_id, "leaf", 1, document.newest_position, PushState.PUBLISHED, 0.0)
    grove.node("leaf").update(lambda d: replace(d, pushes=(told,)))
    until(lambda: grove.document("leaf").trouble is None, "it goes on")


def test_a_clone_that_goes_while_it_is_made_leaves_no_mark(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """A predecessor's removal came late."""
    seal = branches.seal_base
    gone: list[str] = []

    def late(pool: memory.Pool, image_id: str, *words: Any) -> None:
        if not gone:
            gone.append(image_id)
            pool.trash(image_id, beside(grove.document("c")), 0)
            pool.purge(image_id)
        seal(pool, image_id, *words)

    grove.write(0, b"one" * 1000)
    grove.cut()
    grove.run(poll=0.5)
    until(grove.level, "everybody has the first generation")
    branches.ensure(grove.sites, grove.node("c"), branches.SNAPSHOT, None)
    monkeypatch.setattr(branches, "seal_base", late)
    grove.write(4096, b"two" * 1000)
    grove.cut()
    until(lambda: gone and grove.level() and not grove.document("c").intent, "everybody has the second one")
    pool, document = grove.node("c").pool, grove.document("c")
    mine = {key for key, owner in pool.entries().items() if owner == document.ref.node_id and key.startswith("image.")}
    assert mine == {f"image.{document.image_id}"}


def test_edges_are_spread_and_taken_over(grove: Grove) -> None:
    first = grove.run()
    until(lambda: len(first.held()) == 4, "the only manager has all")
    second = grove.run()
    until(lambda: len(second.held()) == 2, "it gives away half of them")
    until(lambda: not first.held() & second.held(), "and knows it")
    second.stop()
    until(lambda: len(first.held()) == 4, "what was let go is taken, long before its locks would end")


def test_what_is_given_away_is_given_once(grove: Grove) -> None:
    first = grove.run()
    until(lambda: len(first.held()) == 4, "the only manager has all")
    second = grove.run()
    until(lambda: len(second.held()) == 2, "it gives away half of them")
    time.sleep(3)
    told = Counter(what for _, what in first.heard.edges)
    assert (told["given"], told["taken"]) == (2, 4)
    assert not any(what == "given" for _, what in second.heard.edges)


def test_what_nobody_took_is_not_given_again_and_again(grove: Grove) -> None:
    """A manager that stands still is listed until its entry lapses, with nothing to do."""
    frozen = memory.Sites(grove.storages)
    fsids = frozenset(frozen.cluster(name).fsid for name in "abc")
    text = Peer("frozen", fsids, 0).text(claim.identity("manager", "elsewhere"))
    for name in "abc":
        frozen.cluster(name).pool("p").enlist("frozen", text, 600)
    first = grove.run()
    until(lambda: any(what == "given" for _, what in first.heard.edges), "it gives one to who has none")
    until(lambda: len(first.held()) == 4, "and takes it back, as nobody else does")
    time.sleep(4)
    assert [what for _, what in first.heard.edges].count("given") == 1
    assert len(first.held()) == 4
    assert [u.kept > time.monotonic() + 60 for u in first.manager.units.values()].count(True) == 1


def test_who_has_an_edge_and_is_alive_is_not_asked_for_it(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """With two managers at rest nobody asks; an edge that is let go is taken all the same."""
    asked: list[str] = []
    claimed = memory.Pool.claim

    def count(self: memory.Pool, name: str, cookie: str, owner: str, seconds: float, purpose: str = WORK) -> None:
        try:
            claimed(self, name, cookie, owner, seconds, purpose)
        except errors.Busy:
            if purpose == EDGE:
                asked.append(name)
            raise

    first, second = grove.run(poll=60.0), grove.run(poll=60.0)
    until(lambda: len(first.held()) == len(second.held()) == 2, "they share the edges")
    time.sleep(4)
    monkeypatch.setattr(memory.Pool, "claim", count)
    time.sleep(6)
    assert not asked
    second.stop()
    until(lambda: len(first.held()) == 4, "what was let go is taken")


def test_a_fenced_manager_takes_its_own_edges_again(grove: Grove) -> None:
    """The lock that it had is in its own name still: nobody else would ask for it, as its holder is alive."""
    grove.cut()
    first, second = grove.run(poll=600.0), grove.run(poll=600.0)
    until(lambda: len(first.held()) == len(second.held()) == 2, "they share the edges")
    until(grove.level, "all is level")
    who = next(m for m in (first, second) if "m" in m.held())
    grove.storages["b"].fence(who.manager._sites.cluster("b").address())
    # Not whether it has the edge: that may be its own again before anybody looks.
    until(lambda: ("m", "lost") in who.heard.edges, "it hears of it", 60)
    until(lambda: "m" in first.held() | second.held(), "somebody has it", 60)


def test_a_fenced_manager_that_looks_first_finds_its_nodes_again(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before a lock there is renewed: what its directory has it cannot tell, but nothing there is gone."""
    grove.cut()
    running = grove.run(poll=0.2)
    until(lambda: len(running.held()) == 4, "it has all edges")
    until(grove.level, "all is level")
    go, renew, cut_off = threading.Event(), keeper.Keeper._renew, keeper.Keeper.cut_off

    def waiting(self: keeper.Keeper) -> None:
        go.wait(30)
        renew(self)

    def deaf(self: keeper.Keeper, when: float) -> None:
        if go.is_set():
            cut_off(self, when)

    monkeypatch.setattr(keeper.Keeper, "_renew", waiting)
    # Its look tells the keeper, who would connect anew before the next one.
    monkeypatch.setattr(keeper.Keeper, "cut_off", deaf)
    for site in "bc":
        grove.storages[site].fence(running.manager._sites.cluster(site).address())
    looks = len(running.heard.problems)
    until(lambda: len(running.heard.problems) > looks + 4, "it has looked more than once")
    go.set()
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(grove.level, "what is new is brought everywhere", 60)
    until(lambda: len(running.held()) == 4, "it has all edges again", 60)


def test_who_is_slow_to_answer_is_given_edges_too(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at all lists takes longer than a moment."""
    enlist = memory.Pool.enlist

    def slow(self: memory.Pool, *told: Any) -> None:
        if self.storage.fsid == "c":
            time.sleep(2.2)
        enlist(self, *told)

    monkeypatch.setattr(memory.Pool, "enlist", slow)
    first = grove.run(poll=600.0)
    until(lambda: len(first.held()) == 4, "the only manager has all")
    second = grove.run(poll=600.0)
    until(lambda: len(second.held()) == 2, "it gives away half of them", 60)


def test_a_lock_that_takes_long_stops_no_other_edge(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """The site of the leaf falls silent in the moment in which its edge is taken."""
    mended, take = threading.Event(), keeper.Keeper.take

    def slow(self: keeper.Keeper, *words: Any) -> bool:
        return (self.site != "c" or mended.wait(30)) and take(self, *words)

    monkeypatch.setattr(keeper.Keeper, "take", slow)
    running = grove.run(poll=60.0)
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(lambda: grove.document("m").newest and grove.document("c").newest, "the others have the generation")
    assert running.held() == {"root", "m", "c"}
    mended.set()
    until(grove.level, "and the leaf at last")


def test_nobody_listens_to_a_silent_site_until_it_answers(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of its documents would be waited for in turn."""
    mended, answers, watch = threading.Event(), keeper.Keeper.answers, memory.Pool.watch
    asked: list[str] = []

    def silent(self: keeper.Keeper) -> bool:
        return (self.site != "c" or mended.is_set()) and answers(self)

    def watched(self: memory.Pool, *words: Any) -> memory.Watch:
        asked.append(self.site)
        return watch(self, *words)

    monkeypatch.setattr(keeper.Keeper, "answers", silent)
    monkeypatch.setattr(memory.Pool, "watch", watched)
    grove.run(poll=60.0)
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(lambda: grove.document("m").newest and grove.document("c").newest, "the others have the generation")
    until(lambda: {"a", "b"} <= set(asked), "these are listened to")
    assert "c" not in asked
    mended.set()
    until(lambda: "c" in asked, "and that, too")
    until(grove.level, "the leaf has the generation")


def test_who_waits_for_a_slot_keeps_nobody_busy(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clone is due, and the mirror copies for half a minute."""
    decisions = 0
    decide = Manager._decide

    def counted(self: Manager) -> None:
        nonlocal decisions
        decisions += 1
        decide(self)

    monkeypatch.setattr(Manager, "_decide", counted)
    grove.policy("root", tree=True, parallel="1")
    grove.policy("m", bandwidth="256K", priority="10")
    running = grove.run(poll=60.0)
    until(lambda: running.held() == {"root", "m", "c", "leaf"}, "all are its own")
    for offset in (0, 4 << 20):
        grove.write(offset, b"x" * (4 << 20))
    grove.cut()
    until(lambda: (i := grove.document("m").intent) and i.done_bytes, "the first object is there")
    clone = next(unit for unit in running.manager.units.values() if unit.ref.name == "c")
    until(lambda: clone.due < time.monotonic() and not clone.running, "the clone has no slot")
    before = decisions
    time.sleep(1.0)
    assert not clone.running
    assert decisions - before < 30


def test_who_matters_more_than_all_at_work_gets_a_place(grove: Grove) -> None:
    """The only place is taken by a mirror that copies for half a minute."""
    grove.policy("root", tree=True, parallel="1")
    grove.policy("m", bandwidth="256K")
    grove.policy("c", priority="1")
    running = grove.run(poll=60.0)
    until(lambda: running.held() == {"root", "m", "c", "leaf"}, "all are its own")
    for offset in (0, 4 << 20):
        grove.write(offset, b"x" * (4 << 20))
    grove.cut()
    until(lambda: (i := grove.document("m").intent) and i.done_bytes, "the first object is there")
    grove.write(0, b"y")
    grove.cut()
    newest = grove.document("root").newest_position
    until(lambda: grove.document("c").newest_position == newest, "the clone has it")
    assert grove.document("m").intent


def test_two_managers_that_reach_an_edge_each(grove: Grove) -> None:
    ab = {name: grove.storages[name] for name in "ab"}
    bc = {name: grove.storages[name] for name in "bc"}
    from .forest import Running

    upper, lower = Running(ab), Running(bc)
    grove.managers += [upper, lower]
    grove.write(0, b"one" * 1000)
    grove.cut()
    until(grove.level, "both edges were brought on")
    assert lower.held() == {"leaf"}
    until(lambda: upper.held() == {"root", "m", "c"}, "the root is somebody's, too")

    def grandchild() -> Summary | None:
        # A child made a moment ago was told of as it was then: without children.
        told = grove.document("root").children[0].summary
        return next((child.summary for child in told.children), None) if told else None

    newest = grove.document("root").newest_position
    until(lambda: (s := grandchild()) and s.position == newest, "the root knows how far its grandchild is")


def test_generations_go_as_the_policy_says(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbdtree.manager import cycle

    monkeypatch.setattr(cycle, "_RETAIN_SECONDS", 0.0)
    grove.policy("root", tree=True, keep="last 2")
    grove.policy("leaf", keep="all")
    grove.run(poll=60.0)
    for number in range(5):
        grove.write(number * 4096, b"new" * 1000)
        grove.cut()
        until(grove.level, "everybody has it")

    def left() -> tuple[int, ...]:
        return tuple(len(grove.document(name).generations) for name in ("root", "m", "leaf"))

    until(lambda: left()[:2] == (2, 2), f"two are left, not {left()}")
    assert left()[2] == 5
    until(lambda: len(grove.snapshots("root")) == 2, "the document forgets first, then the snapshot goes")


def test_what_was_held_goes_when_it_is_let_go(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a new generation."""
    from rbdtree.manager import cycle

    monkeypatch.setattr(cycle, "_RETAIN_SECONDS", 0.0)
    grove.cut()
    held = grove.document("root").newest_position
    assert held
    grove.node("root").update(lambda d: d.with_hold(Hold("user:me", held, "for a test")))
    grove.policy("root", tree=True, keep="last 1")
    for number in range(2):
        grove.write(number * 4096, b"new" * 1000)
        grove.cut()
    grove.run(poll=60.0)
    until(grove.level, "everybody has it")

    def left() -> list[int]:
        return [g.position.sequence for g in grove.document("root").generations]

    until(lambda: left() == [1, 3], f"the held one and the newest are left, not {left()}")
    grove.node("root").update(lambda d: d.without_holds("user:me"))
    until(lambda: left() == [3], f"the newest is left, not {left()}")


def test_a_root_waits_for_no_edge(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cuts by its schedule while as many edges copy as may."""
    from rbdtree.engine.edge import EdgeRun

    let_go, busy, run = threading.Event(), threading.Event(), EdgeRun.run

    def slow(self: EdgeRun, *words: Any) -> Any:
        busy.set()
        let_go.wait(30)
        return run(self, *words)

    monkeypatch.setattr(EdgeRun, "run", slow)
    grove.policy("root", tree=True, parallel="1", schedule="1s")
    grove.run(poll=60.0, jobs=1)
    try:
        for number in range(3):
            grove.write(number * 4096, b"new" * 1000)
            until(lambda number=number: len(grove.document("root").generations) > number, f"cut {number} is there")
        assert busy.wait(10)
        assert not grove.level()
    finally:
        let_go.set()
    until(grove.level, "the others follow")


def test_a_root_that_fails_at_something_else_still_cuts(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbdtree.manager.cycle import Cycles

    def fails(*_: Any) -> None:
        raise errors.CephError("retention is not possible here")

    monkeypatch.setattr(Cycles, "_retain", fails)
    grove.policy("root", tree=True, schedule="1s")
    grove.run(poll=60.0)
    for number in range(4):
        grove.write(number * 4096, b"new" * 1000)
        until(lambda number=number: len(grove.document("root").generations) > number, f"cut {number} is there")
    assert grove.document("root").trouble


def test_a_clock_that_is_set_back_stops_no_schedule(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbdtree.manager.cycle import Cycles

    ahead, now = [86400.0], time.time
    monkeypatch.setattr(time, "time", lambda: now() + ahead[0])
    monkeypatch.setitem(Cycles.__init__.__kwdefaults__, "clock", time.time)
    grove.policy("root", tree=True, schedule="1s")
    grove.run(poll=1.0)
    grove.write(0, b"new" * 1000)
    until(lambda: grove.document("root").generations, "a cut by a clock that is ahead")
    ahead[0] = 0.0
    for number in range(1, 3):
        grove.write(number * 4096, b"new" * 1000)
        until(lambda number=number: len(grove.document("root").generations) > number, f"cut {number} after it was set")


def test_a_clock_that_jumps_ahead_lets_go_of_no_base(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbdtree.manager import cycle

    monkeypatch.setattr(cycle, "_RETAIN_SECONDS", 0.0)
    monkeypatch.setattr(cycle, "_RETAIN_IDLE_SECONDS", 0.0)
    ahead = [10 * 86400.0]
    monkeypatch.setitem(cycle.Cycles.__init__.__kwdefaults__, "clock", lambda: time.time() + ahead[0])
    grove.cut()
    Sync(grove.sites).run(forest.look(grove.sites).tree("t"))
    for number in range(2):
        grove.write(number * 4096, b"new" * 1000)
        grove.cut()
    grove.policy("root", tree=True, keep="last 1", max_pinned_age="3d")
    running = grove.run(trees=frozenset({"t"}), sites=frozenset({"a"}), poll=0.2)

    def said() -> set[str]:
        return {cycle.skewed for name, cycle in running.heard.cycles if name == "root"} - {""}

    def left() -> list[int]:
        return [g.position.sequence for g in grove.document("root").generations]

    until(said, "the clock is looked at")
    until(lambda: left() == [1, 3], "what nobody needs goes")
    assert said() == {"the clock of this host is 10.0 d ahead of the cluster's: no limit of age ends anything"}
    assert not grove.document("root").resyncs
    grove.storages["a"].clock = lambda: time.time() + 10 * 86400
    until(lambda: left() == [3], "ten days have passed in the cluster, too")
    assert [r.name for r in grove.document("root").resyncs] == ["t/m"]


def test_a_scrub_that_found_nothing_to_compare_is_tried_again_soon(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long before the next piece is due."""
    from rbdtree.manager import cycle

    monkeypatch.setattr(cycle, "_SCRUB_AGAIN_SECONDS", 0.2)
    tried: list[scrub.Piece | None] = []
    right = scrub.scrub

    def busy_at_first(*words: Any) -> scrub.Piece | None:
        tried.append(right(*words) if len(tried) > 2 else None)
        return tried[-1]

    monkeypatch.setattr(scrub, "scrub", busy_at_first)
    grove.policy("m", scrub="7d")
    grove.cut()
    grove.run(poll=60.0)
    until(lambda: grove.document("m").scrub, "a piece is compared")
    time.sleep(1)
    assert [bool(piece) for piece in tried] == [False, False, False, True]


def test_a_scrub_makes_up_for_what_it_lost(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """16 pieces within 6 s, of which 2 are lost."""
    from rbdtree.manager import cycle
    from rbdtree.plan import scrub as plan

    monkeypatch.setattr(cycle, "_SCRUB_AGAIN_SECONDS", 0.1)
    monkeypatch.setattr(plan, "_SLICE_SECONDS", 0.1)
    right, lost = scrub.scrub, [0.0]

    def busy_for_a_while(sites: Any, node: Any, *more: Any) -> scrub.Piece | None:
        done = node.read().scrub
        if done and done.cursor_bytes >= 16 << 20:
            lost[0] = lost[0] or time.monotonic()
            if time.monotonic() < lost[0] + 2:
                return None
        return right(sites, node, *more)

    monkeypatch.setattr(scrub, "scrub", busy_for_a_while)
    image = grove.sites.cluster("a").pool("p").open(grove.document("root").image_id, read_only=False)
    image.resize(64 << 20)
    image.close()
    grove.policy("m", scrub="6s")
    grove.cut()
    grove.run(poll=60.0)
    began = until(lambda: grove.document("m").scrub, "it has begun").started
    found = until(lambda: (s := grove.document("m").scrub) and s.finished and s, "a pass has ended")
    assert lost[0]
    # At the pace that it began with it would be 8 s.
    assert 4 < found.finished - began < 7.5


def test_a_manager_that_ends_waits_for_no_cycle_that_never_began(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    from rbdtree.manager.cycle import Cycles

    began, run = threading.Event(), Cycles.run

    def slow(self: Cycles, *words: Any, **more: Any) -> Any:
        began.set()
        time.sleep(2)
        return run(self, *words, **more)

    monkeypatch.setattr(Cycles, "run", slow)
    manager = Manager(grove.sites, Wish(poll=60.0))
    manager._shifts._workers = ThreadPoolExecutor(1)
    thread = threading.Thread(target=manager.run)
    thread.start()
    assert began.wait(10)
    time.sleep(1)
    assert sum(unit.running for unit in manager.units.values()) > 2
    since = time.monotonic()
    manager.stop()
    thread.join(30)
    assert time.monotonic() - since < 10


def test_a_cut_by_schedule_freezes_what_is_mapped_here(grove: Grove) -> None:
    """As the command does."""
    seen: list[tuple[str, int]] = []

    @contextmanager
    def frozen(tree_id: str) -> Iterator[list[str]]:
        seen.append((tree_id, len(grove.document("root").generations)))
        yield []
        seen.append((tree_id, len(grove.document("root").generations)))

    grove.policy("root", tree=True, schedule="1s")
    manager = Manager(grove.sites, Wish(poll=60.0), frozen=frozen)
    thread = threading.Thread(target=manager.run)
    thread.start()
    try:
        grove.write(0, b"new" * 1000)
        until(lambda: len(seen) == 2, "it was cut")
        time.sleep(2)
    finally:
        manager.stop()
        thread.join(30)
    # Nothing has changed since: nobody was frozen for it.
    tree_id = grove.document("root").tree_id
    assert seen == [(tree_id, 0), (tree_id, 1)]
