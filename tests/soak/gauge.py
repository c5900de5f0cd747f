"""Whether a manager that lives for long grows: its memory, threads and sockets, looked at every few seconds."""

import statistics
import time
from contextlib import suppress
from typing import Any, NamedTuple

from soak.stage import Manager

EVERY = 5.0
ENOUGH = 60
"""Looks, before anything is concluded: five minutes."""
LONG = 2400.0
"""Seconds before threads and sockets tell anything: those of a fenced connection stay for ten minutes and more."""


class Seen(NamedTuple):
    """One look."""

    seconds: float
    rss_bytes: int
    threads: int
    sockets: int


class Gauge:
    """Looks at one manager. Threads and sockets come and go with what it does, so of a time their least counts."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._seen: list[Seen] = []
        self._began = time.monotonic()

    def look(self) -> None:
        """Every few seconds at most."""
        now = time.monotonic() - self._began
        if self._seen and now - self._seen[-1].seconds < EVERY:
            return
        with suppress(OSError):
            manager = self._manager
            self._seen.append(Seen(now, manager.rss_bytes(), manager.threads(), manager.sockets()))

    def _parts(self) -> tuple[list[Seen], list[Seen]]:
        """The second fifth of the time, when it is warm, and the last."""
        fifth = len(self._seen) // 5
        return self._seen[fifth : 2 * fifth], self._seen[-fifth:]

    def check(self) -> None:
        """After a short run nothing can be told."""
        if len(self._seen) < ENOUGH:
            return
        early, late = self._parts()
        rss = [statistics.median(seen.rss_bytes for seen in part) for part in (early, late)]
        assert rss[1] < 1.2 * rss[0] + (8 << 20), f"memory grew from {rss[0] / 2**20:.0f} to {rss[1] / 2**20:.0f} MiB"
        if self._seen[-1].seconds < LONG:
            return
        # A pool of threads grows when one of them waits, to so many a site, and keeps them.
        for what, more in (("threads", 16), ("sockets", 2)):
            least = [min(getattr(seen, what) for seen in part) for part in (early, late)]
            assert least[1] <= least[0] + more, f"{what} grew from {least[0]} to {least[1]}"

    def summary(self) -> dict[str, Any]:
        """Early and late."""
        cycles = sum(event.get("event") == "cycle" for event in self._manager.events())
        found: dict[str, Any] = {"cycles": cycles, "looks": len(self._seen)}
        if len(self._seen) >= 5:
            for name, part in zip(("early", "late"), self._parts(), strict=True):
                found[name] = {
                    "rss_mib": round(statistics.median(seen.rss_bytes for seen in part) / 2**20),
                    "threads": min(seen.threads for seen in part),
                    "sockets": min(seen.sockets for seen in part),
                }
        return found
