"""Where sibling edges meet before they copy: those that need the same delta share one read of it.

An edge that comes to copy waits until every sibling has come too, is done, or takes too long to decide; then the
first of those with equal keys copies for all of them.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from rbdtree import errors
from rbdtree.engine.copy import Copied, Copy, Window
from rbdtree.engine.mirror import CopyRequest
from rbdtree.ports import Reporter

_PATIENCE = 1.0
_RECORD_SECONDS = 1.0


@dataclass(eq=False)
class _Ticket:
    request: CopyRequest
    check: Callable[[], None]
    record: Callable[[int], None]
    done: threading.Event = field(default_factory=threading.Event)
    taken: bool = False
    error: BaseException | None = None
    copied: Copied = field(default_factory=Copied)


class Desk:
    """One per parent; ``edges`` siblings come to it, and those that enter later."""

    def __init__(self, edges: int, reporter: Reporter, stop: threading.Event, window: Window) -> None:
        self._deciding = edges
        self._reporter = reporter
        self._stop = stop
        self._window = window
        self._waiting: list[_Ticket] = []
        self._moved = threading.Condition()

    def enter(self) -> None:
        """One edge more will come, or leave."""
        with self._moved:
            self._deciding += 1

    def leave(self) -> None:
        """This edge will not copy any more."""
        with self._moved:
            self._deciding -= 1
            self._moved.notify_all()

    def copy(self, request: CopyRequest, check: Callable[[], None], record: Callable[[int], None]) -> Copied:
        """Returns when the target has everything; raises its error, or the source's."""
        ticket = _Ticket(request, check, record)
        with self._moved:
            self._waiting.append(ticket)
            self._deciding -= 1
            self._moved.notify_all()
            self._moved.wait_for(lambda: ticket.taken or self._deciding <= 0, timeout=_PATIENCE)
            group = [] if ticket.taken else [t for t in self._waiting if t.request.key == request.key]
            for member in group:
                member.taken = True
                self._waiting.remove(member)
        try:
            if group:
                self._lead(group)
            ticket.done.wait()
        finally:
            with self._moved:
                self._deciding += 1
        if ticket.error:
            raise ticket.error
        return ticket.copied

    def _lead(self, group: list[_Ticket]) -> None:
        lead = group[0].request
        start = min(ticket.request.start for ticket in group)
        recorded = time.monotonic()

        def check() -> None:
            if self._stop.is_set():
                raise errors.Interrupted("interrupted", "Run the sync again: it goes on where it stopped.")
            for ticket in group:
                if ticket.request.target.failed is None:
                    try:
                        ticket.check()
                    except errors.Error as error:
                        ticket.request.target.failed = error

        def progress(copied: Copied) -> None:
            nonlocal recorded
            for ticket in group:
                self._reporter.copying(ticket.request.target.name, copied.passed_bytes, copied.total_bytes)
            if time.monotonic() - recorded >= _RECORD_SECONDS:
                recorded = time.monotonic()
                self._record(group, copied.done_bytes)

        copy = Copy(
            lead.source,
            [ticket.request.target for ticket in group],
            lead.planned(start),
            check=check,
            progress=progress,
            compare=lead.compare,
            window=self._window,
            pace=lead.pace,
        )
        error: BaseException | None = None
        try:
            copy.run()
        except BaseException as failure:
            error = failure
        try:
            if error:
                self._record(group, copy.copied.done_bytes)
        finally:
            # Whatever happens here, siblings wait for nobody who is gone.
            for ticket in group:
                ticket.copied = copy.copied
                ticket.error = ticket.request.target.failed or error
                ticket.done.set()

    def _record(self, group: list[_Ticket], done_bytes: int) -> None:
        for ticket in group:
            if done_bytes and ticket.request.target.failed is None:
                try:
                    ticket.record(done_bytes)
                except errors.Error as error:
                    ticket.request.target.failed = error
