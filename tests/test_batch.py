"""Coalescing against bytes written one after another; where batches end; what they hold."""

import random
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from rbdtree.engine.batch import Batch, Batcher, End
from rbdtree.engine.coalesce import JOIN, overlaps, pieces
from rbdtree.model import record
from rbdtree.model.extent import Extents
from rbdtree.model.journal import Entry, Place
from rbdtree.model.journal_client import Commit

SIZE = 1024
WIDTH = 4
MIB = 1 << 20

offsets = st.integers(0, SIZE - 256)
lengths = st.integers(0, 256)
writes = st.builds(record.Write, offsets, st.binary(max_size=256))
zeroes = st.builds(record.Zero, offsets, lengths)
discards = st.builds(record.Discard, offsets, lengths, st.just(64))
same = st.builds(
    lambda offset, pattern, times: record.WriteSame(offset, len(pattern) * times, pattern),
    offsets,
    st.binary(min_size=1, max_size=16),
    st.integers(0, 16),
)
changes = st.one_of(writes, zeroes, discards, same)
quiet = st.sampled_from(
    [record.MetadataSet(7, "a", "b"), record.Flatten(8), record.OpFinish(7, 0), record.OpFinish(8, 0)]
)
events = st.sampled_from(
    [
        record.Resize(1, SIZE),
        record.SnapCreate(2, "s", record.Space.USER),
        record.OpFinish(2, 0),
        record.CompareAndWrite(64, bytes(16), b"x" * 16),
        record.DemotePromote(),
    ]
)
records = st.one_of(changes, changes, changes, st.just(record.Flush()), quiet, events)


def apply(image: bytearray, change: Any) -> None:
    """One record, as slowly and plainly as can be."""
    match change:
        case record.Write(offset, data):
            image[offset : offset + len(data)] = data
        case record.Zero(offset, length) | record.Discard(offset, length, _):
            image[offset : offset + length] = bytes(length)
        case record.WriteSame(offset, length, pattern):
            for at in range(length):
                image[offset + at] = pattern[at % len(pattern)]
        case record.CompareAndWrite(offset, expected, data):
            if image[offset : offset + len(expected)] == expected:
                image[offset : offset + len(data)] = data


def play(image: bytearray, batch: Batch) -> None:
    order = list(batch.pieces)
    random.Random(0).shuffle(order)
    for offset, length, data in order:
        image[offset : offset + length] = data if data is not None else bytes(length)
    if batch.event is not None:
        apply(image, batch.event)


