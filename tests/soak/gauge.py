"""Whether a manager that lives for long grows: its memory, threads and sockets, looked at every few seconds."""

import statistics
import time
from collections import Counter
from contextlib import suppress
from operator import attrgetter
from typing import Any, NamedTuple

from soak.stage import Manager

EVERY = 5.0
ENOUGH = 60
"""Looks, before anything is concluded: five minutes."""
LONG = 2400.0
"""Seconds before threads and sockets tell anything: those of a fenced connection stay for six minutes."""


class Seen(NamedTuple):
    """One look."""

    seconds: float
    rss_bytes: int
    threads: int
    sockets: int
    kinds: "Counter[str]"
    """Its threads by name."""


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
            kinds = manager.threads()
            self._seen.append(Seen(now, manager.rss_bytes(), kinds.total(), manager.sockets(), kinds))

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
            one, two = (min(part, key=attrgetter(what)) for part in (early, late))
            grown = {name: count for name, count in (two.kinds - one.kinds).items() if count}
            said = f"{what} grew from {getattr(one, what)} to {getattr(two, what)}; threads: {grown}; {self.course()}"
            assert getattr(two, what) <= getattr(one, what) + more, said

    def course(self) -> list[tuple[int, int, int]]:
        """Seconds, threads and sockets at their least, ten minutes by ten minutes."""
        found = []
        for number in range(int(self._seen[-1].seconds // 600) + 1):
            part = [seen for seen in self._seen if seen.seconds // 600 == number]
            if part:
                found.append((600 * number, min(s.threads for s in part), min(s.sockets for s in part)))
        return found

    def summary(self) -> dict[str, Any]:
        """Early and late."""
        cycles = sum(event.get("event") == "cycle" for event in self._manager.events())
        found: dict[str, Any] = {"cycles": cycles, "looks": len(self._seen), "course": self.course()}
        if len(self._seen) >= 5:
            for name, part in zip(("early", "late"), self._parts(), strict=True):
                found[name] = {
                    "rss_mib": round(statistics.median(seen.rss_bytes for seen in part) / 2**20),
                    "threads": min(seen.threads for seen in part),
                    "sockets": min(seen.sockets for seen in part),
                }
        return found
