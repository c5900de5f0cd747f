"""What a volume may be and what may happen to it: sizes, holes, layouts, features, encryption, a busy root."""

import errno
import random
import threading
from typing import Any

import pytest

from .world import MIB, TREE, World, noise

pytestmark = pytest.mark.ceph

KIB = 1 << 10


def _features(*names: str) -> int:
    import rbd

    return sum(getattr(rbd, f"RBD_FEATURE_{name}") for name in names)


PLAIN = ("LAYERING",)
LOCKED = ("LAYERING", "EXCLUSIVE_LOCK")
USUAL = (*LOCKED, "OBJECT_MAP", "FAST_DIFF", "DEEP_FLATTEN")
JOURNALED = (*USUAL, "JOURNALING")


def _adopt(world: World, features: tuple[str, ...] = USUAL, size: int = 32 * MIB, **more: Any) -> None:
    """A root made of an image that is there, with a mirror in b and one below it in c."""
    world.create("a", "vol", size, features=_features(*features), **more)
    world.init(size=None)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c")


@pytest.mark.release
@pytest.mark.parametrize("features", [USUAL, PLAIN], ids=["fast-diff", "plain"])
def test_grow_and_shrink_with_snapshots_between(world: World, features: tuple[str, ...]) -> None:
    """A fast diff misses what a shrink took away when a snapshot was made before the image grew again."""
    _adopt(world, features)
    world.write("root", {0: noise(32 * MIB)})
    world.step()

    def resize(*sizes: int, snapshot: str = "", drop: bool = False) -> None:
        with world.image("root") as image:
            for number, size in enumerate(sizes):
                image.resize(size)
                if snapshot:
                    image.create_snap(f"{snapshot}{number}")
            if drop:
                for number in range(len(sizes)):
                    image.remove_snap(f"{snapshot}{number}")

    resize(40 * MIB)
    world.step()
    resize(13 * MIB, 32 * MIB)
    world.step()
    world.write("root", {0: noise(32 * MIB, 2)})
    world.step()
    resize(9 * MIB, 32 * MIB, snapshot="user")
    world.step()
    world.write("root", {0: noise(32 * MIB, 3)})
    world.step()
    resize(5 * MIB + 12345, 30 * MIB, 2 * MIB, 32 * MIB, snapshot="gone", drop=True)
    world.step()
    world.write("root", {0: noise(32 * MIB, 4)})
    resize(10 * MIB, 32 * MIB, snapshot="half")
    world.write("root", {20 * MIB: noise(8 * KIB, 5)})
    world.step()
    # To nothing and back.
    resize(0)
    world.step()
    resize(20 * MIB)
    world.write("root", {19 * MIB: noise(MIB, 6)})
    world.step()
    assert world.status()["m2"]["size_bytes"] == 20 * MIB
    assert {s for s in world.snapshots("root") if not s.startswith("rbdtree.")} >= {"user0", "user1", "half0"}
    world.check_settled()


def test_a_shrink_and_grow_that_only_generations_saw(world: World) -> None:
    """Cut small, cut large again, then sync both at once, with and without history."""
    _adopt(world)
    world.write("root", {0: noise(32 * MIB)})
    world.step()
    for size in (6 * MIB, 32 * MIB):
        with world.image("root") as image:
            image.resize(size)
        world.cut()
    world.write("root", {30 * MIB: noise(MIB, 2)})
    world.cut()
    world.add("m3", "root", "mirror", "c")
    world.sync()
    world.check(current=True)
    world.check_settled()


@pytest.mark.release
def test_a_volume_of_0_bytes(world: World) -> None:
    """It travels to mirrors; RBD makes no clone of it, so a clone stays where it is until there is something again."""
    world.init(size=8 * MIB)
    world.add("m", "root", "mirror", "b")
    world.add("k", "m", "clone", "b")
    world.write("root", {0: noise(MIB, 1)})
    world.sync("", "--cut")
    with world.image("root") as image:
        image.resize(0)
    done = world.sync("", "--cut", code=errno.EOPNOTSUPP)
    assert "no clone of 0 bytes" in done.err
    found = world.documents()
    assert found["m"].newest_position == found["root"].newest_position
    assert found["k"].newest_position.sequence == 1
    assert not found["k"].intent
    with world.image("root") as image:
        image.resize(4 * MIB)
    world.write("root", {0: noise(MIB, 2)})
    world.sync("", "--cut")
    world.check(current=True)


