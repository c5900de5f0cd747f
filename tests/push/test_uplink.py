"""A branch's journal, published continuously: in order, without loss, whatever dies in between."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from live.world import TREE, noise, until

from rbdtree.engine import marks

from . import numbers
from .conftest import SEED, Points
from .volume import MIB, REFUSED, UNSUPPORTED, Volume

pytestmark = pytest.mark.ceph

SIZE = 4 * MIB


def chain(volume: Volume, size: int = SIZE) -> None:
    """root a - m b - leaf c, and a clone k below m."""
    volume.init(size=size)
    volume.add("m", "root", "mirror", "b")
    volume.add("leaf", "m", "mirror", "c")
    volume.add("k", "m", "clone", "b")
    volume.root_write({0: noise(size // 2, "first")})
    volume.step()


class Writer:
    """``numbers.py`` at a node's branch."""

    def __init__(self, volume: Volume, name: str, tmp_path: Path, **orders: Any) -> None:
        ref = volume.document(name).ref
        self.ack = tmp_path / "ack"
        self.base = volume.branch_bytes(name)
        self.first = orders.get("first", 0)
        given = {
            "conf": str(volume.pools.conf(ref.site)),
            "pool": ref.pool,
            "image": volume.document(name).branch.image,  # type: ignore[union-attr]
            "ack": str(self.ack),
            **orders,
        }
        self.process = subprocess.Popen([sys.executable, numbers.__file__, json.dumps(given)])
        volume._children.append(self.process)  # type: ignore[arg-type]

    @property
    def acknowledged(self) -> int:
        try:
            return int(self.ack.read_text() or 0)
        except FileNotFoundError:
            return 0

    def reach(self, number: int, seconds: float = 30) -> None:
        until(lambda: self.acknowledged >= number, f"{number} writes", seconds)

    def end(self) -> int:
        """Lets it stop in good order; how many writes it made."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        return self.acknowledged

    def kill(self) -> int:
        self.process.kill()
        self.process.wait(10)
        return self.acknowledged


def arrives(volume: Volume, name: str) -> None:
    """Until the root is the branch. Looks now and then: looking costs as much as publishing."""

    def same() -> bool:
        time.sleep(0.25)
        return volume.at_root() == volume.branch_bytes(name)

    until(same, f"the root is the branch of {name}", 90)


def uplink(volume: Volume, name: str, *more: object) -> "subprocess.Popen[str]":
    return volume.start("--no-progress", "uplink", f"{TREE}/{name}", "--interval", "1s", *more)


def ended(process: "subprocess.Popen[str]", seconds: float = 60) -> tuple[int, str]:
    _, said = process.communicate(timeout=seconds)
    assert "Traceback" not in said, said
    return process.returncode, said


def runs(volume: Volume) -> None:
    """Until the leaf's uplink is a client of the journal."""

    def found() -> bool:
        branch = volume.document("leaf").branch
        return bool(branch and (branch.skip_to or branch.taken))

    until(found, "the uplink runs")


def stop(process: "subprocess.Popen[str]", code: int = 0) -> str:
    """By SIGTERM: what was read is published."""
    process.terminate()
    found, said = ended(process)
    assert found == code, said
    return said


def published(volume: Volume, base: bytes, after: int) -> list[int]:
    """How many writes every generation has since ``after``: each a prefix, none less than the one before it."""
    counts = []
    for generation in volume.document("root").generations:
        if generation.position.sequence > after:
            counts.append(numbers.prefix(volume.at_root(generation.position.sequence), base))
    assert counts == sorted(counts), counts
    return counts


def equal(volume: Volume, name: str) -> None:
    """Root, branch, and after a sync everybody."""
    wrong = (
        [
            at
            for at in range(0, SIZE, 512)
            if volume.branch_bytes(name)[at : at + 512] != volume.at_root()[at : at + 512]
        ]
        if volume.branch_bytes(name) != volume.at_root()
        else []
    )
    assert not wrong, f"{len(wrong)} sectors of the root are not the branch's, the first at {wrong[:4]}"
    volume.model = bytearray(volume.branch_bytes(name))
    volume.sync()
    volume.sync()
    volume.settled()


@pytest.mark.parametrize("name", ["leaf", "k", "root"])
def test_every_generation_is_a_prefix_of_the_writes(volume: Volume, tmp_path: Path, name: str) -> None:
    chain(volume)
    volume.branch(name, "--uplink", "journal")
    before = volume.newest()
    run = uplink(volume, name)
    writer = Writer(volume, name, tmp_path)
    writer.reach(400)
    count = writer.end()
    arrives(volume, name)
    stop(run)
    counts = published(volume, writer.base, before)
    assert counts[-1] == count
    assert len(counts) >= 3
    equal(volume, name)


