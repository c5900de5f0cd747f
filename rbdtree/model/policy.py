"""What a tree, or one node of it, wants to be done by a manager, as settings in text.

A node's own settings come before its tree's. The tree's are in the root's document; syncs take a copy down, so that
whoever works on an edge needs no other cluster.

    schedule          when the root is cut                         5m, 1h 00:20; several with ';'
    rpo               how old what a node lacks may be             15m
    bandwidth         of the edge to the node                      20M, 08:00 20M; 18:00 off
    parallel          edges of this tree at work at a time         4
    priority          edges with a higher one come first           10
    keep              generations that stay                        last 5, hourly 24, daily 7, weekly 4, monthly 12
    max_pinned_age    how long a slow child may pin a base         3d
    max_pinned_bytes  and how many bytes                           100G
    uplink            of branches that name none                   snapshot, journal
    push              how often branches are pushed                1m; off
    scrub             every node is verified within                7d
    scrub_rate        and no faster than                           20M
    cut_through       deltas pass on while they arrive             on, off
    copy_on_read      branches keep what is read through them      on, off
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from rbdtree import errors
from rbdtree.model.name import parse_size
from rbdtree.model.schedule import Bandwidth, Schedule, parse_duration

Settings = tuple[tuple[str, str], ...]
"""(key, text) pairs, by key."""


@dataclass(frozen=True, slots=True)
class Keep:
    """How many generations stay: the newest, and the newest of each hour, day, week, month. All zero: all stay."""

    last: int = 0
    hourly: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0

    @classmethod
    def parse(cls, text: str) -> "Keep":
        """``last 5, hourly 24, ...``, or ``all``."""
        if text.strip() == "all":
            return cls()
        found: dict[str, int] = {}
        for part in text.split(","):
            rule, _, count = part.strip().partition(" ")
            known = rule in {f.name for f in fields(cls)}
            if not known or not count.strip().isdecimal() or rule in found:
                raise errors.UsageError(
                    f"{text!r} is not a keep rule",
                    "Write for example 'last 5, hourly 24, daily 7, weekly 4, monthly 12', or 'all'.",
                )
            found[rule] = int(count)
        if not any(found.values()):
            raise errors.UsageError(f"{text!r} would keep nothing", "Keep 'last 1' at least, or 'all'.")
        return cls(**found)

    @property
    def all(self) -> bool:
        return self == Keep()


_NO_LIMIT = Bandwidth()
_ALL = Keep()


@dataclass(frozen=True, slots=True)
class Policy:
    """All settings, in force at one node. None: not wanted, or no limit. Durations in seconds, rates in bytes/s."""

    schedule: tuple[Schedule, ...] = ()
    rpo: float | None = None
    bandwidth: Bandwidth = _NO_LIMIT
    parallel: int = 4
    priority: int = 0
    keep: Keep = _ALL
    max_pinned_age: float | None = None
    max_pinned_bytes: int | None = None
    uplink: str = "snapshot"
    push: float | None = None
    scrub: float | None = None
    scrub_rate: int | None = None
    cut_through: bool = True
    copy_on_read: bool = False


def _schedules(text: str) -> tuple[Schedule, ...]:
    return tuple(Schedule.parse(part) for part in text.split(";") if part.strip())


def _seconds(text: str) -> float:
    seconds = parse_duration(text)
    if seconds <= 0:
        raise errors.UsageError(f"{text!r} is no time at all", "Write for example 90s, 15m or 7d.")
    return seconds


def _number(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise errors.UsageError(f"{text!r} is not a number from {low} to {high}")
        return number

    return parse


def _one_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise errors.UsageError(f"{text!r} is neither {' nor '.join(words)}")
        return text

    return parse


def _positive_size(text: str) -> int:
    size = parse_size(text.removesuffix("/s"))
    if not size:
        raise errors.UsageError(f"{text!r} is nothing", "Write for example 20M, or 'off' for no limit.")
    return size


_PARSERS: dict[str, Callable[[str], Any]] = {
    "schedule": _schedules,
    "rpo": _seconds,
    "bandwidth": Bandwidth.parse,
    "parallel": _number(1, 256),
    "priority": _number(-1000, 1000),
    "keep": Keep.parse,
    "max_pinned_age": _seconds,
    "max_pinned_bytes": _positive_size,
    "uplink": _one_of("snapshot", "journal"),
    "push": _seconds,
    "scrub": _seconds,
    "scrub_rate": _positive_size,
    "cut_through": lambda text: _one_of("on", "off")(text) == "on",
    "copy_on_read": lambda text: _one_of("on", "off")(text) == "on",
}
KEYS = tuple(_PARSERS)
DEFAULTS = {
    "schedule": "off",
    "rpo": "off",
    "bandwidth": "off",
    "parallel": "4",
    "priority": "0",
    "keep": "all",
    "max_pinned_age": "off",
    "max_pinned_bytes": "off",
    "uplink": "snapshot",
    "push": "off",
    "scrub": "off",
    "scrub_rate": "off",
    "cut_through": "on",
    "copy_on_read": "off",
}
"""What is in force where nothing is set, in text."""
TREE_ONLY = ("schedule", "parallel")
"""Settings that only the whole tree can have."""
_SWITCHABLE = ("schedule", "rpo", "max_pinned_age", "max_pinned_bytes", "push", "scrub", "scrub_rate")
"""``off`` takes away what the tree wants."""


def check(key: str, text: str) -> str:
    """The text, with single spaces; ``UsageError`` when the setting is unknown or means nothing."""
    if key not in _PARSERS:
        raise errors.UsageError(f"there is no setting {key!r}", f"There are: {', '.join(KEYS)}.")
    text = " ".join(text.split())
    try:
        _value(key, text)
    except errors.UsageError as error:
        raise errors.UsageError(f"{key}: {error}", error.hint) from error
    return text


def _value(key: str, text: str) -> Any:
    if text == "off" and key in _SWITCHABLE:
        return () if key == "schedule" else None
    if not text:
        raise errors.UsageError("nothing is set", "To take a setting away, unset it.")
    return _PARSERS[key](text)


def settings(pairs: Mapping[str, str] | Iterable[tuple[str, str]]) -> Settings:
    """Checked, in order of the keys."""
    return tuple(sorted((key, check(key, text)) for key, text in dict(pairs).items()))


def effective(own: Settings, tree: Settings) -> Policy:
    """What is in force at a node. Settings that this version does not understand are left alone."""
    values: dict[str, Any] = {}
    for source in (tree, own):
        for key, text in source:
            if key in _PARSERS:
                try:
                    values[key] = _value(key, text)
                except errors.UsageError:
                    continue
    return Policy(**values)
