"""Entries of an RBD image's journal, and the records in them.

    object of the journal     entry         padding  entry          torn
    |-------------------------|-------------|000000|--------------|----

    entry (``journal::Entry``)        u64 preamble, u8 version, u64 entry tid, u64 tag tid, bufferlist, u32 crc32c
    its bufferlist                    ``librbd::journal::EventEntry``: frame(type, payload), frame(time)

Entries begin with 0x93. A zero byte where one should begin is padding up to the next 8-byte boundary of the object.
What is not whole at the end of an object is not there *yet*; anything else that is no entry is ``errors.Integrity``.
"""

import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from crc32c import crc32c

from rbdtree import errors
from rbdtree.model import record
from rbdtree.model.encoding import Malformed, Reader, TooNew
from rbdtree.model.record import Record

PREAMBLE = 0x3141592653589793
_ENTRY = struct.Struct("<QBQQI")
_CRC = struct.Struct("<I")
_OVERHEAD = _ENTRY.size + _CRC.size
_ALIGNMENT = 8
_ZEROES = re.compile(rb"\0*")
_EVENT_VERSION = 5
"""``EventEntry``: 4 is Ceph 12 (time), 5 is Ceph 14 (discard granularity); what is older had other fields."""
_WRITE = struct.Struct("<BBIIQQI")
_TIME = struct.Struct("<BBIII")
_INVERTED = 0xFFFFFFFF


class Place(NamedTuple):
    """Where an entry was read: (tag tid, entry tid) is its order, (object, offset in it) where it lies."""

    tag_tid: int
    entry_tid: int
    object_number: int
    offset: int

    def __str__(self) -> str:
        where = f"journal object {self.object_number}, offset {self.offset}"
        return f"entry {self.entry_tid} of tag {self.tag_tid} ({where})"


class Raw(NamedTuple):
    """An entry whose checksum is right, not decoded yet."""

    place: Place
    payload: bytes


class Entry(NamedTuple):
    """A record at its place. ``time``: the writer's clock, seconds since 1970; ``size``: bytes of the journal."""

    place: Place
    record: Record
    time: float
    size: int


def checksum(data: bytes | memoryview) -> int:
    """``ceph_crc32c(0, data)``: the CRC-32C without its usual inversions at both ends."""
    return crc32c(data, _INVERTED) ^ _INVERTED


def next_entry(buffer: bytes, at: int, base: int, number: int, largest: int) -> tuple[Raw | None, int]:
    """The first entry of ``buffer`` from index ``at`` on, and the index behind it.

    Without a whole entry: None and the index from which to look again once there is more. ``base`` is the buffer's
    offset in journal object ``number``, ``largest`` what no entry exceeds.
    """
    end = len(buffer)
    if at < end and not buffer[at]:
        at = _behind_padding(buffer, at, base, number)
    if end - at < _ENTRY.size:
        return None, at
    preamble, version, entry_tid, tag_tid, length = _ENTRY.unpack_from(buffer, at)
    if preamble != PREAMBLE or version != 1:
        raise _corrupt(number, base + at, f"no entry begins here (preamble {preamble:#x}, version {version})")
    if length + _OVERHEAD > largest:
        raise _corrupt(number, base + at, f"an entry of {length} bytes, more than an object holds")
    behind = at + _OVERHEAD + length
    if behind > end:
        return None, at
    payload = at + _ENTRY.size
    (expected,) = _CRC.unpack_from(buffer, payload + length)
    with memoryview(buffer) as view, view[at : payload + length] as summed:
        found = checksum(summed)
    if found != expected:
        raise _corrupt(number, base + at, f"checksum {found:#010x} is not {expected:#010x}")
    place = Place(tag_tid, entry_tid, number, base + at)
    return Raw(place, buffer[payload : payload + length]), behind


def _behind_padding(buffer: bytes, at: int, base: int, number: int) -> int:
    found = _ZEROES.match(buffer, at)
    end = found.end() if found else at
    aligned = end - (base + end) % _ALIGNMENT
    if end == len(buffer):
        # The rest of these eight bytes was not read yet.
        return max(at, aligned)
    if aligned != end:
        raise _corrupt(number, base + end, "padding that does not end at a boundary of 8 bytes")
    return end


def _corrupt(number: int, offset: int, seen: str) -> errors.Integrity:
    return errors.Integrity(f"journal object {number} at offset {offset}: {seen}")


def only_padding(buffer: bytes, at: int) -> bool:
    """Whether nothing but zeroes is left: what the end of a closed object must look like."""
    found = _ZEROES.match(buffer, at)
    return found is not None and found.end() == len(buffer)


