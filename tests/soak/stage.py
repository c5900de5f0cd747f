"""Three clusters and a number of managers, each manager in a network namespace of its own, so that its link to any one
cluster can be cut. All of it lives in a network namespace that this process has entered already: nothing outside is
touched.

    wan (this process, bridge, addresses of clusters a, b, c) --- veth --- m1, m2, m3
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1]
SCRIPTS = TESTS.parent / "ceph-dev"
ADDRESSES = {"a": "10.231.0.11", "b": "10.231.0.12", "c": "10.231.0.13"}


def ip(*words: object) -> None:
    subprocess.run(["ip", *map(str, words)], check=True, capture_output=True, text=True)


def script(name: str, *words: object, seconds: float = 120) -> None:
    done = subprocess.run(
        [SCRIPTS / name, *map(str, words)], capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{name} {words}: {done.stdout}{done.stderr}"


class Manager:
    """A process ``rbdtree manager`` behind a link of its own. It ends when it is told to, or killed: nothing else."""

    def __init__(self, name: str, number: int, config: Path, directory: Path, *more: str) -> None:
        self.name = name
        self.netns = f"soak-{uuid.uuid4().hex[:8]}"
        self.cut: set[str] = set()
        self.process: subprocess.Popen[bytes] | None = None
        self.log = directory / f"{name}.log"
        self._killed = False
        self._config = config
        self._more = more
        self._device = f"v{number}"
        ip("netns", "add", self.netns)
        ip("link", "add", self._device, "type", "veth", "peer", "name", "eth0", "netns", self.netns)
        ip("link", "set", self._device, "master", "wan", "up")
        for words in (
            ("addr", "add", f"10.231.0.{100 + number}/24", "dev", "eth0"),
            ("link", "set", "lo", "up"),
            ("link", "set", "eth0", "up"),
        ):
            ip("-n", self.netns, *words)

    def start(self) -> None:
        code = self.process.poll() if self.process else None
        assert code in (None, 0) or self._killed, f"{self.name} had ended with {code}"
        self._killed = False
        # A pid namespace of its own makes it another machine: others cannot see whether its process lives.
        inside = ["nsenter", f"--net=/run/netns/{self.netns}", "unshare", "--pid", "--fork", "--kill-child"]
        command = [
            sys.executable,
            "-m",
            "rbdtree_cli.main",
            "--config",
            str(self._config),
            "--timeout",
            "10",
            "manager",
        ]
        with self.log.open("ab") as log:
            log.write(b"--- started\n")
            self.process = subprocess.Popen(
                [*inside, *command, "--metrics", "off", "--poll", "5s", *self._more],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PYTHONFAULTHANDLER": "1"},
            )

    @property
    def pid(self) -> int:
        """Of the manager itself, below unshare."""
        assert self.process is not None
        for _ in range(100):
            found = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            if found:
                return int(found[0])
            time.sleep(0.02)
        raise AssertionError(f"{self.name} has not started")

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.alive():
            # What unshare makes of a SIGKILL differs from one release to another.
            self._killed = number == signal.SIGKILL
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def listens(self) -> bool:
        """To signals: the first process of a pid namespace does not hear a SIGTERM before it has a handler for it."""
        return b'"event": "started"' in self.log.read_bytes().rpartition(b"--- started\n")[2]

    def wait(self, seconds: float = 40) -> int:
        assert self.process is not None
        return self.process.wait(seconds)

    def cut_off(self, site: str) -> None:
        """Nothing reaches the cluster from here any more, as if a cable were pulled."""
        if site not in self.cut:
            ip("-n", self.netns, "route", "add", "blackhole", f"{ADDRESSES[site]}/32")
            self.cut.add(site)

    def mend(self, site: str) -> None:
        if site in self.cut:
            ip("-n", self.netns, "route", "del", "blackhole", f"{ADDRESSES[site]}/32")
            self.cut.discard(site)

    def rss_bytes(self) -> int:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        return 0

    def threads(self) -> "Counter[str]":
        """By name: Ceph gives its own names, Python none."""
        found: Counter[str] = Counter()
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with suppress(OSError):
                found[(task / "comm").read_text().strip()] += 1
        return found

    def sockets(self) -> int:
        found = 0
        for entry in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(OSError):
                found += os.readlink(entry).startswith("socket:")
        return found

    def events(self) -> list[dict[str, Any]]:
        """Its log."""
        found = []
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def close(self) -> None:
        if self.alive():
            self.signal(9)
            with suppress(subprocess.TimeoutExpired):
                self.wait(10)
        with suppress(subprocess.CalledProcessError):
            ip("netns", "del", self.netns)


class Stage:
    """Builds it all; ``close`` removes it."""

    def __init__(self, directory: Path, managers: int) -> None:
        sys.path.insert(0, str(TESTS))
        import conftest

        self.directory = directory
        self.managers: list[Manager] = []
        ip("link", "set", "lo", "up")
        ip("link", "add", "wan", "type", "bridge")
        ip("link", "set", "wan", "up")
        for address in ADDRESSES.values():
            ip("addr", "add", f"{address}/24", "dev", "wan")
        threads = [threading.Thread(target=self._boot, args=(site,)) for site in ADDRESSES]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (directory / "rbdtree.toml").touch()
        self.clusters = conftest.Clusters(directory)
        self.pools = conftest.Pools(self.clusters, "soak", directory / "soak.toml")
        self.pools.make()
        for number in range(1, managers + 1):
            made = Manager(f"m{number}", number, self.pools.config, directory, "--log-format", "json")
            self.managers.append(made)

    def _boot(self, site: str) -> None:
        # A manager daemon, for quotas.
        script("up", "--dir", self.directory, "--addr", ADDRESSES[site], "--mgr", site)

    def daemon(self, site: str, daemon: str, action: str) -> None:
        script("daemon", "--dir", self.directory, site, daemon, action)

    def quota(self, site: str, size: int) -> None:
        self.clusters.mon(site, prefix="osd pool set-quota", pool="soak", field="max_bytes", val=str(size))

    def close(self) -> None:
        for manager in self.managers:
            manager.close()
        self.clusters.close()
        script("down", "--dir", self.directory, "--purge")


def within(seconds: float, what: str, seen: Callable[[], Any]) -> Any:
    """Polls until ``seen`` gives something true."""
    deadline = time.monotonic() + seconds
    while True:
        found = seen()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.2)
