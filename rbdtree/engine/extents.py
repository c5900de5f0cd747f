"""The bytes of a push: what really changed between two snapshots of an image, byte-compared.

librbd reports what was written; a rewrite of equal bytes is no change, and must not meet anybody in a conflict. What a
host wrote late into the older snapshot (``delta``) is in both, so comparing them does not show it.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from rbdtree.engine import delta, verify
from rbdtree.engine.copy import chunks
from rbdtree.engine.zeroes import differing
from rbdtree.model.extent import NOTHING, Extents, Pair
from rbdtree.ports import Image, Pool, Silent, Source

SECTOR = 512
"""Two writers of one sector conflict; of neighbouring ones they do not."""
_READERS = 4
_BATCH = 128
_CHECKSUMMED_BYTES = 64 << 10
"""Smaller pieces are read: to ask for the checksum of one takes as long."""


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


def suspect(newer: Image, older: Image, within: Extents, passed: Callable[[], None] = lambda: None) -> Extents:
    """What of this may differ between two images, all of which is expected to be equal; ``compared`` tells.

    The OSDs' checksums say of the rest that it is, and nothing of it moves. ``passed`` as there."""
    if newer.layout != older.layout or not newer.layout.plain:
        return within
    objects = chunks(within, newer.layout.object_bytes, near=-1)
    pieces = [(start, end - start) for start, end, _ in objects if end - start >= _CHECKSUMMED_BYTES]
    equal: list[Pair] = []
    with ThreadPoolExecutor(2, thread_name_prefix="checksum") as askers:
        for first in range(0, len(pieces), _BATCH):
            batch = pieces[first : first + _BATCH]
            mine, theirs = (asked.result() for asked in [askers.submit(o.checksums, batch) for o in (newer, older)])
            equal += [p for p, a, b in zip(batch, mine, theirs, strict=True) if a == b and a is not None]
            passed()
    return within.subtract(Extents.of(equal))


def written(
    pool: Pool,
    newer: Image,
    older: Image,
    since: str,
    rough: Extents,
    equal: dict[tuple[str, str], tuple[str, Extents]] | None = None,
) -> Generator[list[Pair], None, None]:
    """What a branch holds that its snapshot ``since``, open as ``older``, did not when it was taken; of the objects in
    ``rough``. ``equal`` remembers, by cluster and image, objects that were looked at before and hold nothing."""
    late: list[Extents] = []
    yield from compared(newer, older, delta.exact(newer, since, rough, late=late.append))
    if not late:
        return
    # An object that was copied up, by a discard or a flatten, has a time later than its snapshots too. What counts is
    # what differs from the base: the same whenever it is asked, whatever pushes there were in between.
    objects = Extents.of(pair for one in late for pair in one).union(delta.written_late(newer, since, rough))
    key = pool.fsid, newer.image_id
    known = equal.get(key, ("", NOTHING)) if equal is not None else ("", NOTHING)
    if known[0] == since and not objects.subtract(known[1]):
        return
    found = _beyond_base(pool, newer, objects)
    if found:
        yield list(found)
    elif equal is not None:
        equal[key] = since, objects


def _beyond_base(pool: Pool, branch: Image, objects: Extents) -> Extents:
    """Where these objects of a branch differ from what it is a clone of. Nothing is known of one that is none any more.

    By the OSDs' checksums: fstrim may have left many that are equal."""
    ancestor = branch.ancestor()
    if ancestor is None:
        return NOTHING
    base = pool.cluster.pool(ancestor.pool, ancestor.namespace).open(ancestor.image_id, ancestor.snapshot)
    verdict = verify.Verdict("the branch", "its base")
    try:
        verify.compare(base, branch, None, ancestor.snapshot, verdict, Silent(), objects)
        found = Extents.of(pair for difference in verdict.differences for pair in difference.extents)
        return collect(compared(branch, base, iter([list(found)])))
    finally:
        base.close()


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