def decode(raw: Raw) -> Entry:
    """``librbd::journal::EventEntry``. ``Unsupported`` names an unknown type and its place."""
    place, payload = raw
    size = len(payload) + _OVERHEAD
    fast = _decode_write(payload)
    if fast is not None:
        return Entry(place, fast[0], fast[1], size)
    try:
        reader = Reader(payload)
        version, body = reader.frame(_EVENT_VERSION)
        if version < _EVENT_VERSION:
            raise TooNew(f"version {version}, written by a Ceph older than 14")
        kind = body.u32()
        decoder = _DECODERS.get(kind)
        if decoder is None:
            raise TooNew(f"event type {kind} is unknown")
        made = decoder(body)
        _, stamp = reader.frame(1)
        return Entry(place, made, stamp.u32() + stamp.u32() / 1e9, size)
    except Malformed as error:
        raise errors.Integrity(f"{place}: {error}") from error
    except TooNew as error:
        raise errors.Unsupported(f"{place}: {error}") from error


def _decode_write(payload: bytes) -> tuple[record.Write, float] | None:
    """(record, time) of the usual ``AioWriteEvent``; None for all else, which takes the long way (3 times slower)."""
    if len(payload) < _WRITE.size + _TIME.size:
        return None
    version, compat, length, kind, offset, covered, size = _WRITE.unpack_from(payload)
    end = _WRITE.size + size
    if (kind, version, compat, covered, length + 6) != (1, _EVENT_VERSION, 1, size, end):
        return None
    if len(payload) != end + _TIME.size:
        return None
    _, _, stamp, seconds, nanoseconds = _TIME.unpack_from(payload, end)
    return (record.Write(offset, payload[_WRITE.size : end]), seconds + nanoseconds / 1e9) if stamp == 8 else None


def _discard(body: Reader) -> Record:
    offset, length = body.u64(), body.u64()
    body.u8()  # skip_partial_discard, which says the same as a granularity above 0
    granularity = body.u32()
    return record.Discard(offset, length, granularity) if granularity else record.Zero(offset, length)


def _write(body: Reader) -> Record:
    offset, length, data = body.u64(), body.u64(), body.blob()
    if len(data) != length:
        raise Malformed(f"a write of {length} bytes with {len(data)} bytes of data")
    return record.Write(offset, data)


def _write_same(body: Reader) -> Record:
    offset, length, pattern = body.u64(), body.u64(), body.blob()
    if not pattern or length % len(pattern):
        raise Malformed(f"{length} bytes to be filled with a pattern of {len(pattern)}")
    return record.WriteSame(offset, length, pattern)


def _compare_and_write(body: Reader) -> Record:
    offset, length, expected, data = body.u64(), body.u64(), body.blob(), body.blob()
    if not len(expected) == len(data) == length:
        raise Malformed(f"compare-and-write of {length} bytes with {len(expected)} and {len(data)} bytes")
    return record.CompareAndWrite(offset, expected, data)


def _op_finish(body: Reader) -> Record:
    op_tid, _ = body.u64(), body.u64()
    return record.OpFinish(op_tid, body.i32())


def _space(body: Reader) -> record.Space:
    """``cls::rbd::SnapshotNamespace``."""
    _, inner = body.frame(1)
    kind = inner.u32()
    if kind not in record.SPACES:
        raise TooNew(f"snapshot namespace {kind} is unknown")
    return record.Space(kind)


def _snapshot(made: Callable[[int, str, record.Space], Record]) -> Callable[[Reader], Record]:
    def decoder(body: Reader) -> Record:
        op_tid, name = body.u64(), body.text()
        return made(op_tid, name, _space(body))

    return decoder


def _snap_rename(body: Reader) -> Record:
    op_tid, new, snapshot_id = body.u64(), body.text(), body.u64()
    return record.SnapRename(op_tid, snapshot_id, body.text(), new)


_DECODERS: dict[int, Callable[[Reader], Record]] = {
    0: _discard,
    1: _write,
    2: lambda _: record.Flush(),
    3: _op_finish,
    4: _snapshot(record.SnapCreate),
    5: _snapshot(record.SnapRemove),
    6: _snap_rename,
    7: _snapshot(record.SnapProtect),
    8: _snapshot(record.SnapUnprotect),
    9: _snapshot(record.SnapRollback),
    10: lambda body: record.Rename(body.u64(), body.text()),
    11: lambda body: record.Resize(body.u64(), body.u64()),
    12: lambda body: record.Flatten(body.u64()),
    13: lambda _: record.DemotePromote(),
    14: lambda body: record.SnapLimit(body.u64(), body.u64()),
    15: lambda body: record.UpdateFeatures(body.u64(), body.u64(), bool(body.u8())),
    16: lambda body: record.MetadataSet(body.u64(), body.text(), body.text()),
    17: lambda body: record.MetadataRemove(body.u64(), body.text()),
    18: _write_same,
    19: _compare_and_write,
}
"""By ``librbd::journal::EventType``."""
