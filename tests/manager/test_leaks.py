"""A manager that runs for months: what a thousand cycles leave behind in its memory. The soak looks at processes."""

import gc
import threading
import time
import tracemalloc
from collections import Counter

import pytest

from rbdtree.manager import cycle as cycles
from rbdtree.manager.cycle import Cycle
from rbdtree.manager.unit import Unit
from rbdtree.manager.wish import Listener
from rbdtree.model import codec

from .forest import Grove, until


class Counting(Listener):
    """How many cycles there were, and how many of them moved anything."""

    def __init__(self) -> None:
        self.cycles: Counter[bool] = Counter()

    def cycle(self, unit: Unit, cycle: Cycle) -> None:
        del unit
        self.cycles[cycle.changed] += 1

    @property
    def seen(self) -> int:
        return sum(self.cycles.values())


@pytest.mark.timeout(240)
def test_a_thousand_cycles_leave_nothing_behind(grove: Grove, monkeypatch: pytest.MonkeyPatch) -> None:
    """Generations come and go in them. Only what the engine and the manager made counts: storage in memory remembers
    what was ever written to it."""
    for pause in ("_RETAIN_SECONDS", "_RETAIN_IDLE_SECONDS"):
        monkeypatch.setattr(cycles, pause, 0.1)
    grove.policy("root", tree=True, keep="last 2")
    listener = Counting()
    grove.run(listener=listener, poll=0.1)

    def work(cycles: int) -> None:
        end, turn = listener.seen + cycles, 0
        while listener.seen < end:
            turn += 1
            grove.write(4096 * (turn % 64), bytes([turn % 250 + 1]) * 4096)
            grove.cut()
            until(grove.level, "everybody has it", 30)
        until(lambda: len(grove.document("leaf").generations) <= 3, "retention has been there")

    def kept() -> int:
        # It remembers the last thousands of generations, and no more.
        codec._plain_generation.cache_clear()
        gc.collect()
        ours = [tracemalloc.Filter(True, f"*/rbdtree/{part}/*") for part in ("engine", "manager", "plan", "model")]
        return sum(trace.size for trace in tracemalloc.take_snapshot().filter_traces(ours).traces)

    def resting() -> int:
        return max(threading.active_count() for _ in range(20) if not time.sleep(0.05))

    work(200)
    tracemalloc.start()
    try:
        work(200)
        before, threads, moved = kept(), resting(), listener.cycles[True]
        work(1000)
        after = kept()
    finally:
        tracemalloc.stop()
    assert listener.cycles[True] - moved > 100
    # Pools of threads reach their bounds by and by.
    until(lambda: threading.active_count() <= threads + 8, "threads have ended")
    # Python keeps some thousand small tuples for later. Of a leak a hundred bytes a cycle would show.
    assert after < before + 100 * 1000, (before, after)
