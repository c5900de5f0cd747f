"""Hosts with real block devices.

here    this machine, where FUSE and loop devices can be had: commands run natively, in a state directory of the test
site    clusters a and b on a network of test hosts (ceph-dev/host), and hosts h1 and h2 on it; one a session
yard    a fresh pool on these clusters, and what a test does there
"""

import json
import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

REPO = Path(__file__).parents[2]
sys.path.insert(0, str(REPO / "ceph-dev"))
from cephdev import host as testhost  # noqa: E402

MIB = 1 << 20
RBDTREE = f"{sys.executable} -m rbdtree_cli.main"


class Done:
    """A command that ended."""

    def __init__(self, words: str, code: int, out: str, err: str) -> None:
        self.words, self.code, self.out, self.err = words, code, out, err

    def __repr__(self) -> str:
        return f"{self.words}: exit code {self.code}\n{self.out}\n{self.err}"

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def until(what: str, question: Callable[[], Any], seconds: float = 120) -> Any:
    """Asks until the answer is true; the answer."""
    deadline = time.monotonic() + seconds
    while True:
        found = question()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)


def line(words: tuple[object, ...], config: Path, run: str = "") -> str:
    """A command of ours, for a shell."""
    run = f"RBDTREE_RUN={run} " if run else ""
    return f"{run}RBDTREE_CONFIG={config} {RBDTREE} {shlex.join(map(str, words))}"


# -- this machine


class Here:
    """This machine as a host, with a state directory of its own. Its config may be changed."""

    def __init__(self, pools: Any, folder: Path) -> None:
        self.pools = pools
        self.clusters = pools.clusters
        self.config: Path = pools.config
        self.run_dir = folder / "run"
        self.folder = folder

    def shell(self, command: str, code: int | None = 0, seconds: float = 60) -> Done:
        done = subprocess.run(
            ["/bin/bash", "-c", command], capture_output=True, text=True, timeout=seconds, check=False, cwd="/"
        )
        found = Done(command, done.returncode, done.stdout, done.stderr)
        assert "Traceback" not in found.err, found
        assert code is None or found.code == code, found
        return found

    def __call__(self, *words: object, code: int | None = 0, seconds: float = 60) -> Done:
        return self.shell(line(words, self.config, str(self.run_dir)), code, seconds)

    def get(self, *words: object, code: int | None = 0) -> Any:
        return self("--format", "json", *words, code=code).json

    def start(self, *words: object) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "rbdtree_cli.main", *map(str, words)],
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "RBDTREE_RUN": str(self.run_dir), "RBDTREE_CONFIG": str(self.config)},
        )

    def tree(self, name: str, size: str = "64M") -> None:
        """A root at a and a mirror m at b."""
        self("init", name, "--node", "root", "--image", self.pools.spec("a", name), "--size", size)
        self("add", f"{name}/m", "--parent", "root", "--kind", "mirror", "--image", self.pools.spec("b", name))

    def leave(self) -> None:
        """Whatever a test left."""
        if not any(self.run_dir.glob("m*/*")):
            return
        for path in sorted(self.folder.glob("run/mounts/*.json")):
            self("umount", "--force", json.loads(path.read_text())["directory"], code=None)
        self("unmap", "--all", "--force", code=None)
        until("no loop device is left behind", lambda: not loops(self.folder), 10)


def loops(folder: Path) -> set[str]:
    """Of this machine, over files in the folder: other tests have others at the same time."""
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with suppress(OSError):
            if path.read_text().startswith(f"{folder}/"):
                found.add(path.parents[1].name)
    return found


# -- test hosts


HOSTS = ("h1", "h2", "h3")


