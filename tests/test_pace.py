"""Limits of bandwidth over ``rbdtree.memory``: by time of day, among siblings with the same delta, and of pushes."""

import threading
import time
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from manager.forest import Grove, until

from rbdtree import errors, memory
from rbdtree.engine import branch as branches
from rbdtree.engine import copy as copying
from rbdtree.engine import desk as desks
from rbdtree.engine import pace as pacing
from rbdtree.engine import parcel, push
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import EdgeRun, Outcome
from rbdtree.engine.pace import Pace, Paces
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
        run = EdgeRun(grove.sites, Silent(), stop, pace=Pace(bandwidth, lambda: at(hours[0])))
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


def test_all_that_moves_along_an_edge_shares_the_limit_of_now() -> None:
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    paces = Paces()
    first = paces.of(grove.document("m"))
    assert not first.limited
    grove.policy("m", bandwidth="1M")
    assert paces.of(grove.document("m")) is first
    assert first.limited
    assert paces.of(grove.document("root")) is not first


class Clock:
    """Goes on whenever somebody looks at it, and when one that is slowed sleeps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(pacing, "time", SimpleNamespace(time=time.time, localtime=time.localtime, sleep=self.sleep))

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def look(self) -> float:
        self.now += 0.01
        return self.now

    def paces(self, grove: Grove, name: str) -> Paces:
        """With this clock for the edge to ``name``."""
        document, paces = grove.document(name), Paces()
        paces._known[document.edge] = Pace(Bandwidth(), clock=self.look)
        return paces


@pytest.fixture
def limited() -> Grove:
    """A mirror with a branch, and 1 MiB a second between it and the root."""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.cut()
    EdgeRun(grove.sites, Silent(), threading.Event()).run(
        grove.node("m"), Kind.MIRROR, Desk(1, Silent(), threading.Event(), copying.Window(copying.WINDOW))
    )
    branches.ensure(grove.sites, grove.node("m"), branches.SNAPSHOT, None)
    grove.policy("m", bandwidth="1M")
    return grove


def staged(grove: Grove, offset: int, length: int) -> None:
    """A push of that much."""
    branch = grove.document("m").branch
    assert branch
    image = grove.sites.cluster("b").pool("p").open(branch.image_id, read_only=False)
    image.submit_write(offset, b"x" * length, lambda error: None)
    image.close()
    push.stage(grove.sites, grove.node("m"))


@pytest.mark.parametrize("limit", [parcel.LIMIT, 0], ids=["packed", "copied"])
def test_pushes_keep_to_the_limit(limited: Grove, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is paid for by whatever comes after it along the edge."""
    monkeypatch.setattr(parcel, "LIMIT", limit)
    monkeypatch.setattr(copying, "_WAIT", 0.001)
    clock = Clock(monkeypatch)
    paces = clock.paces(limited, "m")
    for offset in (0, 2 * MIB, 4 * MIB):
        staged(limited, offset, 2 * MIB)
        push.forward(limited.sites, limited.node("m"), Silent(), paces=paces)
    assert len(limited.document("root").pushes) == 3
    assert 104.0 <= clock.now < 105.0
    assert paces.of(limited.document("m")).delay() > 1.0


def test_who_stops_need_not_wait_for_a_slow_push(limited: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    paces = clock.paces(limited, "m")

    def stop() -> None:
        if clock.now > 101.0:
            raise errors.Interrupted("stopped")

    staged(limited, 0, 2 * MIB)
    push.forward(limited.sites, limited.node("m"), Silent(), paces=paces, check=stop)
    staged(limited, 2 * MIB, 2 * MIB)
    with pytest.raises(errors.Interrupted):
        push.forward(limited.sites, limited.node("m"), Silent(), paces=paces, check=stop)
    assert len(limited.document("root").pushes) == 1
    push.forward(limited.sites, limited.node("m"), Silent())
    assert len(limited.document("root").pushes) == 2


def test_what_is_owed_is_paid_by_the_limit_of_now() -> None:
    now = [0.0]
    pace = Pace(Bandwidth.parse("1K"), clock=lambda: now[0])
    pace.spend(MIB)
    assert pace.delay() == 1024.0
    now[0] = 512.0
    assert pace.delay() == 512.0
    pace.bandwidth = Bandwidth.parse("1M")
    assert pace.delay() == 0.5
    pace.bandwidth = Bandwidth()
    assert pace.delay() == 0.0
    pace.bandwidth = Bandwidth.parse("1K")
    assert pace.delay() == 0.0
