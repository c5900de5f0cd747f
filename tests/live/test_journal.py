"""The journal of a branch, tailed while librbd writes it: bytes equal the image's, at every snapshot and at the end."""

import hashlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rbdtree import errors
from rbdtree.engine.batch import Batch, Batcher
from rbdtree.engine.lag import Lag, lag
from rbdtree.engine.tail import JournalGap, Tail
from rbdtree.model import record
from rbdtree.model.journal_client import CLIENT_DATA, Commit
from rbdtree.ports import Layout

from .world import MIB, noise, until

pytestmark = pytest.mark.ceph
CLIENT = "uplink"
HERE = Path(__file__).parent


def digest(data: bytes | bytearray) -> str:
    return f"{len(data)} {hashlib.sha256(data).hexdigest()}"


class Branch:
    """A journaled clone at site a, and a model of it that only knows what the journal says."""

    def __init__(self, pools: Any, namespace: str = "", options: dict[str, str] | None = None) -> None:
        self.pools = pools
        self.namespace = namespace
        if namespace:
            pools.namespace("a", namespace)
        self.pool = pools.sites().cluster("a").pool(pools.name, namespace)
        self.children: list[subprocess.Popen[str]] = []
        self.base = self.pool.create_image("vol", 24 * MIB, Layout(), None)
        image = self.pool.open(self.base, read_only=False)
        self.model = bytearray(24 * MIB)
        self.model[: 9 * MIB] = noise(9 * MIB, 1)
        image._image.write(bytes(self.model[: 9 * MIB]), 0)
        image.create_snapshot("base")
        image.close()
        self.image_id = self.pool.clone(self.base, "base", self.pool, "branch")
        if options:
            self.enable_with(options)
        else:
            self.image = self.pool.open(self.image_id, read_only=False)
            self.image.set_journaling(True)
            self.image.set_journaling(True)
            self.image.close()
        self.journal = self.pool.journal(self.image_id)
        self.journal.register(CLIENT)
        self.snapshots: dict[str, str] = {}
        self.made: dict[int, str] = {}
        self.records = 0
        self.peak = 0

    def enable_with(self, options: dict[str, str]) -> None:
        import rados
        import rbd

        conf = str(self.pools.conf("a"))
        with (
            rados.Rados(conffile=conf, name="client.admin", conf=options) as client,
            client.open_ioctx(self.pools.name) as ioctx,
        ):
            ioctx.set_namespace(self.namespace)
            with rbd.Image(ioctx, "branch") as image:
                image.update_features(rbd.RBD_FEATURE_JOURNALING, True)

    def writer(self, **orders: Any) -> "subprocess.Popen[str]":
        told = {
            "conf": str(self.pools.conf("a")),
            "pool": self.pools.name,
            "namespace": self.namespace,
            "image": "branch",
            **orders,
        }
        command = [sys.executable, str(HERE / "journal_writer.py"), json.dumps(told)]
        made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.children.append(made)
        return made

    def reader(self, target: str, **orders: Any) -> "subprocess.Popen[str]":
        told = {
            "config": str(self.pools.config),
            "pool": self.pools.name,
            "source": self.image_id,
            "target": target,
            **orders,
        }
        command = [sys.executable, str(HERE / "journal_reader.py"), json.dumps(told)]
        made = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.children.append(made)
        return made

    def apply(self, batch: Batch) -> None:
        for offset, length, data in batch.pieces:
            assert offset + length <= len(self.model), (offset, length, len(self.model))
            self.model[offset : offset + length] = data if data is not None else bytes(length)
        match batch.event:
            case record.Resize(_, size):
                del self.model[size:]
                self.model.extend(bytes(size - len(self.model)))
            case record.SnapCreate(op_tid, name, _):
                self.snapshots[name] = digest(self.model)
                self.made[op_tid] = name
            case record.OpFinish(op_tid, result) if op_tid in self.made:
                assert result == 0
                del self.made[op_tid]
        self.records += batch.records

    def follow(self, tail: Tail, batcher: Batcher, *, commit: bool = True) -> int:
        """Everything there is now; how many entries."""
        count = 0
        while True:
            before = count
            for entry in tail.poll():
                count += 1
                for batch in batcher.add(entry):
                    self._take(tail, batch, commit)
            if count == before:
                return count

    def finish(self, tail: Tail, batcher: Batcher, *, commit: bool = True) -> None:
        self.follow(tail, batcher, commit=commit)
        for batch in batcher.cut():
            self._take(tail, batch, commit)

    def cut(self, tail: Tail, batcher: Batcher) -> int:
        """Commits what is pending; how many objects the journal then has."""
        for batch in batcher.cut():
            self._take(tail, batch, True)
        return len(self.objects("journal_data"))

    def next_owner(self, data: bytes) -> None:
        """Opens the image after its writer died, which applies what was journaled and not applied; and writes."""
        image = self.pool.open(self.image_id, read_only=False)
        owner = image.lock_owner()
        if owner:
            image.break_lock(owner)
        image._image.write(data, 512)
        image.close()

    def _take(self, tail: Tail, batch: Batch, commit: bool) -> None:
        self.apply(batch)
        self.peak = max(self.peak, batch.data_bytes)
        if commit:
            tail.commit(batch.positions)

    @contextmanager
    def plain(self, name: str = "branch", snapshot: str | None = None, **more: Any) -> Iterator[Any]:
        import rbd

        with self.pools.clusters.admin("a").open_ioctx(self.pools.name) as ioctx:
            ioctx.set_namespace(self.namespace)
            with rbd.Image(ioctx, name, snapshot=snapshot, **more) as image:
                yield image

    def digest(self, name: str = "branch", snapshot: str | None = None) -> str:
        with self.plain(name, snapshot, read_only=True) as image:
            return digest(image.read(0, image.size()))

    def check(self) -> None:
        """The model is the image, and was each snapshot."""
        with self.plain(read_only=True) as image:
            names = [s["name"] for s in image.list_snaps()]
        assert set(names) <= set(self.snapshots)
        for name in names:
            assert self.digest(snapshot=name) == self.snapshots[name], name
        assert not self.made
        assert self.digest() == digest(self.model)

    def objects(self, part: str) -> list[str]:
        with self.pools.clusters.admin("a").open_ioctx(self.pools.name) as ioctx:
            ioctx.set_namespace(self.namespace)
            return sorted(found.key for found in ioctx.list_objects() if part in found.key)

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.communicate(timeout=10)