def numbered(found: list[Any], tag_tid: int = 1) -> list[Entry]:
    return [
        Entry(Place(tag_tid, n, n % WIDTH + 4 * (n // 50), n * 100), made, 1000.0 + n, 100)
        for n, made in enumerate(found)
    ]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.lists(changes, max_size=40), st.integers(0, 999))
def test_pieces_are_what_the_records_leave(made: list[Any], seed: int) -> None:
    chosen = random.Random(seed)
    before = chosen.randbytes(SIZE + 512)
    expected, found, counts = bytearray(before), bytearray(before), [0] * (SIZE + 512)
    for change in made:
        apply(expected, change)
        length = len(change.data) if isinstance(change, record.Write) else change.length
        for at in range(change.offset, change.offset + length):
            counts[at] += 1
    twice = overlaps(made)
    out = pieces(list(made))
    chosen.shuffle(out)
    for offset, length, data in out:
        assert length > 0
        assert data is None or len(data) == length
        found[offset : offset + length] = data if data is not None else bytes(length)
    assert found == expected
    out.sort()
    assert all(a.offset + a.length <= b.offset for a, b in pairwise(out))
    assert {at for offset, length in twice for at in range(offset, offset + length)} == {
        at for at, count in enumerate(counts) if count > 1
    }
    covered = Extents.of((offset, length) for offset, length, _ in out)
    assert covered.total == sum(count > 0 for count in counts)


def test_neighbours_become_one_piece_up_to_an_object() -> None:
    made = [record.Write(at, bytes([n % 251 + 1]) * 16384) for n, at in enumerate(range(0, 2 * JOIN, 16384))]
    random.Random(1).shuffle(made)
    found = pieces([*made, record.Zero(2 * JOIN, 5), record.Zero(2 * JOIN + 5, 6)])
    assert [(p.offset, p.length, p.data is None) for p in found] == [
        (0, JOIN, False),
        (JOIN, JOIN, False),
        (2 * JOIN, 11, True),
    ]


@given(st.lists(records, max_size=60), st.integers(600, 8000), st.data())
def test_batches_in_turn_are_the_records_in_turn(made: list[Any], limit: int, data: Any) -> None:
    clock = Clock()
    batcher = Batcher(WIDTH, [Commit(2, 0, 99)], limit=limit, seconds=1, patience=3, clock=clock)
    expected, found = bytearray(SIZE + 512), bytearray(SIZE + 512)
    entries = numbered(made)
    got: list[Batch] = []
    done = -1

    def take(batches: Any) -> None:
        nonlocal done
        for batch in batches:
            got.append(batch)
            play(found, batch)
            after = batch.last.entry_tid
            committed = {c.object_number % WIDTH: c for c in batch.positions}
            assert list(batch.positions) == sorted(batch.positions, key=lambda c: c[1:], reverse=True)
            front = batch.positions[0].entry_tid if batch.positions[0].tag_tid else -1
            # A pattern may be cut within: then its record is not done.
            assert front in (after, after - 1)
            for n in range(done + 1, front + 1):
                apply(expected, entries[n].record)
            done = front
            if front == after:
                assert found == expected, batch
            for entry in entries[: front + 1]:
                assert committed[entry.place.entry_tid % WIDTH].entry_tid >= entry.place.entry_tid
            if batch.end is End.FLUSH:
                assert isinstance(entries[after].record, record.Flush)
            assert (batch.event is None) or not batch.pieces

    for entry in entries:
        take(batcher.add(entry))
        assert batcher._cost <= limit or len(batcher._pending) == 1
        clock.now += data.draw(st.sampled_from([0.0, 0.0, 0.3, 2.0]))
        if data.draw(st.booleans()):
            take(batcher.due())
    take(batcher.cut())
    assert done == len(entries) - 1
    assert found == expected
    assert batcher.pending == 0
    assert batcher._cost == 0
    assert sum(batch.records for batch in got) == len(entries)
    if entries:
        assert got[-1].newest == entries[-1].time


def collect(batcher: Batcher, made: list[Any], tag_tid: int = 1) -> list[Batch]:
    return [batch for entry in numbered(made, tag_tid) for batch in batcher.add(entry)]


def test_a_batch_ends_at_the_flush_after_its_time() -> None:
    clock = Clock()
    batcher = Batcher(WIDTH, seconds=1, patience=5, clock=clock)
    write, flush = record.Write(0, b"a"), record.Flush()
    assert collect(batcher, [write, flush, write]) == []
    clock.now = 1.5
    (batch,) = batcher.due()
    assert (batch.end, batch.last.entry_tid, batch.records) == (End.FLUSH, 1, 2)
    assert not batch.overlapping
    assert list(batcher.due()) == []
    clock.now = 5.5
    (batch,) = batcher.due()
    assert (batch.end, batch.first.entry_tid, batch.records) == (End.TIME, 2, 1)
    assert batch.overlapped == Extents.of([(0, 1)]), "with the batch before"
    assert list(batcher.due()) == list(batcher.cut()) == []


def test_after_a_rest_a_batch_need_not_wait() -> None:
    clock = Clock()
    batcher = Batcher(WIDTH, seconds=1, patience=5, clock=clock)
    write, flush = record.Write(0, b"a"), record.Flush()
    clock.now = 10
    assert collect(batcher, [write, flush]) == []
    assert [batch.records for batch in batcher.due()] == [2]
    # What came while that was published, be it long, is one batch: to the last flush, when all of it was added.
    clock.now = 13
    assert collect(batcher, [write, flush, write, flush, write]) == []
    assert [batch.records for batch in batcher.due()] == [4]
    clock.now = 13.5
    assert collect(batcher, [flush]) == []
    assert list(batcher.due()) == []
    clock.now = 14
    # Without an end to what comes it is cut at a flush all the same.
    assert [batch.records for batch in collect(batcher, [write, flush])] == [4]


def test_without_a_flush_the_limit_cuts_at_a_record() -> None:
    batcher = Batcher(WIDTH, limit=3 * MIB)
    found = collect(batcher, [record.Write(n * MIB, b"x" * MIB) for n in range(5)])
    assert [(b.end, b.records, b.data_bytes) for b in found] == [(End.LIMIT, 2, 2 * MIB)] * 2
    (rest,) = batcher.cut()
    assert rest.end is End.CUT


def test_the_limit_cuts_at_the_last_flush_where_there_is_one() -> None:
    batcher = Batcher(WIDTH, limit=3 * MIB)
    flush = record.Flush()
    found = collect(batcher, [record.Write(0, b"x" * MIB), flush, *[record.Write(MIB, b"y" * MIB)] * 3])
    assert [(b.end, b.last.entry_tid) for b in found] == [(End.FLUSH, 1), (End.LIMIT, 3)]
    assert [b.overlapped.total for b in found] == [0, MIB]


def test_events_stand_alone_and_what_is_harmless_does_not_cut() -> None:
    write = record.Write(0, b"a")
    batcher = Batcher(WIDTH)
    found = collect(
        batcher,
        [
            write,
            record.MetadataSet(1, "k", "v"),
            write,
            record.OpFinish(1, 0),
            record.SnapCreate(2, "s", record.Space.USER),
            record.OpFinish(2, 0),
            write,
            record.CompareAndWrite(0, b"a", b"b"),
        ],
    )
    assert [(type(b.event).__name__, b.end, b.records) for b in found] == [
        ("NoneType", End.EVENT, 4),
        ("SnapCreate", End.EVENT, 1),
        ("OpFinish", End.EVENT, 1),
        ("NoneType", End.EVENT, 1),
        ("CompareAndWrite", End.EVENT, 1),
    ]
    # Numbers begin anew with a tag: what finishes there is not what was begun here.
    collect(batcher, [record.Flatten(9)])
    assert [b.event for b in collect(batcher, [record.OpFinish(9, 0)], tag_tid=2)] == [None, record.OpFinish(9, 0)]


def test_a_pattern_over_everything_is_cut_to_the_limit() -> None:
    batcher = Batcher(WIDTH, limit=10 * MIB)
    found = collect(batcher, [record.Flush(), record.WriteSame(512, 30 * MIB, b"abc" * 512 + bytes(512))])
    found += batcher.cut()
    assert Extents.of((p.offset, p.length) for b in found for p in b.pieces) == Extents.of([(512, 30 * MIB)])
    assert all(b.data_bytes <= 10 * MIB for b in found)
    assert [b.positions[0].entry_tid for b in found] == [0] * (len(found) - 1) + [1]
    batcher = Batcher(WIDTH)
    collect(batcher, [record.WriteSame(0, 1 << 40, bytes(512))])
    (batch,) = batcher.cut()
    assert [(p.length, p.data) for p in batch.pieces] == [(1 << 40, None)]