def test_holes_stay_holes(world: World) -> None:
    _adopt(world)
    with world.image("root") as image:
        image.write(noise(MIB), 0)
        image.write(bytes(4 * MIB), 8 * MIB)
        image.write(noise(64 * KIB, 1) + bytes(MIB), 16 * MIB)
        image.write(noise(12 * MIB, 2), 20 * MIB)
    world.step()
    for node in ("m1", "m2"):
        assert world.used(node) <= world.used("root") == 24 * MIB
    with world.image("root") as image:
        image.discard(20 * MIB, 4 * MIB)
        image.write_zeroes(24 * MIB, 4 * MIB)
        image.write_zeroes(28 * MIB + 5 * KIB, 11 * KIB)
        image.discard(29 * MIB, 64 * KIB)
        image.write(bytes(MIB), 0)
    world.step()
    for node in ("m1", "m2"):
        assert world.used(node) <= world.used("root"), node
    with world.image("root") as image:
        image.discard(0, 32 * MIB)
    world.step()
    assert world.used("root") == 0
    assert world.used("m1") == world.used("m2") == 0
    world.check_settled()


def test_four_kilobytes_scattered(world: World) -> None:
    _adopt(world, size=64 * MIB)
    world.write("root", {0: noise(32 * MIB)})
    world.step()
    world.scatter("scatter", count=400)
    world.cut()
    moved = {n["node"]: n["written_bytes"] for n in world.get("sync", TREE)["nodes"]}
    world.check(current=True)
    # 4 KiB blocks travel, not the objects around them.
    assert all(written <= 400 * 4 * KIB * 1.1 + 2 * MIB for written in moved.values()), moved


STRIPED = {"order": 20, "stripe_unit": 64 * KIB, "stripe_count": 5}


@pytest.mark.release
@pytest.mark.parametrize("root", [{"order": 22}, STRIPED], ids=["4M", "striped"])
def test_any_layout_under_any_other(world: World, root: dict[str, int]) -> None:
    features = _features(*USUAL) | (_features("STRIPINGV2") if "stripe_unit" in root else 0)
    world.create("a", "vol", 24 * MIB + 4096, features=features, **root)
    world.init(size=None)
    data_pool = world.data_pool("b")
    world.add("like", "root", "mirror", "b")
    world.add("large", "root", "mirror", "c", "--object-size", "8M")
    world.add("small", "large", "mirror", "b", "--object-size", "64K")
    striped = ("--object-size", "2M", "--stripe-unit", "128K", "--stripe-count", "3")
    world.add("striped", "large", "mirror", "b", *striped, "--data-pool", data_pool)
    world.add("last", "striped", "mirror", "c", *striped)
    world.write("root", {0: noise(9 * MIB), 20 * MIB: noise(2 * MIB + 512, 1)})
    world.step()
    for number in range(3):
        world.scatter(("layout", number), count=40)
        with world.image("root") as image:
            image.write(noise(700 * KIB, number), 3 * MIB + number * 1000)
            image.discard((5 + number) * MIB + 100 * KIB, MIB)
            image.resize(24 * MIB + 4096 - 3 * MIB * (number % 2))
        world.step()
    with world.image("striped", read_only=True) as image:
        assert (image.stripe_unit(), image.stripe_count()) == (128 * KIB, 3)
    world.check_settled()


@pytest.mark.parametrize("features", [PLAIN, LOCKED, JOURNALED], ids=["plain", "lock-only", "journaling"])
def test_any_features_at_the_root(world: World, features: tuple[str, ...]) -> None:
    _adopt(world, features)
    world.add("k1", "root", "clone", "a")
    world.write("root", {MIB: noise(6 * MIB)})
    world.step()
    for number in range(2):
        world.scatter(("features", number))
        with world.image("root") as image:
            image.discard(4 * MIB, 4 * MIB)
        world.step()
    with world.image("root", read_only=True) as image:
        # A clone adds OPERATIONS by itself.
        assert image.features() & ~_features("OPERATIONS") == _features(*features)
    world.check_settled()


def test_a_root_that_is_a_clone(world: World) -> None:
    """The parent's data is the volume's as well, and what hides it."""
    import rbd

    world.create("a", "golden", 24 * MIB, features=_features(*USUAL))
    with world.at("a", "golden") as image:
        image.write(noise(20 * MIB), 0)
        image.create_snap("gold")
        image.protect_snap("gold")
    with world.ioctx("a") as ioctx:
        rbd.RBD().clone(ioctx, "golden", "gold", ioctx, "vol", features=_features(*USUAL))
    with world.at("a", "vol") as image:
        image.write(noise(5000, 1), 3 * MIB + 100)
        image.discard(8 * MIB, 4 * MIB)
    world.init(size=None)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c")
    world.add("k1", "root", "clone", "a")
    world.step()
    with world.image("root") as image:
        image.discard(12 * MIB, 4 * MIB)
        image.write_zeroes(17 * MIB, 8 * KIB)
        image.write(noise(100, 2), 1)
    world.step()
    with world.image("root") as image:
        image.resize(6 * MIB)
        image.create_snap("between")
        image.resize(24 * MIB)
    world.step()
    with world.image("root") as image:
        image.flatten()
    world.scatter("flat")
    world.step()
    world.check_settled(strays=False)