@pytest.fixture
def branch(pools: Any) -> Iterator[Branch]:
    made = Branch(pools)
    yield made
    made.close()


def ended(process: "subprocess.Popen[str]", seconds: float = 90) -> Any:
    out, err = process.communicate(timeout=seconds)
    assert process.returncode == 0, err
    return json.loads(out.splitlines()[-1])


@pytest.mark.release
@pytest.mark.parametrize("place", ["plain", "namespace", "journal in another pool"])
def test_the_tail_of_a_busy_branch_is_the_branch(pools: Any, place: str) -> None:
    options = {"rbd_journal_order": "20", "rbd_journal_splay_width": "3"}
    if place == "journal in another pool":
        options["rbd_journal_pool"] = f"{pools.name}-j"
        pools.clusters.mon("a", prefix="osd pool create", pool=f"{pools.name}-j", pg_num=4, pgp_num=4)
    made = Branch(pools, "ns" if place == "namespace" else "", None if place == "plain" else options)
    try:
        writer = made.writer(mix=True, seconds=5, seed=place)
        tail = Tail(made.journal, CLIENT)
        batcher = Batcher(made.journal.splay_width, tail.committed, seconds=0.3, patience=1)
        while writer.poll() is None:
            if not made.follow(tail, batcher):
                for batch in batcher.due():
                    made.apply(batch)
                    tail.commit(batch.positions)
                time.sleep(0.01)
        told = ended(writer)
        made.finish(tail, batcher)
        assert told["requests"] > 100
        assert set(told["snapshots"]) <= set(made.snapshots)
        made.check()
        assert made.records > told["requests"]
        left = lag(made.journal, CLIENT)
        assert (left.records, left.bytes, left.since) == (0, 0, None)
        if place == "journal in another pool":
            assert made.objects("journal_data") == []
            assert made.objects("journal.") == [f"journal.{made.image_id}"]
        made.journal.close()
    finally:
        made.close()
        if place == "journal in another pool":
            pools.clusters.admin("a").delete_pool(f"{pools.name}-j")


