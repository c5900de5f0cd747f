"""Shapes of trees: deep, wide, clones of clones, mirrors beside and below them."""

from pathlib import Path
from subprocess import check_output

import pytest

from rbdtree.engine.clone import beside

from .world import MIB, TREE, World, bytes_read, noise

pytestmark = pytest.mark.ceph


@pytest.mark.release
def test_three_levels_over_three_clusters(world: World, tmp_path: Path) -> None:
    world.init(size=32 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c")
    world.add("m3", "m2", "mirror", "a", "--history")
    world.write("root", {0: noise(5 * MIB, 1), 20 * MIB: noise(MIB, 2)})
    world.step()
    for number in range(3):
        world.scatter(("depth", number), count=12)
        with world.image("root") as image:
            image.discard(4 * MIB * number, 4 * MIB)
        world.step()
    world.check_settled()
    assert {node["state"] for node in world.status().values()} == {"up-to-date"}
    for name in ("m1", "m2", "m3"):
        assert [str(g.position) for g in world.document(name).generations] == ["1.1", "1.2", "1.3", "1.4"]
    assert all(not node["differences"] for node in world.get("verify", TREE)["nodes"])
    # And once with Ceph's own tool.
    exported = set()
    for document in world.documents().values():
        ref = document.ref
        spec = f"{ref.pool}/{ref.image}@rbdtree.{document.tree_id[:8]}.1.3"
        to = tmp_path / document.name
        check_output(["rbd", "-c", world.pools.conf(ref.site), "--no-progress", "export", spec, to], timeout=60)
        exported.add(to.read_bytes())
    assert len(exported) == 1


def test_four_children_cost_one_read(world: World) -> None:
    world.init(size=32 * MIB)
    world.cut()
    costs = {}
    for count in (1, 2, 3, 4):
        world.add(f"m{count}", "root", "mirror", "bc"[count % 2])
        world.sync()
        if count == 3:
            continue
        world.write("root", {0: noise(24 * MIB, count)})
        world.cut()
        before = bytes_read(world.pools.clusters, "a")
        world.sync()
        costs[count] = bytes_read(world.pools.clusters, "a") - before
    world.check(current=True)
    # Each edge compares a sample of 8 x 64 KiB of what did not change on top.
    for count, cost in costs.items():
        assert cost <= 24 * MIB + count * MIB, costs


def test_fan_out_of_a_fresh_tree(world: World) -> None:
    """All four seeded at once."""
    world.init(size=32 * MIB)
    for number in range(4):
        world.add(f"m{number}", "root", "mirror", "bcbc"[number])
    world.write("root", {MIB: noise(20 * MIB)})
    world.cut()
    before = bytes_read(world.pools.clusters, "a")
    world.sync()
    cost = bytes_read(world.pools.clusters, "a") - before
    world.check(current=True)
    assert cost <= 26 * MIB
    world.check_settled()


@pytest.mark.release
def test_clones_and_mirrors_below_each_other(world: World) -> None:
    world.pools.namespace("a", "tenant")
    world.pools.namespace("b", "tenant")
    data_pool = world.data_pool("a")
    world.init(size=16 * MIB)
    world.add("k1", "root", "clone", "a")
    world.add("k2", "k1", "clone", "a", namespace="tenant")
    world.add("m1", "k2", "mirror", "b", namespace="tenant")
    world.add("k3", "m1", "clone", "b")
    world.add("m2", "m1", "mirror", "b")
    world.add("m3", "k1", "mirror", "a", "--data-pool", data_pool, namespace="tenant")
    world.add("k4", "m3", "clone", "a")
    world.write("root", {MIB: noise(3 * MIB, 1)})
    for number in range(3):
        world.scatter(("shape", number))
        world.step()
        _every_clone_is_one_deep(world)
    world.check_settled()
    assert {node["state"] for node in world.status().values()} == {"up-to-date"}
    listed = {node["name"]: node for node in world.status().values()}
    assert listed["m1"]["parent"] == "k2"
    assert listed["k2"]["parent"] == "k1"


def _every_clone_is_one_deep(world: World) -> None:
    documents = world.documents()
    for document in documents.values():
        if document.kind != "clone":
            continue
        with world.image(document.name, read_only=True) as image:
            spec = image.get_parent_image_spec()
        above = document.replica
        parent = (spec["pool_name"], spec["pool_namespace"], spec["image_name"])
        assert parent == (above.pool, above.namespace, above.image), document.name
        assert documents[above.name].kind in ("root", "mirror")
        with world.image(above.name, read_only=True) as image, pytest.raises(Exception, match=r"(?i)not|parent"):
            image.get_parent_image_spec()


def test_one_node_and_its_path(world: World) -> None:
    """``sync TREE/NODE`` moves the path down to it and nobody else."""
    world.init(size=16 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c")
    world.add("other", "root", "mirror", "c")
    world.scatter(1)
    world.step()
    world.scatter(2)
    world.cut()
    world.sync("m2")
    at = {name: node["sequence"] for name, node in world.status().items()}
    assert at == {"root": 2, "m1": 2, "m2": 2, "other": 1}
    world.check()
    world.sync()
    world.check(current=True)
    world.check_settled()


def test_a_child_that_missed_many_generations(world: World) -> None:
    world.init(size=16 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.scatter(0)
    world.step()
    for number in range(1, 6):
        world.scatter(("late", number))
        with world.image("root") as image:
            image.resize((16 + 3 * (number % 3)) * MIB)
        world.cut()
    world.add("late", "m1", "mirror", "c", "--history")
    world.add("fresh", "m1", "mirror", "c")
    world.sync()
    world.check(current=True)
    assert len(world.document("m1").generations) == 6
    assert len(world.document("late").generations) == 6
    assert len(world.document("fresh").generations) <= 6
    world.check_settled()


def test_what_an_interrupted_rename_leaves_is_in_nobodys_way(world: World) -> None:
    """rbd_id.NAME of before, which names the very image that has another name now: the swap of a clone died there."""
    world.init(size=8 * MIB)
    world.add("k", "root", "clone", "a")
    world.write("root", {0: noise(MIB, "first")})
    world.step()
    document = world.document("k")
    before = beside(document)
    with world.ioctx("a") as ioctx:
        ioctx.write_full(f"rbd_id.{before}", ioctx.read(f"rbd_id.{document.ref.image}"))
    assert world.sites.cluster("a").pool(world.pools.name).image_id(before) is None
    world.write("root", {MIB: noise(MIB, "second")})
    world.step()
    world.check(current=True)
    world.check_settled()
    # So does a move to the trash that died there.
    gone = world.document("k")
    with world.ioctx("a") as ioctx:
        ioctx.write_full(f"rbd_id.{TREE}-k2", ioctx.read(f"rbd_id.{gone.ref.image}"))
    world.cli("remove", f"{TREE}/k")
    world.add("k2", "root", "clone", "a")
    world.step()
    world.check(current=True)
