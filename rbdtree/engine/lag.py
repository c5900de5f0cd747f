"""How much of a journal a client has not committed, without reading it all: the header, and a few pages of its objects.

The newest entry is found at the ends of the active objects. Predecessors in the tags say how many entries each tag had.
Where the commit position lies in its object is found by bisection: from any page on, entries are recognised by preamble
and checksum.
"""

import struct
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine.tail import check_gap
from rbdtree.model.journal import PREAMBLE, Raw, decode, next_entry
from rbdtree.model.journal_client import Commit, Header
from rbdtree.ports import Journal

_PAGE = 128 << 10
_SEAL = struct.pack("<Q", PREAMBLE)
_PADDING = 64 << 10
"""Zeroes that may follow the last entry: an OSD's min_alloc_size."""
_PATIENCE = 60.0
_ASKED = 64
"""Objects whose size is asked, at either end; those between are full."""


@dataclass(frozen=True, slots=True)
class Lag:
    """What would be lost with the image: records and bytes of the journal behind the commit position.

    ``since`` and ``newest`` are the times of the oldest and newest of these records by the writer's clock, None without
    one. Records that come while it is measured may count. Bytes are an upper bound where there is a lot (objects
    between the first and the last count as full), and where ``exact`` is False: some entry was not recognised.
    """

    records: int = 0
    bytes: int = 0
    since: float | None = None
    newest: float | None = None
    exact: bool = True

    def seconds(self, now: float) -> float:
        """The loss window."""
        return max(0.0, now - self.since) if self.since is not None else 0.0


def lag(journal: Journal, client_id: str) -> Lag:
    """Some 20 small reads when there is lag, 6 when there is none. ``JournalGap`` where it is no longer known."""
    header = journal.header(client_id)
    check_gap(journal, client_id, header)
    positions = header.client.positions if header.client else ()
    sizes = _sizes(journal, header, positions)
    newest = _newest(journal, header, sizes)
    front = (positions[0].tag_tid, positions[0].entry_tid) if positions else (-1, -1)
    if newest is None or newest.place[:2] <= front:
        return Lag()
    return _measure(journal, client_id, front, newest, sizes)


def _sizes(journal: Journal, header: Header, positions: tuple[Commit, ...]) -> dict[int, int]:
    """Of the objects that may hold entries behind the positions, by number."""
    width = journal.splay_width
    first = {slot: header.minimum_set * width + slot for slot in range(width)}
    for position in positions:
        slot = position.object_number % width
        first[slot] = max(first[slot], position.object_number)
    numbers = [n for slot in range(width) for n in range(first[slot], (header.active_set + 1) * width, width)]
    numbers.sort()
    full = numbers[_ASKED:-_ASKED]
    found = (
        (number, journal.object_size(number))
        for number in numbers[:_ASKED] + numbers[max(_ASKED, len(numbers) - _ASKED) :]
    )
    return {**{number: size for number, size in found if size}, **dict.fromkeys(full, journal.object_bytes)}


def _newest(journal: Journal, header: Header, sizes: dict[int, int]) -> Raw | None:
    found: list[Raw] = []
    for active in (header.active_set, header.active_set - 1):
        for number in range(active * journal.splay_width, (active + 1) * journal.splay_width):
            length = _PAGE
            while number in sizes:
                offset = max(0, sizes[number] - length)
                page = list(_page(journal, number, offset, length))
                found += page[-1:]
                if page or not offset:
                    break
                length *= 4
        if found:
            break
    return max(found, key=lambda raw: raw.place[:2], default=None)


def _page(journal: Journal, number: int, offset: int, length: int) -> Iterator[Raw]:
    """Whole entries of one page, from the first that is recognised on."""
    read: Future[bytes] = Future()
    journal.submit_read(
        number,
        offset,
        length,
        lambda result: read.set_result(result) if isinstance(result, bytes) else read.set_exception(result),
    )
    try:
        buffer = read.result(_PATIENCE)
    except errors.NotFound:
        return
    except TimeoutError as error:
        raise errors.Unreachable(f"journal object {number} was not read within {_PATIENCE:g} s") from error
    at = buffer.find(_SEAL)
    while at >= 0:
        try:
            raw, behind = next_entry(buffer, at, offset, number, journal.object_bytes * 2)
        except errors.Integrity:
            # Data that looks like the beginning of an entry.
            raw, behind = None, at + 1
        if raw is not None:
            yield raw
            at = behind
        else:
            at = buffer.find(_SEAL, at + 1)


def _behind(journal: Journal, number: int, size: int, front: tuple[int, int], length: int) -> tuple[int, Raw | None]:
    """(offset, entry) of the first entry of an object behind ``front``.

    (size, None) when there is none; (0, None) when that cannot be told from pages of ``length``.
    """
    low, high, known = 0, size, 0
    best: Raw | None = None
    while low < high:
        middle = max(low, (low + high - length) // 2)
        page = list(_page(journal, number, middle, length))
        later = next((raw for raw in page if raw.place[:2] > front), None)
        best = later or best
        if page and later is None:
            known = page[-1].place.offset + len(page[-1].payload)
            low = page[-1].place.offset + 1
        elif (page and later is not page[0]) or middle == low:
            break
        else:
            # All of it is behind, or nothing was recognised: look before it.
            high = middle
    if best is not None:
        return best.place.offset, best
    return (size, None) if size - known <= _PADDING else (0, None)


def _measure(journal: Journal, client_id: str, front: tuple[int, int], newest: Raw, sizes: dict[int, int]) -> Lag:
    width = journal.splay_width
    length = max(_PAGE, 4 * len(newest.payload))
    total, exact = 0, True
    oldest: Raw | None = None
    for slot in range(width):
        for number in sorted(n for n in sizes if n % width == slot):
            offset, raw = _behind(journal, number, sizes[number], front, length)
            total += sizes[number] - offset
            if raw is not None:
                oldest = min(oldest or raw, raw, key=lambda one: one.place[:2])
            if raw is not None or offset == 0:
                exact = exact and raw is not None
                total += sum(sizes[n] for n in sizes if n % width == slot and n > number)
                break
    since = decode(oldest).time if oldest else None
    records = _count(journal, client_id, front, (newest.place.tag_tid, newest.place.entry_tid))
    return Lag(records, total, since, decode(newest).time, exact and oldest is not None)


def _count(journal: Journal, client_id: str, front: tuple[int, int], newest: tuple[int, int]) -> int:
    """Entries between two places. A tag's predecessor names the last entry of the tag before it."""
    if front[0] == newest[0]:
        return newest[1] - front[1]
    lasts = {
        tag.data.predecessor.tag_tid: tag.data.predecessor.entry_tid
        for tag in journal.tags(client_id)
        if tag.data.predecessor is not None
    }
    count = newest[1] + 1
    for tag_tid, last in lasts.items():
        if front[0] < tag_tid < newest[0]:
            count += last + 1
        elif tag_tid == front[0]:
            count += max(0, last - front[1])
    return count