def test_a_reader_that_is_killed_goes_on_where_it_committed(branch: Branch) -> None:
    target = branch.pool.clone(branch.base, "base", branch.pool, "target")
    writer = branch.writer(mix=True, seconds=6, seed=7, depth=8)
    committed: list[int] | None = None
    total: list[tuple[int, int]] = []
    for turn in range(100):
        die = "before" if turn % 2 else "after"
        over = writer.poll() is not None
        # A killed holder of the target's lock would make its successor wait for half a minute.
        image = branch.pool.open(target, read_only=False)
        owner = image.lock_owner()
        if owner:
            image.break_lock(owner)
        image.close()
        reader = branch.reader(target, batches=3 + turn if turn < 6 else 10_000, die=die, chunk=64 << 10)
        out, err = reader.communicate(timeout=60)
        assert "Traceback" not in err, err
        lines = out.split("\n")[:-1]
        drained = lines[-1:] == ["drained"]
        ranges = [json.loads(line) for line in lines if line != "drained"]
        for first, last in ranges:
            if committed is not None:
                follows = first == [committed[0], committed[1] + 1] or (first[0] > committed[0] and first[1] == 0)
                assert follows, (committed, first)
            committed = last
            total.append((first, last))
        if not drained and die == "before":
            # The last batch was applied and not committed: it comes again.
            committed = ranges[-2][1] if len(ranges) > 1 else total[-len(ranges) - 1][1]
        if drained and over:
            break
    ended(writer)
    assert branch.digest("target") == branch.digest()
    with branch.plain(read_only=True) as image, branch.plain("target", read_only=True) as copy:
        names = [s["name"] for s in image.list_snaps()]
        assert set(names) <= {s["name"] for s in copy.list_snaps()}
    for name in names:
        assert branch.digest("target", name) == branch.digest(snapshot=name), name


def test_two_lock_owners_in_turn(branch: Branch) -> None:
    tail = Tail(branch.journal, CLIENT)
    batcher = Batcher(branch.journal.splay_width, tail.committed)
    first = branch.writer(mix=True, seconds=5, seed=1, high=10 * MIB, depth=8)
    second = branch.writer(mix=True, seconds=5, seed=2, low=10 * MIB, high=24 * MIB, depth=8)
    while first.poll() is None or second.poll() is None:
        branch.follow(tail, batcher)
        time.sleep(0.01)
    ended(first)
    ended(second)
    branch.finish(tail, batcher)
    branch.check()
    tags = branch.journal.tags("")
    assert tail.following[0] >= 2, tags
    assert branch.journal.header(CLIENT).next_tag_tid == tail.following[0] + 1


def test_a_writer_that_is_killed(branch: Branch) -> None:
    tail = Tail(branch.journal, CLIENT)
    batcher = Batcher(branch.journal.splay_width, tail.committed)
    for seed in (1, 2):
        writer = branch.writer(mix=True, seconds=60, seed=seed)
        until(lambda: branch.follow(tail, batcher), "the writer writes")
        until(lambda: branch.follow(tail, batcher) < 0 or branch.records + batcher.pending > 400 * seed, "records")  # noqa: B023
        writer.kill()
        writer.wait()
        branch.next_owner(b"after the crash")
        branch.finish(tail, batcher)
        # A snapshot that was being made is there or not: librbd's replay finishes it.
        branch.made.clear()
        branch.check()
    assert tail.following[0] >= 2


def test_a_stalled_client_keeps_the_journal_and_a_commit_trims_it(pools: Any) -> None:
    branch = Branch(pools, options={"rbd_journal_order": "18"})
    try:
        began = time.time()
        writer = branch.writer(seconds=60, length=16384, seed=3)
        seen: list[Lag] = []
        for bytes_more in (MIB, 3 * MIB, 6 * MIB):
            until(lambda: lag(branch.journal, CLIENT).bytes > bytes_more, "the journal grows")  # noqa: B023
            seen.append(lag(branch.journal, CLIENT))
        assert seen[0].records < seen[1].records < seen[2].records
        assert {found.since for found in seen} == {seen[0].since}
        assert seen[2].seconds(time.time()) > seen[2].newest - seen[2].since > 0
        assert began < seen[2].newest < time.time()
        assert branch.journal.header(CLIENT).minimum_set == 0
        assert len(branch.objects("journal_data")) > 20
        tail = Tail(branch.journal, CLIENT)
        batcher = Batcher(branch.journal.splay_width, tail.committed)
        until(lambda: branch.follow(tail, batcher) >= 0 and branch.cut(tail, batcher), "all is committed")
        until(lambda: branch.journal.header(CLIENT).minimum_set > 0, "the writer trims at our commit", 20)
        writer.terminate()
        writer.wait()
        branch.next_owner(b"z")
        branch.finish(tail, batcher)
        branch.check()

        def trimmed() -> bool:
            # librbd's own client commits every five seconds, or when the image is closed.
            branch.next_owner(b"z")
            branch.follow(tail, batcher)
            return branch.cut(tail, batcher) <= 2 * branch.journal.splay_width

        until(trimmed, "only the last sets are left", 20)
    finally:
        branch.close()


