"""The tail over a journal in memory that is written, cut, trimmed and torn as librbd and its crashes do."""

import random
import struct
import threading
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree import errors
from rbdtree.engine.lag import lag
from rbdtree.engine.tail import JournalGap, Tail
from rbdtree.model import record
from rbdtree.model.encoding import frame, string
from rbdtree.model.journal import PREAMBLE, checksum
from rbdtree.model.journal_client import Client, Commit, Header, Predecessor, Tag, TagData
from rbdtree.ports import ReadDone

CLIENT = "uplink"


def entry(tag_tid: int, entry_tid: int, data: bytes, kind: int = 1) -> bytes:
    body = struct.pack("<IQQ", kind, entry_tid, len(data)) + string(data)
    payload = frame(body, 5) + frame(struct.pack("<II", 1000 + entry_tid, 0))
    whole = struct.pack("<QBQQI", PREAMBLE, 1, entry_tid, tag_tid, len(payload)) + payload
    return whole + struct.pack("<I", checksum(whole))


class Journal:
    """``ports.Journal`` as librbd writes it: entries dealt out to slots, sets closed when an object is full."""

    def __init__(self, splay_width: int = 4, object_bytes: int = 2000) -> None:
        self.image_id = "1"
        self.splay_width = splay_width
        self.object_bytes = object_bytes
        self.objects: dict[int, bytes] = {}
        self.active_set = self.minimum_set = 0
        self.lasts: list[int] = []
        self.client: Client | None = Client(CLIENT)
        self.following = 0
        self.padded = False
        self.written: list[tuple[int, int]] = []

    def tag(self) -> None:
        """Somebody takes the lock."""
        self.lasts.append(self.following - 1)
        self.following = 0

    def append(self, length: int, *, lost: bool = False, kind: int = 1) -> None:
        """``lost``: the writer dies while it is on its way; the numbers go on."""
        tag_tid, entry_tid = len(self.lasts), self.following
        slot = entry_tid % self.splay_width
        made = entry(tag_tid, entry_tid, bytes([entry_tid % 250 + 1]) * length, kind)
        if len(self.objects.get(self.active_set * self.splay_width + slot, b"")) + len(made) > self.object_bytes:
            self.active_set += 1
        number = self.active_set * self.splay_width + slot
        self.following += 1
        if lost:
            return
        self.objects[number] = self.objects.get(number, b"") + made
        if self.padded:
            self.objects[number] += bytes(-len(self.objects[number]) % 64)
        self.written.append((tag_tid, entry_tid))

    def trim(self, minimum_set: int) -> None:
        self.minimum_set = minimum_set
        for number in [n for n in self.objects if n // self.splay_width < minimum_set]:
            del self.objects[number]

    def header(self, client_id: str) -> Header:
        return Header(self.active_set, self.minimum_set, len(self.lasts) + 1, self.client)

    def clients(self) -> tuple[Client, ...]:
        return (self.client,) if self.client else ()

    def tags(self, client_id: str, after: int | None = None) -> tuple[Tag, ...]:
        return tuple(Tag(n + 1, 0, TagData("", Predecessor("", n, last))) for n, last in enumerate(self.lasts))

    def register(self, client_id: str) -> None:
        self.client = Client(client_id)

    def unregister(self, client_id: str) -> None:
        self.client = None

    def commit(self, client_id: str, positions: Iterable[Commit]) -> None:
        self.client = Client(client_id, positions=tuple(positions))

    def submit_read(self, number: int, offset: int, length: int, done: ReadDone) -> None:
        found = self.objects.get(number)
        done(errors.NotFound("no such object") if found is None else found[offset : offset + length])

    def object_size(self, number: int) -> int | None:
        return len(self.objects[number]) if number in self.objects else None

    def close(self) -> None:
        return


class Reader:
    """Follows with a tail, and now and then with a new one from the last commit."""

    def __init__(self, journal: Journal, chunk: int) -> None:
        self.journal = journal
        self.chunk = chunk
        self.tail = Tail(journal, CLIENT, chunk=chunk)
        self.positions = {c.object_number % journal.splay_width: c for c in self.tail.committed}
        self.seen: list[tuple[int, int]] = []
        self.committed = 0

    def poll(self, most: int = 1 << 30) -> None:
        while True:
            came = 0
            for found in self.tail.poll():
                place = found.place
                assert found.record.offset == place.entry_tid  # type: ignore[union-attr]
                self.seen.append(place[:2])
                slot = place.object_number % self.journal.splay_width
                self.positions[slot] = Commit(place.object_number, place.tag_tid, place.entry_tid)
                came += 1
                if came >= most:
                    return
            if not came:
                return

    def commit(self) -> None:
        self.committed = len(self.seen)
        self.tail.commit(sorted(self.positions.values(), key=lambda c: c[1:], reverse=True))

    def restart(self) -> None:
        again = Reader(self.journal, self.chunk)
        again.seen = self.seen[: self.committed]
        again.committed = self.committed
        self.__dict__ = again.__dict__


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 900)),
        st.tuples(st.just("append"), st.integers(0, 60)),
        st.tuples(st.sampled_from(["tag", "poll", "poll some", "commit", "restart", "trim"]), st.just(0)),
    ),
    max_size=120,
)


