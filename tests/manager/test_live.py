"""Managers as processes, over trees on real clusters."""

import json
import os
import re
import signal
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live.world import MIB, World, noise, until

from rbdtree.engine.node import Node
from rbdtree.model import policy
from rbdtree.model.document import PushState
from rbdtree.model.position import snapshot_name

pytestmark = pytest.mark.ceph


class Managed(World):
    """A world in which managers run."""

    def __init__(self, pools: Any, directory: Path) -> None:
        super().__init__(pools)
        self.directory = directory
        self.managers: list[subprocess.Popen[bytes]] = []
        self._count = 0

    def manage(self, *words: object, config: Path | None = None, machine: bool = False) -> "subprocess.Popen[bytes]":
        """A manager. ``machine``: in a pid namespace of its own, as if on another machine."""
        self._count += 1
        log = self.directory / f"manager-{self._count}.log"
        command = self._command(("manager", "--metrics", "off", "--log-format", "json", "--poll", "5s", *words))
        if config:
            command[command.index("--config") + 1] = str(config)
        if machine:
            command = ["unshare", "--pid", "--fork", "--kill-child", *command]
        with log.open("wb") as out:
            made = subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL)
        self.managers.append(made)
        return made

    def events(self, number: int = 1) -> list[dict[str, Any]]:
        found = []
        for line in (self.directory / f"manager-{number}.log").read_text(errors="replace").splitlines():
            with suppress(ValueError):
                found.append(json.loads(line))
        return found

    def wants(self, **settings: str) -> None:
        """The tree's policy."""
        found = policy.settings(settings)
        root = Node.at(self.sites, self.document("root").ref)
        root.update(lambda d: replace(d, tree_policy=found))
        for name, document in self.documents().items():
            if name != "root":
                Node.at(self.sites, document.ref).update(lambda d: replace(d, tree_policy=found))

    def level(self, sequence: int | None = None) -> bool:
        """Everybody has the root's newest generation (which is this one, at least)."""
        found = self.documents()
        position = found["root"].newest_position
        far = position is not None and (sequence is None or position.sequence >= sequence)
        return far and all(d.newest_position == position and not d.intent for d in found.values())

    def holders(self) -> dict[str, str]:
        """Whose each edge is."""
        return {row["node"].partition("/")[2]: row["worker"] or "" for row in self.get("managers", "vol")["edges"]}

    def close(self) -> None:
        for manager in self.managers:
            if manager.poll() is None:
                manager.kill()
                manager.wait(10)
        super().close()


@pytest.fixture
def managed(pools: Any, tmp_path: Path) -> Iterator[Managed]:
    made = Managed(pools, tmp_path)
    yield made
    made.close()


