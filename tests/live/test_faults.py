"""Bad luck that no process causes to itself: daemons that die, full pools, silent clusters, people at work."""

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from rbdtree import errors
from rbdtree.ceph import sites
from rbdtree.model.codec import FORMAT
from rbdtree.model.position import snapshot_name

from .world import MIB, TREE, World, noise, until

pytestmark = [pytest.mark.ceph, pytest.mark.faults]

DIVERGED = errno.EUCLEAN
SLOW = 0.4
"""Seconds between writes in a driven sync: one of 24 MiB takes over two."""


def _pair(world: World, *more: object, data: int = 24) -> None:
    """root in a, m1 in b, at one generation with data; the next one cut and waiting: ``data`` MiB in 1 MiB objects."""
    world.init("a", "vol", 32 * MIB, "--object-size", "1M")
    world.add("m1", "root", "mirror", "b", *more)
    world.write("root", {0: noise(4 * MIB)})
    world.step()
    world.write("root", {2 * MIB: noise(data * MIB, 1)})
    world.cut()


def _wait(process: "subprocess.Popen[str]", seconds: float = 60) -> tuple[int, str]:
    out, err = process.communicate(timeout=seconds)
    return process.returncode, out + err


def _midway(world: World, tmp_path: Path, *words: object, **orders: object) -> "subprocess.Popen[str]":
    """A slowed sync that is a quarter through."""
    mark = tmp_path / f"midway-{time.monotonic_ns()}"
    more = {"write_seconds": SLOW, "record_seconds": 0.05, "touch_copied": [0.25, str(mark)], **orders}
    mark = Path(more["touch_copied"][1])
    process = world.start_driven("sync", TREE, *words, **more)
    until(lambda: mark.exists() or process.poll() is not None, "the copy is under way")
    if process.poll() is not None:
        raise AssertionError(_wait(process))
    return process


def _recovered(world: World) -> None:
    world.check(current=True)
    world.scatter("afterwards")
    world.step()
    world.check_settled()


# -- daemons


def test_an_osd_dies_and_comes_back(fragile: World, tmp_path: Path) -> None:
    _pair(fragile)
    process = _midway(fragile, tmp_path)
    fragile.pools.clusters.daemon("b", "osd.0", "kill")
    fragile.pools.clusters.daemon("b", "osd.0", "start")
    code, said = _wait(process)
    assert code == 0, said
    _recovered(fragile)


def test_a_client_that_seldom_asks_finds_an_osd_that_came_back(fragile: World) -> None:
    """With a --timeout as short as librados waits before it asks where an OSD is now."""
    fragile.init(size=8 * MIB)
    fragile.add("m", "root", "mirror", "b")
    fragile.write("root", {0: noise(MIB, 1)})
    fragile.sync("", "--cut")
    document = fragile.document("m")
    sites = fragile.pools.sites(timeout=8)
    assert document.newest_position
    name = snapshot_name(document.tree_id, document.newest_position)
    image = sites.cluster("b").pool(fragile.pools.name).open(document.image_id, name)
    before = image.checksums([(0, 4 * MIB)])
    fragile.pools.clusters.daemon("b", "osd.0", "kill")
    fragile.pools.clusters.daemon("b", "osd.0", "start")

    def answered() -> bool:
        try:
            return bool(image.checksums([(0, 4 * MIB)]) == before)
        except errors.Unreachable:
            return False

    until(answered, "the same checksum, from the OSD as it is now", 30)
    image.close()


def test_an_osd_freezes_for_five_seconds(fragile: World, tmp_path: Path) -> None:
    _pair(fragile)
    process = _midway(fragile, tmp_path)
    fragile.pools.clusters.daemon("b", "osd.0", "pause")
    time.sleep(5)  # the length of the fault itself
    assert process.poll() is None
    fragile.pools.clusters.daemon("b", "osd.0", "resume")
    code, said = _wait(process)
    assert code == 0, said
    _recovered(fragile)