def test_an_uplink_killed_at_random_moments_loses_nothing(volume: Volume, tmp_path: Path) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    before = volume.newest()
    writer = Writer(volume, "leaf", tmp_path)
    dice = random.Random(SEED)
    for turn in range(4):
        newest = volume.newest()
        run = uplink(volume, "leaf")
        while turn and volume.newest() == newest:
            time.sleep(0.2)
        time.sleep(dice.random())
        run.kill()
        run.communicate(timeout=10)
    count = writer.end()
    volume.process("uplink", f"{TREE}/leaf", "--once")
    counts = published(volume, writer.base, before)
    assert counts[-1] == count
    equal(volume, "leaf")


def test_an_uplink_killed_at_every_call(points: Points, volume: Volume) -> None:
    """Each time there is something to publish, and an end to wait for."""
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    base, before = volume.branch_bytes("leaf"), volume.newest()
    written = 0
    for order in points(31):
        with volume.on_branch("leaf") as image:
            for _ in range(6):
                written += 1
                image.write(numbers.block(written), numbers.place(written, SIZE))
            image.flush()
        done = volume.driven("uplink", f"{TREE}/leaf", "--once", **order)
        assert "Traceback" not in done.stderr, done.stderr
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, done.stderr
            points.ended()
    volume.cli("push", f"{TREE}/leaf")
    assert published(volume, base, before)[-1] == written
    pushes = [g.push for g in volume.document("root").generations if g.push]
    assert len(pushes) == len(set(pushes))
    equal(volume, "leaf")


def test_a_stopped_uplink_publishes_what_it_read(volume: Volume) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    run = volume.start("--no-progress", "uplink", f"{TREE}/leaf", "--interval", "1h")
    runs(volume)
    volume.put("leaf", {5000: b"the last words"})
    time.sleep(0.5)
    stop(run)
    assert volume.at_root()[5000:5014] == b"the last words"
    equal(volume, "leaf")


def journal_bytes(volume: Volume, name: str) -> Callable[[], int]:
    """Bytes in the journal of a branch now; asks nothing but its cluster."""
    import rados

    document = volume.document(name)
    assert document.branch
    site, image_id = document.ref.site, document.branch.image_id

    def count() -> int:
        found = 0
        with volume.ioctx(site) as ioctx:
            for item in ioctx.list_objects():
                if item.key.startswith("journal_data.") and image_id in item.key:
                    with suppress(rados.ObjectNotFound):
                        found += ioctx.stat(item.key)[0]
        return found

    return count


def small_journal(volume: Volume, name: str) -> None:
    """Objects of 64 KiB, so that a set is full after 256 KiB."""
    import rados
    import rbd

    volume.branch(name)
    document = volume.document(name)
    assert document.branch
    client = rados.Rados(
        conffile=str(volume.pools.conf(document.ref.site)), name="client.admin", conf={"rbd_journal_order": "16"}
    )
    client.connect()
    with client.open_ioctx(document.ref.pool) as ioctx, rbd.Image(ioctx, document.branch.image) as image:
        image.update_features(rbd.RBD_FEATURE_JOURNALING, True)
    client.shutdown()
    volume.branch(name, "--uplink", "journal")


def test_the_journal_is_trimmed_while_nothing_comes(volume: Volume) -> None:
    chain(volume)
    small_journal(volume, "leaf")
    run = uplink(volume, "leaf")
    held = journal_bytes(volume, "leaf")
    with volume.on_branch("leaf") as image:
        for number in range(1, 601):
            image.write(numbers.block(number), numbers.place(number, SIZE))
        image.flush()
        # A set is 256 KiB; the writer trims when it hears of a commit.
        until(lambda: held() <= 600_000, "the journal is trimmed", 60)
    stop(run)
    equal(volume, "leaf")


def test_a_conflict_stops_it_and_resolved_it_goes_on(volume: Volume) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    volume.root_write({8192: noise(4096, "root")})
    volume.quick_cut()
    volume.put("leaf", {8192: noise(4096, "leaf"), 65536: noise(512, 2)}, expect=False)
    kept = volume.branch_bytes("leaf")
    run = uplink(volume, "leaf")
    code, said = ended(run)
    assert code == REFUSED, said
    assert "8192+4096" in said
    assert volume.branch_bytes("leaf") == kept
    assert ended(uplink(volume, "leaf"))[0] == REFUSED
    volume.push("leaf", code=REFUSED)
    volume.cli("resolve", f"{TREE}/leaf", "--take", "ours")
    run = uplink(volume, "leaf")
    volume.put("leaf", {131072: noise(512, 3)}, expect=False)
    arrives(volume, "leaf")
    stop(run)
    equal(volume, "leaf")


