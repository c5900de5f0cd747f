"""Test hosts: real Linux kernels with nbd and krbd as ordinary processes (user-mode Linux), on a network of their own.

    Network    a namespace with a bridge; clusters booted with --netns and --addr are reached from all hosts
    Host       one kernel: up in 2 to 3 s, commands run in it, a power cut is a signal

A host sees this machine's files and changes none: what it writes lies in its memory and is gone when it stops.
"""

import concurrent.futures
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from cephdev import Failure
from cephdev.address import enter_namespace

KERNEL = "/usr/bin/linux.uml"
MODULES = Path("/usr/lib/uml/modules")
GUEST = Path(__file__).parent / "guest"
GATEWAY = "10.213.0.1"
PREFIX = 24
PORT = 2222
PATIENCE = 60.0
T = TypeVar("T")


@dataclass(frozen=True)
class Done:
    """A command that ended inside a host."""

    code: int
    out: str
    err: str


@dataclass(frozen=True)
class Note:
    """What is kept of a running host."""

    name: str
    number: int
    pid: int


def why_not() -> str:
    """What keeps test hosts from running here, in a phrase; empty when nothing does."""
    if os.geteuid() != 0:
        return "test hosts need root, for network namespaces"
    if not os.path.exists(KERNEL):
        return f"{KERNEL} is not installed: run ceph-dev/install"
    if not os.path.exists("/dev/net/tun"):
        return "there is no /dev/net/tun"
    return "" if shutil.which("ip") else "there is no program ip (iproute2)"


def within(namespace: str, call: Callable[[], T]) -> T:
    """Calls in a thread that has moved into the namespace; a socket made there stays there."""

    def moved() -> T:
        enter_namespace(namespace)
        return call()

    # A thread of its own: it can not come back.
    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        return threads.submit(moved).result()


class Network:
    """The namespace and bridge of one directory of hosts."""

    def __init__(self, directory: Path) -> None:
        self.directory = Path(os.path.realpath(directory)) / "hosts"
        digest = hashlib.sha256(str(self.directory).encode()).hexdigest()[:8]
        self.namespace = f"cephdev-{digest}"

    @property
    def exists(self) -> bool:
        return os.path.exists(f"/run/netns/{self.namespace}")

    def make(self) -> None:
        """Nothing when it is there."""
        problem = why_not()
        if problem:
            raise Failure(problem)
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.exists:
            return
        ip("netns", "add", self.namespace)
        inside = ("-n", self.namespace)
        ip(*inside, "link", "set", "lo", "up")
        ip(*inside, "link", "add", "br0", "type", "bridge")
        ip(*inside, "addr", "add", f"{GATEWAY}/{PREFIX}", "dev", "br0")
        ip(*inside, "link", "set", "br0", "up")

    def remove(self) -> None:
        """With every host in it."""
        for host in self.hosts():
            host.crash()
        if self.exists:
            ip("netns", "del", self.namespace)
        shutil.rmtree(self.directory, ignore_errors=True)

    def host(self, name: str) -> "Host":
        return Host(self, name)

    def hosts(self) -> list["Host"]:
        return [Host(self, path.stem) for path in sorted(self.directory.glob("*.json"))]

    def up(self, names: list[str], memory: str = "512M") -> list["Host"]:
        """All at once."""
        self.make()
        hosts = [self.host(name) for name in names]
        with concurrent.futures.ThreadPoolExecutor(max(1, len(hosts))) as threads:
            for host in hosts:
                if not host.running:
                    host.start(memory)
            list(threads.map(Host.wait, hosts))
        return hosts