def test_an_osd_that_stays_away(fragile: World, tmp_path: Path) -> None:
    """The sync gives up in bounded time; the next one goes on where it stopped."""
    _pair(fragile)
    process = _midway(fragile, tmp_path, "--timeout", 3)
    fragile.pools.clusters.daemon("b", "osd.0", "pause")
    began = time.monotonic()
    code, said = _wait(process)
    gone = time.monotonic() - began
    fragile.pools.clusters.daemon("b", "osd.0", "restart")
    assert code == errno.ETIMEDOUT, said
    assert gone < 25, said
    moved = fragile.get("sync", TREE)["nodes"][0]["written_bytes"]
    assert moved < 24 * MIB
    _recovered(fragile)


def test_a_monitor_dies(fragile: World, tmp_path: Path) -> None:
    _pair(fragile)
    process = _midway(fragile, tmp_path)
    fragile.pools.clusters.daemon("b", "mon.a", "kill")
    fragile.pools.clusters.daemon("b", "mon.a", "start")
    code, said = _wait(process)
    assert code == 0, said
    _recovered(fragile)


@pytest.mark.parametrize(("site", "daemon"), [("a", "osd.0"), ("a", "mon.a"), ("b", "osd.0")])
def test_a_cluster_that_does_not_answer(fragile: World, site: str, daemon: str) -> None:
    _pair(fragile, data=1)
    fragile.add("m2", "root", "mirror", "c")
    fragile.pools.clusters.daemon(site, daemon, "pause")
    words = [("sync", TREE), ("status", TREE), ("site", "check"), ("cut", TREE)]
    done = {word[0]: fragile.cli("--timeout", 2, *word, code=None) for word in words}
    fragile.pools.clusters.daemon(site, daemon, "restart")
    assert all(d.seconds < 20 for d in done.values()), {k: d.seconds for k, d in done.items()}
    assert done["sync"].code == done["site"].code == errno.ETIMEDOUT, done
    assert "answer" in done["sync"].err, done["sync"]
    assert (done["cut"].code == 0) == (site == "b"), done["cut"]
    if site == "b":
        # One bad edge stops nobody else; the others are shown.
        assert fragile.document("m2").generations
        assert done["status"].code == 0
        assert "m2" in done["status"].out
    fragile.sync()
    _recovered(fragile)


def test_a_pool_that_does_not_answer_hides_no_other(fragile: World) -> None:
    """Its placement groups have no OSD to be on. Nothing says that no tree is in it, so it is asked, and told of."""
    _pair(fragile, data=1)
    clusters = fragile.pools.clusters
    clusters.mon("b", prefix="osd crush add-bucket", name="nowhere", type="root")
    clusters.mon("b", prefix="osd crush rule create-simple", name="nowhere", root="nowhere", type="host")
    name = fragile.extra_pool("b", rule="nowhere")
    everywhere = ("--config", clusters.config, "--timeout", 2)
    try:
        done = {word: fragile.cli(*everywhere, word, TREE) for word in ("status", "sync")}
        check = fragile.cli(*everywhere, "site", "check", code=None)
    finally:
        fragile.drop_extra_pools()
        clusters.mon("b", prefix="osd crush rule rm", name="nowhere")
        clusters.mon("b", prefix="osd crush rm", name="nowhere")
    for one in (*done.values(), check):
        assert f"b:{name}: no answer" in one.out + one.err, one
    assert all(one.seconds < 20 for one in (*done.values(), check)), done
    assert "m1" in done["status"].out
    _recovered(fragile)


# -- space


@pytest.mark.parametrize("apart", [False, True], ids=["pool", "data-pool"])
def test_a_pool_that_fills_up_midway(fragile: World, tmp_path: Path, apart: bool) -> None:
    """A quota of the child's pool is reached; with more room the delta goes on where it stopped."""
    pool = fragile.data_pool("b") if apart else fragile.pools.name
    _pair(fragile, *(("--data-pool", pool) if apart else ()))
    clusters = fragile.pools.clusters

    def quota(size: int) -> None:
        clusters.mon("b", prefix="osd pool set-quota", pool=pool, field="max_bytes", val=str(size))

    def full() -> bool:
        pools = clusters.mon("b", prefix="osd dump")["pools"]
        return any("full" in p["flags_names"].split(",") for p in pools if p["pool_name"] == pool)

    process = _midway(fragile, tmp_path, "--timeout", 5, write_seconds=1.2, touch_copied=[0.05, str(tmp_path / "full")])
    quota(1 * MIB)
    until(full, "the pool is full", 40)
    began = time.monotonic()
    code, said = _wait(process)
    assert code == errno.ENOSPC, said
    assert pool in said
    assert "full" in said
    assert time.monotonic() - began < 40, said
    fragile.check()
    assert fragile.status()["m1"]["state"] == "inconsistent"
    quota(0)
    until(lambda: not full(), "there is room again", 40)
    moved = fragile.get("sync", TREE)["nodes"][0]["written_bytes"]
    assert 0 < moved <= 24 * MIB, moved
    _recovered(fragile)