def test_the_newest_uplink_goes_on(volume: Volume, tmp_path: Path) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    before = volume.newest()
    first = uplink(volume, "leaf")
    writer = Writer(volume, "leaf", tmp_path, pause=0.02)
    writer.reach(40)
    second = uplink(volume, "leaf")
    code, said = ended(first)
    assert code == 116, said
    assert "another uplink" in said
    writer.reach(writer.acknowledged + 40)
    count = writer.end()
    stop(second)
    assert published(volume, writer.base, before)[-1] == count
    equal(volume, "leaf")


def test_a_push_beside_an_uplink_and_without_one(volume: Volume, tmp_path: Path) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    before = volume.newest()
    writer = Writer(volume, "leaf", tmp_path, pause=0.02)
    writer.reach(20)
    volume.push("leaf")
    run = uplink(volume, "leaf")
    acknowledged = writer.acknowledged
    volume.push("leaf")
    assert published(volume, writer.base, before)[-1] >= acknowledged
    assert run.poll() is None, ended(run)
    count = writer.end()
    volume.push("leaf")
    assert published(volume, writer.base, before)[-1] == count
    # What others write over it later is theirs: nothing of ours is pushed again.
    stop(run)
    newest = volume.newest()
    volume.root_write({0: noise(4096, "later")})
    volume.quick_cut()
    volume.put("leaf", {SIZE - 512: noise(512, "end")}, expect=False)
    volume.push("leaf", "--wait")
    assert volume.newest() == newest + 2
    assert volume.at_root()[:4096] == noise(4096, "later")
    assert volume.at_root()[-512:] == noise(512, "end")


def test_switching_the_uplink_loses_nothing(volume: Volume) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "snapshot")
    for number, kind in enumerate(("snapshot", "journal", "snapshot", "journal", "journal", "snapshot")):
        volume.put("leaf", {number * 65536: noise(5000, (number, kind))}, expect=False)
        volume.branch("leaf", "--uplink", kind)
        volume.put("leaf", {number * 65536 + 30000: noise(700, (number, kind))}, expect=False)
        if number % 2:
            volume.push("leaf")
            assert volume.at_root() == volume.branch_bytes("leaf"), number
    volume.push("leaf")
    equal(volume, "leaf")


def test_overlapping_writes_in_flight(volume: Volume, tmp_path: Path) -> None:
    """The journal has them in another order than the image: the root ends as the image did."""
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    run = uplink(volume, "leaf")
    for seed in range(2):
        writer = Writer(volume, "leaf", tmp_path, depth=16, count=600, seed=seed)
        assert writer.process.wait(60) == 0
        arrives(volume, "leaf")
    stop(run)
    equal(volume, "leaf")


def test_a_resized_branch_stops_it(volume: Volume) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    run = uplink(volume, "leaf")
    volume.put("leaf", {4096: noise(512, 1)}, expect=False)
    arrives(volume, "leaf")
    with volume.on_branch("leaf") as image:
        image.resize(SIZE * 2)
    code, said = ended(run)
    assert code == UNSUPPORTED, said
    assert "resized to 8388608 bytes" in said


@pytest.mark.parametrize("how", ["discard", "park"])
def test_who_gives_a_branch_up_is_no_journal_client(volume: Volume, how: str) -> None:
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    volume.put("leaf", {4096: noise(512, 1)}, expect=False)
    volume.push("leaf")
    volume.root_write({8192: noise(4096, "root")})
    volume.quick_cut()
    volume.put("leaf", {8192: noise(4096, "leaf")}, expect=False)
    volume.push("leaf", code=REFUSED)
    document = volume.document("leaf")
    assert document.branch
    image_id = document.branch.image_id
    pool = volume.node("leaf").pool

    def clients() -> list[str]:
        journal = pool.journal(image_id)
        try:
            return [client.client_id for client in journal.clients()]
        finally:
            journal.close()

    assert marks.journal_client(document.ref.node_id) in clients()
    if how == "discard":
        volume.cli("discard", f"{TREE}/leaf", "--yes")
    else:
        volume.cli("resolve", f"{TREE}/leaf", "--park", "parked")
    assert marks.journal_client(document.ref.node_id) not in clients()


