"""Images: bytes, sizes, snapshots, metadata, names, the trash."""

import struct
from typing import Any

import pytest
import xxhash
from conformance.conftest import SMALL, UNIT, OnCeph, World, settled, write, zero
from live.world import halve

from rbdtree import errors
from rbdtree.ports import Image, Layout, Pool


def ids(pool: Pool) -> dict[str, str]:
    return {entry.name: entry.image_id for entry in pool.images()}


def test_a_new_image_is_listed_named_and_empty(world: World) -> None:
    made = world.pool.create_image("new", 5 * UNIT, SMALL, None)
    assert ids(world.pool) == {"new": made}
    assert world.pool.image_id("new") == made
    image = world.pool.open(made)
    assert (image.image_id, image.size(), image.layout) == (made, 5 * UNIT, SMALL)
    assert image.read(0, 5 * UNIT) == bytes(5 * UNIT)
    assert image.snapshots() == ()
    assert image.metadata() == {}
    assert image.fast_diff()
    assert image.ancestor() is None
    assert not image.own_data()


def test_an_unknown_image_is_none_by_name_and_not_found_by_id(world: World) -> None:
    assert world.pool.image_id("nobody") is None
    with pytest.raises(errors.NotFound):
        world.pool.open("123456789abc")
    image = world.image()
    with pytest.raises(errors.NotFound):
        world.pool.open(image.image_id, "nosnap")


def test_a_taken_name_exists(world: World) -> None:
    world.pool.create_image("new", UNIT, SMALL, None)
    with pytest.raises(errors.Exists):
        world.pool.create_image("new", UNIT, SMALL, None)


def test_a_namespace_has_images_of_its_own(world: World) -> None:
    one = world.pool.create_image("same", UNIT, SMALL, None)
    two = world.aside.create_image("same", UNIT, SMALL, None)
    assert ids(world.pool) == {"same": one}
    assert ids(world.aside) == {"same": two}
    assert world.aside.namespace == "ns"
    assert world.pool.namespace == ""


@pytest.mark.parametrize(
    "layout",
    [Layout(), Layout(1 << 20, 1 << 20, 1), Layout(65536, 16384, 4)],
    ids=["the default", "an object size", "stripes"],
)
def test_the_layout_is_kept(world: World, layout: Layout) -> None:
    made = world.pool.open(world.pool.create_image("laid", 4 << 20, layout, None), read_only=False)
    assert made.layout == layout
    write(made, 100_000, b"x" * 200_000)
    assert made.read(99_999, 200_002) == b"\0" + b"x" * 200_000 + b"\0"


def test_what_was_written_is_read_by_every_client(world: World) -> None:
    image = world.image()
    write(image, UNIT - 3, b"abcdef")
    image.flush()
    elsewhere = world.other.open(image.image_id)
    assert elsewhere.read(UNIT - 4, 8) == b"\0abcdef\0"
    assert settled(elsewhere.submit_read, UNIT, 4) == b"def\0"


def test_zeroes_reach_every_byte_and_no_other(world: World) -> None:
    image = world.image()
    write(image, 0, b"x" * 3 * UNIT)
    zero(image, 100, 50)
    zero(image, UNIT - 1, UNIT + 2)
    expected = bytearray(b"x" * 3 * UNIT)
    expected[100:150] = bytes(50)
    expected[UNIT - 1 : 2 * UNIT + 1] = bytes(UNIT + 2)
    assert image.read(0, 3 * UNIT) == bytes(expected)


def test_zeroes_take_no_space(world: World) -> None:
    image = world.image()
    zero(image, 0, 8 * UNIT)
    zero(image, 100, 5000)
    assert not image.own_data()
    write(image, UNIT, b"x" * UNIT)
    assert image.own_data()
    zero(image, UNIT, UNIT)
    assert not image.own_data()
    assert image.checksums([(UNIT, UNIT)]) == [None]


def test_an_image_open_for_reading_is_not_written(world: World) -> None:
    reader = world.pool.open(world.image().image_id)
    for change in (
        lambda: write(reader, 0, b"x"),
        lambda: zero(reader, 0, 100),
        lambda: reader.resize(UNIT),
        lambda: reader.create_snapshot("s"),
        lambda: reader.set_metadata("k", "v"),
    ):
        with pytest.raises(errors.Busy):
            change()