# -- processes


@pytest.mark.parametrize(
    ("only", "when"),
    [
        ("submit_write", {"stop_after": 4}),
        ("submit_write", {"stop_before": 1}),
        ("create_snapshot", {"stop_before": 1}),
        ("create_snapshot", {"stop_after": 1}),
        ("swap_document", {"stop_before": 2}),
        ("swap_document", {"stop_before": 3}),
    ],
    ids=lambda value: "-".join(f"{k}{v}" for k, v in value.items()) if isinstance(value, dict) else value,
)
def test_a_stopped_sync_wakes_up_too_late(world: World, only: str, when: dict[str, int]) -> None:
    """Its claim expires, another takes over and goes on to later generations; it must not write another byte."""
    _pair(world)
    process = world.start_driven("sync", TREE, claim_seconds=4, only=[only], **when)
    _until_stopped(process)
    # While the claim still holds: who was seen holding it is fenced when it is gone.
    done = world.sync()
    assert done.seconds < 20, done
    world.check(current=True)
    world.write("root", {MIB: noise(9 * MIB, 5)})
    world.step()
    before = world.head("m1")
    os.kill(process.pid, signal.SIGCONT)
    code, said = _wait(process)
    assert code != 0, said
    assert "Traceback" not in said, said
    assert world.head("m1") == before
    world.forget_hashes()
    world.check(current=True)
    world.check_settled()


@pytest.mark.parametrize(
    ("only", "number"),
    [("clone", 1), ("set_metadata", 1), ("trash", 1), ("rename", 1), ("swap_document", 3), ("purge", 1)],
)
def test_a_stopped_sync_of_a_clone_wakes_up_too_late(world: World, only: str, number: int) -> None:
    world.init(size=8 * MIB)
    world.add("k1", "root", "clone", "a")
    world.scatter(1)
    world.step()
    world.scatter(2)
    world.cut()
    process = world.start_driven("sync", TREE, claim_seconds=4, only=[only], stop_before=number)
    _until_stopped(process)
    done = world.sync()
    assert done.seconds < 20, done
    world.scatter(3)
    world.step()
    os.kill(process.pid, signal.SIGCONT)
    _, said = _wait(process)
    assert "Traceback" not in said, said
    world.forget_hashes()
    world.sync()
    world.check(current=True)
    world.scatter(4)
    world.step()
    world.check_settled()


def _until_stopped(process: "subprocess.Popen[str]") -> None:
    def stopped() -> bool:
        assert process.poll() is None, _wait(process)
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state == "T"

    until(stopped, "the sync has stopped itself")


def test_two_at_once(world: World, tmp_path: Path) -> None:
    _pair(world)
    process = _midway(world, tmp_path, claim_seconds=1, write_seconds=0.8)
    second = world.cli("sync", TREE, code=errno.EBUSY)
    assert "at work" in second.err
    code, said = _wait(process)
    assert code == 0, said
    _recovered(world)


def test_many_cuts_at_once(world: World) -> None:
    _pair(world, data=1)
    processes = [world.start("cut", TREE) for _ in range(4)]
    for process in processes:
        code, said = _wait(process)
        assert code == 0, said
    assert len(world.document("root").generations) == 6
    world.sync()
    _recovered(world)


