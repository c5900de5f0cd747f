"""Clients and clusters: places, addresses, fencing, space."""

import pytest
from conformance.conftest import SMALL, UNIT, World, settled, wait_until, write, zero

from rbdtree import errors
from rbdtree.ports import Image


def test_unknown_names_are_not_found(world: World) -> None:
    with pytest.raises(errors.NotFound):
        world.sites.cluster("nowhere")
    with pytest.raises(errors.NotFound):
        world.cluster.pool("nopool")
    with pytest.raises(errors.NotFound):
        world.cluster.pool(world.pool.name, "nospace")


def test_a_site_says_who_and_where_it_is(world: World) -> None:
    assert "a" in world.sites.names()
    cluster = world.cluster
    assert (cluster.site, world.pool.site) == ("a", "a")
    assert cluster.fsid == world.pool.fsid == world.other.fsid
    assert cluster.places() == ([(world.pool.name, ""), (world.pool.name, "ns")], [])
    assert cluster.address() == world.sites.cluster("a").address()


def fenced_everywhere(world: World, image: Image, name: str) -> None:
    """``image`` and ``world.other`` belong to the fenced client."""
    for change in (
        lambda: write(image, 0, b"late"),
        lambda: zero(image, 0, 100),
        lambda: settled(image.submit_read, 0, 4),
        lambda: image.create_snapshot("late"),
        lambda: image.resize(UNIT),
        lambda: image.set_metadata("late", "x"),
        lambda: world.other.swap_document(name, 1, "late"),
        lambda: world.other.swap_document(name, 1, "late", "theirs"),
        lambda: world.other.remove_document(name, 1),
        lambda: world.other.create_document(f"{name}-late", "late"),
        lambda: world.other.read_document(name),
        lambda: world.other.claim(name, "theirs", "they", 30),
        lambda: world.other.add_entry("late", "x"),
        lambda: world.other.open(image.image_id, read_only=False),
        lambda: world.other.create_image("late", UNIT, SMALL, None),
    ):
        with pytest.raises(errors.Fenced):
            change()
    image.close()
    assert world.pool.open(image.image_id).snapshots() == ()
    assert world.pool.read_document(name) == (1, "one")


def test_a_broken_lock_fences_its_owner(world: World) -> None:
    image = world.image()
    elsewhere = world.other.open(image.image_id, read_only=False)
    write(elsewhere, 0, b"theirs")
    name = world.name()
    world.pool.create_document(name, "one")
    write(image, UNIT, b"mine")
    write(elsewhere, 0, b"theirs")
    owner = image.lock_owner()
    assert owner == world.other_sites.cluster("a").address()
    with pytest.raises(errors.Busy):
        image.break_lock(world.cluster.address())
    image.break_lock(owner)
    write(image, 0, b"mine")
    fenced_everywhere(world, elsewhere, name)
    assert image.read(0, 6) == b"miners"


def test_after_a_fence_nothing_lands_behind_what_we_wrote(world: World) -> None:
    image = world.image()
    elsewhere = world.other.open(image.image_id, read_only=False)
    write(elsewhere, 0, b"theirs")
    name = world.name()
    world.pool.create_document(name, "one")
    world.other.claim(name, "theirs", "they", 30)
    world.cluster.fence(world.other_sites.cluster("a").address())
    write(image, 0, b"mine")
    fenced_everywhere(world, elsewhere, name)
    assert image.read(0, 6) == b"miners"


def test_a_fenced_client_watches_nothing(world: World) -> None:
    image = world.image()
    elsewhere = world.other.open(image.image_id, read_only=False)
    write(elsewhere, 0, b"theirs")
    world.cluster.fence(world.other_sites.cluster("a").address())
    write(image, 0, b"mine")
    wait_until(lambda: world.pool.open(image.image_id).watchers() == [], 40)


def test_a_full_pool_says_so(world: World) -> None:
    assert world.pool.full() is None
    world.fill()
    try:
        assert "full" in wait_until(world.pool.full)
    finally:
        world.empty()
    wait_until(lambda: world.pool.full() is None)