@given(steps, st.sampled_from([64, 300, 5000]), st.sampled_from([1, 2, 4]), st.booleans())
def test_every_entry_once_and_in_order(plan: list[tuple[str, int]], chunk: int, width: int, padded: bool) -> None:
    journal = Journal(width)
    journal.padded = padded
    reader = Reader(journal, chunk)
    for what, length in plan:
        match what:
            case "append":
                journal.append(length)
            case "tag":
                journal.tag()
            case "poll":
                reader.poll()
                assert reader.seen == journal.written
            case "poll some":
                reader.poll(3)
            case "commit":
                reader.commit()
            case "restart":
                reader.restart()
            case "trim":
                assert journal.client is not None
                sets = [c.object_number // width for c in journal.client.positions]
                journal.trim(max(journal.minimum_set, min(sets, default=0)))
        assert reader.seen == journal.written[: len(reader.seen)]
        if not padded:
            found = lag(journal, CLIENT)
            assert found.records == len(journal.written) - reader.committed
    reader.poll()
    assert reader.seen == journal.written
    reader.commit()
    assert lag(journal, CLIENT).records == 0


@given(st.lists(st.sampled_from([0, 0, 0, 0, 1, 2]), max_size=60), st.sampled_from([64, 5000]))
def test_what_lies_behind_a_hole_is_dropped_when_the_tag_is_over(plan: list[int], chunk: int) -> None:
    journal = Journal()
    reader = Reader(journal, chunk)
    expected: list[tuple[int, int]] = []
    whole = True
    for what in plan:
        if what == 2:
            journal.tag()
            whole = True
        else:
            journal.append(300, lost=what == 1)
            whole = whole and what == 0
            if whole:
                expected.append((len(journal.lasts), journal.following - 1))
        reader.poll()
        assert reader.seen == expected


def test_a_hole_that_fills_is_waited_for() -> None:
    journal = Journal()
    reader = Reader(journal, 1 << 20)
    for _ in range(8):
        journal.append(10)
    late = journal.objects.pop(1)
    reader.poll()
    assert reader.seen == [(0, 0)]
    journal.objects[1] = late
    reader.poll()
    assert reader.seen == journal.written


@pytest.mark.parametrize("over", ["the set", "the tag"])
def test_a_read_from_before_the_end_proves_no_end(over: str) -> None:
    journal = Journal(1)
    journal.append(200)
    journal.append(200)
    reader = Reader(journal, 300)
    # The first chunk is full, so the rest of the object is read ahead: short, and old by the next poll.
    reader.poll(1)
    journal.append(200)
    if over == "the set":
        journal.append(1900)
        assert journal.active_set == 1
    else:
        journal.tag()
        journal.append(200)
    reader.poll()
    assert reader.seen == journal.written


def test_torn_entries_are_waited_for_and_never_skipped() -> None:
    journal = Journal(1, 1 << 20)
    whole = b"".join(entry(0, n, b"x" * 100) for n in range(4))
    tail = Tail(journal, CLIENT, chunk=50)
    seen = []
    for end in range(len(whole) + 1):
        journal.objects[0] = whole[:end]
        seen += [found.place.entry_tid for found in tail.poll()]
        assert len(seen) == end * 4 // len(whole)
    assert seen == [0, 1, 2, 3]


def test_an_object_closed_in_the_middle_of_an_entry() -> None:
    journal = Journal(1)
    journal.objects[0] = entry(0, 0, b"a") + entry(0, 1, b"b")[:-1]
    journal.active_set = 1
    tail = Tail(journal, CLIENT)
    with pytest.raises(errors.Integrity, match=f"object 0 at offset {len(entry(0, 0, b'a'))}: closed in the middle"):
        list(tail.poll())


@pytest.mark.parametrize("break_it", ["checksum", "type"])
def test_what_comes_before_damage_is_handed_out_and_the_damage_stays(break_it: str) -> None:
    journal = Journal()
    for _ in range(6):
        journal.append(10)
    journal.append(10, kind=1 if break_it == "checksum" else 77)
    journal.append(10)
    journal.tag()
    journal.append(10)
    if break_it == "checksum":
        journal.objects[2] = journal.objects[2][:-1] + b"?"
    tail = Tail(journal, CLIENT)
    for seen in ([0, 1, 2, 3, 4, 5], []):
        found: list[int] = []
        with pytest.raises((errors.Integrity, errors.Unsupported), match="journal object 2"):
            found.extend(one.place.entry_tid for one in tail.poll())
        assert found == seen


def test_gaps() -> None:
    journal = Journal()
    for _ in range(60):
        journal.append(200)
    reader = Reader(journal, 1 << 20)
    reader.poll(30)
    reader.commit()
    assert journal.client is not None
    positions = journal.client.positions
    assert positions[-1].object_number // 4 < journal.active_set
    journal.trim(journal.active_set)
    for call in (lambda: list(reader.tail.poll()), lambda: Tail(journal, CLIENT), lambda: lag(journal, CLIENT)):
        with pytest.raises(JournalGap, match="needs a snapshot push"):
            call()
    journal.minimum_set = 0
    journal.client = Client(CLIENT, positions=positions, disconnected=True)
    with pytest.raises(JournalGap, match="disconnected"):
        Tail(journal, CLIENT)
    journal.client = None
    with pytest.raises(JournalGap, match="not registered"):
        Tail(journal, CLIENT)


def test_trimmed_between_the_header_and_the_read() -> None:
    journal = Journal()
    for _ in range(60):
        journal.append(200)
    journal.tag()
    journal.append(10)
    tail = Tail(journal, CLIENT)
    read = journal.submit_read

    def trimmed(number: int, offset: int, length: int, done: ReadDone) -> None:
        # The writer flags us first, removes objects next, and moves minimum_set last.
        journal.client = Client(CLIENT, disconnected=True)
        journal.objects.clear()
        read(number, offset, length, done)

    journal.submit_read = trimmed  # type: ignore[method-assign]
    with pytest.raises(JournalGap):
        list(tail.poll())


def test_what_a_slot_holds_is_bounded() -> None:
    journal = Journal(4, 1 << 20)
    for _ in range(3000):
        journal.append(random.Random(1).choice([500, 1500]))
    chunk = 16 << 10
    tail = Tail(journal, CLIENT, chunk=chunk)
    most = 0
    for count, _ in enumerate(tail.poll(), 1):
        if count % 50 == 0:
            most = max(most, *(len(slot._buffer) for slot in tail._slots))
    assert count == 3000
    assert chunk <= most <= chunk + 1600


@pytest.mark.parametrize("length", [400_000, 90_000, 3_000])
def test_lag_of_large_entries(length: int) -> None:
    journal = Journal(4, 4 << 20)
    total = 40 << 20
    while sum(map(len, journal.objects.values())) < total:
        journal.append(length)
    everything = list(Tail(journal, CLIENT).poll())
    for at in (0, 1, len(everything) // 3, len(everything) // 2, len(everything) - 1):
        positions: dict[int, Commit] = {}
        for one in everything[:at]:
            positions[one.place.object_number % 4] = Commit(one.place.object_number, *one.place[:2])
        journal.commit(CLIENT, sorted(positions.values(), key=lambda commit: commit[1:], reverse=True))
        found, left = lag(journal, CLIENT), everything[at:]
        assert found.exact
        assert (found.records, found.bytes, found.since) == (len(left), sum(e.size for e in left), left[0].time)


def test_waiting_ends_at_once_when_it_must_stop() -> None:
    journal = Journal()
    tail = Tail(journal, CLIENT)
    stop = threading.Event()
    assert not tail.wait(stop)
    stop.set()
    assert tail.wait(stop)


def test_an_operation_is_a_record_like_any_other() -> None:
    journal = Journal()
    journal.objects[0] = entry(0, 0, b"abc")
    found: list[Any] = list(Tail(journal, CLIENT).poll())
    assert [one.record for one in found] == [record.Write(0, b"abc")]
    assert found[0].size == len(journal.objects[0])