@pytest.mark.release
def test_control_c(world: World, tmp_path: Path) -> None:
    _pair(world)
    process = _midway(world, tmp_path)
    process.send_signal(signal.SIGINT)
    code, said = _wait(process)
    assert code == 130, said
    assert "Traceback" not in said
    world.check()
    assert world.status()["m1"]["state"] == "inconsistent"
    moved = world.get("sync", TREE)["nodes"][0]["written_bytes"]
    assert moved < 20 * MIB, moved
    _recovered(world)


# -- people


def _drop(world: World, node: str, generation: str) -> None:
    document = world.document(node)
    with world.image(node) as image:
        image.remove_snap(f"rbdtree.{document.tree_id[:8]}.{generation}")


def _generations(world: World, count: int) -> None:
    for number in range(count):
        world.scatter(("more", number))
        world.quick_cut()


def test_the_base_is_removed_upstream(world: World) -> None:
    """The child's newest generation leaves the parent: back to the one before, and on from there."""
    _pair(world, data=1)
    world.sync()
    _drop(world, "root", "1.2")
    _generations(world, 1)
    world.sync()
    world.check()
    assert world.document("m1").position.sequence == 3
    assert str(world.status()["m1"]["state"]) == "up-to-date"


def test_an_intermediate_generation_is_removed_upstream(world: World) -> None:
    _pair(world, data=1)
    _generations(world, 2)
    _drop(world, "root", "1.3")
    world.sync()
    world.check()
    assert world.document("m1").position.sequence == 4
    assert world.status()["m1"]["state"] == "up-to-date"


def test_the_newest_generation_is_removed_upstream(world: World) -> None:
    _pair(world, data=1)
    _drop(world, "root", "1.2")
    world.sync("", code=None)
    world.check()
    _generations(world, 1)
    world.sync()
    world.check()
    assert world.status()["m1"]["state"] == "up-to-date"


def test_the_target_is_removed_upstream_midway(world: World) -> None:
    _pair(world)
    done = world.driven("sync", TREE, kill_copied=0.4, write_seconds=SLOW)
    assert done.returncode == -signal.SIGKILL
    _drop(world, "root", "1.2")
    world.scatter("on")
    world.quick_cut()
    world.sync()
    world.check()
    assert world.document("m1").position.sequence == 3
    with world.image("m1") as image, world.image("root") as root:
        assert world.digest(image) == world.digest(root)


def test_the_base_is_removed_upstream_midway(world: World) -> None:
    _pair(world)
    world.sync()
    world.write("root", {0: noise(20 * MIB, 3)})
    world.quick_cut()
    done = world.driven("sync", TREE, kill_copied=0.4, write_seconds=SLOW)
    assert done.returncode == -signal.SIGKILL
    _drop(world, "root", "1.2")
    world.sync()
    world.check()
    assert world.document("m1").position.sequence == 3


def test_every_common_generation_is_removed(world: World) -> None:
    _pair(world, data=1)
    _drop(world, "root", "1.1")
    done = world.sync("", code=DIVERGED)
    assert "common" in done.err
    world.cli("remove", f"{TREE}/m1")
    world.add("m1", "root", "mirror", "b")
    world.sync()
    assert world.document("m1").position.sequence == 2
    world.check()


@pytest.mark.parametrize("which", ["1.1", "1.2"])
def test_a_snapshot_of_the_child_is_removed(world: World, which: str) -> None:
    _pair(world, data=1)
    world.sync()
    _drop(world, "m1", which)
    _generations(world, 1)
    world.sync()
    world.check(current=True)
    world.check_settled()


def test_the_only_snapshot_of_the_child_is_removed(world: World) -> None:
    _pair(world, data=1)
    _drop(world, "m1", "1.1")
    world.sync("", code=DIVERGED)
    world.sync("", code=DIVERGED)


@pytest.mark.release
def test_somebody_writes_into_a_mirror(world: World) -> None:
    _pair(world, data=2)
    world.write("m1", {9 * MIB + 100: b"foreign"})
    for _ in range(2):
        done = world.sync("", code=DIVERGED)
        assert "rollback" in done.err
    assert world.status()["m1"]["state"] == "diverged"
    with world.image("m1", read_only=True) as image:
        assert image.read(9 * MIB + 100, 7) == b"foreign"
    world.cli("rollback", f"{TREE}/m1")
    (kept,) = [s for s in world.snapshots("m1") if not s.startswith("rbdtree.")]
    with world.image("m1", kept, read_only=True) as image:
        assert image.read(9 * MIB + 100, 7) == b"foreign"
    world.sync()
    _recovered(world)


