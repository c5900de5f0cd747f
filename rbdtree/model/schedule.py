"""Times as operators write them: when to cut, and what bandwidth there is when.

    5m                                  every five minutes, counted from midnight UTC
    1h 00:20                            every hour, at twenty past (rbd: interval and start time)
    24h 14:00:00-05:00                  every day at two in the afternoon, five hours behind UTC
    08:00 20M; 18:00 off                20 MiB/s by day, no limit from six in the evening on
    mon-fri 08:00 20M; 00:00 off        limited on weekdays from eight to midnight

Pure: the clock, and for windows the hour's distance from UTC, are arguments. Times are seconds since 1970.
"""

import re
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.model.name import format_duration, parse_size

_DURATION = re.compile(r"(\d+)\s*(ms|s|m|h|d|w)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
_TIME = re.compile(r"([01]\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?")
_START = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?(?:Z|([+-])([01]\d|2[0-3]):?([0-5]\d)?)?")
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY = 86400
_THURSDAY = 3
"""1970-01-01, counted from Monday."""


def parse_duration(text: str) -> float:
    """Seconds from ``500ms``, ``90s``, ``15m``, ``12h``, ``7d``, ``2w``."""
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise errors.UsageError(
            f"{text!r} is not a duration", "Write a whole number and a unit: 500ms, 90s, 15m, 12h, 7d or 2w."
        )
    return int(match[1]) * _SECONDS[match[2]]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Every ``interval_seconds``, at times that are ``start_seconds`` behind a multiple of it."""

    interval_seconds: float
    start_seconds: float = 0.0

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """``INTERVAL [START]``: rbd's, whose intervals are in m, h and d, and whose start times are times of day in
        UTC, or with their distance from it; seconds are understood too."""
        interval, *rest = text.split()
        seconds = parse_duration(interval)
        if seconds < 1:
            raise errors.UsageError(f"{text!r}: an interval is 1s at least", "Write for example 30s, 5m or 1h.")
        if not rest:
            return cls(seconds)
        time = _START.fullmatch(rest[0])
        if len(rest) > 1 or not time:
            raise errors.UsageError(
                f"{text!r} is not a schedule",
                "Write INTERVAL or INTERVAL HH:MM (UTC, or HH:MM+HH:MM), for example '1d 03:30' or '1d 03:30+02:00'.",
            )
        hour, minute, second, sign, hours, minutes = time.groups(default="0")
        start = int(hour) * 3600 + int(minute) * 60 + int(second)
        ahead = int(hours) * 3600 + int(minutes) * 60
        # What is ahead of UTC comes earlier. (rbd's own scheduler adds the distance: rbd_support, Ceph 16.)
        start += ahead if sign == "-" else -ahead
        return cls(seconds, start % seconds)

    def last(self, now: float) -> float:
        """The newest time of the schedule that is not after ``now``."""
        return (now - self.start_seconds) // self.interval_seconds * self.interval_seconds + self.start_seconds

    def next(self, now: float) -> float:
        """The first time of the schedule after ``now``."""
        return self.last(now) + self.interval_seconds

    def __str__(self) -> str:
        start = f" at +{format_duration(self.start_seconds)}" if self.start_seconds else ""
        return f"every {format_duration(self.interval_seconds)}{start}"


@dataclass(frozen=True, slots=True)
class Window:
    """From ``second`` (of the day, local time) on, on ``days`` (0: Monday); None: no limit, in bytes a second."""

    days: frozenset[int]
    second: int
    limit: int | None


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second by time of day and weekday. What is set last before a moment counts, if days ago."""

    windows: tuple[Window, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Bandwidth":
        """``20M``, ``off``, or ``[DAYS] HH:MM LIMIT; ...``; DAYS are ``mon``, ``sat,sun`` or ``mon-fri``."""
        return cls(tuple(_window(part.split(), text) for part in text.split(";") if part.strip()))

    @property
    def limited(self) -> bool:
        """Whether there is a limit at any time."""
        return any(window.limit is not None for window in self.windows)

    def at(self, now: float, utc_offset: float = 0.0) -> int | None:
        """The limit at a moment; None: none. ``utc_offset``: seconds by which local time is ahead of UTC."""
        local = now + utc_offset
        day, second = int(local // _DAY), local % _DAY
        weekday = (day + _THURSDAY) % 7
        best: tuple[float, int, Window] | None = None
        for number, window in enumerate(self.windows):
            for chosen in window.days:
                age = (weekday - chosen) % 7 * _DAY + second - window.second
                age += 7 * _DAY if age < 0 else 0
                # Of two that begin at the same moment, the one that is written last counts.
                if best is None or (age, -number) < (best[0], best[1]):
                    best = (age, -number, window)
        return best[2].limit if best else None


def _window(words: list[str], text: str) -> Window:
    days, second = frozenset(range(7)), 0
    if len(words) == 3:
        days = _days(words[0], text)
    if len(words) >= 2:
        time = _TIME.fullmatch(words[-2])
        if not time or len(words) > 3:
            raise _no_bandwidth(text)
        second = int(time[1]) * 3600 + int(time[2]) * 60 + int(time[3] or 0)
    limit = words[-1].lower()
    if limit in ("off", "unlimited"):
        return Window(days, second, None)
    size = parse_size(limit.removesuffix("/s"))
    if size <= 0:
        raise errors.UsageError(f"{text!r}: a bandwidth of 0 would never end", "Write 'off' for no limit.")
    return Window(days, second, size)


def _days(text: str, whole: str) -> frozenset[int]:
    found: set[int] = set()
    for part in text.lower().split(","):
        first, _, last = part.partition("-")
        if first not in DAYS or (last and last not in DAYS):
            raise _no_bandwidth(whole)
        low, high = DAYS.index(first), DAYS.index(last or first)
        found |= {day % 7 for day in range(low, high + 1 if high >= low else high + 8)}
    return frozenset(found)


def _no_bandwidth(text: str) -> errors.UsageError:
    return errors.UsageError(
        f"{text!r} is not a bandwidth",
        "Write a rate (20M), 'off', or '[DAYS] HH:MM RATE; ...', for example 'mon-fri 08:00 20M; 18:00 off'.",
    )
