"""Scrubs and repairs over ``rbdtree.memory``: what is noted of what they find, and that it is mended."""

import threading
from dataclasses import replace
from typing import Any

import pytest
from manager.forest import Grove

from rbdtree import errors, memory
from rbdtree.engine import copy as copying
from rbdtree.engine import forest, relay, repair, scrub, verify
from rbdtree.engine.claim import Claim
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import EdgeRun, Outcome, plan_of
from rbdtree.engine.mirror import MirrorEdge
from rbdtree.engine.sync import Sync
from rbdtree.model.document import Intent, Kind
from rbdtree.plan.step import Seal
from rbdtree.ports import Silent


def test_what_is_found_while_a_copy_begins_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """The copy would take the distrust for its own, and end it."""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.write(0, b"one" * 1000)
    grove.cut()
    Sync(grove.sites).run(forest.look(grove.sites).tree("t"))
    node = grove.node("m")
    position = grove.document("m").newest_position
    assert position
    copying = Intent(position, position, 8 << 20, 0.0, "w", "")

    def compare(_source: Any, _image: Any, _mine: Any, _theirs: Any, verdict: verify.Verdict, *_: Any) -> None:
        verdict.differences.append(verify.Difference(0, ((0, 1),)))
        if begins:
            grove.node("m").update(lambda d: replace(d, intent=copying))

    monkeypatch.setattr(verify, "compare", compare)
    begins = True
    with pytest.raises(errors.Changed):
        scrub.scrub(grove.sites, node, 1 << 20, Silent())
    found = grove.document("m")
    assert (found.distrust, found.scrub) == ("", None)
    assert scrub.scrub(grove.sites, node, 1 << 20, Silent()) is None
    grove.node("m").update(lambda d: replace(d, intent=None))
    begins = False
    with pytest.raises(errors.Integrity):
        scrub.scrub(grove.sites, node, 1 << 20, Silent())
    assert "a scrub found 1 object unlike t/root" in grove.document("m").distrust


def test_what_is_distrusted_while_it_arrives_is_compared_from_the_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """``g`` takes a delta that ``m`` is still receiving, and is found to be wrong where that delta changes nothing."""
    monkeypatch.setattr(relay, "STALL_SECONDS", 0.2)
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.add("g", "m", Kind.MIRROR, "c")
    grove.write(0, b"one" * 1000)
    grove.write(4 << 20, b"two" * 1000)
    grove.cut()

    def tree() -> forest.Tree:
        return forest.look(grove.sites).tree("t")

    def bring(name: str) -> Outcome:
        stop, node = threading.Event(), grove.node(name)
        desk = Desk(1, Silent(), stop, copying.Window(copying.WINDOW))
        return EdgeRun(grove.sites, Silent(), stop, relay=True).run(node, Kind.MIRROR, desk)

    Sync(grove.sites).run(tree())
    memory.corrupt(grove.storages["c"], grove.document("g").image_id, 0, 100, b"EVIL")
    grove.write(4 << 20, b"new" * 1000)
    grove.cut()
    node = grove.node("m")
    with Claim(node, "sync") as claim:
        edge = MirrorEdge(grove.sites, node, claim, Silent())
        steps = list(plan_of(edge.observe()))
        while not isinstance(steps[0], Seal):
            request = edge.apply(steps.pop(0))
            if request:
                Desk(1, Silent(), threading.Event(), copying.Window(copying.WINDOW)).copy(
                    request, claim.check, edge.record
                )
        edge.record(8 << 20)
        assert "relay 1.1 -> 1.2" in bring("g").steps
        verdict = verify.verify(grove.sites, tree(), tree().member("g"), tree().member("m"), None, Silent())
        assert verdict.differences
        repair.distrust(grove.node("g"), verdict)
        bring("g")
        for step in steps:
            edge.apply(step)
        edge.close()
    assert bring("g").error is None
    found = grove.document("g")
    assert (str(found.newest_position), found.distrust) == ("1.2", "")
    verdict = verify.verify(grove.sites, tree(), tree().member("g"), tree().member("m"), None, Silent())
    assert verdict.equal
    assert str(verdict.position) == "1.2"