def test_somebody_resizes_a_mirror(world: World) -> None:
    _pair(world, data=1)
    for size in (40 * MIB, 16 * MIB):
        with world.image("m1") as image:
            image.resize(size)
        world.sync("", code=DIVERGED)
        world.cli("rollback", f"{TREE}/m1")
        world.check()
    world.sync()
    _recovered(world)


@pytest.mark.parametrize("seeding", [False, True], ids=["delta", "seeding"])
@pytest.mark.parametrize("copied", [0.01, 0.6])
def test_somebody_writes_into_a_half_applied_mirror(world: World, copied: float, seeding: bool) -> None:
    """Where the delta does not go: it would be sealed into the generation."""
    if seeding:
        world.init("a", "vol", 32 * MIB, "--object-size", "1M")
        world.add("m1", "root", "mirror", "b")
        world.write("root", {2 * MIB: noise(20 * MIB, 1)})
        world.cut()
    else:
        _pair(world, data=20)
    done = world.driven("sync", TREE, kill_copied=copied, write_seconds=SLOW, record_seconds=0.02)
    assert done.returncode == -signal.SIGKILL
    world.take_lock("m1")
    world.write("m1", {30 * MIB + 5: b"foreign"})
    world.sync("", code=DIVERGED)
    with world.image("m1", read_only=True) as image:
        assert image.read(30 * MIB + 5, 7) == b"foreign"
    world.cli("rollback", f"{TREE}/m1")
    world.sync()
    world.check(current=True)
    kept = [s for s in world.snapshots("m1") if s.startswith("rbdtree-diverged-")]
    with world.image("m1", kept[0], read_only=True) as image:
        assert image.read(30 * MIB + 5, 7) == b"foreign"


def _deleted(world: World) -> None:
    import rbd

    with world.ioctx("b") as ioctx:
        with rbd.Image(ioctx, "vol-m1") as image:
            for snapshot in list(image.list_snaps()):
                image.remove_snap(snapshot["name"])
        rbd.RBD().remove(ioctx, "vol-m1")


def _trashed(world: World) -> None:
    import rbd

    with world.ioctx("b") as ioctx:
        rbd.RBD().trash_move(ioctx, "vol-m1", 0)


def _replaced(world: World) -> None:
    _trashed(world)
    world.create("b", "vol-m1", 5 * MIB)
    with world.at("b", "vol-m1") as image:
        image.write(b"another", 0)


@pytest.mark.parametrize("harm", [_deleted, _trashed, _replaced])
def test_the_image_of_a_mirror_is_gone(world: World, harm: Callable[[World], None]) -> None:
    _pair(world, data=1)
    world.add("m2", "m1", "mirror", "c")
    harm(world)
    done = world.sync("", code=DIVERGED)
    assert "m1" in done.err
    world.cli("status", TREE)
    world.cli("verify", TREE, code=None)
    world.cli("remove", f"{TREE}/m2")
    world.cli("remove", f"{TREE}/m1")
    if harm is _replaced:
        with world.at("b", "vol-m1", read_only=True) as image:
            assert image.read(0, 7) == b"another"
            assert not list(image.metadata_list())
    world.add("m1", "root", "mirror", "b", image="new")
    world.sync()
    world.check(current=True)


def test_the_image_of_a_mirror_is_renamed(world: World) -> None:
    import rbd

    _pair(world, data=1)
    with world.ioctx("b") as ioctx:
        rbd.RBD().rename(ioctx, "vol-m1", "other")
    done = world.sync("", code=None)
    assert done.code in (0, DIVERGED), done
    with world.ioctx("b") as ioctx:
        rbd.RBD().rename(ioctx, "other", "vol-m1")
    world.sync()
    _recovered(world)


def test_somebody_writes_into_a_clone(world: World) -> None:
    world.init(size=8 * MIB)
    world.add("k1", "root", "clone", "a")
    world.scatter(1)
    world.step()
    world.write("k1", {MIB: b"foreign"})
    world.scatter(2)
    world.cut()
    world.sync("", code=DIVERGED)
    world.cli("rollback", f"{TREE}/k1")
    world.sync()
    world.check(current=True)


