"""A push that is small, packed: which bytes of the volume it changes, and these bytes, in a few RADOS objects.

    head | what is known: offset, length, zero ... | what is pushed: offset, length ... | the bytes, in this order

An image for each push would cost hundreds of operations, most of them for what a push never needs, and a small write to
a clone copies an object of 4 MiB up. A parcel is written in one operation, and read in one. It is never changed: one of
this name is whole, or it is not there, or it tells that it is broken.

What is known is whole sectors; what of them is not pushed is as the pusher's base has it.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import xxhash

from rbdtree import errors
from rbdtree.engine import marks
from rbdtree.engine.coalesce import Piece
from rbdtree.engine.copy import chunks
from rbdtree.engine.zeroes import runs
from rbdtree.model.document import PARCEL
from rbdtree.model.extent import Extents
from rbdtree.ports import Pool, ReadDone, Source

LIMIT = 32 << 20
"""Bytes of a push that is packed. One that is taken out of a journal is as large as a batch."""
_MAGIC = b"rbdtree\x01"
_HEAD = struct.Struct("<8sQQQQQ")
"""Magic, checksum of what follows it, length of all, bytes of the volume, how much is known, and is pushed."""
_SEALED = 16
"""Where that begins of which the checksum is."""
_OBJECT = 4 << 20
_READERS = 8


class Parcel:
    """Read like an image: zeroes where nothing is known."""

    def __init__(self, size_bytes: int, known: Iterable[Piece], pushed: Extents) -> None:
        self.pushed = pushed
        self._size = size_bytes
        self.known = sorted(known)
        self._starts = [piece.offset for piece in self.known]

    def size(self) -> int:
        return self._size

    def read(self, offset: int, length: int) -> bytes:
        end = offset + length
        found: list[bytes] = []
        at = offset
        for number in range(max(0, bisect_right(self._starts, offset) - 1), len(self.known)):
            start, size, data = self.known[number]
            low, high = max(at, start), min(end, start + size)
            if start >= end:
                break
            if low < high:
                found += [bytes(low - at), bytes(high - low) if data is None else data[low - start : high - start]]
                at = high
        return b"".join((*found, bytes(end - at)))

    def submit_read(self, offset: int, length: int, done: ReadDone) -> None:
        done(self.read(offset, length))

    def close(self) -> None:
        return

    @property
    def data_bytes(self) -> int:
        """What it carries; zeroes are only told of."""
        return sum(len(piece.data) for piece in self.known if piece.data is not None)

    def packed(self) -> bytes:
        """As it is kept; equal parcels are equal bytes."""
        known = [number for offset, length, data in self.known for number in (offset, length, data is None)]
        pushed = [number for pair in self.pushed for number in pair]
        index = struct.pack(f"<{len(known) + len(pushed)}Q", *known, *pushed)
        data = [piece.data for piece in self.known if piece.data is not None]
        total = _HEAD.size + len(index) + sum(map(len, data))
        head = _HEAD.pack(_MAGIC, 0, total, self._size, len(self.known), len(self.pushed))[_SEALED:]
        return b"".join((_MAGIC, struct.pack("<Q", _digest(head, index, *data)), head, index, *data))


def _digest(*parts: bytes | memoryview) -> int:
    hasher = xxhash.xxh3_64()
    for part in parts:
        hasher.update(part)
    return hasher.intdigest()


def unpack(raw: bytes, name: str) -> Parcel:
    """``Integrity`` for anything but what ``packed`` gave."""
    try:
        magic, digest, total, size_bytes, known_count, pushed_count = _HEAD.unpack_from(raw)
        if magic != _MAGIC or total != len(raw) or digest != _digest(memoryview(raw)[_SEALED:]):
            raise ValueError("checksum")
        numbers = struct.unpack_from(f"<{3 * known_count + 2 * pushed_count}Q", raw, _HEAD.size)
    except (struct.error, ValueError) as error:
        raise errors.Integrity(f"parcel {name} is broken ({error})", "Discard the push, or push again.") from error
    at = _HEAD.size + 8 * len(numbers)
    known = []
    for number in range(0, 3 * known_count, 3):
        offset, length, zero = numbers[number : number + 3]
        known.append(Piece(offset, length, None if zero else raw[at : at + length]))
        at += 0 if zero else length
    pairs = numbers[3 * known_count :]
    return Parcel(size_bytes, known, Extents.of(zip(pairs[::2], pairs[1::2], strict=True)))


def stem(owner: str, number: int, token: str) -> str:
    """The beginning of a name. ``token``: the node where it lies; at the owner's, where a number may be used again for
    other bytes, one that is new each time."""
    return f"{PARCEL}{owner}-{number}-{token}"


def store(pool: Pool, stem: str, node_id: str, parcel: Parcel) -> str:
    """Its name, which tells of how many objects it is. The directory knows of it first."""
    raw = parcel.packed()
    count = -(-len(raw) // _OBJECT)
    name = f"{stem}.{count}"
    pool.add_entry(marks.parcel_entry(name), node_id)
    if count == 1:
        pool.write_object(f"{name}.0", raw)
        return name
    with ThreadPoolExecutor(_READERS, thread_name_prefix="parcel") as threads:
        list(
            threads.map(lambda n: pool.write_object(f"{name}.{n}", raw[n * _OBJECT : (n + 1) * _OBJECT]), range(count))
        )
    return name


def _objects(name: str) -> list[str]:
    return [f"{name}.{number}" for number in range(int(name.rpartition(".")[2]))]


def load(pool: Pool, name: str) -> Parcel:
    """Raises ``NotFound`` when it, or a part of it, is gone."""
    objects = _objects(name)
    if len(objects) == 1:
        return unpack(pool.read_object(objects[0]), name)
    with ThreadPoolExecutor(_READERS, thread_name_prefix="parcel") as threads:
        return unpack(b"".join(threads.map(pool.read_object, objects)), name)


def drop(pool: Pool, name: str) -> None:
    """Its objects, then what the directory knows of it; nothing when it is gone."""
    for one in _objects(name):
        pool.remove_object(one)
    pool.remove_entry(marks.parcel_entry(name))


def lost(pool: Pool, node_id: str, known: Iterable[str]) -> list[str]:
    """Names of this node's own parcels that are not ``known``: their maker died before it entered them."""
    mine = marks.parcel_entry(f"{PARCEL}{node_id}-")
    found = {key for key, value in pool.entries().items() if key.startswith(mine) and value == node_id}
    return sorted({key.removeprefix(marks.parcel_entry("")) for key in found} - set(known))


def of_source(source: Source, sectors: Extents, pushed: Extents) -> Parcel:
    """What an image holds in these sectors."""

    def read(chunk: tuple[int, int, list[tuple[int, int]]]) -> list[Piece]:
        start, end, pairs = chunk
        data = source.read(start, end - start)
        return [
            Piece(start + low, high - low, None if zero else data[low:high])
            for offset, length in pairs
            for low, high, zero in runs(data, offset - start, offset - start + length)
        ]

    with ThreadPoolExecutor(_READERS, thread_name_prefix="parcel") as threads:
        known = [piece for found in threads.map(read, list(chunks(sectors))) for piece in found]
    return Parcel(source.size(), known, pushed)