def child_of(process: "subprocess.Popen[bytes]") -> int:
    """The manager below unshare."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(until(lambda: path.read_text().split(), "unshare has forked")[0])


def chain(world: Managed, size: int = 32 * MIB) -> None:
    """root (a) - m (b) - leaf (c), and a clone beside the root."""
    world.init(size=size)
    world.add("m", "root", "mirror", "b")
    world.add("leaf", "m", "mirror", "c")
    world.add("view", "root", "clone", "a")
    world.write("root", {0: noise(2 * MIB, "first")})


def test_a_tree_keeps_itself_in_sync(managed: Managed) -> None:
    """By schedule, at once after a cut, with a push on the way; and it ends in good order."""
    chain(managed)
    managed.wants(schedule="2s", push="1s", rpo="30s")
    manager = managed.manage()
    until(lambda: managed.level(1), "the first generation is everywhere")
    managed.check(current=True)
    managed.cli("branch", "vol/leaf")
    branch = managed.document("leaf").branch
    assert branch
    with managed.at("c", branch.image) as image:
        image.write(b"from the leaf" * 400, 8 * MIB)
        image.flush()
    until(
        lambda: any(g.author == "leaf" for g in managed.document("root").generations), "the leaf's write is published"
    )
    until(managed.level, "and everywhere")
    managed.check(current=True)
    with managed.image("root", read_only=True) as image:
        assert image.read(8 * MIB, 13) == b"from the leaf"
    done = managed.cli("check", "vol")
    assert done.out.startswith("RBDTREE OK - vol is well"), done.out
    manager.send_signal(signal.SIGTERM)
    assert manager.wait(30) == 0
    assert not any(managed.holders().values())
    assert managed.get("managers", "vol")["managers"] == []
    checked = managed.cli("check", "vol", code=2)
    assert "no manager runs" in checked.out
    managed.cli("discard", "vol/leaf", "--yes")
    managed.sync()
    managed.check_settled(strays=False)  # the discarded branch is in the trash
    cycles = [e for e in managed.events() if e["event"] == "cycle"]
    assert not [e for e in cycles if e.get("error_kind") == "Bug"], cycles
    assert any(e["node"] == "leaf" and e.get("written_bytes", 0) >= 2 * MIB for e in cycles), cycles


@pytest.mark.parametrize("managers", [1, 2])
def test_cut_through(managed: Managed, tmp_path: Path, managers: int) -> None:
    """In one manager; and in two, each with the keys of one edge only. The leaf takes the delta while it arrives at its
    parent, and never has a generation that its parent has not."""
    managed.init(size=96 * MIB)
    managed.add("m", "root", "mirror", "b")
    managed.add("leaf", "m", "mirror", "c")
    managed.write("root", {0: noise(MIB, "one")})
    managed.sync("", "--cut")
    managed.wants(bandwidth="8M")
    sites = managed.pools.config.read_text().split("\n\n")
    upper, lower = tmp_path / "ab.toml", tmp_path / "bc.toml"
    upper.write_text("\n\n".join(sites[:2]))
    lower.write_text("\n\n".join(sites[1:]))
    for config in (upper, lower) if managers == 2 else (managed.pools.config,):
        managed.manage(config=config)
    until(lambda: len([w for w in managed.holders().values() if w]) == 3, "each edge is somebody's")
    managed.write("root", {at * MIB: noise(MIB, at) for at in range(4, 44)})
    managed.cut()
    overlapped = []

    def seen() -> bool:
        # In this order: both may have it by the time the second one is read.
        leaf, m = managed.document("leaf"), managed.document("m")
        if m.intent and leaf.intent and leaf.intent.done_bytes:
            overlapped.append((leaf.intent.done_bytes, m.intent.done_bytes))
        assert leaf.position <= m.position
        return managed.level(2)

    until(seen, "the delta is everywhere", 60)
    assert overlapped, "the leaf began before its parent had sealed"
    managed.check(current=True)
    managed.forget_hashes()
    assert all(node["equal"] for node in managed.get("verify", "vol")["nodes"])


def test_a_manager_that_dies_in_a_copy_is_replaced(managed: Managed) -> None:
    chain(managed)
    managed.wants(bandwidth="4M")
    first = managed.manage()
    until(lambda: managed.level() or managed.document("root").newest is None, "nothing yet")
    managed.cut()
    until(lambda: managed.level(1), "the first generation is everywhere")
    managed.write("root", {at * MIB: noise(MIB, at) for at in range(4, 28)})
    managed.cut()
    until(lambda: (i := managed.document("m").intent) and i.done_bytes > 8 * MIB, "it copies")
    first.kill()
    first.wait(10)
    done = managed.document("m").intent
    assert done
    managed.manage()
    until(lambda: managed.level(2), "another finishes it", 60)
    managed.check(current=True)
    began = next(e for e in managed.events(2) if e["event"] == "cycle" and e["node"] == "m" and e.get("read_bytes"))
    assert began["read_bytes"] <= 24 * MIB - (done.done_bytes - 4 * MIB) + 4 * MIB, "it went on, not from the beginning"


@pytest.mark.faults
def test_a_frozen_manager_comes_back_and_writes_nothing(managed: Managed) -> None:
    """SIGSTOP for longer than its lease, in the middle of a copy; on another machine, so that nobody can look."""
    chain(managed)
    managed.wants(bandwidth="2M")
    managed.cut()
    managed.sync()
    first = managed.manage(machine=True)
    until(lambda: all(managed.holders().values()), "all edges are its")
    managed.write("root", {at * MIB: noise(MIB, at) for at in range(4, 28)})
    managed.cut()
    until(lambda: (i := managed.document("m").intent) and i.done_bytes > 8 * MIB, "it copies")
    os.kill(child_of(first), signal.SIGSTOP)
    began = time.monotonic()
    managed.manage(machine=True)
    until(lambda: all("manager" in w for w in managed.holders().values()), "the locks are told")
    until(lambda: (i := managed.document("m").intent) is None or time.time() - i.moved < 2, "another goes on", 60)
    assert time.monotonic() - began < 45
    os.kill(child_of(first), signal.SIGCONT)
    until(lambda: managed.level(2), "it is finished", 60)
    managed.check(current=True)
    managed.write("root", {0: noise(MIB, "more")})
    managed.cut()
    until(lambda: managed.level(3), "they share the edges again", 60)
    managed.check(current=True)
    spread = until(lambda: len(set(managed.holders().values())) == 2, "both have some", 40)
    assert spread


def test_a_journal_branch_is_published_without_asking(managed: Managed) -> None:
    chain(managed)
    managed.cut()
    managed.sync()
    managed.cli("branch", "vol/leaf", "--uplink", "journal")
    managed.manage()
    until(lambda: (b := managed.document("leaf").branch) and b.session, "its uplink runs")
    branch = managed.document("leaf").branch
    assert branch
    with managed.at("c", branch.image) as image:
        for number in range(8):
            image.write(noise(4096, number), (10 + number) * MIB)
            image.flush()
            time.sleep(0.1)

    def published() -> bool:
        root = managed.document("root")
        assert root.newest_position
        with managed.image("root", snapshot_name(root.tree_id, root.newest_position), read_only=True) as image:
            return all(image.read((10 + n) * MIB, 4096) == noise(4096, n) for n in range(8))

    until(published, "all of it is at the root", 40)
    until(managed.level, "and everywhere", 40)
    managed.check()


def test_a_scrub_finds_what_nobody_wrote(managed: Managed) -> None:
    """An object of a mirror is changed behind RBD's back: found, told, and mended by the next generation."""
    managed.init(size=16 * MIB)
    managed.add("m", "root", "mirror", "b")
    managed.write("root", {at * 4 * MIB: noise(MIB, at) for at in range(4)})
    managed.sync("", "--cut")
    managed.check(current=True)
    with managed.image("m", read_only=True) as image:
        prefix = image.stat()["block_name_prefix"]
    with managed.pools.clusters.admin("b").open_ioctx(managed.pools.name) as ioctx:
        # Without a snapshot context, as a bad disk would: the snapshot's bytes are these.
        ioctx.write(f"{prefix}.{2:016x}", b"rot", 1000)
    managed.wants(scrub="3s")
    managed.manage()
    until(lambda: managed.document("m").distrust, "it is found")
    said = managed.cli("check", "vol", code=2).out
    assert "unlike vol/root" in said
    scrub = managed.document("m").scrub
    assert scrub
    assert scrub.found == 1
    managed.write("root", {MIB: noise(MIB, "next")})
    managed.cut()
    until(lambda: managed.level(2), "the next generation is there", 40)
    root, m = managed.document("root"), managed.document("m")
    assert root.newest_position
    name = snapshot_name(root.tree_id, root.newest_position)
    with managed.image("root", name, read_only=True) as ours, managed.image("m", name, read_only=True) as theirs:
        assert managed.digest(ours) == managed.digest(theirs)
    assert not m.distrust
    until(lambda: (s := managed.document("m").scrub) and not s.found, "a whole pass finds nothing any more")
    assert until(lambda: managed.document("m").trouble is None, "the trouble is over")


