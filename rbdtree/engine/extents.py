"""The bytes of a push: what really changed between two snapshots of an image, byte-compared.

librbd reports what was written; a rewrite of equal bytes is no change, and must not meet anybody in a conflict.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from rbdtree.engine.copy import chunks
from rbdtree.engine.zeroes import differing
from rbdtree.model.extent import Extents, Pair
from rbdtree.ports import Source

SECTOR = 512
"""Two writers of one sector conflict; of neighbouring ones they do not."""
_READERS = 4


def compared(
    newer: Source, older: Source, batches: Iterator[list[Pair]], passed: Callable[[], None] = lambda: None
) -> Generator[list[Pair], None, None]:
    """Of the given extents, those whose bytes differ between two images of equal size. ``passed``: told of each piece
    that was compared."""

    def read(chunk: tuple[int, int, list[Pair]]) -> list[Pair]:
        start, end, pieces = chunk
        mine, theirs = newer.read(start, end - start), older.read(start, end - start)
        if mine == theirs:
            return []
        found: list[Pair] = []
        for offset, length in pieces:
            # Sectors of the volume, wherever the piece begins.
            whole = min(length, -offset % SECTOR)
            for low, high in ((offset, offset + whole), (offset + whole, offset + length)):
                ours, others = mine[low - start : high - start], theirs[low - start : high - start]
                found += [(low + first, last - first) for first, last in differing(ours, others, SECTOR)]
        return found

    with ThreadPoolExecutor(_READERS, thread_name_prefix="compare") as threads:
        ahead: deque[Future[list[Pair]]] = deque()
        try:
            for batch in batches:
                for chunk in chunks(batch):
                    ahead.append(threads.submit(read, chunk))
                    if len(ahead) >= 2 * _READERS:
                        found = ahead.popleft().result()
                        passed()
                        if found:
                            yield found
            while ahead:
                found = ahead.popleft().result()
                passed()
                if found:
                    yield found
        finally:
            for future in ahead:
                future.cancel()


def whole_sectors(extents: Extents, size: int) -> Extents:
    """The sectors that any of these bytes lie in; ``size``: of the volume, which may end inside one."""
    grown = (
        (first, max(offset + length, min(-(-(offset + length) // SECTOR) * SECTOR, size)) - first)
        for offset, length in extents
        for first in (offset - offset % SECTOR,)
    )
    return Extents.of(grown)


def collect(batches: Iterator[list[Pair]]) -> Extents:
    """As one value."""
    return Extents.of(pair for batch in batches for pair in batch)
