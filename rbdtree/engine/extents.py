"""The bytes of a push: what really changed between two snapshots of an image, byte-compared.

librbd reports what was written; a rewrite of equal bytes is no change, and must not meet anybody in a conflict. What a
host wrote late into the older snapshot (``delta``) is in both, so comparing them does not show it.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from rbdtree.engine import delta
from rbdtree.engine.copy import chunks
from rbdtree.engine.zeroes import differing
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.position import tree_of_snapshot
from rbdtree.ports import Image, Source

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


def written(newer: Image, older: Image, since: str, rough: Extents) -> Generator[list[Pair], None, None]:
    """What a branch holds that its snapshot ``since``, open as ``older``, did not when it was taken; of the objects in
    ``rough``."""
    late: list[Extents] = []
    yield from compared(newer, older, delta.exact(newer, since, rough, late=late.append))
    if late:
        yield list(_held(newer, since, delta.written_late(newer, since, rough)))


def _held(newer: Image, since: str, objects: Extents) -> Extents:
    """All that the branch wrote to these objects since the oldest push it knows: late writes are among it. What was
    published already meets nobody but who changed it since."""
    tree = tree_of_snapshot(since)
    ours = [s.name for s in newer.snapshots() if tree_of_snapshot(s.name) == tree]
    if not ours or ours[0] == since:
        return objects
    return Extents.of(pair for batch in delta.exact(newer, ours[0], objects) for pair in batch).intersect(objects)


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