def test_growing_and_shrinking(world: World) -> None:
    image = world.image(2 * UNIT)
    write(image, 0, b"x" * 2 * UNIT)
    image.resize(UNIT + 100)
    assert image.size() == UNIT + 100
    image.resize(4 * UNIT)
    assert image.size() == 4 * UNIT
    assert image.read(0, 4 * UNIT) == b"x" * (UNIT + 100) + bytes(3 * UNIT - 100)
    image.resize(0)
    assert image.size() == 0
    assert world.other.open(image.image_id).size() == 0


def test_snapshots_keep_bytes_and_size_oldest_first(world: World) -> None:
    image = world.image(2 * UNIT)
    write(image, 0, b"1" * 100)
    first = image.create_snapshot("zz")
    write(image, 0, b"2" * 100)
    image.resize(3 * UNIT)
    second = image.create_snapshot("aa")
    write(image, 0, b"3" * 100)
    assert image.snapshots() == (first, second)
    assert [(s.name, s.size_bytes) for s in image.snapshots()] == [("zz", 2 * UNIT), ("aa", 3 * UNIT)]
    assert first.snapshot_id < second.snapshot_id
    for name, byte, size in (("zz", b"1", 2 * UNIT), ("aa", b"2", 3 * UNIT), (None, b"3", 3 * UNIT)):
        at = world.other.open(image.image_id, name)
        assert (at.size(), at.read(0, 101)) == (size, byte * 100 + b"\0")
        assert at.snapshots() == (first, second)


def test_a_snapshot_is_made_while_another_client_writes(world: World) -> None:
    image = world.image()
    write(image, 0, b"x")
    elsewhere = world.other.open(image.image_id, read_only=False)
    made = elsewhere.create_snapshot("s")
    assert image.snapshots() == (made,)
    write(image, 0, b"y")
    assert world.other.open(image.image_id, "s").read(0, 1) == b"x"


def test_snapshot_names_exist_once_and_are_found(world: World) -> None:
    image = world.image()
    image.create_snapshot("s")
    with pytest.raises(errors.Exists):
        image.create_snapshot("s")
    image.remove_snapshot("s")
    with pytest.raises(errors.NotFound):
        image.remove_snapshot("s")
    assert image.snapshots() == ()
    assert image.create_snapshot("s").snapshot_id > 0


def test_metadata(world: World) -> None:
    image = world.image()
    image.set_metadata("k", "v")
    image.set_metadata("k", "w")
    image.set_metadata("l", "é")
    assert world.other.open(image.image_id).metadata() == {"k": "w", "l": "é"}
    image.remove_metadata("k")
    image.remove_metadata("k")
    assert image.metadata() == {"l": "é"}


def test_checksums_are_equal_for_equal_objects(world: World) -> None:
    one, two = world.image(), world.image()
    for image in (one, two):
        write(image, UNIT, b"same" * 4096)
        write(image, 3 * UNIT, image.image_id.encode().ljust(100, b"x"))

    def objects(image: Image, *numbers: int) -> list[int | None]:
        return image.checksums([(number * UNIT, UNIT) for number in numbers])

    assert objects(one, 1) == objects(two, 1) != [None]
    assert objects(one, 3) != objects(two, 3)
    assert objects(one, 0, 1, 2, 100)[::2] == [None, None]
    assert one.checksums([]) == []
    assert objects(one, 100) == [None]


def test_checksums_of_parts_of_objects(world: World) -> None:
    one, two = world.image(), world.image()
    write(one, UNIT, b"mine" * 1024 + b"same" * 1024 + b"more" * 1024)
    write(two, UNIT, b"your" * 1024 + b"same" * 1024)
    parts = [(UNIT, 4096), (UNIT + 4096, 4096), (UNIT + 4096, 1), (UNIT + 4096, UNIT - 4096), (UNIT + 8192, 4096)]
    mine, yours = one.checksums(parts), two.checksums(parts)
    assert [a == b for a, b in zip(mine, yours, strict=True)] == [False, True, True, False, False]
    assert mine[1] != mine[2]
    assert None not in yours, "beyond the end of an object is something else than that there is none"
    if isinstance(world, OnCeph):
        assert yours[3] == yours[1]
        assert yours[4] == one.checksums([(UNIT + 3 * 4096, 4096)])[0] == xxhash.xxh64_intdigest(b"")
    assert one.checksums([(0, 4096)]) == [None]