class Site:
    """Clusters a and b on the bridge, and hosts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.network = testhost.Network(directory)

    def boot(self) -> None:
        self.network.make()
        clusters = [str(REPO / "ceph-dev" / "up"), "--dir", str(self.directory), "--netns", self.network.namespace]
        # A client that died is waited for as long as this; 30 s by default.
        clusters += ["--addr", testhost.GATEWAY, "--conf", "osd client watch timeout = 6", "a", "b"]
        with ThreadPoolExecutor(2) as threads:
            booted = threads.submit(subprocess.run, clusters, capture_output=True, text=True, check=False, timeout=120)
            self.network.up(HOSTS)
            done = booted.result()
        assert done.returncode == 0, done.stderr

    def conf(self, name: str) -> Path:
        return self.directory / name / "ceph.conf"

    def shell(self, command: str, code: int | None = 0, seconds: float = 60) -> Done:
        """On this machine, in the network of the hosts."""
        words = ["nsenter", f"--net=/run/netns/{self.network.namespace}", "/bin/bash", "-c", command]
        done = subprocess.run(words, capture_output=True, text=True, timeout=seconds, check=False)
        found = Done(command, done.returncode, done.stdout, done.stderr)
        assert code is None or found.code == code, found
        return found

    def listener(self) -> socket.socket:
        """On the bridge: hosts can connect to it."""
        return testhost.within(self.network.namespace, lambda: socket.create_server((testhost.GATEWAY, 0)))

    def end(self) -> None:
        self.network.remove()
        purge = [str(REPO / "ceph-dev" / "down"), "--dir", str(self.directory), "--purge"]
        subprocess.run(purge, capture_output=True, check=False, timeout=60)


class Yard:
    """A fresh pool at a and b; ``at(host, ...)`` runs a command of ours inside a host."""

    def __init__(self, site: Site, name: str, config: Path) -> None:
        self.site = site
        self.name = name
        self.config = config
        self.more = ""

    def make(self) -> None:
        for conf in map(self.site.conf, ("a", "b")):
            self.site.shell(f"ceph -c {conf} osd pool create {self.name} 4 4 && rbd -c {conf} pool init {self.name}")
        self.configure("")

    def configure(self, more: str) -> None:
        sections = [f'[sites.{s}]\nconf = "{self.site.conf(s)}"\npools = ["{self.name}"]\n' for s in ("a", "b")]
        self.config.write_text("\n".join([*sections, more]))

    def spec(self, site: str, image: str) -> str:
        return f"{site}:{self.name}/{image}"

    def __call__(self, *words: object, code: int | None = 0, seconds: float = 60) -> Done:
        """A command of ours on this machine."""
        return self.site.shell(line(words, self.config), code, seconds)

    def sh(self, host: str, command: str, code: int | None = 0, seconds: float = 240) -> Done:
        """A shell command inside a host."""
        answer = self.site.network.host(host).run(command, seconds)
        found = Done(f"{host}: {command}", answer.code, answer.out, answer.err)
        assert "Traceback" not in found.err, found
        assert code is None or found.code == code, found
        return found

    def at(self, host: str, *words: object, code: int | None = 0, seconds: float = 240) -> Done:
        """A command of ours inside a host."""
        return self.sh(host, line(words, self.config), code, seconds)

    def rbd(self, site: str, *words: object) -> str:
        return self.site.shell(f"rbd -c {self.site.conf(site)} -p {self.name} {shlex.join(map(str, words))}").out

    def tree(self, size: str = "64M") -> None:
        """vol: a root at a and a mirror m at b."""
        self("init", "vol", "--node", "root", "--image", self.spec("a", "vol"), "--size", size)
        self("add", "vol/m", "--parent", "root", "--kind", "mirror", "--image", self.spec("b", "vol"))

    def leave(self) -> None:
        for host in HOSTS:
            if self.site.network.host(host).running:
                self.sh(host, "for d in $(findmnt -rno TARGET | grep ^/mnt/); do umount -l $d; done", code=None)
                unmap = line(("unmap", "--all", "--force"), self.config)
                self.sh(host, f'[ -z "$(ls /run/rbdtree/maps 2>/dev/null)" ] || {unmap}', code=None)
                self.sh(host, "rm -rf /run/rbdtree", code=None)


# -- docs/json.md


def documented(command: str) -> set[str]:
    """Paths of the section whose heading names the command."""
    page = (REPO / "docs" / "json.md").read_text()
    for heading, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", page, flags=re.M | re.S):
        if f"`{command}`" in heading:
            return set(re.findall(r"^\| `([^`]+)` \|", text, flags=re.M))
    raise AssertionError(f"docs/json.md has no section of {command}")


def paths(value: Any, at: str = "") -> set[str]:
    """Of everything in a JSON value."""
    if isinstance(value, dict):
        return {path for key, below in value.items() for path in paths(below, f"{at}.{key}" if at else key)}
    if isinstance(value, list):
        return {path for below in value for path in paths(below, f"{at}[]")}
    return {at}


def check_json(command: str, value: Any) -> None:
    """Every key is documented, and every documented one is there or has a parent that is null or empty."""
    found, known = paths(value), documented(command)
    assert found <= known, f"{command}: not in docs/json.md: {found - known}"
    nothing = {path for path in known - found if not any(path.startswith((f"{f}.", f"{f}[")) for f in found)}
    lists = {path for path in nothing if "[]" in path}
    objects = {path for path in nothing if any(k.startswith(f"{path}.") for k in known)}
    assert nothing <= lists | objects, f"{command}: documented and not written: {nothing - lists - objects}"
