"""One cluster: a directory with a marker in it that says: this is ours, and this was made here.

    DIR/NAME/ceph-dev.json   the marker         DIR/NAME/run/   pid files, admin sockets
    DIR/NAME/ceph.conf                          DIR/NAME/log/   NAME.log by Ceph, NAME.out stdout+stderr
    DIR/NAME/keyring         client.admin       DIR/NAME/mon.a, osd.0, ...   their data

The marker is written first and removed last.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cephdev import Failure, address, processes
from cephdev.address import MARKER, Address
from cephdev.daemon import Daemon, parse_name

NEW_MARKER = f"{MARKER}.new"
LOCK_PATIENCE = 120.0


@dataclass(frozen=True)
class Marker:
    fsid: str
    state: str  # "booting" until everything was seen to work, then "ready"
    ip: str
    port: int
    span: int
    osds: int
    mgr: bool
    objectstore: str
    netns: str | None
    ceph: str

    @property
    def address(self) -> Address:
        return Address(self.ip, self.port, self.span)


class Cluster:
    def __init__(self, parent: Path, name: str) -> None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", name):
            raise Failure(f"{name!r} cannot be a cluster's name: letters, digits, - and _, 63 at most")
        self.name = name
        self.directory = parent / name
        self.conf = self.directory / "ceph.conf"
        self.keyring = self.directory / "keyring"

    # Marker

    def marker(self) -> Marker | None:
        """None: nothing of ours here. An unreadable marker is one of a half-made cluster."""
        try:
            found = json.loads((self.directory / MARKER).read_text())
            return Marker(**found)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (ValueError, TypeError):
            return Marker("", "booting", "", 0, 0, 0, False, "bluestore", None, "")

    def must_exist(self) -> Marker:
        marker = self.marker()
        if marker is None:
            raise Failure(f"no cluster {self.name} in {self.directory.parent}; see ceph-dev/status")
        return marker

    def write_marker(self, marker: Marker) -> None:
        new = self.directory / NEW_MARKER
        new.write_text(json.dumps(dataclasses.asdict(marker), indent=1) + "\n")
        new.replace(self.directory / MARKER)

    # Lock: on the directory itself, so that nothing is left when it goes.

    @contextlib.contextmanager
    def locked(self, *, make: bool = False) -> Iterator[None]:
        deadline = time.monotonic() + LOCK_PATIENCE
        while True:
            if make:
                self.directory.mkdir(mode=0o700, exist_ok=True)
            try:
                handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise Failure(f"no cluster {self.name} in {self.directory.parent}") from None
            except NotADirectoryError:
                raise Failure(f"{self.directory} is not a directory; choose another name or --dir") from None
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_still(handle):
                    break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(handle)
                    raise Failure(
                        f"{self.name}: another ceph-dev command works on it since {LOCK_PATIENCE:.0f} s"
                    ) from None
                time.sleep(0.02)
            os.close(handle)
        try:
            yield
        finally:
            os.close(handle)

    def _is_still(self, handle: int) -> bool:
        """Whoever held the lock before may have removed the directory."""
        try:
            return os.path.samestat(os.fstat(handle), os.stat(self.directory))
        except FileNotFoundError:
            return False

    # Daemons

    def daemon(self, text: str) -> Daemon:
        found = Daemon(self.directory, *parse_name(text))
        names = [daemon.name for daemon in self.daemons()]
        if found.name not in names:
            raise Failure(f"{self.name} has no {text}; it has {', '.join(names)}")
        return found

    def daemons(self) -> list[Daemon]:
        """In the order of starting."""
        marker = self.must_exist()
        managers = [Daemon(self.directory, "mgr", "x")] if marker.mgr else []
        return [Daemon(self.directory, "mon", "a"), *managers, *self.osds()]

    def osds(self) -> list[Daemon]:
        return [Daemon(self.directory, "osd", str(number)) for number in range(self.must_exist().osds)]

    def state(self) -> str:
        if self.must_exist().state != "ready":
            return "half-made"
        states = {daemon.state() for daemon in self.daemons()}
        if states == {"dead"}:
            return "stopped"
        return "running" if states == {"running"} else "degraded"

    def end_daemons(self, *, gently: bool) -> list[str]:
        """Clients of the data first; the names of those that had to be killed although asked first."""

        def ours(pid: int) -> bool:
            return processes.is_daemon_of(pid, self.conf)

        def wanted(pid: int, programs: tuple[str, ...]) -> bool:
            return any(processes.is_daemon_of(pid, self.conf, program) for program in programs)

        stubborn = []
        for programs in (("ceph-osd", "ceph-mgr"), ("ceph-mon",)) if gently else (processes.PROGRAMS,):
            while pids := [pid for pid in processes.daemons_of(self.conf) if wanted(pid, programs)]:
                named = {pid: daemon.name for daemon in self.daemons() for pid in pids if daemon.is_me(pid)}
                stubborn += [named.get(pid, str(pid)) for pid in processes.end(pids, ours, gently=gently)]
                if left := [pid for pid in pids if ours(pid)]:
                    raise Failure(f"{self.name}: processes {left} do not end, even by SIGKILL")
        return stubborn

    def empty(self) -> None:
        """Everything in the directory but the marker; the daemons must be gone."""
        self.write_marker(dataclasses.replace(self.must_exist(), state="booting"))
        address.release(self.directory)
        with os.scandir(self.directory) as entries:
            for entry in entries:
                if entry.name == MARKER:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    shutil.rmtree(entry.path)
                else:
                    os.unlink(entry.path)

    def purge(self) -> None:
        """The directory too. The marker goes last: while anything is left, it is known to be ours."""
        self.empty()
        (self.directory / MARKER).unlink()
        self.directory.rmdir()