def test_an_image_with_data_and_snapshots_becomes_a_root(world: World) -> None:
    world.create("a", "vol", 16 * MIB, features=_features(*USUAL))
    with world.at("a", "vol") as image:
        image.write(noise(3 * MIB), MIB)
        image.create_snap("mine")
        image.write(noise(3 * MIB, 1), 2 * MIB)
        image.metadata_set("mine", "too")
        before = world.digest(image)
    world.init(size=None)
    assert world.head("root") == before
    world.add("m1", "root", "mirror", "b")
    world.step()
    assert world.head("m1") == before
    world.cli("remove", f"{TREE}/m1")
    world.cli("detach", f"{TREE}/root")
    with world.at("a", "vol", read_only=True) as image:
        assert [s["name"] for s in image.list_snaps()] == ["mine"]
        assert dict(image.metadata_list()) == {"mine": "too"}
        assert world.digest(image) == before
    assert all(m["where"].find("vol-m1") >= 0 for m in world.get("marks")["marks"])


def test_a_root_in_a_namespace(world: World) -> None:
    for site in "abc":
        world.pools.namespace(site, "tenant")
    spec = world.pools.spec("a", "vol", "tenant")
    world.cli("init", TREE, "--node", "root", "--image", spec, "--size", "16M")
    world.add("m1", "root", "mirror", "b", namespace="tenant")
    world.add("m2", "m1", "mirror", "c")
    world.add("k1", "root", "clone", "a")
    for number in range(2):
        world.scatter(("space", number), length=100_000)
        world.step()
    assert all(node["equal"] for node in world.get("verify", TREE)["nodes"])
    world.check_settled()


def test_an_encrypted_volume_travels_as_it_is(world: World) -> None:
    """No node but the reader has the passphrase."""
    import rbd

    if not hasattr(rbd.Image, "encryption_format"):
        pytest.skip("this Ceph's binding knows no encryption")
    _adopt(world, PLAIN, size=32 * MIB)
    secret, text = "correct horse", noise(3 * MIB, "text")
    with world.image("root") as image:
        image.encryption_format(rbd.RBD_ENCRYPTION_FORMAT_LUKS1, secret)  # and loads
        image.write(text, 2 * MIB)
        image.flush()
        world.step()
        image.write(text[:4096], 9 * MIB)
        image.discard(3 * MIB, 64 * KIB)
    world.step()
    with world.image("m2", read_only=True) as image:
        assert text[:512] not in image.read(0, image.size())
        image.encryption_load(rbd.RBD_ENCRYPTION_FORMAT_LUKS1, secret)
        assert image.read(2 * MIB, MIB) == text[:MIB]
        assert image.read(9 * MIB, 4096) == text[:4096]
    world.check_settled()


@pytest.mark.release
def test_a_root_that_is_written_to_all_the_time(world: World) -> None:
    """A generation is a point in time although its volume is open elsewhere and never still."""
    _adopt(world)
    world.add("k1", "root", "clone", "a")
    stop, failed = threading.Event(), []
    chosen = random.Random(7)
    block = 64 * KIB
    written = [0]

    def work() -> None:
        # Each round stamps every block of one stripe, in order: a snapshot may be between two of them, never torn.
        try:
            with world.image("root") as image:
                while not stop.is_set():
                    written[0] += 1
                    stamp = written[0].to_bytes(8, "little") * (4096 // 8)
                    for number in range(8):
                        image.write(stamp, number * block)
                    image.write(noise(4096, written[0]), chosen.randrange(16, 8000) * 4096)
                    if written[0] % 7 == 0:
                        image.discard(chosen.randrange(4, 30) * MIB, MIB)
        except BaseException as error:
            failed.append(error)

    writer = threading.Thread(target=work)
    writer.start()
    try:
        for _ in range(3):
            world.sync("", "--cut")
            world.check(current=True)
    finally:
        stop.set()
        writer.join(30)
    assert not failed
    assert written[0] > 20
    document = world.document("m2")
    for generation in document.generations:
        snapshot = f"rbdtree.{document.tree_id[:8]}.{generation.position}"
        with world.image("m2", snapshot, read_only=True) as image:
            stamps = [int.from_bytes(image.read(n * block, 8), "little") for n in range(8)]
        assert stamps == sorted(stamps, reverse=True), stamps
        assert stamps[0] - stamps[-1] <= 1, stamps
    world.step()
    world.check_settled()
