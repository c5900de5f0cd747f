"""Cuts a journal into batches: what is applied, and committed, in one go.

    write write flush write flush write | resize | write write flush write
    |------- batch -------------|- batch|-batch--|---- batch ----|  pending

A batch of changes ends at a flush, once it is old or large enough; without any flush for too long, at a record, which
it says. Anything that is no plain change of bytes (a snapshot, a resize, a compare-and-write) is a batch of its own.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from rbdtree.engine.coalesce import Piece, overlaps, pieces
from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.journal import Entry, Place
from rbdtree.model.journal_client import Commit
from rbdtree.model.record import Change, Discard, Event, Flush, Harmless, OpFinish, Write, WriteSame, Zero

LIMIT = 64 << 20
"""Most bytes of data that are pending."""
_OVERHEAD = 512
"""Bytes a record costs beside its data."""
_FILL = 4 << 20
"""A pattern is filled in by portions of this."""


class End(Enum):
    """Why a batch ended where it did. All but ``FLUSH`` and ``EVENT`` lie between two flushes."""

    FLUSH = "flush"
    EVENT = "event"
    LIMIT = "limit"
    TIME = "time"
    CUT = "cut"


@dataclass(frozen=True, slots=True)
class Batch:
    """Either ``pieces`` to write, in any order, or an ``event`` that stands alone.

    ``overlapped``: bytes that two records covered (of this batch, or of this one and the one before). librbd journals
    writes that are in flight together in another order than it applies them, so these bytes prove nothing: compare them
    with the image. ``event``: to be done after all that came before; a ``CompareAndWrite`` was written only where the
    image held what it expected; an operation succeeded only if its ``OpFinish`` (an event as well) says so.
    ``positions``: to be committed once all of this is durable. ``records`` and ``data_bytes`` count what came in,
    ``newest`` is the last record's time (the writer's clock, seconds since 1970).
    """

    pieces: tuple[Piece, ...]
    overlapped: Extents
    event: Event | None
    end: End
    first: Place
    last: Place
    positions: tuple[Commit, ...]
    records: int
    data_bytes: int
    newest: float

    @property
    def overlapping(self) -> bool:
        """Whether the order of some records cannot be trusted."""
        return bool(self.overlapped)

    @property
    def extents(self) -> Extents:
        """Everything it writes."""
        return Extents.of((piece.offset, piece.length) for piece in self.pieces)


class _Pending(NamedTuple):
    """A record; of a pattern filled in by portions, one portion. ``entry`` is None for all of these but the last."""

    place: Place
    change: Change | None
    entry: Entry | None
    came: float


class Batcher:
    """Collects entries in order. ``committed``: the positions the tail began with.

    A batch is due when the one before it was cut ``seconds`` ago, and is cut at the last flush by then: the first write
    after a rest does not wait, and what came while a batch was published is cut when all of it was added. ``patience``
    is how long one waits for a flush. Never more than ``limit`` bytes are pending (but a single record always may be).
    """

    def __init__(
        self,
        splay_width: int,
        committed: Iterable[Commit] = (),
        *,
        limit: int = LIMIT,
        seconds: float = 1.0,
        patience: float = 5.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._width = splay_width
        self._positions = {commit.object_number % splay_width: commit for commit in committed}
        self._limit = limit
        self._seconds = seconds
        self._patience = patience
        self._clock = clock
        self._pending: list[_Pending] = []
        self._cost = 0
        self._flushed = 0
        """How many of the pending end with the last flush."""
        self._before = NOTHING
        self._quiet: set[int] = set()
        self._tag_tid = -1
        self._newest = 0.0
        self._cut_at = clock()

    @property
    def pending(self) -> int:
        """Records that are in no batch yet."""
        return sum(1 for pending in self._pending if pending.entry is not None)

    def add(self, entry: Entry) -> Iterator[Batch]:
        """Takes one more entry; the batches that are complete with it. To be iterated to its end."""
        record = entry.record
        if isinstance(record, Write | Zero | Discard | WriteSame):
            yield from self._change(entry, record)
        elif isinstance(record, Flush):
            self._append(_Pending(entry.place, None, entry, self._clock()), 0)
            self._flushed = len(self._pending)
            if self._cost > self._limit or self._clock() - self._pending[0].came >= self._seconds:
                yield self._take(self._flushed, End.FLUSH)
        elif self._harmless(entry):
            yield from self._room(0)
            self._append(_Pending(entry.place, None, entry, self._clock()), 0)
        else:
            yield from self.cut(End.EVENT)
            assert not isinstance(record, Harmless)
            yield self._event(entry, record)

    def _harmless(self, entry: Entry) -> bool:
        """Whether it is an operation that changes no bytes, or the end of one. Numbers begin anew with every tag."""
        if entry.place.tag_tid != self._tag_tid:
            self._tag_tid = entry.place.tag_tid
            self._quiet.clear()
        record = entry.record
        if isinstance(record, Harmless):
            self._quiet.add(record.op_tid)
            return True
        if isinstance(record, OpFinish) and record.op_tid in self._quiet:
            self._quiet.remove(record.op_tid)
            return True
        return False

    def _change(self, entry: Entry, change: Change) -> Iterator[Batch]:
        portions = list(_portions(change))
        for number, portion in enumerate(portions, 1):
            size = _size(portion)
            yield from self._room(size)
            whole = entry if number == len(portions) else None
            self._append(_Pending(entry.place, portion, whole, self._clock()), size)

    def _room(self, size: int) -> Iterator[Batch]:
        while self._pending and self._cost + size + _OVERHEAD > self._limit:
            yield self._take(self._flushed or len(self._pending), End.FLUSH if self._flushed else End.LIMIT)

    def _append(self, pending: _Pending, size: int) -> None:
        self._pending.append(pending)
        self._cost += size + _OVERHEAD

    def due(self) -> Iterator[Batch]:
        """What should wait no longer; ask when no entry comes, or all that there were are added."""
        if self._flushed and self._clock() - self._cut_at >= self._seconds:
            yield self._take(self._flushed, End.FLUSH)
        if self._pending and self._clock() - self._pending[0].came >= self._patience:
            yield self._take(len(self._pending), End.TIME)

    def cut(self, end: End = End.CUT) -> Iterator[Batch]:
        """All that is pending, now; before an event in one batch, otherwise at the last flush first."""
        if self._flushed and end is not End.EVENT:
            yield self._take(self._flushed, End.FLUSH)
        if self._pending:
            yield self._take(len(self._pending), end)

    def _take(self, count: int, end: End) -> Batch:
        self._cut_at = self._clock()
        taken, self._pending = self._pending[:count], self._pending[count:]
        self._flushed = max(0, self._flushed - count)
        changes = [pending.change for pending in taken if pending.change is not None]
        data_bytes = sum(_size(change) for change in changes)
        self._cost -= data_bytes + _OVERHEAD * count
        entries = [pending.entry for pending in taken if pending.entry is not None]
        for entry in entries:
            self._advance(entry.place)
        records = len(entries)
        self._newest = max((entry.time for entry in entries), default=self._newest)
        first, last = taken[0].place, taken[-1].place
        overlapped = overlaps(changes)
        # From here on the pieces alone hold data: pieces() empties its list as it goes.
        taken.clear()
        entries.clear()
        made = tuple(pieces(changes))
        extents = Extents.of((piece.offset, piece.length) for piece in made)
        overlapped = overlapped.union(extents.intersect(self._before))
        self._before = extents
        return Batch(made, overlapped, None, end, first, last, self._committed(), records, data_bytes, self._newest)

    def _event(self, entry: Entry, event: Event) -> Batch:
        self._advance(entry.place)
        self._newest = max(self._newest, entry.time)
        place = entry.place
        return Batch((), NOTHING, event, End.EVENT, place, place, self._committed(), 1, 0, entry.time)

    def _advance(self, place: Place) -> None:
        commit = Commit(place.object_number, place.tag_tid, place.entry_tid)
        self._positions[place.object_number % self._width] = commit

    def _committed(self) -> tuple[Commit, ...]:
        return tuple(sorted(self._positions.values(), key=lambda commit: commit[1:], reverse=True))


def _size(change: Change) -> int:
    """Bytes of data it holds, or will when it is filled in."""
    if isinstance(change, Write):
        return len(change.data)
    return change.length if isinstance(change, WriteSame) else 0


def _portions(change: Change) -> Iterator[Change]:
    """A pattern over a terabyte is many pieces, or zeroes; everything else stays one."""
    if not isinstance(change, WriteSame):
        yield change
    elif not change.length or not any(change.pattern):
        yield Zero(change.offset, change.length)
    else:
        step = max(1, _FILL // len(change.pattern)) * len(change.pattern)
        for at in range(0, change.length, step):
            yield WriteSame(change.offset + at, min(step, change.length - at), change.pattern)
