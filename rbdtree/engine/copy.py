"""Moves extents from one image into several: read once, written to each.

    plan thread -> extents -> [read] -> digest -> split at zeroes -> [write to each target] -> progress
                                 bounded by bytes in flight, never by a count

One thread drives; librbd's callbacks only put events into its queue. The first error of a target ends that target
alone; the first error of the source ends the copy. Chunks finish in any order; ``done_bytes`` is the offset below
which all have, and what a restart begins from.
"""

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import xxhash

from rbdtree import errors
from rbdtree.engine.pace import Pace
from rbdtree.engine.zeroes import differing, runs
from rbdtree.model.extent import Extents, Pair
from rbdtree.ports import Image, Source

CHUNK = 4 << 20
"""Largest read, and the grid reads never cross: one object of the default size."""
NEAR = 64 << 10
"""Extents of one chunk this near are read in one go; only what changed is written."""
WINDOW = 96 << 20
"""Bytes in flight, a buffer counted once when read and once for every target it is written to."""
_OVERHEAD = 2048
_ASKERS = 16
_WAIT = 0.5
_PLANNED_AHEAD = 100_000
"""Extents planned but not submitted: some 20 MiB of them; below that, the total is known early."""


class Window:
    """Bytes that all copies of a run may have in flight together; each may have one chunk beyond, so none starves."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._guard = threading.Lock()

    def room(self) -> bool:
        return self._used < self._limit

    def take(self, count: int) -> None:
        with self._guard:
            self._used += count

    def give(self, count: int) -> None:
        with self._guard:
            self._used -= count


@dataclass
class Target:
    """A head to write into. ``existing``: where it may hold data; zeroes elsewhere are not shipped."""

    name: str
    image: Image
    existing: Extents
    end_of: Callable[[int, int], int | None] | None = None
    """Where the data of the object with this range ends, a hole from there on; None: it has none, if it is there."""
    failed: errors.Error | None = None
    written_bytes: int = 0
    zeroed_bytes: int = 0
    elided_bytes: int = 0
    """Zero at both ends."""
    copied_chunks: int = 0
    elided_chunks: int = 0
    """Of which nothing had to be written."""

    def may_hold_data(self, offset: int, length: int) -> bool:
        """As far as is known without asking."""
        return self.existing.overlaps(offset, offset + length)

    def needs_zeroes(self, offset: int, length: int) -> bool:
        """Asks, which takes a round trip."""
        unit = self.image.layout.object_bytes
        first = offset - offset % unit
        if self.end_of is None or offset + length > first + unit:
            return True
        end = self.end_of(first, unit)
        # An object that is there and has no data (Ceph 18 leaves such) goes with the zeroes.
        return end is None or end > offset


@dataclass
class Copied:
    """What a copy did.

    ``read_bytes`` came from the source; ``passed_bytes`` of ``total_bytes`` (None while the plan grows) of the delta
    are done.
    """

    read_bytes: int = 0
    passed_bytes: int = 0
    total_bytes: int | None = None
    done_bytes: int = 0


@dataclass(kw_only=True)
class Tally:
    """What copies into one target moved: bytes read at the source (siblings that share a read count it each), written,
    zeroes included, and elided, as they were zero at both ends; and chunks, which are one read each.

    ``repeated``: what a copy had written when it failed, of which some is written again."""

    read_bytes: int = 0
    written_bytes: int = 0
    elided_bytes: int = 0
    copied_chunks: int = 0
    elided_chunks: int = 0
    repeated_bytes: int = 0
    repeated_chunks: int = 0

    def count(self, copied: Copied, target: Target) -> None:
        """One copy more."""
        self.read_bytes += copied.read_bytes
        self.written_bytes += target.written_bytes + target.zeroed_bytes
        self.elided_bytes += target.elided_bytes
        self.copied_chunks += target.copied_chunks
        self.elided_chunks += target.elided_chunks

    def count_failed(self, target: Target) -> None:
        """One that did not get to its end."""
        self.repeated_bytes += target.written_bytes + target.zeroed_bytes
        self.repeated_chunks += target.copied_chunks


@dataclass(eq=False)
class _Chunk:
    start: int
    end: int
    pieces: list[Pair]
    cost: int = 0
    pending: int = 1
    data: bytes = b""
    digest: int = 0
    into: list[Target] = field(default_factory=list)
    """To which something of it had to be written."""
    dropped: bool = False
    """Read, but not written to everybody: the copy ended before."""


@dataclass
class _Planned:
    pairs: list[Pair]
    total_bytes: int


@dataclass
class _PlanEnded:
    error: BaseException | None = None


@dataclass
class _Read:
    chunk: _Chunk
    result: bytes | Exception


@dataclass
class _Compared:
    chunk: _Chunk
    target: Target
    result: bytes | Exception


@dataclass
class _Wrote:
    chunk: _Chunk
    target: Target
    error: Exception | None


@dataclass
class _Asked:
    """Whether zeroes have to be written to a range."""

    chunk: _Chunk
    target: Target
    offset: int
    length: int
    result: bool | Exception


_Event = _Planned | _PlanEnded | _Read | _Compared | _Wrote | _Asked


def chunks(pairs: Iterable[Pair], chunk: int = CHUNK, near: int = NEAR) -> Iterable[tuple[int, int, list[Pair]]]:
    """(start, end, extents inside) of the reads for ascending extents.

    |--chunk--|--chunk--|
      xx  x xxxxxx    x        two reads in the first chunk if the gap is not near, one each in the others
    """
    start = end = -1
    pieces: list[Pair] = []
    for offset, length in pairs:
        at, last = offset, offset + length
        while at < last:
            stop = min(last, at - at % chunk + chunk)
            if pieces and at - end <= near and at // chunk == start // chunk:
                pieces.append((at, stop - at))
            else:
                if pieces:
                    yield start, end, pieces
                start, pieces = at, [(at, stop - at)]
            end = stop
            at = stop
    if pieces:
        yield start, end, pieces


class Copy:
    """One copy. ``run`` returns when every target has everything or has failed."""

    def __init__(
        self,
        source: Source,
        targets: list[Target],
        planned: Iterable[list[Pair]],
        *,
        check: Callable[[], None] = lambda: None,
        progress: Callable[[Copied], None] = lambda _: None,
        compare: bool = False,
        window: "Window | None" = None,
        pace: Pace | None = None,
    ) -> None:
        self._source = source
        self._targets = targets
        self._planned = planned
        self._check = check
        self._progress = progress
        self._compare = compare
        self._window = window or Window(WINDOW)
        self._pace = pace
        self._held: tuple[int, int, list[Pair]] | None = None
        """The next read, waiting for its turn."""
        self._events: queue.SimpleQueue[_Event] = queue.SimpleQueue()
        self._backlog: Iterator[tuple[int, int, list[Pair]]] = iter(())
        self._batches: deque[list[Pair]] = deque()
        self._open: deque[_Chunk] = deque()
        self._planning = True
        self._ahead = 0
        self._room = threading.Condition()
        self._stop_planning = False
        self._planned_bytes = 0
        self._fatal: BaseException | None = None
        self._gap = False
        self._askers: ThreadPoolExecutor | None = None
        self.copied = Copied()

    def run(self) -> Copied:
        """Raises what ended the copy for everybody; a target's own error is in ``Target.failed``."""
        planner = threading.Thread(target=self._plan, name="plan", daemon=True)
        planner.start()
        try:
            self._drive()
        finally:
            with self._room:
                self._stop_planning = True
                self._room.notify_all()
            planner.join()
            if self._askers:
                self._askers.shutdown()
        if self._fatal:
            raise self._fatal
        return self.copied

    def _plan(self) -> None:
        try:
            for pairs in self._planned:
                with self._room:
                    self._room.wait_for(lambda: self._ahead < _PLANNED_AHEAD or self._stop_planning)
                    self._ahead += len(pairs)
                    if self._stop_planning:
                        return
                self._events.put(_Planned(pairs, sum(length for _, length in pairs)))
            self._events.put(_PlanEnded())
        except BaseException as error:
            self._events.put(_PlanEnded(error))

    def _drive(self) -> None:
        while True:
            if self._fatal is None:
                self._submit()
            if not self._open and (self._fatal is not None or (not self._planning and self._held is None)):
                return
            wait = _WAIT
            if self._held and self._pace and self._window.room():
                wait = min(_WAIT, max(self._pace.delay(), 0.001))
            try:
                event = self._events.get(timeout=wait)
            except queue.Empty:
                self._guarded(self._check)
                self._progress(self.copied)
                continue
            self._handle(event)
            # Take what has piled up before submitting again: fewer turns of the loop.
            for _ in range(256):
                try:
                    self._handle(self._events.get_nowait())
                except queue.Empty:
                    break
            self._advance()
            self._guarded(self._check)

    def _guarded(self, call: Callable[[], None]) -> None:
        try:
            call()
        except errors.Error as error:
            self._fatal = self._fatal or error

    def _submit(self) -> None:
        while self._window.room() or not self._open:
            self._held = self._held or self._next()
            if self._held is None or (self._pace and self._pace.delay()):
                return
            (start, end, pieces), self._held = self._held, None
            if self._pace:
                self._pace.spend(end - start)
            copies = 1 + sum(1 for target in self._targets if not target.failed)
            chunk = _Chunk(start, end, pieces, (end - start) * copies + _OVERHEAD)
            self._open.append(chunk)
            self._window.take(chunk.cost)
            try:
                self._source.submit_read(start, end - start, partial(self._put_read, chunk))
            except errors.Error as error:
                self._events.put(_Read(chunk, error))

    def _next(self) -> tuple[int, int, list[Pair]] | None:
        """The next read, of the batch at hand or of the one after it; None when no more is planned yet."""
        while True:
            following = next(self._backlog, None)
            if following is not None:
                return following
            if not self._batches:
                return None
            pairs = self._batches.popleft()
            self._backlog = iter(chunks(pairs))
            with self._room:
                self._ahead -= len(pairs)
                self._room.notify_all()

    def _put_read(self, chunk: _Chunk, result: bytes | Exception) -> None:
        if isinstance(result, bytes):
            chunk.digest = xxhash.xxh3_64_intdigest(result)
        self._events.put(_Read(chunk, result))

    def _handle(self, event: _Event) -> None:
        match event:
            case _Read(chunk, result):
                self._read(chunk, result)
            case _Wrote(chunk, target, error):
                if error is not None and target.failed is None:
                    target.failed = error if isinstance(error, errors.Error) else errors.CephError(str(error))
                self._less(chunk)
            case _Compared(chunk, target, result):
                self._compared(chunk, target, result)
            case _Asked():
                self._zero(event)
            case _Planned(pairs, total_bytes):
                self._planned_bytes += total_bytes
                self._batches.append(pairs)
            case _PlanEnded(error):
                self._planning = False
                self.copied.total_bytes = self._planned_bytes
                if error is not None:
                    self._fatal = self._fatal or error

    def _less(self, chunk: _Chunk) -> None:
        chunk.pending -= 1
        if chunk.pending == 0:
            if not chunk.dropped:
                self.copied.passed_bytes += sum(length for _, length in chunk.pieces)
                for target in self._targets:
                    if any(target is other for other in chunk.into):
                        target.copied_chunks += 1
                    elif target.failed is None:
                        target.elided_chunks += 1
            self._window.give(chunk.cost)
            chunk.data = b""

    def _advance(self) -> None:
        while self._open and self._open[0].pending == 0:
            chunk = self._open.popleft()
            # A restart begins at done_bytes: it stays where the first gap is.
            self._gap = self._gap or chunk.dropped
            if not self._gap:
                self.copied.done_bytes = chunk.end
        if self._targets and all(target.failed for target in self._targets):
            self._fatal = self._fatal or self._targets[0].failed
        self._progress(self.copied)

    def _read(self, chunk: _Chunk, result: bytes | Exception) -> None:
        chunk.dropped = True
        if not isinstance(result, bytes):
            self._fatal = self._fatal or result
        elif len(result) != chunk.end - chunk.start:
            self._fatal = self._fatal or errors.Integrity(
                f"short read at {chunk.start}: {len(result)} of {chunk.end - chunk.start} bytes"
            )
        elif self._fatal is None:
            self.copied.read_bytes += len(result)
            chunk.data = result
            chunk.dropped = False
            if self._compare:
                for target in self._targets:
                    self._submit_compare(chunk, target)
            else:
                self._write(chunk)
        self._less(chunk)

    def _verified(self, chunk: _Chunk) -> bool:
        if xxhash.xxh3_64_intdigest(chunk.data) == chunk.digest:
            return True
        chunk.dropped = True
        self._fatal = self._fatal or errors.Integrity(
            f"bytes {chunk.start}..{chunk.end} changed in memory between read and write",
            "Check this host's memory, then run the sync again.",
        )
        return False

    def _write(self, chunk: _Chunk) -> None:
        if not self._verified(chunk):
            return
        data = chunk.data
        for offset, length in chunk.pieces:
            base = offset - chunk.start
            for start, end, zero in runs(data, base, base + length):
                whole = start == 0 and end == len(data)
                piece = b"" if zero else data if whole else data[start:end]
                for target in self._targets:
                    if target.failed is None:
                        self._write_piece(chunk, target, chunk.start + start, end - start, piece)

    def _write_piece(self, chunk: _Chunk, target: Target, offset: int, length: int, piece: bytes) -> None:
        if not piece and not target.may_hold_data(offset, length):
            target.elided_bytes += length
            return
        chunk.pending += 1
        done = partial(self._put_wrote, chunk, target)
        try:
            if piece:
                _note(chunk, target)
                target.written_bytes += length
                target.image.submit_write(offset, piece, done)
            elif target.end_of:
                self._ask(chunk, target, offset, length)
            else:
                _note(chunk, target)
                target.zeroed_bytes += length
                target.image.submit_zero(offset, length, done)
        except errors.Error as error:
            done(error)

    def _ask(self, chunk: _Chunk, target: Target, offset: int, length: int) -> None:
        """A diff reports the grown tail of an object whole, mostly zeroes; a head that ends before has a hole there."""

        def ask() -> None:
            result: bool | Exception
            try:
                result = target.needs_zeroes(offset, length)
            except Exception as error:
                result = error
            self._events.put(_Asked(chunk, target, offset, length, result))

        self._askers = self._askers or ThreadPoolExecutor(_ASKERS, thread_name_prefix="ends")
        self._askers.submit(ask)

    def _zero(self, asked: _Asked) -> None:
        done = partial(self._put_wrote, asked.chunk, asked.target)
        if isinstance(asked.result, Exception):
            done(asked.result)
        elif asked.result and (asked.target.failed or self._fatal):
            asked.chunk.dropped = self._fatal is not None
            done(None)
        elif not asked.result:
            asked.target.elided_bytes += asked.length
            done(None)
        else:
            _note(asked.chunk, asked.target)
            asked.target.zeroed_bytes += asked.length
            try:
                asked.target.image.submit_zero(asked.offset, asked.length, done)
            except errors.Error as error:
                done(error)

    def _put_wrote(self, chunk: _Chunk, target: Target, error: Exception | None) -> None:
        self._events.put(_Wrote(chunk, target, error))

    def _submit_compare(self, chunk: _Chunk, target: Target) -> None:
        if target.failed is not None:
            return
        chunk.pending += 1
        done = partial(self._put_compared, chunk, target)
        try:
            target.image.submit_read(chunk.start, chunk.end - chunk.start, done)
        except errors.Error as error:
            done(error)

    def _put_compared(self, chunk: _Chunk, target: Target, result: bytes | Exception) -> None:
        self._events.put(_Compared(chunk, target, result))

    def _compared(self, chunk: _Chunk, target: Target, result: bytes | Exception) -> None:
        if not isinstance(result, bytes):
            target.failed = target.failed or (
                result if isinstance(result, errors.Error) else errors.CephError(str(result))
            )
        elif self._fatal is not None:
            chunk.dropped = True
        elif self._verified(chunk):
            for low, high in differing(chunk.data, result):
                for start, end, zero in runs(chunk.data, low, high):
                    piece = b"" if zero else chunk.data[start:end]
                    self._write_piece(chunk, target, chunk.start + start, end - start, piece)
        self._less(chunk)


def _note(chunk: _Chunk, target: Target) -> None:
    if not any(target is other for other in chunk.into):
        chunk.into.append(target)
