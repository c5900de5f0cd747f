"""Retention on Ceph: what goes and what stays, under a host that writes, under clones of others, under ``kill -9``."""

import errno
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import check_output
from typing import Any

import pytest

from .world import MIB, TREE, World, noise

pytestmark = pytest.mark.ceph


def retain(world: World, node: str, *more: object, code: int = 0) -> Any:
    (found,) = world.get("retain", f"{TREE}/{node}", *more, code=code)["nodes"]
    return found


def goes(found: Any) -> list[str]:
    return [g["generation"] for g in found["generations"] if not g["stays"]]


def have(world: World, node: str) -> list[str]:
    """By the document and by the image, which must tell the same."""
    document = world.document(node)
    prefix = f"rbdtree.{document.tree_id[:8]}."
    seen = [name.removeprefix(prefix) for name in world.snapshots(node) if name.startswith(prefix)]
    assert seen == [str(g.position) for g in document.generations]
    return seen


@contextmanager
def at_work(world: World, node: str) -> Iterator[Any]:
    """A host that has the image open and holds RBD's lock."""
    with world.image(node) as image:
        image.write(noise(4096, "host"), 0)
        image.flush()
        yield image


@pytest.mark.release
def test_generations_go_beneath_a_host_that_writes(world: World) -> None:
    world.init(size=16 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c")
    world.cli("policy", "set", TREE, "keep=last 2")
    world.cli("policy", "set", f"{TREE}/m2", "keep=all")
    world.write("root", {0: noise(6 * MIB)})
    world.step()
    with at_work(world, "root") as image:
        for number in range(3):
            image.write(noise(MIB, number), number * 2 * MIB)
            image.flush()
            world.quick_cut()
        world.sync()
        planned = retain(world, "root", "--dry-run")
        assert goes(planned) == ["1.1", "1.2"]
        assert have(world, "root") == ["1.1", "1.2", "1.3", "1.4"]
        done = world.get("retain", TREE)
        assert {n["node"]: goes(n) for n in done["nodes"]} == {"root": ["1.1", "1.2"], "m1": ["1.1", "1.2"], "m2": []}
        image.write(noise(MIB, "after"), 5 * MIB)
        image.flush()
    assert have(world, "root") == have(world, "m1") == ["1.3", "1.4"]
    assert have(world, "m2") == ["1.1", "1.2", "1.3", "1.4"]
    world.step()
    world.check_settled()
    assert goes(retain(world, "root", "--dry-run")) == ["1.3"]


def test_a_shrink_and_a_growth_between_generations_that_are_gone(world: World) -> None:
    """The cheap diff from 1.1 to the newest has lost the smaller snapshot in between."""
    world.init(size=24 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.write("root", {0: noise(24 * MIB)})
    world.step()
    with world.image("root") as image:
        image.resize(5 * MIB)
    world.quick_cut()
    with world.image("root") as image:
        image.resize(24 * MIB)
    world.write("root", {20 * MIB: noise(MIB, 2)})
    world.quick_cut()
    world.write("root", {MIB: noise(4096, 3)})
    world.quick_cut()
    world.cli("policy", "set", TREE, "keep=last 1")
    assert goes(retain(world, "root")) == ["1.2", "1.3"]
    assert have(world, "root") == ["1.1", "1.4"]
    world.sync()
    world.check(current=True)
    assert all(not node["differences"] for node in world.get("verify", TREE)["nodes"])
    assert goes(retain(world, "root")) == ["1.1"]
    world.check_settled()


def test_a_slow_child_is_let_go_and_resyncs(world: World) -> None:
    world.init(size=32 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.write("root", {0: noise(24 * MIB)})
    world.sync("", "--cut")
    world.write("root", {4 * MIB: noise(4 * MIB, 2), 12 * MIB: noise(100_000, 3)})
    world.quick_cut()
    world.cli("policy", "set", TREE, "keep=last 1", f"max_pinned_bytes={8 * MIB}")
    (held,) = [h for h in world.get("hold", "ls", f"{TREE}/root")["holds"] if h["generation"] == "1.1"]
    assert held["reason"] == f"base of {TREE}/m1"
    assert 4 * MIB + 100_000 <= held["pinned_bytes"] <= 8 * MIB
    assert not goes(retain(world, "root"))
    world.cli("policy", "set", TREE, f"max_pinned_bytes={MIB}")
    told = retain(world, "root")
    assert (goes(told), told["resync"]) == (["1.1"], ["m1"])
    assert have(world, "root") == ["1.2"]
    failed = world.sync("m1", code=errno.EUCLEAN)
    assert "needs a resync" in failed.err
    assert f"rbdtree resync {TREE}/m1" in failed.err
    assert "needs a resync" in world.status()["m1"]["problem"]
    (entry,) = world.get("hold", "ls", TREE)["resyncs"]
    assert (entry["node"], entry["at"], entry["generation"]) == ("m1", "root", "1.1")
    assert "hold 1.2" in world.cli("resync", f"{TREE}/m1", "--dry-run").out
    assert have(world, "m1") == ["1.1"]
    (done,) = world.get("resync", f"{TREE}/m1")["nodes"]
    # What is equal is compared and not written.
    assert 4 * MIB <= done["written_bytes"] <= 6 * MIB
    world.sync()
    world.check(current=True)
    world.check_settled()
    assert not world.get("hold", "ls", TREE)["resyncs"]
    assert "needs no resync" in world.cli("resync", f"{TREE}/m1").out


def test_a_clock_that_jumped_lets_go_of_nothing(world: World) -> None:
    world.init(size=8 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.write("root", {0: noise(MIB)})
    world.sync("", "--cut")
    for number in range(2):
        world.write("root", {MIB: noise(MIB, number)})
        world.quick_cut()
    world.cli("policy", "set", TREE, "keep=last 1", "max_pinned_age=3d")
    ended = world.driven("--format", "json", "retain", f"{TREE}/root", clock_ahead=10 * 86400)
    (found,) = json.loads(ended.stdout)["nodes"]
    assert "10.0 d ahead of the cluster's" in found["skewed"]
    assert (goes(found), found["resync"]) == (["1.2"], [])
    assert "10.0 d ahead" in world.driven("retain", f"{TREE}/root", clock_ahead=10 * 86400).stderr
    assert not retain(world, "root")["skewed"]
    world.sync()
    world.check(current=True)


def test_what_others_made_of_our_snapshots_is_not_harmed(world: World) -> None:
    """A clone of somebody's over a generation that goes; a generation that somebody protected."""
    world.init(size=8 * MIB)
    world.write("root", {0: noise(MIB)})
    for number in range(4):
        world.write("root", {MIB: noise(MIB, number)})
        world.quick_cut()
    first, second = world.snapshots("root")[:2]
    with world.image("root") as image:
        image.protect_snap(second)
    pool, conf = world.pools.name, world.pools.conf("a")
    words = ["rbd", "-c", conf, "--rbd-default-clone-format", "2", "clone", f"{pool}/vol@{first}", f"{pool}/theirs"]
    check_output(words, timeout=60)
    with world.at("a", "theirs", read_only=True) as clone:
        before = world.digest(clone)
    world.cli("policy", "set", TREE, "keep=last 1")
    found = retain(world, "root")
    assert goes(found) == ["1.1", "1.3"]
    assert "protected in RBD" in found["generations"][1]["why"][0]
    assert have(world, "root") == ["1.2", "1.4"]
    with world.at("a", "theirs", read_only=True) as clone:
        assert world.digest(clone) == before


def test_branches_and_pushes_keep_what_they_stand_on(world: World) -> None:
    world.init(size=8 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.write("root", {0: noise(MIB)})
    world.step()
    world.cli("branch", f"{TREE}/m1")
    with world.at("b", f"{TREE}-m1-branch") as image:
        image.write(b"branch", 4 * MIB)
        image.flush()
    for number in range(3):
        world.write("root", {MIB: noise(MIB, number)})
        world.quick_cut()
    world.cli("policy", "set", TREE, "keep=last 1", "max_pinned_age=1s")
    world.sync()
    assert goes(retain(world, "root")) == ["1.2", "1.3"]
    assert goes(retain(world, "m1")) == ["1.2", "1.3"]
    why = " ".join(retain(world, "root", "--dry-run")["generations"][0]["why"])
    assert "branch at or below vol/m1" in why
    # Judged against 1.1, and published.
    world.cli("push", f"{TREE}/m1", "--wait")
    with world.image("root", read_only=True) as image:
        assert image.read(4 * MIB, 6) == b"branch"
    world.sync()
    assert "1.1" in goes(retain(world, "root"))
    world.check(current=True)


@pytest.mark.faults
@pytest.mark.parametrize("when", ["kill_before", "kill_after"])
def test_a_retention_killed_anywhere_is_finished_by_the_next(world: World, when: str) -> None:
    world.init(size=8 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.cli("policy", "set", TREE, "keep=last 1")
    world.write("root", {0: noise(2 * MIB)})
    world.step()
    for number in range(1, 12):
        for _ in range(2):
            world.scatter((when, number, _), count=2)
            world.quick_cut()
        world.sync()
        done = world.driven("retain", f"{TREE}/root", **{when: number})
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        ended = world.cli("retain", f"{TREE}/root")
        assert ended.seconds < 12
        assert len(have(world, "root")) == 1
        world.check()
    else:
        raise AssertionError("it does not come to an end")
    assert number > 4
    assert len(have(world, "root")) == 1
    world.check(current=True)
    world.check_settled()


def test_a_file_makes_a_tree_and_once_more_nothing(world: World, tmp_path: Path) -> None:
    pool = world.pools.name
    path = tmp_path / "vol.toml"
    path.write_text(f"""
        tree = "{TREE}"
        policy.keep = "last 3"

        [nodes.root]
        kind = "root"
        image = "a:{pool}/vol"
        size = "8M"

        [nodes.m1]
        kind = "mirror"
        parent = "root"
        image = "b:{pool}/vol-m1"
        policy.keep = "all"

        [nodes.k1]
        kind = "clone"
        parent = "m1"
        image = "b:{pool}/vol-k1"
    """)
    plan = ("plan", "-f", path)
    assert [c["change"] for c in world.get(*plan)["changes"]] == ["make"] * 3 + ["set"] * 2
    assert world.cli(*plan, "--exit-code", code=3).out.endswith("vol: 5 changes\n")
    world.cli("apply", "-f", path, code=errno.EINVAL)
    assert not world.get("status")["trees"]
    world.cli("apply", "-f", path, "--dry-run")
    assert not world.get("status")["trees"]
    world.cli("apply", "-f", path, "--yes")
    assert world.cli(*plan, "--exit-code").out == "vol: nothing to change\n"
    assert not world.get("apply", "-f", path, "--yes")["done"]
    world.write("root", {0: noise(MIB)})
    world.step()
    exported = tmp_path / "again.toml"
    exported.write_text(world.cli("export", TREE).out)
    world.cli("plan", "-f", exported, "--exit-code")
    world.add("extra", "root", "mirror", "c")
    world.cli("policy", "set", f"{TREE}/m1", "keep=last 9")
    drift = world.cli(*plan, "--exit-code", code=3).out
    assert "? extra: mirror on c:" in drift
    assert "~ m1: keep = last 9 -> all" in drift
    world.cli("apply", "-f", path, "--yes")
    assert set(world.documents()) == {"root", "m1", "k1", "extra"}
    world.cli("apply", "-f", path, "--yes", "--prune")
    assert set(world.documents()) == {"root", "m1", "k1"}
    world.cli(*plan, "--exit-code")
    path.write_text(path.read_text().replace("b:" + pool + "/vol-m1", "c:" + pool + "/vol-m1"))
    refused = world.cli("apply", "-f", path, "--yes", code=errno.EINVAL)
    assert "the image is" in refused.err
