"""Freezing what is mounted from a map while a snapshot is made of it, so that the generation is clean.

With rbd-nbd, librbd asks for it: it runs the hook that is written here, whoever makes the snapshot and wherever. With
the other drivers 'rbdtree cut' on this very host does it, for the volume; a branch they do not freeze.

A freeze never outlasts its limit: a process of its own thaws when the limit has passed, whatever hung or died. A freeze
that failed does not keep the snapshot from being made: it is crash-consistent then, and ``mapped`` says so.
"""

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rbdtree import errors
from rbdtree.host import above, device, tools
from rbdtree.host.source import BRANCH, VOLUME
from rbdtree.host.state import MAPPED, Record, State

_NOTE = "freeze.json"
_MARK = "frozen"


@dataclass(frozen=True, slots=True)
class Freeze:
    """The last one of a map. ``trouble`` is empty when it was clean."""

    began: float
    ended: float
    directories: tuple[str, ...]
    trouble: str


def last(place: Path) -> Freeze | None:
    try:
        raw = json.loads((place / _NOTE).read_text())
    except (OSError, ValueError):
        return None
    return Freeze(raw["began"], raw["ended"], tuple(raw["directories"]), raw["trouble"])


def write_hook(place: Path) -> Path:
    """The program that rbd-nbd runs before and after a snapshot; its path."""
    path = place / "quiesce"
    words = " ".join(map(shlex.quote, (sys.executable, "-m", "rbdtree.host.quiesce", str(place))))
    path.write_text(f'#!/bin/sh\nPYTHONPATH={shlex.quote(os.pathsep.join(filter(None, sys.path)))} exec {words} "$@"\n')
    path.chmod(0o700)
    return path


def freeze(place: Path) -> Freeze:
    """Runs the operator's hook, then fsfreeze for everything mounted from this map. Never longer than the limit."""
    state = State(place.parent.parent)
    record = state.record(place.name)
    began = time.time()
    if record is None:
        return Freeze(began, began, (), "there is no such map")
    over = above.look(dict.fromkeys((record.device, record.base)))
    directories = over.directories
    token = f"{os.getpid()}.{began}"
    (place / _MARK).write_text(json.dumps({"token": token, "directories": directories, "hook": record.hook}))
    # Before anything is frozen: whatever happens from here on, it thaws.
    _detached(place, "watch", token, str(record.freeze_seconds))
    deadline = time.monotonic() + record.freeze_seconds * 0.8
    trouble = _within("the hook", _hook_words(record.hook), deadline, record, "freeze") if record.hook else ""
    for directory in directories if not trouble else ():
        trouble = _within(f"fsfreeze of {directory}", ["fsfreeze", "--freeze", directory], deadline, record, "")
        if trouble:
            break
    for name in over.bare if not trouble else ():
        # Nothing is mounted from it, yet somebody may write to the device itself.
        device.flush(name)
    done = Freeze(began, 0.0, directories, trouble or over.trouble)
    _note(place, done)
    if trouble:
        thaw(place, trouble)
    return done


def _hook_words(hook: str) -> list[str]:
    return ["/bin/sh", "-c", hook]


def _within(what: str, words: list[str], deadline: float, record: Record, action: str) -> str:
    """Trouble in a phrase. One that hangs is killed and, should it not even die, left behind."""
    environment = {
        **os.environ,
        "RBDTREE_ACTION": action,
        "RBDTREE_NODE": record.source.full_name,
        "RBDTREE_DEVICE": record.device,
    }
    program = tools.find(words[0]) or words[0]
    try:
        process = subprocess.Popen(
            [program, *words[1:]],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        return f"{what} could not be run: {error.strerror}"
    try:
        code = process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        return f"{what} hung and was killed"
    return f"{what} failed ({code})" if code else ""


def thaw(place: Path, trouble: str = "") -> None:
    """Everything that ``freeze`` froze; nothing when it is thawed already."""
    try:
        mark = json.loads((place / _MARK).read_text())
    except (OSError, ValueError):
        return
    with suppress(FileNotFoundError):
        (place / _MARK).unlink()
    for directory in mark["directories"]:
        # One that was not frozen says so; that is all right.
        _quietly(["fsfreeze", "--unfreeze", directory])
    if mark["hook"]:
        _quietly(_hook_words(mark["hook"]), {"RBDTREE_ACTION": "thaw"})
    done = last(place)
    if done:
        _note(place, Freeze(done.began, time.time(), done.directories, done.trouble or trouble))


def _quietly(words: list[str], more: dict[str, str] | None = None) -> None:
    program = tools.find(words[0]) or words[0]
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [program, *words[1:]],
            env={**os.environ, **(more or {})},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=10,
            check=False,
        )


def watch(place: Path, token: str, seconds: float) -> None:
    """The process of its own: thaws when the limit has passed and the freeze of this token still lasts."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not _lasts(place, token):
            return
        time.sleep(0.05)
    if _lasts(place, token):
        thaw(place, f"it lasted longer than {seconds:g} s and was thawed before the snapshot was done")


def _lasts(place: Path, token: str) -> bool:
    try:
        return bool(json.loads((place / _MARK).read_text())["token"] == token)
    except (OSError, ValueError):
        return False


def _note(place: Path, done: Freeze) -> None:
    new = place / f"{_NOTE}.new"
    new.write_text(json.dumps(asdict(done)))
    os.replace(new, place / _NOTE)


def _detached(place: Path, *words: str) -> None:
    subprocess.Popen(
        [sys.executable, "-m", "rbdtree.host.quiesce", str(place), *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@contextmanager
def frozen(tree_id: str, state: State | None = None) -> Iterator[list[Freeze]]:
    """For a cut of this tree on this host: maps of its volume, where librbd does not ask for it itself."""
    state = state or State()
    found: list[Record] = []
    with suppress(errors.Error, OSError):
        found = [
            r
            for r in state.records()
            if r.quiesce and r.step == MAPPED and r.source.tree_id == tree_id and r.source.what == VOLUME
        ]
    places = [state.place(r.key) for r in found if r.driver != "rbd-nbd"]
    try:
        yield [freeze(place) for place in places]
    finally:
        for place in places:
            thaw(place)


def asked_elsewhere(record: Record) -> bool:
    """Whether snapshots made on other hosts freeze this map too."""
    return record.driver == "rbd-nbd" and record.source.what in (VOLUME, BRANCH)


def main(words: list[str]) -> int:
    """``PLACE DEVICE quiesce|unquiesce``, as rbd-nbd calls its hook; ``PLACE watch TOKEN SECONDS``."""
    place = Path(words[0])
    if words[1] == "watch":
        watch(place, words[2], float(words[3]))
    elif words[2] == "quiesce":
        freeze(place)
    else:
        thaw(place)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