class Host:
    """One test host."""

    def __init__(self, network: Network, name: str) -> None:
        if not name.replace("-", "").isalnum() or len(name) > 32:
            raise Failure(f"{name!r} is no name of a host: letters, digits and dashes, 32 at most")
        self.network = network
        self.name = name

    @property
    def _path(self) -> Path:
        return self.network.directory / f"{self.name}.json"

    @property
    def log(self) -> Path:
        """What its kernel and its first process said."""
        return self.network.directory / f"{self.name}.log"

    def note(self) -> Note | None:
        try:
            return Note(**json.loads(self._path.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def running(self) -> bool:
        note = self.note()
        return note is not None and self._is_ours(note.pid)

    def _is_ours(self, pid: int) -> bool:
        try:
            words = os.fsdecode(Path(f"/proc/{pid}/cmdline").read_bytes())
        except OSError:
            return False
        return f"umid={self.name}" in words and str(self.network.directory) in words

    @property
    def address(self) -> str:
        note = self.note()
        if note is None:
            raise Failure(f"there is no host {self.name}; start it: ceph-dev/host up {self.name}")
        return _address(note.number)

    def start(self, memory: str = "512M") -> None:
        """Does not wait until it is up."""
        note = self.note()
        taken = {other.number for host in self.network.hosts() if (other := host.note())}
        number = note.number if note else next(n for n in range(11, 250) if n not in taken)
        tap = f"tap{number}"
        inside = ("-n", self.network.namespace)
        if subprocess.run(["ip", *inside, "link", "show", tap], capture_output=True, check=False).returncode:
            ip(*inside, "tuntap", "add", tap, "mode", "tap")
            ip(*inside, "link", "set", tap, "master", "br0", "up")
        address = _address(number)
        settings = {
            "name": self.name,
            "modules": MODULES,
            "guest": GUEST,
            "mac": "52:54:00:" + ":".join(f"{int(part):02x}" for part in address.split(".")[1:]),
            "address": f"{address}/{PREFIX}",
            "gateway": GATEWAY,
        }
        command = [
            *(KERNEL, f"mem={memory}", f"umid={self.name}", f"uml_dir={self.network.directory}/"),
            *("rootfstype=hostfs", "rootflags=/", "ro", "init=/bin/bash", "quiet", "panic=1"),
            *(f"vec0:transport=tap,ifname={tap},depth=128,gro=1", "con0=fd:0,fd:1", "con=null", "ssl=null"),
            *(f"cephdev_{key}={value}" for key, value in settings.items()),
            *("--", str(GUEST / "init")),
        ]
        with self.log.open("wb") as log:
            # Its memory is a file that has no name any more, in TMPDIR.
            process = within(
                self.network.namespace,
                lambda: subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    env={"TMPDIR": "/dev/shm", "PATH": os.environ.get("PATH", "/usr/bin:/bin"), "HOME": "/root"},
                ),
            )
        self._path.write_text(json.dumps(asdict(Note(self.name, number, process.pid))))

    def wait(self, seconds: float = PATIENCE) -> None:
        """Until it takes commands."""
        deadline = time.monotonic() + seconds
        while True:
            with contextlib.suppress(OSError, ValueError):
                if self._ask("true", 10).code == 0:
                    return
            if not self.running or time.monotonic() > deadline:
                words = self.log.read_text(errors="replace")[-2000:]
                raise Failure(f"host {self.name} did not come up; {self.log} ends:\n{words}")
            time.sleep(0.05)

    def run(self, command: str, seconds: float = 60) -> Done:
        """A shell command inside, as root, to its end; 124 when it took too long."""
        try:
            return self._ask(command, seconds)
        except (OSError, ValueError) as error:
            raise Failure(f"host {self.name} does not answer: {error}") from error

    def _ask(self, command: str, seconds: float) -> Done:
        address = (self.address, PORT)
        with within(self.network.namespace, lambda: socket.create_connection(address, timeout=5)) as connection:
            connection.settimeout(seconds + 10)
            connection.sendall(json.dumps({"command": command, "seconds": seconds}).encode() + b"\n")
            with connection.makefile("rb") as answer:
                found: dict[str, Any] = json.loads(answer.readline())
        return Done(**found)

    def cut_link(self, up: bool = False) -> None:
        """Its network cable, out of the bridge; ``up``: put back. (A tap that was down is not read from again.)"""
        note = self.note()
        if note:
            where = ("master", "br0") if up else ("nomaster",)
            ip("-n", self.network.namespace, "link", "set", f"tap{note.number}", *where)

    def crash(self) -> None:
        """A power cut: nothing is written any more. Nothing when it is off."""
        note = self.note()
        if note and self._is_ours(note.pid):
            with contextlib.suppress(ProcessLookupError):
                # The whole group: each process of the guest is one of this machine.
                os.killpg(note.pid, signal.SIGKILL)
            deadline = time.monotonic() + 10
            while self._is_ours(note.pid) and time.monotonic() < deadline:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(note.pid, os.WNOHANG)
                time.sleep(0.01)
        shutil.rmtree(self.network.directory / self.name, ignore_errors=True)

    def down(self) -> None:
        """Everything written is on the clusters, then off."""
        with contextlib.suppress(Failure):
            self.run("sync", 20)
        self.crash()
        self._path.unlink(missing_ok=True)


def _address(number: int) -> str:
    return f"{GATEWAY.rpartition('.')[0]}.{number}"


def ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise Failure(f"ip {' '.join(words)}: {done.stderr.strip()}")