def test_a_clone_in_use_stays(world: World) -> None:
    world.init(size=8 * MIB)
    world.add("k1", "root", "clone", "a")
    world.scatter(1)
    world.step()
    world.scatter(2)
    world.cut()
    with world.image("k1"):
        done = world.sync("", code=errno.EBUSY)
        assert "in use" in done.err
        assert world.status()["k1"]["state"] == "outdated"
    world.sync()
    world.check(current=True)
    world.check_settled()


def test_the_documents_object_is_damaged(world: World) -> None:
    """Text that is no document, and one from the future: refused, nothing changed."""
    _pair(world, data=1)
    document = world.document("m1")
    oid = f"rbdtree.node.{document.ref.node_id}"
    import rados

    with world.ioctx("b") as ioctx:
        with rados.ReadOpCtx() as op:
            found, _ = ioctx.get_omap_vals_by_keys(op, ("document",))
            ioctx.operate_read_op(op, oid)
            good = dict(found)["document"]

        def put(text: bytes) -> None:
            with rados.WriteOpCtx() as op:
                ioctx.set_omap(op, ("document",), (text,))
                ioctx.operate_write_op(op, oid)

        put(b"{}")
        assert world.sync("", code=None).code != 0
        world.cli("status", TREE)
        assert f'"format":{FORMAT}'.encode() in good
        put(good.replace(f'"format":{FORMAT}'.encode(), b'"format":99'))
        done = world.sync("", code=None)
        assert done.code == errno.EOPNOTSUPP, done
        put(good)
    with suppress(AssertionError):
        world.check()
    world.sync()
    _recovered(world)


_WATCHES = """
import gc, os, sys
from pathlib import Path
from rbdtree import config
from rbdtree.ceph.sites import Sites

pool = Sites(config.load(Path(sys.argv[1])).sites, 3).cluster("b").pool(sys.argv[2])
pool.ioctx.write_full("watched", b"")
watches = [pool.watch("watched", lambda: None) for _ in range(4)]
print("watching", flush=True)
input()
for watch in watches:
    watch.close()
del watch, watches
gc.collect()
print("alive", flush=True)
os._exit(0)
"""


def test_a_watch_that_cannot_be_ended_ends_no_process(fragile: World) -> None:
    """Its OSD is silent. The binding would end it once more, in freed memory, when it is collected."""
    words = [sys.executable, "-c", _WATCHES, str(fragile.pools.config), fragile.pools.name]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "watching\n"
        fragile.pools.clusters.daemon("b", "osd.0", "pause")
        said, _ = process.communicate("\n", timeout=90)
    assert (process.returncode, said) == (0, "alive\n")


def test_a_manager_stops_while_an_osd_is_silent(fragile: World) -> None:
    """In good order, though what it waits for ends only with a time-out."""
    _pair(fragile, data=8)
    manager = fragile.start("--timeout", 5, "manager", "--metrics", "off")
    newest = fragile.document("root").newest_position
    until(lambda: fragile.document("m1").newest_position == newest, "m1 is brought on")
    fragile.pools.clusters.daemon("b", "osd.0", "pause")
    fragile.write("root", {0: noise(MIB, 2)})
    fragile.cli("--timeout", 5, "cut", TREE)
    time.sleep(4)
    manager.send_signal(signal.SIGTERM)
    code, said = _wait(manager, 45)
    fragile.pools.clusters.daemon("b", "osd.0", "resume")
    assert code == 0, said
    fragile.sync()
    _recovered(fragile)


def test_a_connection_that_was_replaced_ends_when_nobody_can_need_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = world.pools.sites()
    old = connections.cluster("a")
    connections.renew("a")
    assert connections.cluster("a") is not old
    connections.end_retired()
    assert world.pools.name in old.pools()
    monkeypatch.setattr(sites, "RETIRED_SECONDS", 0.0)
    connections.end_retired()
    with pytest.raises(errors.Error):
        old.pools()
    assert world.pools.name in connections.cluster("a").pools()
