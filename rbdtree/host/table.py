"""/etc/rbdtree/maps: what this host maps and mounts when it boots. A line each:

    TREE/NODE   DIR or -   OPTION[,OPTION...]

    vol/paris   -          driver=krbd,at=1.7
    vol/paris   /srv/vol   follow,on-switch="systemctl reload nginx"
    vol/desk    /home/me   write,quiesce,driver=rbd-nbd

A '#' begins a comment.
"""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from rbdtree import errors
from rbdtree.host import portion
from rbdtree.host.driver import NAMES
from rbdtree.model.name import NodeName
from rbdtree.model.position import Position

VARIABLE = "RBDTREE_MAPS"
DEFAULT = "/etc/rbdtree/maps"
FLAGS = ("write", "branch", "exclusive", "quiesce", "follow")
VALUES = ("at", "driver", "portion", "quiesce-hook", "on-switch", "options")
_HINT = "docs/hosts.md shows what is in it."


@dataclass(frozen=True, slots=True)
class Entry:
    """A line. ``directory`` is empty for a device alone."""

    line: int
    node: str
    directory: str
    flags: tuple[str, ...] = ()
    values: tuple[tuple[str, str], ...] = ()

    @property
    def follow(self) -> bool:
        return "follow" in self.flags

    @property
    def key(self) -> str:
        """Tells its device from those of other lines."""
        which = [f for f in self.flags if f in ("write", "branch")]
        which += [f"{key}={value}" for key, value in self.values if key in ("at", "portion")]
        return " ".join([self.node, *sorted(which)])

    @property
    def name(self) -> str:
        return f"{self.node} at {self.directory}" if self.directory else self.node


def path(explicit: str | None = None) -> Path:
    return Path(explicit or os.environ.get(VARIABLE) or DEFAULT)


def load(file: Path) -> list[Entry]:
    """``UsageError`` with every mistake of the file; nothing when there is no file."""
    found, mistakes = read(file)
    if mistakes:
        raise mistakes
    return found


def read(file: Path) -> tuple[list[Entry], errors.UsageError | None]:
    """The lines without a mistake, and what is to be said of the others: these keep none from its device."""
    try:
        text = file.read_text()
    except FileNotFoundError:
        return [], None
    except (OSError, ValueError) as error:
        return [], errors.UsageError(f"cannot read {file}: {getattr(error, 'strerror', None) or error}", _HINT)
    found, mistakes = [], []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            try:
                found.append(parse(number, line))
            except errors.UsageError as error:
                mistakes.append(f"line {number}: {error}")
    mistakes += _twice(found)
    return found, errors.UsageError(f"{file}: {'; '.join(mistakes)}", _HINT) if mistakes else None


def _twice(entries: list[Entry]) -> list[str]:
    places = [e.directory for e in entries if e.directory]
    return [
        f"{place} stands there {places.count(place)} times" for place in sorted(set(places)) if places.count(place) > 1
    ]


def parse(number: int, line: str) -> Entry:
    """One line."""
    parts = line.split(None, 2)
    name = NodeName.parse(parts[0])
    if not name.node:
        raise errors.UsageError(f"{parts[0]!r} is no TREE/NODE")
    directory = parts[1] if len(parts) > 1 else "-"
    if directory != "-" and not directory.startswith("/"):
        raise errors.UsageError(f"{directory!r} is neither a path from / on nor '-'")
    flags: list[str] = []
    values: list[tuple[str, str]] = []
    for option in _options(parts[2]) if len(parts) > 2 else ():
        key, equals, value = option.partition("=")
        if key in FLAGS and not equals:
            flags.append(key)
        elif key in VALUES and value:
            values.append((key, value))
        else:
            raise errors.UsageError(
                f"{option!r} is no option (there are {', '.join((*FLAGS, *(f'{v}=' for v in VALUES)))})"
            )
    entry = Entry(
        number, str(name), "" if directory == "-" else os.path.normpath(directory), tuple(flags), tuple(values)
    )
    _check(entry)
    return entry


def _options(text: str) -> list[str]:
    lexer = shlex.shlex(text.partition(" #")[0].strip(), posix=True, punctuation_chars=False)
    lexer.whitespace, lexer.whitespace_split, lexer.commenters = ",", True, ""
    try:
        return [word.strip() for word in lexer if word.strip()]
    except ValueError as error:
        raise errors.UsageError(f"{text!r}: {str(error).lower()}") from error


def _check(entry: Entry) -> None:
    keys = {*entry.flags, *(key for key, _ in entry.values)}
    if entry.follow and not entry.directory:
        raise errors.UsageError("'follow' needs a directory")
    if entry.follow and keys & {"write", "at", "portion"}:
        raise errors.UsageError("'follow' goes with neither 'write' nor 'at' nor 'portion'")
    if keys & {"branch", "exclusive", "quiesce"} and "write" not in keys:
        raise errors.UsageError("'branch', 'exclusive' and 'quiesce' go with 'write'")
    if "portion" in keys and entry.directory:
        raise errors.UsageError("'portion' is for devices: give '-' for the directory")
    for key, value in entry.values:
        _check_value(key, value)
    if "on-switch" in keys and not entry.follow:
        raise errors.UsageError("'on-switch' goes with 'follow'")


def _check_value(key: str, value: str) -> None:
    if key == "driver" and value not in NAMES:
        raise errors.UsageError(f"{value!r} is no driver (there are {', '.join(NAMES)})")
    if key == "at":
        Position.parse(value)
    if key == "portion":
        portion.parse(value)
