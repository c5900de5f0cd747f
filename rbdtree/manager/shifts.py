"""When each node of a manager's has its turn: which cycles run on its few threads, and what is due after each.

The manager's one thread calls all of this; cycles run on others, which leave what came of them for ``ended``.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue

from rbdtree import errors
from rbdtree.engine import copy as copying
from rbdtree.engine.desk import Desk
from rbdtree.manager import answer
from rbdtree.manager.cycle import Cycle, Cycles
from rbdtree.manager.tenure import drained
from rbdtree.manager.unit import Unit
from rbdtree.manager.wish import Listener, Wish
from rbdtree.model.document import Kind
from rbdtree.ports import Reporter

_PERSON_SECONDS = 2.0
"""Between two looks at what waits for a person, however often the documents are written."""


class Shifts:
    """``hurry`` is set when the manager ends; ``kick`` has it decide anew."""

    def __init__(
        self,
        cycles: Cycles,
        wish: Wish,
        listener: Listener,
        reporter: Reporter,
        hurry: threading.Event,
        kick: Callable[[], None],
    ) -> None:
        self._cycles = cycles
        self._wish = wish
        self._listener = listener
        self._reporter = reporter
        self._hurry = hurry
        self._kick = kick
        self._workers = ThreadPoolExecutor(wish.jobs, thread_name_prefix="cycle")
        self._roots = ThreadPoolExecutor(wish.jobs, thread_name_prefix="root")
        self._at_work: dict[Unit, Future[None]] = {}
        self._ended: SimpleQueue[tuple[Unit, Cycle]] = SimpleQueue()
        self._window = copying.Window(copying.WINDOW)
        self._desks: dict[str, Desk] = {}
        self._looked = 0.0

    # -- before

    def pause(self, units: list[Unit]) -> float:
        """Seconds until one falls due. What was due already has no place, and waits for the end of a cycle, which
        kicks."""
        now = time.monotonic()
        dues = [max(u.due, u.not_before) for u in units if u.held and not u.running]
        return max(0.01, min([due - now for due in dues if due > self._looked], default=1.0))

    def wake(self, unit: Unit, now: float) -> None:
        """Something that it listens to was written."""
        if unit.running:
            unit.again = True
            return
        unit.fall_due(now)
        if unit.waits_since:
            unit.not_before = min(unit.not_before, max(now, unit.waits_since + _PERSON_SECONDS))

    def begin(self, units: list[Unit], now: float) -> None:
        """The cycles of those of them that are due, as far as there are places."""
        self._looked = now
        chosen = self._choose(units, now)
        for unit in chosen:
            # All of them before any begins: siblings that need the same delta share one read of it.
            unit.desk = self._desk(unit)
            if unit.document.kind is Kind.MIRROR:
                unit.desk.enter()
        for unit in chosen:
            unit.running, unit.again = True, False
            unit.due = now + self._wish.poll
            self._at_work[unit] = (self._roots if unit.is_root else self._workers).submit(self._work, unit)

    def _choose(self, units: list[Unit], now: float) -> list[Unit]:
        due = [u for u in units if u.held and not u.running and max(u.due, u.not_before) <= now]
        due.sort(key=lambda u: (-u.policy.priority, u.due))
        # A root cuts and publishes on time, however many edges copy.
        chosen = [u for u in due if u.is_root]
        busy = [u for u in units if u.running and not u.is_root]
        for unit in due:
            beside = [u.policy.priority for u in busy if u.document.tree_id == unit.document.tree_id]
            # One that matters more than all of its tree at work does not wait for a copy that may take days.
            place = len(beside) < unit.policy.parallel or unit.policy.priority > max(beside)
            if not unit.is_root and len(busy) < self._wish.jobs and place:
                busy.append(unit)
                chosen.append(unit)
        return chosen

    def _desk(self, unit: Unit) -> Desk:
        upstream = unit.document.parent.node_id if unit.document.parent else unit.ref.node_id
        return self._desks.setdefault(upstream, Desk(0, self._reporter, self._hurry, self._window))

    def _work(self, unit: Unit) -> None:
        """On a thread of its own."""
        now = time.monotonic()
        whole = now >= unit.whole_due
        if whole:
            unit.whole_due = now + self._wish.whole
        assert unit.desk is not None
        try:
            cycle = self._cycles.run(unit, unit.desk, whole=whole)
        except Exception as error:
            bug = errors.Bug(f"{unit.name}: {type(error).__name__}: {error}")
            bug.__cause__ = error
            cycle = Cycle(unit.name, error=bug)
        with suppress(Exception):
            self._listener.cycle(unit, cycle)
        self._ended.put((unit, cycle))
        self._kick()

    # -- after

    def ended(self) -> list[tuple[Unit, Cycle]]:
        """Those whose cycles have ended since, with these."""
        found = drained(self._ended)
        now = time.monotonic()
        for unit, cycle in found:
            del self._at_work[unit]
            unit.running, unit.not_before, unit.waits_since = False, 0.0, 0.0
            if cycle.error:
                self._failed(unit, cycle, cycle.error, now)
            else:
                unit.due = self._next(unit, cycle, now)
        return found

    def _failed(self, unit: Unit, cycle: Cycle, error: errors.Error, now: float) -> None:
        kind = answer.answer(error)
        if kind is answer.Answer.STOP:
            unit.not_before = now + 1.0
        elif cycle.trouble:
            # As it was said, where it was said: everybody who looks sees the same.
            said = cycle.trouble.next_try
            unit.not_before = now + (said - cycle.trouble.seen if said else answer.LOOK_AGAIN_SECONDS)
            if kind is answer.Answer.PERSON:
                unit.waits_since = now
        unit.whole_due = 0.0
        if unit.is_root and unit.policy.schedule:
            # Whatever else fails there, a cut may be possible.
            unit.not_before = min(unit.not_before, now + max(_PERSON_SECONDS, _next_cut(unit)))
        if unit.again and unit.waits_since:
            unit.not_before = now + _PERSON_SECONDS
        unit.due = unit.not_before

    def _next(self, unit: Unit, cycle: Cycle, now: float) -> float:
        soon = [now + self._wish.poll]
        if unit.again:
            soon.append(now)
        if cycle.edge and cycle.edge.waits:
            soon.append(now + 1.0)
        policy = unit.policy
        if unit.is_root and policy.schedule:
            soon.append(now + _next_cut(unit))
        if policy.push and unit.document.branch:
            soon.append(max(unit.pushed + policy.push, now + 0.1))
        if policy.scrub and not unit.is_root:
            soon.append(max(unit.scrub_due, now + 0.1))
        return min(soon)

    def close(self, seconds: float) -> None:
        """What has not begun never does; what has is waited for so long."""
        for pool in (self._workers, self._roots):
            pool.shutdown(wait=False, cancel_futures=True)
        # For 'wait' those that never began are not over.
        wait([work for work in self._at_work.values() if not work.cancelled()], seconds)


def _next_cut(unit: Unit) -> float:
    """Seconds until its schedule wants one."""
    clock = time.time()
    return min(schedule.next(clock) - clock for schedule in unit.policy.schedule)
