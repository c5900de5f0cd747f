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
