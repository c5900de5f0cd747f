"""Journal uplinks of the nodes in a manager's care: a thread each, for as long as the edge is this manager's."""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine.claim import is_dead
from rbdtree.engine.loss import Window
from rbdtree.engine.node import Node
from rbdtree.engine.pace import Paces
from rbdtree.engine.uplink import Uplink
from rbdtree.manager import answer
from rbdtree.manager.unit import Unit
from rbdtree.model.document import Push
from rbdtree.ports import Reporter, Sites

_GLANCE_SECONDS = 5.0
_STILL_SECONDS = 120.0
_PERSON_SECONDS = 2.0
"""Between two tries of what waits for a person, however often the document is written."""


@dataclass(eq=False)
class _Run:
    unit: Unit
    thread: threading.Thread | None = None
    end: threading.Event = field(default_factory=threading.Event)
    uplink: Uplink | None = None
    window: Window | None = None
    pushes: tuple[Push, ...] = ()
    """Of its branch, as the manager saw them last."""
    stirred: threading.Event = field(default_factory=threading.Event)
    """They changed, or it is to end."""

    def stop(self) -> None:
        self.end.set()
        self.stirred.set()
        if self.uplink:
            self.uplink.stop.set()


class Uplinks:
    """``failed`` is told what ended one, which is tried again later by itself; None when one goes on (it has seen its
    journal, and shows what would be lost), or is not wanted any more."""

    def __init__(
        self,
        sites: Sites,
        reporter: Reporter,
        failed: Callable[[Unit, errors.Error | None], None],
        interval: float = 1.0,
        paces: Paces | None = None,
    ) -> None:
        self._sites = sites
        self._paces = paces or Paces()
        self._reporter = reporter
        self._failed = failed
        self._interval = interval
        self._runs: dict[str, _Run] = {}

    def tend(self, units: list[Unit]) -> None:
        """Starts what should run and does not, stops what should not."""
        wanted = {unit.edge: unit for unit in units if unit.held and _wants(unit)}
        for edge, run in list(self._runs.items()):
            if edge not in wanted:
                run.stop()
            if run.thread and not run.thread.is_alive():
                del self._runs[edge]
                if edge not in wanted:
                    self._failed(run.unit, None)
        for edge, unit in wanted.items():
            known = self._runs.get(edge)
            if known:
                pushes = tuple(p for p in unit.document.pushes if p.owner == unit.ref.node_id)
                if pushes != known.pushes:
                    known.pushes = pushes
                    known.stirred.set()
            else:
                run = _Run(unit)
                run.thread = threading.Thread(target=self._go, args=(run,), name=f"uplink-{unit.name}", daemon=True)
                self._runs[edge] = run
                run.thread.start()

    def windows(self) -> dict[str, Window]:
        """What would be lost with each branch now, by the full name of its node."""
        return {run.unit.name: run.window for run in list(self._runs.values()) if run.window}

    def close(self, seconds: float) -> None:
        """In good order: what was read is published, if that does not take too long."""
        until = time.monotonic() + seconds
        for run in self._runs.values():
            run.stop()
        for run in self._runs.values():
            if run.thread:
                run.thread.join(max(0.0, until - time.monotonic()))
        self._runs.clear()

    def _go(self, run: _Run) -> None:
        failures = 0
        while not run.end.is_set() and not run.unit.leave.is_set():
            began = time.monotonic()
            try:
                self._once(run)
            except errors.Fenced:
                self._wait_for_turn(run)
                continue
            except errors.Error as error:
                failures = failures + 1 if time.monotonic() - began < 60 else 1
                self._failed(run.unit, error)
                self._pause(run, answer.answer(error), failures)
            except Exception as error:
                failures += 1
                self._failed(run.unit, errors.Bug(f"{run.unit.name}: uplink: {type(error).__name__}: {error}"))
                self._pause(run, answer.Answer.GIVE_UP, failures)

    def _pause(self, run: _Run, kind: answer.Answer, failures: int) -> None:
        """What waits for a person is tried again when its pushes change, as they do when one has acted."""
        seconds = answer.wait_seconds(kind, failures)
        run.stirred.clear()
        if kind is not answer.Answer.PERSON:
            run.end.wait(seconds)
        elif not run.end.wait(_PERSON_SECONDS):
            run.stirred.wait(seconds)

    def _once(self, run: _Run) -> None:
        well = False

        def show(window: Window) -> None:
            nonlocal well
            run.window = window
            if not well:
                self._failed(run.unit, None)
            well = True

        node = Node.at(self._sites, run.unit.ref)
        node.name = run.unit.name
        run.uplink = Uplink(self._sites, node, self._reporter, interval=self._interval, show=show, paces=self._paces)
        if run.end.is_set():
            return
        run.uplink.run()

    def _wait_for_turn(self, run: _Run) -> None:
        """Another uplink was started, by a person maybe: until it has ended, or nothing of it is seen any more."""
        seen: object = None
        still = time.monotonic()
        while not run.end.wait(_GLANCE_SECONDS) and not run.unit.leave.is_set():
            with suppress(errors.Error):
                document = Node.at(self._sites, run.unit.ref).read()
                branch = document.branch
                if branch is None or not branch.session or is_dead(branch.session):
                    return
                state = (branch, branches.own_pushes(document))
                if state != seen:
                    seen, still = state, time.monotonic()
                elif time.monotonic() - still > _STILL_SECONDS:
                    return


def _wants(unit: Unit) -> bool:
    branch = unit.document.branch
    return (
        branch is not None and branch.uplink == branches.JOURNAL and bool(branch.image_id) and not unit.document.phase
    )
