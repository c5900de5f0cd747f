"""How fast an edge may go: its ``bandwidth``, by time of day and weekday, down and up together."""

import threading
import time
from collections.abc import Callable

from rbdtree.model.document import NodeDocument
from rbdtree.model.policy import effective
from rbdtree.model.schedule import Bandwidth

_STEP_SECONDS = 0.5
"""How often one that waits looks whether it should, or may."""


class Pace:
    """Bytes a second that all copies of an edge together may read from their source. ``bandwidth`` may change.

    ``now``: seconds since 1970, by which its windows begin and end."""

    def __init__(
        self,
        bandwidth: Bandwidth,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.bandwidth = bandwidth
        self._now = now
        self._clock = clock
        self._guard = threading.Lock()
        self._owed = 0.0
        """Bytes that were read and are not paid for, as of ``_looked``: not seconds, for the limit may change."""
        self._looked = clock()

    @property
    def limited(self) -> bool:
        """At any time: a copy that begins without a limit may come into one."""
        return self.bandwidth.limited

    def _rate(self) -> int | None:
        now = self._now()
        return self.bandwidth.at(now, time.localtime(now).tm_gmtoff)

    def _account(self, count: int) -> float:
        rate = self._rate()
        with self._guard:
            now = self._clock()
            paid = rate * (now - self._looked) if rate else self._owed
            self._looked = now
            self._owed = max(0.0, self._owed - paid) + (count if rate else 0)
            return self._owed / rate if rate else 0.0

    def delay(self) -> float:
        """Seconds until what was read is paid for, by the limit of now."""
        return self._account(0)

    def spend(self, count: int) -> None:
        self._account(count)

    def wait(self, check: Callable[[], None]) -> None:
        """Until what was read is paid for. ``check`` raises what ends the waiting."""
        while delay := self.delay():
            check()
            time.sleep(min(delay, _STEP_SECONDS))


class Paces:
    """One for each edge, so that whoever moves something along it shares the limit with the others."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._guard = threading.Lock()
        self._known: dict[str, Pace] = {}

    def of(self, document: NodeDocument) -> Pace:
        """That of the edge to this node, with the limit that its document tells."""
        bandwidth = effective(document.policy, document.tree_policy).bandwidth
        with self._guard:
            found = self._known.setdefault(document.edge, Pace(bandwidth, self._now))
        found.bandwidth = bandwidth
        return found
