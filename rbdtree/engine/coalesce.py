"""Many writes, some over others, become few pieces: sorted, disjoint, and what the last one left at every byte.

records    0 aaaa        1   bbbb       2 ....        in this order
offset     |aaaabb       |--------------|
pieces      ....bbbb                                  and "overlapped" is where two met
"""

import heapq
from collections.abc import Iterator
from typing import NamedTuple

from rbdtree.model.extent import Extents
from rbdtree.model.record import Change, Discard, Write, Zero

JOIN = 4 << 20
"""Neighbouring data becomes one piece up to the next multiple of this: one object of the default size."""

_DONE = Zero(0, 0)


class Piece(NamedTuple):
    """Bytes to be written at an offset; zeroes without ``data``."""

    offset: int
    length: int
    data: bytes | None


def span(change: Change) -> tuple[int, int]:
    """(offset, length) of what a record changes."""
    return change.offset, len(change.data) if isinstance(change, Write) else change.length


def _parts(changes: list[Change]) -> Iterator[Piece]:
    """Disjoint, ascending, each of one record: the newest at every byte. Lets go of what is done."""
    starts = sorted((*span(change), number) for number, change in enumerate(changes))
    # (-number, end) of the records that begin at or before ``at``; the newest first.
    alive: list[tuple[int, int]] = []
    at = 0
    for offset, length, number in [*starts, (None, 0, 0)]:
        while alive and (offset is None or at < offset):
            newest, end = alive[0]
            if end <= at:
                heapq.heappop(alive)
                changes[-newest] = _DONE
                continue
            stop = end if offset is None else min(end, offset)
            yield _cut(changes[-newest], at, stop)
            at = stop
        if offset is not None and length:
            at = offset
            heapq.heappush(alive, (-number, offset + length))


def _cut(change: Change, start: int, stop: int) -> Piece:
    """What a record writes to [start, stop)."""
    length = stop - start
    match change:
        case Write(offset, data):
            whole = length == len(data)
            return Piece(start, length, data if whole else data[start - offset : stop - offset])
        case Zero() | Discard():
            return Piece(start, length, None)
        case _:
            skip = (start - change.offset) % len(change.pattern)
            count = -(-(skip + length) // len(change.pattern))
            return Piece(start, length, (change.pattern * count)[skip : skip + length])


def pieces(changes: list[Change]) -> list[Piece]:
    """The outcome of all changes, in their order; neighbours joined. O(n log n). Empties the list as it goes."""
    joined: list[Piece] = []
    run: list[Piece] = []

    def close() -> None:
        if len(run) > 1:
            data = b"".join(part.data for part in run if part.data is not None)
            joined.append(Piece(run[0].offset, len(data), data))
        else:
            joined.extend(run)
        run.clear()

    for part in _parts(changes):
        if part.data is None:
            close()
            last = joined[-1] if joined else None
            if last and last.data is None and last.offset + last.length == part.offset:
                joined[-1] = Piece(last.offset, last.length + part.length, None)
            else:
                joined.append(part)
            continue
        if run:
            begin, end = run[0].offset, run[-1].offset + run[-1].length
            if end != part.offset or begin // JOIN != (end + part.length - 1) // JOIN:
                close()
        run.append(part)
    close()
    changes.clear()
    return joined


def overlaps(changes: list[Change]) -> Extents:
    """Bytes that two changes or more cover."""
    found: list[tuple[int, int]] = []
    highest = 0
    for offset, length in sorted(span(change) for change in changes):
        if offset < highest:
            found.append((offset, min(offset + length, highest) - offset))
        highest = max(highest, offset + length)
    return Extents.of(found)
