"""Shapes of trees: deep, wide, clones of clones, mirrors beside and below them."""

import pytest

from .world import MIB, TREE, World, bytes_read, noise

pytestmark = pytest.mark.ceph


@pytest.mark.release
def test_depth_three_over_three_clusters(world: World) -> None:
    world.init(size=48 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c")
    world.add("m3", "m2", "mirror", "a", "--history")
    world.write("root", {0: noise(5 * MIB, 1), 20 * MIB: noise(MIB, 2)})
    world.step()
    for round_ in range(4):
        world.scatter(("depth", round_), count=12)
        with world.image("root") as image:
            image.discard(4 * MIB * round_, 4 * MIB)
        world.step()
    world.check_settled()
    documents = world.documents()
    assert {str(g.position) for g in documents["m1"].generations} == {f"1.{n}" for n in range(1, 6)}
    assert all(d.generations == pytest.approx(d.generations) for d in documents.values())
    world.forget_hashes()
    world.check(current=True)
    assert all(not n["differences"] for n in world.get("verify", TREE)["nodes"])
