"""Somebody opens a branch by its name at the very moment at which it moves on to a newer generation.

What was acknowledged is published like any other write, and the image that it went to keeps its name.
"""

import struct
from collections.abc import Callable

import pytest
from live.world import TREE, noise

from rbdtree import errors
from rbdtree.ceph.pool import Pool
from rbdtree.engine.trash import put_back

from .volume import DIVERGED, MIB, Volume

pytestmark = pytest.mark.ceph

LATE = noise(4096, "late")
AT = 3 * MIB + 4096


def ahead(tree: Volume, node: str, *more: object) -> None:
    tree.branch(node, *more)
    tree.root_write({5 * MIB: noise(4096, "second")})
    tree.cut()


def just_before(monkeypatch: pytest.MonkeyPatch, name: str, call: Callable[[], object]) -> None:
    """Before the image of this name is taken away for the first time."""
    trash, done = Pool.trash, []

    def meddled(self: Pool, image_id: str, image: str, expiry_seconds: float) -> None:
        if image == name and not done:
            done.append(image)
            call()
        trash(self, image_id, image, expiry_seconds)

    monkeypatch.setattr(Pool, "trash", meddled)


def image_of(tree: Volume, node: str) -> str:
    branch = tree.document(node).branch
    assert branch
    return branch.image


@pytest.mark.parametrize("node", ["m", "k"])
@pytest.mark.parametrize("uplink", ["snapshot", "journal"])
def test_what_was_written_at_the_last_moment_is_published(
    tree: Volume, node: str, uplink: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead(tree, node, "--uplink", uplink)
    before = tree.document(node).branch
    just_before(monkeypatch, image_of(tree, node), lambda: tree.put(node, {AT: LATE}))
    tree.cli("sync", TREE, code=None)
    after = tree.document(node).branch
    assert before
    assert after
    assert (after.image_id, after.base, after.since) == (before.image_id, before.base, before.since)
    with tree.on_branch(node, read_only=True) as image:
        assert image.read(AT, 4096) == LATE
    if uplink == "snapshot":
        tree.push(node, "--wait")
    else:
        tree.cli("uplink", f"{TREE}/{node}", "--once")
    tree.sync()
    tree.settled()


@pytest.mark.parametrize("node", ["m", "k"])
def test_who_has_it_open_keeps_it(tree: Volume, node: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ahead(tree, node)
    before = tree.document(node).branch
    assert before
    held = []

    def open_it() -> None:
        manager = tree.on_branch(node)
        held.append((manager, manager.__enter__()))

    just_before(monkeypatch, before.image, open_it)
    tree.cli("sync", TREE, code=None)
    after = tree.document(node).branch
    assert after
    assert after.image_id == before.image_id
    manager, image = held[0]
    image.write(LATE, AT)
    image.flush()
    manager.__exit__(None, None, None)
    tree.expect({AT: LATE})
    tree.push(node, "--wait")
    tree.sync()
    tree.settled()


def test_a_clone_that_is_no_branch_stays_as_it_was_left(tree: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    tree.root_write({5 * MIB: noise(4096, "second")})
    tree.cut()
    before = tree.document("k")

    def write() -> None:
        with tree.at("a", before.ref.image) as image:
            image.write(LATE, AT)

    just_before(monkeypatch, before.ref.image, write)
    tree.cli("sync", TREE, code=None)
    assert tree.document("k").image_id == before.image_id
    with tree.at("a", before.ref.image, read_only=True) as image:
        assert image.read(AT, 4096) == LATE
    assert "diverged" in tree.cli("sync", TREE, code=DIVERGED).err
    tree.cli("rollback", f"{TREE}/k")
    tree.sync()
    tree.check_model()


@pytest.mark.parametrize("node", ["m", "k"])
@pytest.mark.parametrize("written", [False, True])
def test_a_move_that_ended_half_way(tree: Volume, node: str, written: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the image was taken away: the next command puts it back, or goes on."""
    ahead(tree, node)
    name, trash = image_of(tree, node), Pool.trash

    def fails(self: Pool, image_id: str, image: str, expiry_seconds: float) -> None:
        if image == name and written:
            tree.put(node, {AT: LATE})
        trash(self, image_id, image, expiry_seconds)
        if image == name:
            raise errors.Unreachable("no answer in time")

    monkeypatch.setattr(Pool, "trash", fails)
    tree.cli("sync", TREE, code=None)
    monkeypatch.setattr(Pool, "trash", trash)
    tree.cli("sync", TREE, code=None)
    tree.branch(node)
    if written:
        tree.push(node, "--wait")
    tree.sync()
    tree.settled()


def test_a_branch_that_was_put_back_by_half(tree: Volume) -> None:
    """Its name is there again, and it is in the trash still, where it would expire."""
    ahead(tree, "m")
    branch, pool = tree.document("m").branch, tree.node("m").pool
    assert branch
    put_back(pool, branch.image_id, branch.image)
    tree.put("m", {AT: LATE})
    pool.trash(branch.image_id, branch.image, 60)
    with tree.ioctx("b") as ioctx:
        # As librbd's restore begins: the name first, the trash last.
        ioctx.write_full(f"rbd_id.{branch.image}", struct.pack("<I", len(branch.image_id)) + branch.image_id.encode())
    assert [entry.image_id for entry in pool.trashed()] == [branch.image_id]
    put_back(pool, branch.image_id, branch.image)
    assert pool.trashed() == []
    tree.push("m", "--wait")
    tree.sync()
    tree.settled()