def test_one_bad_edge_stops_no_other(managed: Managed) -> None:
    """The mirror was written to behind our back: a person's to mend; its sibling goes on, and check says what to do."""
    managed.init(size=16 * MIB)
    managed.add("m", "root", "mirror", "b")
    managed.add("good", "root", "mirror", "c")
    managed.write("root", {0: noise(MIB, 1)})
    managed.sync("", "--cut")
    managed.write("m", {4 * MIB: b"mine"})
    managed.manage()
    until(lambda: all(managed.holders().values()), "all edges are its")
    managed.write("root", {8 * MIB: noise(MIB, 2)})
    managed.cut()
    until(lambda: managed.document("good").position.sequence == 2, "the good one goes on")
    trouble = until(lambda: managed.document("m").trouble, "the trouble is in its document")
    assert trouble.kind == "Diverged"
    assert trouble.next_try == 0
    done = managed.cli("check", "vol", code=2)
    assert "diverged" in done.out
    assert "rollback" in done.out
    managed.cli("rollback", "vol/m")
    until(lambda: managed.level(2), "what a person mended goes on by itself", 20)
    assert until(lambda: managed.document("m").trouble is None, "the trouble is over")
    assert not any(p.state is PushState.CONFLICT for p in managed.document("m").pushes)


def test_it_reloads_and_serves_metrics(managed: Managed) -> None:
    chain(managed)
    managed.cut()
    log = managed.directory / "served.log"
    command = managed._command(("manager", "--metrics", "127.0.0.1:0", "--poll", "5s"))
    with log.open("wb") as out:
        manager = subprocess.Popen(command, stdout=out, stderr=out)
    managed.managers.append(manager)
    until(lambda: managed.level(1), "the first generation is everywhere")
    port = re.search(r"event=metrics address=127.0.0.1 port=(\d+)", log.read_text())
    assert port
    level = 'rbdtree_node_lag_generations{node="leaf",of="root",tree="vol"} 0.0'

    def told() -> bool:
        with urllib.request.urlopen(f"http://127.0.0.1:{port[1]}/metrics", timeout=10) as answer:
            return level in answer.read().decode()

    until(told, "the leaf's lag is told")
    good = managed.pools.config.read_text()
    managed.pools.config.write_text(good + "\n[nonsense]\n")
    manager.send_signal(signal.SIGHUP)
    until(lambda: "event=reload" in log.read_text() and "nonsense" in log.read_text(), "what is wrong is said")
    managed.pools.config.write_text(good)
    manager.send_signal(signal.SIGHUP)
    until(lambda: log.read_text().count("event=started") >= 3, "it has begun anew, twice")
    managed.write("root", {0: noise(4096, "later")})
    managed.cut()
    until(lambda: managed.level(2), "and goes on")
    manager.send_signal(signal.SIGTERM)
    assert manager.wait(30) == 0


def test_bad_options(managed: Managed) -> None:
    refused: list[tuple[tuple[object, ...], int, str]] = [
        (("--poll", "0s"), 22, "--poll takes 1s to 1h"),
        (("--jobs", 0), 22, "--jobs takes a number"),
        (("--site", "nowhere"), 2, "there is no site"),
        (("--metrics", "9842"), 22, "is not ADDRESS:PORT"),
    ]
    for words, code, text in refused:
        said = managed.cli("manager", *words, code=code).err
        assert text in said
