"""Limits of bandwidth over ``rbdtree.memory``: by time of day, and among siblings that need the same delta."""

import threading
import time
from collections import Counter
from typing import Any

import pytest
from manager.forest import Grove, until

from rbdtree import memory
from rbdtree.engine import copy as copying
from rbdtree.engine import desk as desks
from rbdtree.engine.copy import Pace
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import EdgeRun, Outcome
from rbdtree.manager.cycle import Cycles
from rbdtree.manager.unit import Unit
from rbdtree.model.document import Kind
from rbdtree.model.schedule import Bandwidth
from rbdtree.ports import Silent

MIB = 1 << 20


def at(hour: int) -> float:
    """Of a day, in local time."""
    return time.mktime((2026, 1, 5, hour, 0, 0, 0, 0, -1))


def test_a_limit_begins_in_the_middle_of_a_copy_and_slows_no_sibling(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them begin at 7; m2 has a limit from 8 to 18."""
    monkeypatch.setattr(copying.chunks, "__defaults__", (MIB, 0))
    monkeypatch.setattr(desks, "_PATIENCE", 20.0)
    grove = Grove()
    for name in ("m1", "m2", "m3"):
        grove.add(name, "root", Kind.MIRROR, "b")
    for number in range(8):
        grove.write(number * MIB, bytes([number + 1]) * MIB)
    grove.cut()
    hours = [7]
    windows = {"m1": "off", "m2": "08:00 1M; 18:00 off"}
    reads: Counter[int] = Counter()
    read, root = memory.Image.submit_read, grove.document("root").image_id

    def counted(self: memory.Image, offset: int, *more: Any) -> None:
        if self.image_id == root:
            hours[0] = max(hours[0], 9)
            reads[offset] += 1
        read(self, offset, *more)

    monkeypatch.setattr(memory.Image, "submit_read", counted)
    stop, done = threading.Event(), dict[str, Outcome]()
    desk = Desk(3, Silent(), stop, copying.Window(copying.WINDOW))

    def bring(name: str) -> None:
        bandwidth = Bandwidth.parse(windows.get(name, ""))
        run = EdgeRun(grove.sites, Silent(), stop, pace=Pace(lambda: bandwidth, lambda: at(hours[0])))
        done[name] = run.run(grove.node(name), Kind.MIRROR, desk)

    threads = [threading.Thread(target=bring, args=(name,), daemon=True) for name in ("m1", "m2", "m3")]
    for thread in threads:
        thread.start()
    until(lambda: len(done) == 2, "the others are there")
    assert set(done) == {"m1", "m3"}
    assert reads[0] == 2
    assert reads[7 * MIB] == 1
    hours[0] = 19
    until(lambda: "m2" in done, "the limit is over")
    assert not [outcome.error for outcome in done.values() if outcome.error]
    assert grove.level()


def test_a_node_that_is_met_again_has_the_limit_of_now() -> None:
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    cycles = Cycles(grove.sites, Silent(), threading.Event(), "manager")

    def met() -> Unit:
        found = grove.document("m")
        return Unit(found.ref, found)

    first = met()
    assert not cycles._pace(first).limited
    assert cycles._pace(first) is cycles._pace(first)
    grove.policy("m", bandwidth="1M")
    assert cycles._pace(met()).limited
