"""Daemons that serve a device, found by what stands on their command lines."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path


def find(program: str, word: str) -> int | None:
    """The process of this program with ``word`` in one of its arguments."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and serves(int(folder.name), program, word):
            return int(folder.name)
    return None


def serves(pid: int, program: str, word: str) -> bool:
    """Whether this process is that program's: a pid may have been given to another meanwhile."""
    try:
        words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")
    except OSError:
        return False
    return os.path.basename(words[0]) == program and any(word in one for one in words)


def mentions(pid: int, wanted: tuple[str, ...]) -> bool:
    """Whether all of this stands on its command line."""
    try:
        line = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
    except OSError:
        return False
    return all(word in line for word in wanted)


def wait_gone(pid: int, program: str, word: str, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while serves(pid, program, word):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def end(pid: int, program: str, word: str, number: signal.Signals, seconds: float) -> bool:
    """Signals it if it still is that program; whether it has gone."""
    if serves(pid, program, word):
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return wait_gone(pid, program, word, seconds)
