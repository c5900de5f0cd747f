"""Packed pushes: what goes in comes out, and nothing else is taken for one."""

import random
import threading
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree import errors, memory
from rbdtree.engine import parcel
from rbdtree.engine.coalesce import Piece
from rbdtree.engine.parcel import Parcel
from rbdtree.model.extent import Extents
from rbdtree.ports import Layout

SIZE = 4096
NODE = "0000-node"
MIB = 1 << 20


@pytest.fixture
def pool() -> memory.Pool:
    return memory.Cluster("a", memory.Storage("fsid", [("rbd", "")])).pool("rbd")


@st.composite
def parcels(draw: st.DrawFn) -> tuple[Parcel, bytes]:
    """One, and the volume as it shows it."""
    cuts = sorted(draw(st.sets(st.integers(0, SIZE), min_size=2, max_size=20)))
    known, whole = [], bytearray(SIZE)
    for low, high in pairwise(cuts):
        if draw(st.booleans()):
            data = draw(st.one_of(st.none(), st.binary(min_size=high - low, max_size=high - low)))
            known.append(Piece(low, high - low, data))
            whole[low:high] = data or bytes(high - low)
    draw(st.randoms()).shuffle(known)
    pushed = Extents.of((p.offset, p.length) for p in known if draw(st.booleans()))
    return Parcel(SIZE, known, pushed), bytes(whole)


@given(parcels(), st.integers(0, SIZE), st.integers(0, SIZE))
def test_it_is_read_like_the_volume(made: tuple[Parcel, bytes], offset: int, length: int) -> None:
    before, whole = made
    again = parcel.unpack(before.packed(), "name")
    assert again.packed() == before.packed()
    for found in (before, again):
        assert found.size() == SIZE
        assert found.pushed == before.pushed
        assert found.read(offset, min(length, SIZE - offset)) == whole[offset : offset + length]
    told: list[Any] = []
    again.submit_read(0, SIZE, told.append)
    assert told == [whole]


@given(parcels(), st.data())
def test_a_broken_one_is_none(made: tuple[Parcel, bytes], data: st.DataObject) -> None:
    raw = bytearray(made[0].packed())
    at = data.draw(st.integers(0, len(raw) - 1))
    for broken in (raw[:at], raw + b"x", bytes([*raw[:at], raw[at] ^ 0x40, *raw[at + 1 :]])):
        with pytest.raises(errors.Integrity, match="parcel name is broken"):
            parcel.unpack(bytes(broken), "name")


@pytest.mark.parametrize("size", [0, 1, 4 * MIB, 9 * MIB])
def test_stored_loaded_and_dropped(pool: memory.Pool, size: int) -> None:
    data = random.Random(size).randbytes(size)
    made = Parcel(64 * MIB, [Piece(512, size, data)] if size else [], Extents.of([(512, size)]))
    name = parcel.store(pool, parcel.stem(NODE, 7, "token"), NODE, made)
    assert parcel.store(pool, parcel.stem(NODE, 7, "token"), NODE, made) == name
    # A parent in the same pool.
    above = parcel.store(pool, parcel.stem(NODE, 7, "parent"), "parent", made)
    assert parcel.load(pool, name).read(512, size) == data
    assert len(pool.place.raw) == 2 * -(-len(made.packed()) // (4 * MIB))
    assert parcel.lost(pool, NODE, [name]) == parcel.lost(pool, "0000-nod", []) == []
    assert parcel.lost(pool, NODE, []) == [name]
    parcel.drop(pool, name)
    parcel.drop(pool, name)
    assert parcel.load(pool, above).read(512, size) == data
    parcel.drop(pool, above)
    assert not pool.place.raw
    assert not pool.entries()
    with pytest.raises(errors.NotFound):
        parcel.load(pool, name)


def test_a_part_that_is_gone_is_noticed(pool: memory.Pool) -> None:
    made = Parcel(64 * MIB, [Piece(0, 9 * MIB, bytes(range(256)) * 36864)], Extents.of([(0, 9 * MIB)]))
    name = parcel.store(pool, parcel.stem(NODE, 7, "token"), NODE, made)
    del pool.place.raw[f"{name}.1"]
    with pytest.raises(errors.NotFound):
        parcel.load(pool, name)


def test_taken_out_of_an_image(pool: memory.Pool) -> None:
    image_id = pool.create_image("vol", 16 * MIB, Layout(), None)
    image = pool.open(image_id, read_only=False)
    data = random.Random(1).randbytes(6 * MIB)
    done = threading.Event()
    image.submit_write(3 * MIB, data, lambda _: done.set())
    assert done.wait(5)
    sectors, wanted = Extents.of([(MIB, 9 * MIB), (12 * MIB, 512)]), Extents.of([(3 * MIB + 5, MIB)])
    made = parcel.of_source(image, sectors, wanted)
    assert made.pushed == wanted
    assert len(made.packed()) < 6 * MIB + 4096
    assert made.read(0, 16 * MIB) == image.read(0, 16 * MIB)
