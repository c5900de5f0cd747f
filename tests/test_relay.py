"""Cut-through over ``rbdtree.memory``: a child takes what its parent has of a delta that it is still receiving."""

import threading
from typing import Any

import pytest
from manager.forest import Grove

from rbdtree import errors, memory
from rbdtree.engine import copy as copying
from rbdtree.engine import forest, relay
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
    made.cut()
    Sync(made.sites).run(forest.look(made.sites).tree("t"))
    return made


def desk() -> Desk:
    return Desk(1, Silent(), threading.Event(), copying.Window(copying.WINDOW))


def bring(grove: Grove, name: str) -> Outcome:
    return EdgeRun(grove.sites, Silent(), threading.Event(), relay=True).run(grove.node(name), Kind.MIRROR, desk())


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
    with Claim(grove.node("m"), "sync") as claim:
        edge = MirrorEdge(grove.sites, grove.node("m"), claim, Silent())
        for step in plan_of(edge.observe()):
            if isinstance(step, Seal):
                break
            request = edge.apply(step)
            if request:
                desk().copy(request, claim.check, edge.record)
        edge.record(2 * HALF)
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
        edge.close()
    Sync(grove.sites).run(forest.look(grove.sites).tree("t"))
    assert grove.level()
