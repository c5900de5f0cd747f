"""Cut-through over ``rbdtree.memory``: ``g`` takes what ``m`` has of a delta that it is still receiving."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from manager.forest import Grove

from rbdtree import errors, memory
from rbdtree.engine import copy as copying
from rbdtree.engine import forest, relay, repair, verify
from rbdtree.engine.claim import Claim
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import EdgeRun, Outcome, plan_of
from rbdtree.engine.mirror import MirrorEdge
from rbdtree.engine.sync import Sync
from rbdtree.model.document import Kind
from rbdtree.plan.step import Seal
from rbdtree.ports import Silent

HALF = 4 << 20


@pytest.fixture
def grove(monkeypatch: pytest.MonkeyPatch) -> Grove:
    """Root, ``m`` below it and ``g`` below that, level."""
    monkeypatch.setattr(relay, "STALL_SECONDS", 0.2)
    made = Grove()
    made.add("m", "root", Kind.MIRROR, "b")
    made.add("g", "m", Kind.MIRROR, "c")
    made.write(0, b"one" * 1000)
    made.write(HALF, b"two" * 1000)
    made.cut()
    Sync(made.sites).run(tree(made))
    return made


def tree(grove: Grove) -> forest.Tree:
    return forest.look(grove.sites).tree("t")


def desk() -> Desk:
    return Desk(1, Silent(), threading.Event(), copying.Window(copying.WINDOW))


def bring(grove: Grove, name: str) -> Outcome:
    return EdgeRun(grove.sites, Silent(), threading.Event(), relay=True).run(grove.node(name), Kind.MIRROR, desk())


@contextmanager
def received(grove: Grove) -> Iterator[None]:
    """``m`` has all of a delta, and seals it in the end."""
    with Claim(grove.node("m"), "sync") as claim:
        edge = MirrorEdge(grove.sites, grove.node("m"), claim, Silent())
        steps = list(plan_of(edge.observe()))
        while not isinstance(steps[0], Seal):
            request = edge.apply(steps.pop(0))
            if request:
                desk().copy(request, claim.check, edge.record)
        edge.record(2 * HALF)
        yield
        for step in steps:
            edge.apply(step)
        edge.close()


def test_what_is_distrusted_while_it_arrives_is_compared_from_the_beginning(grove: Grove) -> None:
    """``g`` is found to be wrong where the delta changes nothing."""
    memory.corrupt(grove.storages["c"], grove.document("g").image_id, 0, 100, b"EVIL")
    grove.write(HALF, b"new" * 1000)
    grove.cut()
    with received(grove):
        assert "relay 1.1 -> 1.2" in bring(grove, "g").steps
        verdict = verify.verify(grove.sites, tree(grove), *ends(grove), None, Silent())
        assert verdict.differences
        repair.distrust(grove.node("g"), verdict)
        bring(grove, "g")
    assert bring(grove, "g").error is None
    found = grove.document("g")
    assert (str(found.newest_position), found.distrust) == ("1.2", "")
    verdict = verify.verify(grove.sites, tree(grove), *ends(grove), None, Silent())
    assert verdict.equal
    assert str(verdict.position) == "1.2"


def ends(grove: Grove) -> tuple[forest.Member, forest.Member]:
    return tree(grove).member("g"), tree(grove).member("m")


def test_what_a_relay_moved_is_counted_when_it_fails_too(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    write, full = memory.Image.submit_write, [True]

    def fails_once(self: memory.Image, offset: int, data: bytes, done: Any) -> None:
        if offset >= HALF and full and self.image_id == grove.document("g").image_id:
            full.pop()
            done(errors.NoSpace("of the test"))
        else:
            write(self, offset, data, done)

    for offset in (0, HALF):
        grove.write(offset, b"new!" * 1024)
    grove.cut()
    with received(grove):
        monkeypatch.setattr(memory.Image, "submit_write", fails_once)
        failed = bring(grove, "g")
        assert "relay 1.1 -> 1.2" in failed.steps
        assert isinstance(failed.error, errors.NoSpace)
        assert not full
        assert (failed.written_bytes, failed.copied_chunks) == (0, 0)
        assert 4096 <= failed.repeated_bytes <= 8192
        assert 1 <= failed.repeated_chunks <= 2
        done = bring(grove, "g")
        assert done.error is None
        assert done.written_bytes == 8192
        assert (done.repeated_bytes, done.copied_chunks) == (0, 2)
    Sync(grove.sites).run(tree(grove))
    assert grove.level()