def test_lag_counts_what_a_tail_reads(branch: Branch) -> None:
    ended(branch.writer(mix=True, count=600, seed=5))
    ended(branch.writer(mix=True, count=200, seed=6))
    tail = Tail(branch.journal, CLIENT)
    entries = list(tail.poll())
    found = lag(branch.journal, CLIENT)
    assert (found.records, found.bytes) == (len(entries), sum(e.size for e in entries))
    assert (found.since, found.newest) == (entries[0].time, entries[-1].time)
    for at in (1, len(entries) // 3, len(entries) // 2, len(entries) - 1):
        newest = {e.place.object_number % 4: Commit(e.place.object_number, *e.place[:2]) for e in entries[:at]}
        branch.journal.commit(CLIENT, sorted(newest.values(), key=lambda commit: commit[1:], reverse=True))
        found, left = lag(branch.journal, CLIENT), entries[at:]
        assert (found.records, found.bytes, found.since) == (len(left), sum(e.size for e in left), left[0].time), at
        assert list(Tail(branch.journal, CLIENT).poll()) == left


def test_a_disconnected_client_is_a_gap(branch: Branch) -> None:
    tail = Tail(branch.journal, CLIENT)
    ended(branch.writer(count=20))
    assert len(list(tail.poll())) >= 20
    command = ["rbd", "-c", str(branch.pools.conf("a")), "journal", "client", "disconnect"]
    subprocess.run(
        [*command, "--pool", branch.pools.name, "--image", "branch", "--client-id", CLIENT], check=True, timeout=30
    )
    for call in (lambda: list(tail.poll()), lambda: Tail(branch.journal, CLIENT), lambda: lag(branch.journal, CLIENT)):
        with pytest.raises(JournalGap, match="disconnected"):
            call()


def test_registering_twice_unregistering_and_switching_off_leaves_nothing(branch: Branch) -> None:
    with pytest.raises(errors.Exists):
        branch.journal.register(CLIENT)
    assert {c.client_id: c.data == CLIENT_DATA for c in branch.journal.clients()} == {"": False, CLIENT: True}
    tail = Tail(branch.journal, CLIENT)
    ended(branch.writer(count=20))
    branch.journal.unregister(CLIENT)
    with pytest.raises(errors.NotFound):
        branch.journal.unregister(CLIENT)
    assert [c.client_id for c in branch.journal.clients()] == [""]
    with pytest.raises(JournalGap, match="not registered"):
        list(tail.poll())
    image = branch.pool.open(branch.image_id, read_only=False)
    image.set_journaling(False)
    image.set_journaling(False)
    image.close()
    assert branch.objects("journal") == []
    with pytest.raises(errors.NotFound):
        branch.pool.journal(branch.image_id)
    with pytest.raises(JournalGap, match="no journal"):
        list(tail.poll())


def test_journaling_under_a_writer_and_without_exclusive_lock(branch: Branch) -> None:
    image = branch.pool.open(branch.image_id, read_only=False)
    image.set_journaling(False)
    writer = branch.writer(seconds=4)
    until(image.lock_owner, "the writer has the lock")
    time.sleep(0.5)
    image.set_journaling(True)
    journal = branch.pool.journal(branch.image_id)
    journal.register(CLIENT)
    tail = Tail(journal, CLIENT)
    until(lambda: list(tail.poll()), "the writer journals what it writes")
    assert ended(writer)["requests"] > 10
    image.close()
    import rbd

    with branch.pools.clusters.admin("a").open_ioctx(branch.pools.name) as ioctx:
        rbd.RBD().create(ioctx, "shared", MIB, old_format=False, features=rbd.RBD_FEATURE_LAYERING)
    shared = branch.pool.open(branch.pool.image_id("shared"), read_only=False)
    with pytest.raises(errors.Unsupported, match="exclusive lock"):
        shared.set_journaling(True)
    shared.close()
