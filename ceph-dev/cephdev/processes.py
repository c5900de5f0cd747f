"""Who is running, seen through /proc.

A pid counts as ours only if it is a Ceph daemon with our ceph.conf on its command line and sees the same file
system root: the same path inside a chroot is another cluster.
"""

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterable
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "ceph-mgr")


def command_line(pid: int) -> list[str]:
    """Empty for kernel threads, zombies, and processes that are gone or not ours to see."""
    try:
        return os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes()).split("\0")[:-1]
    except OSError:
        return []


def is_daemon_of(pid: int, conf: Path, program: str | None = None, ident: str | None = None) -> bool:
    argv = command_line(pid)
    if not argv or os.path.basename(argv[0]) not in ((program,) if program else PROGRAMS):
        return False
    if not has_option(argv, "-c", str(conf)) or (ident and not has_option(argv, "-i", ident)):
        return False
    try:
        return os.path.samefile(f"/proc/{pid}/root", "/")
    except OSError:
        return False


def has_option(argv: list[str], option: str, value: str) -> bool:
    return any(pair == (option, value) for pair in itertools.pairwise(argv))


def daemons_of(conf: Path) -> list[int]:
    """Every Ceph daemon of this ceph.conf, also the ones that make a store or have not written a pid file."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return [pid for pid in pids if is_daemon_of(pid, conf)]


def is_paused(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state in "Tt"


def send(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def end(pids: Iterable[int], ours: Callable[[int], bool], *, gently: bool, patience: float = 20) -> list[int]:
    """End the processes and wait until they are gone; the ones that needed SIGKILL after SIGTERM come back.

    `ours` is asked again before every signal, because a pid may have been given to somebody else meanwhile.
    """
    left = [pid for pid in pids if ours(pid)]
    for pid in left:
        send(pid, signal.SIGTERM if gently else signal.SIGKILL)
        send(pid, signal.SIGCONT)  # a paused process takes SIGTERM only once it goes on
    left = wait_until_gone(left, ours, patience)
    if not gently:
        return left
    for pid in left:
        send(pid, signal.SIGKILL)
    wait_until_gone(left, ours, patience)
    return left


def wait_until_gone(pids: list[int], ours: Callable[[int], bool], seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while (left := [pid for pid in pids if ours(pid)]) and time.monotonic() < deadline:
        time.sleep(0.005)
    return left
