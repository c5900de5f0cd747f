#!/usr/bin/env python3
"""Two sites: a Ceph cluster each, in a network namespace each, joined by a plain link or by one with a delay.

    sites.py [--delay MILLISECONDS] -- COMMAND [ARG...]

runs a command at site b with $A_CONF, $B_CONF, $RBDTREE_CONFIG, $A_NETNS and $B_NETNS set, and removes everything when
it ends. The names of namespaces and folders are this run's own. Needs root.
"""

import argparse
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from cable import enter

ROOT = Path(__file__).resolve().parent.parent
DEVICE = "wan"
_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
Result = TypeVar("Result")


@dataclass(frozen=True)
class Site:
    """One cluster and its network."""

    name: str
    netns: str
    address: str
    directory: Path

    @property
    def conf(self) -> Path:
        return self.directory / self.name / "ceph.conf"

    def inside(self, argv: list[str]) -> list[str]:
        """The command line that runs ``argv`` here (`ip netns exec` would change more than the network)."""
        return ["nsenter", f"--net=/run/netns/{self.netns}", *argv]

    def run(self, argv: list[str], **options: Any) -> "subprocess.CompletedProcess[bytes]":
        return subprocess.run(self.inside(argv), check=True, **options)

    def call(self, function: Callable[[], Result]) -> Result:
        """Runs a function in a thread that lives here; connections it opens stay here."""
        found: list[Result] = []
        failed: list[BaseException] = []

        def work() -> None:
            try:
                enter(self.netns)
                found.append(function())
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return found[0]

    def received(self) -> int:
        """Bytes that came over the link so far."""
        lines = self.run(["cat", "/proc/net/dev"], capture_output=True).stdout.decode().splitlines()
        return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith(DEVICE))


class Sites:
    """Both sites, as a context manager. ``delay`` is in milliseconds each way, 0 for a plain link."""

    def __init__(self, delay: float = 0, directory: Path | None = None, conf: tuple[str, ...] = ()) -> None:
        self.delay = delay
        self._conf = conf
        self._undo = ExitStack()
        self.directory = Path(tempfile.mkdtemp(prefix="rbdtree-bench.", dir=directory))
        tag = self.directory.name.rpartition(".")[2].replace("_", "x")
        self.a = Site("a", f"bench-{tag}-a", "10.97.0.1", self.directory)
        self.b = Site("b", f"bench-{tag}-b", "10.97.0.2", self.directory)
        self.config = self.directory / "sites.toml"

    def __enter__(self) -> "Sites":
        try:
            self._undo.callback(shutil.rmtree, self.directory, ignore_errors=True)
            for site in (self.a, self.b):
                subprocess.run(["ip", "netns", "add", site.netns], check=True)
                self._undo.callback(subprocess.run, ["ip", "netns", "del", site.netns])
                subprocess.run(["ip", "-n", site.netns, "link", "set", "lo", "up"], check=True)
            self._lay()
            self._boot()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # A second signal must not cut the clean-up short.
        kept = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
        try:
            self._undo.close()
        finally:
            for number, handler in kept.items():
                signal.signal(number, handler)

    def _lay(self) -> None:
        a, b = self.a, self.b
        if self.delay:
            argv = [sys.executable, str(ROOT / "bench/cable.py"), a.netns, b.netns, DEVICE, str(self.delay)]
            cable = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            self._undo.callback(_end, cable)
            if cable.stdout is None or not cable.stdout.readline():
                raise SystemExit("the cable could not be laid")
        else:
            ends = ["netns", a.netns, "type", "veth", "peer", "name", DEVICE, "netns", b.netns]
            subprocess.run(["ip", "link", "add", DEVICE, *ends], check=True)
        for site in (a, b):
            add = ["addr", "add", f"{site.address}/24", "dev", DEVICE]
            subprocess.run(["ip", "-n", site.netns, *add], check=True)
            subprocess.run(["ip", "-n", site.netns, "link", "set", DEVICE, "up"], check=True)

    def _boot(self) -> None:
        self._undo.callback(
            subprocess.run,
            [ROOT / "ceph-dev/down", "--dir", self.directory, "--purge"],
            stdout=subprocess.DEVNULL,
        )
        boots: list[subprocess.Popen[bytes]] = []
        # Also when a signal comes meanwhile, the clean-up begins only after these have ended.
        self._undo.callback(lambda: [boot.wait() for boot in boots])
        for site in (self.a, self.b):
            argv = [ROOT / "ceph-dev/up", "--dir", self.directory, "--netns", site.netns, "--addr", site.address]
            # Sparse: four full copies, and what is being deleted, must fit.
            argv += ["--size", "40G"]
            argv += [part for line in self._conf for part in ("--conf", line)]
            boots.append(subprocess.Popen([*argv, site.name], stdout=subprocess.DEVNULL))
        codes = [boot.wait() for boot in boots]
        if any(codes):
            raise SystemExit("a cluster did not come up")
        self.config.write_text("".join(f'[sites.{s.name}]\nconf = "{s.conf}"\n' for s in (self.a, self.b)))

    def round_trip(self) -> float:
        """Milliseconds from b to a and back: the best of ten TCP handshakes."""
        host = next(line for line in self.a.conf.read_text().splitlines() if line.strip().startswith("mon host"))
        port = int(host.split("v2:")[1].split(",")[0].rpartition(":")[2])

        def ask() -> float:
            best = 1e9
            for _ in range(10):
                began = time.monotonic()
                socket.create_connection((self.a.address, port)).close()
                best = min(best, time.monotonic() - began)
            return best * 1000

        return self.b.call(ask)


def _end(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin:
        process.stdin.close()
    try:
        process.wait(5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def orderly() -> None:
    """SIGTERM and SIGHUP clean up as Ctrl-C does."""

    def leave(number: int, _: FrameType | None) -> None:
        sys.exit(128 + number)

    for number in _SIGNALS[:2]:
        signal.signal(number, leave)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--delay", type=float, default=0, help="milliseconds each way (0: a plain link)")
    parser.add_argument("command", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    orderly()
    with Sites(options.delay) as sites:
        names = {
            "A_CONF": str(sites.a.conf),
            "B_CONF": str(sites.b.conf),
            "A_NETNS": sites.a.netns,
            "B_NETNS": sites.b.netns,
            "RBDTREE_CONFIG": str(sites.config),
        }
        return subprocess.run(sites.b.inside(command or ["bash"]), env={**os.environ, **names}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
