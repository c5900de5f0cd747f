"""When a node has its next turn, without anything that runs."""

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from rbdtree import errors
from rbdtree.manager.cycle import Cycle
from rbdtree.manager.shifts import Shifts
from rbdtree.manager.unit import Unit
from rbdtree.manager.wish import Listener, Wish
from rbdtree.ports import Silent

from .forest import Grove, until


class Cycles:
    """Each ends when it is told to, with what it is told."""

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.end = threading.Semaphore(0)
        self.error: errors.Error | None = None
        self.broken = False

    def run(self, unit: Unit, desk: Any, *, whole: bool) -> Cycle:
        self.begun.append(unit.ref.name)
        self.end.acquire()
        if self.broken:
            raise ValueError("of the test")
        return Cycle(unit.name, error=self.error)


class Bench:
    def __init__(self, grove: Grove, **wish: Any) -> None:
        self.cycles = Cycles()
        self.kicks = 0
        self.shifts = Shifts(
            self.cycles,  # type: ignore[arg-type]
            Wish(**{"poll": 100.0, **wish}),
            Listener(),
            Silent(),
            threading.Event(),
            self.kick,
        )
        self.units = [Unit(d.ref, d, held=True) for d in grove.documents().values()]

    def kick(self) -> None:
        self.kicks += 1

    def begin(self) -> None:
        self.shifts.begin(self.units, time.monotonic())

    def finish(self, count: int = 1) -> None:
        """Returns when they are over, and the manager has not heard of it yet."""
        before = self.kicks
        self.cycles.end.release(count)
        until(lambda: self.kicks == before + count, "they are over")

    def unit(self, name: str) -> Unit:
        return next(u for u in self.units if u.ref.name == name)


@pytest.fixture
def bench(grove: Grove) -> Iterator[Bench]:
    made = Bench(grove)
    yield made
    made.cycles.end.release(100)
    made.shifts.close(5)


def in_seconds(unit: Unit) -> float:
    return unit.due - time.monotonic()


def test_what_has_had_its_turn_is_due_at_the_next_poll(bench: Bench) -> None:
    bench.begin()
    until(lambda: len(bench.cycles.begun) == 4, "all are at work")
    bench.begin()
    assert all(unit.running for unit in bench.units)
    bench.finish(4)
    assert len(bench.shifts.ended()) == 4
    assert not bench.shifts.ended()
    assert not any(unit.running for unit in bench.units)
    assert all(90 < in_seconds(unit) <= 100 for unit in bench.units)
    assert 0.01 <= bench.shifts.pause(bench.units) <= 100
    bench.begin()
    assert len(bench.cycles.begun) == 4


@pytest.mark.parametrize("when", ["while it runs", "when it has just ended"])
def test_what_is_written_during_a_cycle_is_looked_at_after_it(bench: Bench, when: str) -> None:
    """Also in the moment between the end of a cycle and that the manager hears of it."""
    bench.begin()
    unit = bench.unit("m")
    if when == "while it runs":
        bench.shifts.wake(unit, time.monotonic())
        bench.finish(4)
    else:
        bench.finish(4)
        bench.shifts.wake(unit, time.monotonic())
    bench.shifts.ended()
    assert in_seconds(unit) <= 0
    assert all(in_seconds(other) > 90 for other in bench.units if other is not unit)
    bench.begin()
    until(lambda: bench.cycles.begun[4:] == ["m"], "it has its turn, and nobody else")


def test_who_lost_a_claim_tries_again_in_a_second(bench: Bench) -> None:
    bench.cycles.error = errors.Fenced("of the test")
    bench.begin()
    bench.finish(4)
    assert [type(cycle.error) for _, cycle in bench.shifts.ended()] == [errors.Fenced] * 4
    unit = bench.unit("m")
    assert 0 < unit.not_before - time.monotonic() <= 1
    bench.shifts.wake(unit, time.monotonic())
    bench.begin()
    assert not unit.running, "whoever wakes it"


def test_a_cycle_that_breaks_is_told_of_and_ends(bench: Bench) -> None:
    bench.cycles.broken = True
    bench.begin()
    bench.finish(4)
    assert all("ValueError: of the test" in str(cycle.error) for _, cycle in bench.shifts.ended())
    assert not any(unit.running for unit in bench.units)


def test_places_go_by_priority_and_roots_need_none(grove: Grove) -> None:
    grove.policy("leaf", priority="10")
    bench = Bench(grove, jobs=1)
    bench.begin()
    until(lambda: len(bench.cycles.begun) == 2, "the root and one other are at work")
    assert sorted(bench.cycles.begun) == ["leaf", "root"]
    bench.finish(2)
    bench.begin()
    assert len(bench.cycles.begun) == 2, "the manager has not heard of the end"
    bench.shifts.ended()
    bench.begin()
    until(lambda: len(bench.cycles.begun) == 3, "the next has its turn")
    bench.cycles.end.release(100)
    bench.shifts.close(5)


def test_who_ends_waits_for_what_has_begun_only(grove: Grove) -> None:
    bench = Bench(grove, jobs=8)
    bench.shifts._workers._max_workers = 1
    bench.begin()
    until(lambda: len(bench.cycles.begun) == 2, "the root and one of three are at work")
    threading.Timer(0.5, bench.cycles.end.release, (2,)).start()
    began = time.monotonic()
    bench.shifts.close(30)
    assert 0.3 < time.monotonic() - began < 20
    assert len(bench.cycles.begun) == 2
