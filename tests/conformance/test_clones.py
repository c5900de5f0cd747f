"""Clones: what they show, what they own, what they stand on."""

import pytest
from conformance.conftest import UNIT, World, write, zero

from rbdtree import errors
from rbdtree.model.extent import Extents
from rbdtree.ports import Ancestor, Image


def parent(world: World) -> Image:
    """Eight objects, '1' in object 1 and '2' in object 2, in snapshot s; overwritten since."""
    image = world.image()
    write(image, UNIT, b"1" * UNIT)
    write(image, 2 * UNIT, b"2" * UNIT)
    image.create_snapshot("s")
    write(image, UNIT, b"9" * UNIT)
    return image


def test_a_clone_shows_its_snapshot_and_owns_nothing(world: World) -> None:
    image = parent(world)
    made = world.pool.clone(image.image_id, "s", world.pool, "c")
    assert world.pool.image_id("c") == made
    clone = world.pool.open(made)
    assert (clone.size(), clone.layout) == (image.size(), image.layout)
    assert clone.read(UNIT, 2 * UNIT) == b"1" * UNIT + b"2" * UNIT
    assert not clone.own_data()
    assert clone.snapshots() == ()
    assert clone.checksums([(UNIT, UNIT)]) == [None]
    pool = world.pool
    assert clone.ancestor() == Ancestor(pool.name, pool.namespace, image.image_id, "s", image.size())


def test_there_is_no_clone_of_0_bytes(world: World) -> None:
    image = world.image()
    image.resize(0)
    image.create_snapshot("s")
    with pytest.raises(errors.Unsupported, match="0 bytes"):
        world.pool.clone(image.image_id, "s", world.pool, "c")
    assert world.pool.image_id("c") is None


def test_a_clone_may_live_in_another_namespace(world: World) -> None:
    image = parent(world)
    made = world.pool.clone(image.image_id, "s", world.aside, "c")
    assert world.aside.image_id("c") == made
    assert world.pool.image_id("c") is None
    clone = world.aside.open(made)
    assert clone.read(UNIT, 1) == b"1"
    found = clone.ancestor()
    assert found is not None
    assert (found.pool, found.namespace, found.image_id) == (world.pool.name, "", image.image_id)


def test_what_is_written_to_a_clone_is_its_own(world: World) -> None:
    image = parent(world)
    clone = world.pool.open(world.pool.clone(image.image_id, "s", world.pool, "c"), read_only=False)
    write(clone, UNIT + 10, b"xyz")
    assert clone.own_data()
    assert clone.read(UNIT, 14) == b"1" * 10 + b"xyz1"
    assert world.pool.open(image.image_id, "s").read(UNIT, 14) == b"1" * 14


def test_zeroes_in_a_clone_hide_what_is_below(world: World) -> None:
    image = parent(world)
    clone = world.pool.open(world.pool.clone(image.image_id, "s", world.pool, "c"), read_only=False)
    zero(clone, UNIT, UNIT)
    zero(clone, 2 * UNIT + 10, 10)
    assert clone.read(UNIT, UNIT) == bytes(UNIT)
    assert clone.read(2 * UNIT, 21) == b"2" * 10 + bytes(10) + b"2"
    assert clone.own_data()


def test_a_shrunk_clone_shows_zeroes_when_it_grows_again(world: World) -> None:
    image = parent(world)
    clone = world.pool.open(world.pool.clone(image.image_id, "s", world.pool, "c"), read_only=False)
    clone.resize(2 * UNIT)
    clone.resize(8 * UNIT)
    assert clone.read(UNIT, 2 * UNIT) == b"1" * UNIT + bytes(UNIT)
    found = clone.ancestor()
    assert found is not None
    assert found.overlap_bytes == 2 * UNIT


def test_a_clone_inherits_metadata(world: World) -> None:
    image = parent(world)
    image.set_metadata("k", "v")
    clone = world.pool.open(world.pool.clone(image.image_id, "s", world.pool, "c"), read_only=False)
    assert clone.metadata() == {"k": "v"}
    clone.set_metadata("k", "w")
    assert image.metadata() == {"k": "v"}


def test_a_removed_snapshot_stays_below_its_clones(world: World) -> None:
    image = parent(world)
    clone = world.pool.open(world.pool.clone(image.image_id, "s", world.pool, "c"))
    image.remove_snapshot("s")
    assert image.snapshots() == ()
    assert clone.read(UNIT, 4) == b"1111"
    found = world.pool.open(clone.image_id).ancestor()
    assert found is not None
    assert found.image_id == image.image_id
    assert found.snapshot != "s"


def test_a_clone_needs_a_snapshot_and_a_free_name(world: World) -> None:
    image = parent(world)
    with pytest.raises(errors.NotFound):
        world.pool.clone(image.image_id, "nosnap", world.pool, "c")
    with pytest.raises(errors.NotFound):
        world.pool.clone("123456789abc", "s", world.pool, "c")
    world.pool.clone(image.image_id, "s", world.pool, "c")
    with pytest.raises(errors.Exists):
        world.pool.clone(image.image_id, "s", world.pool, "c")


def test_a_diff_of_a_clone_from_nothing_covers_what_is_below(world: World) -> None:
    image = parent(world)
    clone = world.pool.open(world.pool.clone(image.image_id, "s", world.pool, "c"), read_only=False)
    for whole in (False, True):
        spans = clone.changed(None, 0, clone.size(), whole_object=whole)
        assert Extents.of((at, n) for at, n, _ in spans).clip(UNIT, 3 * UNIT).total == 2 * UNIT
    clone.create_snapshot("base")
    write(clone, 2 * UNIT, b"x")
    for whole in (False, True):
        assert {at // UNIT for at, _, _ in clone.changed("base", 0, clone.size(), whole_object=whole)} == {2}


def test_a_parent_in_the_trash_still_serves_its_clones(world: World) -> None:
    image = parent(world)
    clone = world.pool.open(world.pool.clone(image.image_id, "s", world.pool, "c"))
    name = world.name_of(image)
    image.close()
    world.pool.trash(image.image_id, name, 0)
    assert clone.read(UNIT, 1) == b"1"
    with pytest.raises(errors.NotEmpty):
        world.pool.purge(image.image_id)