def test_the_bound_is_what_was_given_last(volume: Volume) -> None:
    volume.init(size=8 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.step()
    volume.branch("m", "--uplink", "journal")

    def bound() -> str:
        with volume.on_branch("m", read_only=True) as image:
            return dict(image.metadata_list())[marks.JOURNAL_LIMIT]

    assert bound() == "16"
    for size, sets in (("128M", "2"), ("256M", "4")):
        volume.cli("uplink", f"{TREE}/m", "--once", "--max-unpushed", size)
        assert bound() == sets
    volume.put("m", {0: noise(4096)})
    volume.push("m")
    volume.cli("uplink", f"{TREE}/m", "--once")
    assert bound() == "4"


def test_compare_and_write(volume: Volume) -> None:
    """One that takes effect and one that does not."""
    import ctypes
    import errno

    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    volume.push("leaf")
    document = volume.document("leaf")
    assert document.branch
    librados, librbd = ctypes.CDLL("librados.so.2"), ctypes.CDLL("librbd.so.1")
    cluster, ioctx, image = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    assert librados.rados_create(ctypes.byref(cluster), b"admin") == 0
    assert librados.rados_conf_read_file(cluster, str(volume.pools.conf("c")).encode()) == 0
    assert librados.rados_connect(cluster) == 0
    assert librados.rados_ioctx_create(cluster, document.ref.pool.encode(), ctypes.byref(ioctx)) == 0
    assert librbd.rbd_open(ioctx, document.branch.image.encode(), ctypes.byref(image), None) == 0
    found = volume.branch_bytes("leaf")
    wrong = ctypes.c_uint64()
    call = librbd.rbd_compare_and_write
    call.argtypes = [
        ctypes.c_void_p,
        ctypes.c_uint64,
        ctypes.c_size_t,
        ctypes.c_char_p,
        ctypes.c_char_p,
        ctypes.POINTER(ctypes.c_uint64),
        ctypes.c_int,
    ]
    try:
        assert call(image, 4096, 512, found[4096:4608], noise(512, "new"), ctypes.byref(wrong), 0) == 512
        assert call(image, 8192, 512, noise(512, "other"), noise(512, "no"), ctypes.byref(wrong), 0) == -errno.EILSEQ
    finally:
        librbd.rbd_close(image)
        librados.rados_ioctx_destroy(ioctx)
        librados.rados_shutdown(cluster)
    volume.push("leaf")
    assert volume.at_root()[4096:4608] == noise(512, "new")
    assert volume.at_root()[8192:8704] == found[8192:8704]
    equal(volume, "leaf")


@pytest.fixture
def hurt(mortal_pools: Any) -> Iterator[Volume]:
    """``volume`` on clusters whose daemons this test may stop."""
    made = Volume(mortal_pools)
    yield made
    mortal_pools.clusters.mend()
    made.close()


def test_an_osd_that_dies_on_the_way(hurt: Volume, tmp_path: Path) -> None:
    volume = hurt
    chain(volume)
    volume.branch("leaf", "--uplink", "journal")
    before = volume.newest()
    run = uplink(volume, "leaf")
    writer = Writer(volume, "leaf", tmp_path, pause=0.01)
    for site in ("b", "c"):
        writer.reach(writer.acknowledged + 60, 60)
        volume.pools.clusters.daemon(site, "osd.0", "kill")
        time.sleep(1)
        volume.pools.clusters.daemon(site, "osd.0", "start")
    writer.reach(writer.acknowledged + 60, 60)
    for site in ("b", "c"):
        # A client that asks for nothing hears of the new OSD some ten seconds later.
        volume.pools.clusters.admin(site).wait_for_latest_osdmap()
        volume.sites.cluster(site).wait_for_latest_map()
    count = writer.end()
    arrives(volume, "leaf")
    stop(run)
    assert published(volume, writer.base, before)[-1] == count
    equal(volume, "leaf")


def test_a_way_up_that_is_shut(hurt: Volume, tmp_path: Path) -> None:
    """The writer cuts the uplink off when too much waits: it goes on by a snapshot, and nothing is lost."""
    volume = hurt
    chain(volume)
    small_journal(volume, "leaf")
    before = volume.newest()
    run = volume.start(
        *("--format", "json", "--timeout", "5", "uplink", f"{TREE}/leaf", "--interval", "1s", "--max-unpushed", "512K")
    )
    runs(volume)
    writer = Writer(volume, "leaf", tmp_path, pause=0.003)
    writer.reach(100)
    held = journal_bytes(volume, "leaf")
    volume.pools.clusters.daemon("b", "osd.0", "pause")
    try:
        writer.reach(writer.acknowledged + 2000, 60)
        until(lambda: held() < 3_000_000, "the journal is bounded", 60)
    finally:
        volume.pools.clusters.daemon("b", "osd.0", "resume")
    count = writer.end()
    arrives(volume, "leaf")
    run.terminate()
    out, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    assert any(json.loads(line)["shut"] for line in out.splitlines())
    assert "journal gap" in said
    assert published(volume, writer.base, before)[-1] == count
    equal(volume, "leaf")
