"""Writes that go into a push's snapshot, or into the generation a push is judged by, after it was made
(``engine.delta``)."""

import pytest
from live.world import TREE, noise

from .volume import MIB, REFUSED, Volume

pytestmark = pytest.mark.ceph


def branch_of(tree: Volume, node: str) -> tuple[str, str]:
    """(site, image)"""
    document = tree.document(node)
    assert document.branch
    return document.ref.site, document.branch.image


def equal(tree: Volume, *, trash: bool = False) -> None:
    """As ``settled``, but for the generation that is not what it was when it was copied."""
    tree.check_model()
    assert not any(node["differences"] for node in tree.get("verify", TREE)["nodes"])
    assert tree.head("m") == tree.head("root")
    tree.at_rest(trash=trash)


@pytest.mark.parametrize("node", ["m", "k"])
def test_a_late_write_to_a_branch_is_published(tree: Volume, node: str) -> None:
    tree.put(node, {MIB: noise(8192, 1)})
    tree.push(node)
    tree.sync()
    tree.put(node, {MIB + 8192: noise(4096, 2)})
    tree.push(node)
    site, image = branch_of(tree, node)
    tree.write_late(site, image, MIB + 1024, b"late")
    tree.expect({MIB + 1024: b"late"})
    tree.push(node)
    tree.sync()
    tree.settled()
    # And once is enough.
    before = tree.document("root").newest_position
    tree.push(node)
    assert tree.document("root").newest_position == before


def test_a_branch_with_a_late_write_does_not_move_on(tree: Volume) -> None:
    tree.put("m", {MIB: noise(8192, 1)})
    tree.push("m")
    site, image = branch_of(tree, "m")
    tree.write_late(site, image, MIB + 1024, b"late")
    tree.root_write({5 * MIB: noise(4096, 3)})
    tree.cut()
    tree.sync()
    assert branch_of(tree, "m") == (site, image)
    with tree.on_branch("m", read_only=True) as opened:
        assert opened.read(MIB + 1024, 4) == b"late"
    tree.expect({MIB + 1024: b"late"})
    tree.push("m")
    tree.sync()
    tree.settled()


def test_the_roots_late_write_comes_down_with_a_push(tree: Volume) -> None:
    """The pusher has the push's own bytes, and still needs what else the generation holds."""
    tree.root_write({0: noise(8 * MIB, 1)})
    tree.cut()
    tree.sync()
    tree.write_late("a", "vol", 5 * MIB, b"late")
    tree.expect({5 * MIB: b"late"})
    tree.put("m", {MIB: noise(4096, 2)})
    tree.push("m")
    tree.sync()
    equal(tree)


def test_a_push_over_the_roots_late_write_is_refused(tree: Volume) -> None:
    tree.root_write({0: noise(8 * MIB, 1)})
    tree.cut()
    tree.root_write({MIB: noise(4096, 2)})
    tree.cut()
    tree.sync()
    tree.write_late("a", "vol", 5 * MIB, b"late")
    tree.root_write({2 * MIB: noise(4096, 3)})
    tree.cut()
    tree.put("m", {5 * MIB: b"mine"}, expect=False)
    assert "changed by root" in tree.push("m", code=REFUSED).err
    tree.cli("resolve", f"{TREE}/m", "--take", "theirs", "--yes")
    # Beside it in the same object nobody is in the way.
    tree.expect({5 * MIB: b"late"})
    tree.sync()
    tree.put("m", {5 * MIB + 4096: b"mine"})
    tree.push("m")
    tree.sync()
    equal(tree, trash=True)


def test_a_trimmed_branch_holds_nothing(tree: Volume) -> None:
    """A discard beside what an object holds copies that up, with a time later than any snapshot: nothing to push, once
    and again."""
    tree.root_write({4 * MIB: noise(4096, 1), 8 * MIB: noise(MIB, 2)})
    tree.cut()
    tree.sync()
    tree.branch("k")
    with tree.on_branch("k") as image:
        image.discard(4 * MIB + 4096, 4 * MIB - 4096)
        image.discard(9 * MIB, 3 * MIB)
        image.discard(12 * MIB, 4 * MIB)
    before = tree.document("root").newest_position
    for _ in range(2):
        tree.push("k")
    assert tree.document("root").newest_position == before
    # What is written then goes up alone.
    tree.put("k", {4 * MIB + 512: b"k" * 512})
    tree.push("k")
    with tree.image("root", read_only=True) as image:
        changed: list[tuple[int, int]] = []
        name = f"rbdtree.{tree.document('root').tree_id[:8]}.{before}"
        image.diff_iterate(0, image.size(), name, lambda at, n, _: changed.append((at, n)))
    assert changed == [(4 * MIB + 512, 512)]
    tree.sync()
    tree.settled()


def test_an_own_push_with_a_late_write_comes_from_above(tree: Volume) -> None:
    """Pushes that went before are forgotten by then: what is pushed is the same all the same."""
    tree.put("m", {MIB: noise(8192, 1)})
    tree.push("m")
    tree.sync()
    with tree.on_branch("m"):
        tree.put("m", {MIB + 8192: noise(4096, 2)})
        tree.push("m")
        site, image = branch_of(tree, "m")
    tree.write_late(site, image, MIB + 1024, b"late")
    tree.expect({MIB + 1024: b"late"})
    tree.root_write({2 * MIB: noise(4096, 3)})
    tree.cut()
    tree.push("m")
    tree.sync()
    tree.settled()