def test_checksums_are_those_of_the_open_snapshot(world: World) -> None:
    image = world.image()
    write(image, 0, b"1" * UNIT)
    before = image.checksums([(0, UNIT)])
    image.create_snapshot("s")
    write(image, 0, b"2" * UNIT)
    assert image.checksums([(0, UNIT)]) != before
    assert world.pool.open(image.image_id, "s").checksums([(0, UNIT)]) == before
    zero(image, 0, UNIT)
    assert image.checksums([(0, UNIT)]) == [None]
    assert world.pool.open(image.image_id, "s").checksums([(0, UNIT)]) == before


def test_a_rename_keeps_the_image(world: World) -> None:
    made = world.pool.create_image("old", UNIT, SMALL, None)
    world.pool.create_image("taken", UNIT, SMALL, None)
    world.pool.rename("old", "new")
    assert world.pool.image_id("new") == made
    assert world.pool.image_id("old") is None
    with pytest.raises(errors.Exists):
        world.pool.rename("new", "taken")
    with pytest.raises(errors.NotFound):
        world.pool.rename("old", "other")


def test_the_trash_takes_an_image_by_name_and_id(world: World) -> None:
    image = world.image()
    write(image, 0, b"kept")
    name = world.name_of(image)
    image.close()
    with pytest.raises(errors.NotFound):
        world.pool.trash("123456789abc", name, 60)
    with pytest.raises(errors.NotFound):
        world.pool.trash(image.image_id, "nobody", 60)
    world.pool.trash(image.image_id, name, 60)
    assert world.pool.image_id(name) is None
    assert ids(world.pool) == {}
    assert [(e.image_id, e.name) for e in world.pool.trashed()] == [(image.image_id, name)]
    assert world.pool.open(image.image_id).read(0, 4) == b"kept"
    assert world.pool.create_image(name, UNIT, SMALL, None) != image.image_id


def test_an_image_comes_back_out_of_the_trash(world: World) -> None:
    """With who has it open, and what was written to it meanwhile."""
    image = world.image()
    write(image, 0, b"kept")
    name = world.name_of(image)
    world.other.trash(image.image_id, name, 60)
    write(image, 4, b"late")
    with pytest.raises(errors.NotFound):
        world.other.restore("123456789abc", name)
    taken = world.pool.create_image(name, UNIT, SMALL, None)
    with pytest.raises(errors.Exists):
        world.other.restore(image.image_id, name)
    world.pool.trash(taken, name, 0)
    world.pool.purge(taken)
    world.other.restore(image.image_id, name)
    assert world.pool.image_id(name) == image.image_id
    assert world.pool.trashed() == []
    write(image, 8, b"on")
    image.close()
    assert world.pool.open(image.image_id).read(0, 10) == b"keptlateon"
    with pytest.raises(errors.NotFound):
        world.other.restore(image.image_id, name)


def test_an_image_in_use_goes_to_the_trash_but_is_not_purged(world: World) -> None:
    image = world.image()
    write(image, 0, b"x")
    world.other.trash(image.image_id, world.name_of(image), 0)
    write(image, 0, b"y")
    with pytest.raises(errors.Busy):
        world.other.purge(image.image_id)
    image.close()
    world.other.purge(image.image_id)
    assert world.pool.trashed() == []
    with pytest.raises(errors.NotFound):
        world.pool.open(image.image_id)


def test_an_image_with_snapshots_is_not_purged(world: World) -> None:
    image = world.image()
    image.create_snapshot("s")
    name = world.name_of(image)
    image.close()
    world.pool.trash(image.image_id, name, 0)
    with pytest.raises(errors.NotEmpty):
        world.pool.purge(image.image_id)


def test_purging_what_is_not_in_the_trash_does_nothing(world: World) -> None:
    image = world.image()
    image.close()
    world.pool.purge(image.image_id)
    world.pool.purge("123456789abc")
    assert world.pool.open(image.image_id).size() == 8 * UNIT


def test_watchers_are_the_other_clients_that_may_write(world: World) -> None:
    image = world.image()
    mine, others = world.cluster.address(), world.other_sites.cluster("a").address()
    assert mine != others
    reader = world.other.open(image.image_id)
    assert (image.watchers(), reader.watchers()) == ([], [mine])
    first = world.other.open(image.image_id, read_only=False)
    second = world.other.open(image.image_id, read_only=False)
    first.close()
    assert image.watchers() == [others]
    second.close()
    second.close()
    assert image.watchers() == []


