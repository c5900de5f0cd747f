"""A free address and a range of ports for every cluster, so that clusters never meet.

A cluster keeps its address for life (its monitor map holds it). A small file in a folder of the user's
reserves it, also while the cluster is stopped; binding the first ports shows that nobody else has it either.
"""

import contextlib
import ctypes
import errno
import fcntl
import itertools
import json
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cephdev import Failure

FIRST_PORT = 10000  # below the kernel's usual range for outgoing connections (32768...)
LAST_PORT = 32000
CLONE_NEWNET = 0x40000000
MARKER = "ceph-dev.json"
LOOPBACK_ADVICE = "is lo up? ip link set lo up, or ip -n NS link set lo up"


@dataclass(frozen=True)
class Address:
    ip: str
    port: int  # the monitor has port and port + 1, the other daemons the rest of the span
    span: int

    @property
    def monitor(self) -> str:
        return f"[v2:{self.ip}:{self.port},v1:{self.ip}:{self.port + 1}]"


def span_for(osds: int) -> int:
    """An OSD binds eight ports, a manager two; the rest is room for restarts."""
    return 100 * (1 + (8 * osds + 20) // 100)


def enter_namespace(name: str | None) -> None:
    """Move the calling thread, and what it starts from now on, into a network namespace.

    Only the network changes: `ip netns exec` would also make a private mount namespace, in which mounts made
    later stay invisible to everybody else.
    """
    if not name:
        return
    try:
        handle = os.open(f"/run/netns/{name}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise Failure(f"network namespace {name}: {error.strerror}; make it with: ip netns add {name}") from None
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(handle, CLONE_NEWNET):
            reason = os.strerror(ctypes.get_errno())
            raise Failure(f"cannot enter network namespace {name}: {reason}; this needs root")
    finally:
        os.close(handle)


@contextlib.contextmanager
def reserved(directory: Path, osds: int, fixed: str | None) -> Iterator[Address]:
    """A free address for the cluster in `directory`, which must write its marker before leaving the block."""
    span = span_for(osds)
    folder = reservations()
    namespace = os.stat("/proc/thread-self/ns/net").st_ino
    handle = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        taken = live_reservations(folder)
        for ip, port in itertools.islice(candidates(span, fixed), 1000):
            wanted = (namespace, ip, range(port, port + span))
            if any(overlap(wanted, other) for other in taken) or not can_bind(ip, port, bool(fixed)):
                continue
            note = folder / f"{namespace}-{ip}-{port}-{span}"
            note.write_text(str(directory))
            try:
                yield Address(ip, port, span)
            except BaseException:
                note.unlink(missing_ok=True)
                raise
            return
        raise Failure(f"no free ports on {fixed or '127.0.0.0/8'} between {FIRST_PORT} and {LAST_PORT}")
    finally:
        os.close(handle)


def release(directory: Path) -> None:
    for note in reservations().iterdir():
        with contextlib.suppress(OSError):
            if note.read_text() == str(directory):
                note.unlink()


def reservations() -> Path:
    folder = Path(f"/tmp/ceph-dev-addresses-{os.getuid()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        raise Failure(f"{folder} belongs to somebody else; remove it")
    return folder


def live_reservations(folder: Path) -> list[tuple[int, str, range]]:
    """The reservations whose cluster still exists; the others are swept away."""
    found = []
    for note in folder.iterdir():
        try:
            namespace, ip, port, span = note.name.split("-")
            marker = json.loads((Path(note.read_text()) / MARKER).read_text())
            if (marker["ip"], marker["port"]) != (ip, int(port)):
                raise ValueError
            found.append((int(namespace), ip, range(int(port), int(port) + int(span))))
        except (OSError, ValueError, KeyError, TypeError):
            note.unlink(missing_ok=True)
    return found


def overlap(one: tuple[int, str, range], other: tuple[int, str, range]) -> bool:
    ports, others = one[2], other[2]
    return one[:2] == other[:2] and ports.start < others.stop and others.start < ports.stop


def candidates(span: int, fixed: str | None) -> Iterator[tuple[str, int]]:
    if fixed:
        yield from ((fixed, port) for port in range(FIRST_PORT, LAST_PORT - span, span))
    while not fixed:
        yield f"127.{random.randint(1, 254)}.{random.randint(0, 254)}.{random.randint(1, 254)}", FIRST_PORT


def can_bind(ip: str, port: int, fixed: bool) -> bool:
    """The first three ports; connecting to the first shows whether the way there is open at all."""
    with contextlib.ExitStack() as sockets:
        for number in (port + 2, port + 1, port):
            probe = sockets.enter_context(socket.socket())
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((ip, number))
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
                advice = "give --addr an address of this machine or namespace" if fixed else LOOPBACK_ADVICE
                raise Failure(f"cannot bind {ip}: {error.strerror}; {advice}") from None
        probe.listen()
        try:
            socket.create_connection((ip, port), timeout=2).close()
        except OSError as error:
            raise Failure(f"cannot connect to {ip}: {error.strerror or error}; {LOOPBACK_ADVICE}") from None
    return True