def test_the_lock_owner_is_whoever_wrote_last(world: World) -> None:
    image = world.image()
    reader = world.other.open(image.image_id)
    assert reader.lock_owner() is None
    write(image, 0, b"x")
    assert world.other.open(image.image_id).lock_owner() == world.cluster.address()
    elsewhere = world.other.open(image.image_id, read_only=False)
    write(elsewhere, 0, b"y")
    assert world.pool.open(image.image_id).lock_owner() == world.other_sites.cluster("a").address()
    elsewhere.close()
    assert world.pool.open(image.image_id).lock_owner() is None


def test_a_protected_snapshot_says_so(world: World) -> None:
    image = world.image()
    image.create_snapshot("s")
    assert not image.protected("s")
    world.protect(image, "s")
    assert world.other.open(image.image_id).protected("s")
    with pytest.raises(errors.NotFound):
        image.protected("t")


def test_nothing_is_cleared_of_an_image_that_is_whole(world: World) -> None:
    whole = world.pool.create_image("whole", UNIT, SMALL, None)
    trashed = world.pool.create_image("trashed", UNIT, SMALL, None)
    world.pool.trash(trashed, "trashed", 60)
    for name in ("whole", "trashed", "nobody"):
        assert world.pool.clear_half_made(name) is None
    assert ids(world.pool) == {"whole": whole}
    assert world.pool.open(whole).size() == world.pool.open(trashed).size() == UNIT


def _in_directory(ioctx: Any, method: str, name: str, image_id: str) -> None:
    """The class methods with which librbd keeps its list of images."""
    told = b"".join(struct.pack("<I", len(text)) + text.encode() for text in (name, image_id))
    ioctx.execute("rbd_directory", "rbd", method, told)


def _removed(ioctx: Any) -> str:
    return halve(ioctx, "half", named=False)


def _made(ioctx: Any) -> str:
    return halve(ioctx, "half", named=True)


def _named_only(ioctx: Any) -> str:
    image_id = halve(ioctx, "half", named=True)
    _in_directory(ioctx, "dir_remove_image", "half", image_id)
    return image_id


def _trashed(ioctx: Any) -> str:
    """librbd's removal goes by way of the trash."""
    import rbd

    rbd.RBD().create(ioctx, "half", UNIT)
    with rbd.Image(ioctx, "half", read_only=True) as image:
        image_id = str(image.id())
    rbd.RBD().trash_move(ioctx, "half", 0)
    _in_directory(ioctx, "dir_add_image", "half", image_id)
    for gone in (f"rbd_object_map.{image_id}", f"rbd_header.{image_id}"):
        ioctx.remove_object(gone)
    return image_id


@pytest.mark.ceph
@pytest.mark.release
@pytest.mark.parametrize("half", [_removed, _made, _named_only, _trashed])
def test_what_is_left_of_an_image_without_header_is_cleared(pools: Any, half: Any) -> None:
    world = OnCeph(pools)
    other = world.pool.create_image("other", UNIT, SMALL, None)
    with pools.clusters.admin("a").open_ioctx(pools.name) as ioctx:
        left = half(ioctx)
        assert world.pool.clear_half_made("half") == left
        objects = [entry.key for entry in ioctx.list_objects()]
    assert world.pool.clear_half_made("half") is None
    assert not [key for key in objects if key == "rbd_id.half" or left in key]
    assert ids(world.pool) == {"other": other}
    assert world.pool.trashed() == []
    made = world.pool.create_image("half", UNIT, SMALL, None)
    assert world.pool.open(made).size() == world.pool.open(other).size() == UNIT


@pytest.mark.ceph
def test_nothing_is_cleared_when_another_image_has_the_name_as_well(pools: Any) -> None:
    """rbd_id.NAME and the directory tell different images, one of them whole."""
    world = OnCeph(pools)
    with pools.clusters.admin("a").open_ioctx(pools.name) as ioctx:
        left = halve(ioctx, "half", named=False)
        whole = world.pool.create_image("whole", UNIT, SMALL, None)
        ioctx.write_full("rbd_id.half", struct.pack("<I", len(whole)) + whole.encode())
    assert world.pool.clear_half_made("half") is None
    assert world.pool.image_id("half") == left
    assert world.pool.open(whole).size() == UNIT


def test_a_reminder_tells_of_no_failure(world: World) -> None:
    """Whoever has the image open, or nobody, or no such image."""
    image = world.image()
    for wait in (True, False):
        for image_id in (image.image_id, "123456789abc"):
            world.pool.remind(image_id, wait=wait)
    write(image, 0, b"x" * UNIT)
    image.close()
    world.pool.remind(image.image_id, wait=True)
