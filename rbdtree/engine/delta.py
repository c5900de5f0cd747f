"""What changed between two snapshots, found fast.

The cheap diff (object maps) names the objects; only those are asked for their exact extents, several at once. Cost goes
with what changed, not with the size of the image: an exact diff of a 1 TiB image asks 262,144 objects.

The maps also tell what an exact diff cannot. librbd reads an image's snapshots when it opens it, and only then asks to
be told of new ones (16 and 18: image/OpenRequest.cc, refresh, then watch): a host that opens an image while a snapshot
is made may never hear of that snapshot, and writes into it, until the next one. Its late writes are in both snapshots,
so no diff of bytes has them, and whoever copied the older one before lacks them. But the object map, which it loads
when it takes the lock, says that it wrote; and RADOS says when, of the object that the older snapshot shows. Such
objects count whole. (The map alone does not tell: it also has discards of what never held data, as fstrim makes them by
thousands.)
"""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock

from rbdtree.model.extent import NOTHING, Extents, Pair
from rbdtree.model.portion import WHOLE, Portion, clip
from rbdtree.ports import Image

_THREADS = 16
_NEAR_OBJECTS = 8
_RUN_OBJECTS = 64
_CLOCKS_SECONDS = 2.0
"""By which the clocks of hosts and OSDs may differ: time synchronisation keeps them far closer."""


def _between(image: Image, since: str, until: str | None) -> list[int]:
    """Sizes in the snapshots after ``since`` and before ``until``."""
    snapshots = image.snapshots()
    low = next(s.snapshot_id for s in snapshots if s.name == since)
    high = next((s.snapshot_id for s in snapshots if s.name == until), None)
    return [s.size_bytes for s in snapshots if low < s.snapshot_id and (high is None or s.snapshot_id < high)]


def coarse(image: Image, since: str | None, until: str | None) -> Extents:
    """Objects that may differ, as byte ranges, never too few. ``until`` is the snapshot the image is open at."""
    size = image.size()
    spans = image.changed(since, 0, size, whole_object=True)
    found = Extents.of((offset, length) for offset, length, _ in spans).clip(0, size)
    if since is None:
        return found
    # The cheap diff misses what a shrink took away when a snapshot was made before the image grew again.
    smallest = min(_between(image, since, until), default=size)
    if smallest < size:
        found = found.union(Extents.of([(smallest, size - smallest)]))
    return found


def exact(
    image: Image,
    since: str,
    within: Extents,
    start: int = 0,
    late: Callable[[Extents], None] | None = None,
    *,
    wary: bool = False,
) -> Iterator[list[Pair]]:
    """Changed extents inside ``within`` from offset ``start`` on, ascending, in batches.

    An object that is gone counts whole: the diff ends it where its last byte was, and a target that zeroed no more than
    that would keep an empty object. So do objects that were written to late; ``late`` is given these instead. They are
    looked for where no change is found, or everywhere by who is ``wary``: one may have been written to in time as well.
    """
    size, unit = image.size(), image.layout.object_bytes
    runs = deque(_runs(within.clip(start, size), unit))
    # What was written just before the snapshot, and again, is no rarity; without a change in between it is.
    overlooked = _Late(image, since, 0.0 if wary else _CLOCKS_SECONDS)

    def ask(run: _Run) -> tuple[Extents, Extents]:
        spans = image.changed(since, run.start, run.end - run.start, whole_object=False)
        found = Extents.of(whole(at, n) if not exists else (at, n) for at, n, exists in spans)
        parts = Extents(tuple(run.parts))
        return found, overlooked.among(parts if wary else parts.subtract(_rounded(found, unit)))

    def whole(offset: int, length: int) -> Pair:
        if not image.layout.plain:
            return offset, length
        first, last = offset - offset % unit, offset + length
        return first, min(size, last - last % -unit) - first

    with ThreadPoolExecutor(_THREADS, thread_name_prefix="diff") as threads:
        ahead: deque[Future[tuple[Extents, Extents]]] = deque()
        try:
            while runs or ahead:
                while runs and len(ahead) < 2 * _THREADS:
                    ahead.append(threads.submit(ask, runs.popleft()))
                found, again = ahead.popleft().result()
                if again and late:
                    late(again)
                elif again:
                    found = found.union(again)
                if found:
                    yield list(found)
        finally:
            for future in ahead:
                future.cancel()


class _Late:
    """Which objects were written to late, of those that the object maps say were written to since a snapshot."""

    def __init__(self, image: Image, since: str, skew: float = _CLOCKS_SECONDS) -> None:
        self._image = image
        self._since = since
        self._skew = skew
        self._guard = Lock()
        self._written: Extents | None = None
        self._gone = NOTHING

    def among(self, extents: Extents) -> Extents:
        """What of these lies in such objects."""
        if not extents or not self._image.layout.plain or not self._image.fast_diff():
            return NOTHING
        with self._guard:
            if self._written is None:
                spans = self._image.changed(self._since, 0, self._image.size(), whole_object=True)
                self._written = Extents.of((at, n) for at, n, exists in spans if exists)
                self._gone = Extents.of((at, n) for at, n, exists in spans if not exists)
        unit = self._image.layout.object_bytes
        numbers = [n for at, length in _rounded(extents, unit) for n in range(at // unit, (at + length) // unit)]
        there = [n for n in numbers if self._written.overlaps(n * unit, (n + 1) * unit)]
        found = self._image.written_after(self._since, there, self._skew) if there else []
        # One that was removed late is in neither snapshot.
        found += [n for n in numbers if self._gone.overlaps(n * unit, (n + 1) * unit)]
        return extents.intersect(Extents.of((n * unit, unit) for n in found)) if found else NOTHING


def near(image: Image, since: str, until: str | None) -> Extents:
    """Where to look for what changed: in the objects that the maps tell, or everywhere."""
    return coarse(image, since, until) if image.fast_diff() else Extents.of([(0, image.size())])


def changes(
    image: Image,
    since: str | None,
    until: str | None,
    start: int = 0,
    portion: Portion = WHOLE,
    late: Callable[[Extents], None] | None = None,
    *,
    wary: bool = False,
) -> Iterator[list[Pair]]:
    """All changed extents from offset ``start`` on, inside ``portion``. From None: the existing objects, whole."""
    if since is None:
        yield list(clip(portion, coarse(image, None, until)).clip(start, image.size()))
        return
    for pairs in exact(image, since, clip(portion, near(image, since, until)), start, late, wary=wary):
        within = list(clip(portion, Extents.of(pairs))) if portion else pairs
        if within:
            yield within


def written_late(image: Image, since: str, within: Extents) -> Extents:
    """What of this lies in objects that were written to late, whatever was written to them in time."""
    return _Late(image, since, 0.0).among(within)


def end_of_data(image: Image, offset: int, length: int) -> int | None:
    """Where the data of this range ends now; None when there is none."""
    spans = image.changed(None, offset, min(length, image.size() - offset), whole_object=False)
    return max((at + n for at, n, exists in spans if exists), default=None)


def collect(
    image: Image, since: str | None, until: str | None, late: Callable[[Extents], None] | None = None
) -> Extents:
    """The same as one value."""
    return Extents.of(pair for batch in changes(image, since, until, late=late) for pair in batch)


@dataclass
class _Run:
    """Neighbouring objects asked for in one go: a call costs more than a few objects looked at for nothing."""

    start: int
    end: int
    parts: list[Pair]
    """What of it is wanted."""


def _runs(extents: Extents, unit: int) -> Iterator[_Run]:
    run: _Run | None = None
    for offset, length in extents:
        first, last = offset - offset % unit, offset + length
        while first < last:
            stop = min(last, first + _RUN_OBJECTS * unit)
            part = max(offset, first)
            if run and first - run.end <= _NEAR_OBJECTS * unit and stop - run.start <= _RUN_OBJECTS * unit:
                run.end = max(run.end, stop)
            else:
                if run:
                    yield run
                run = _Run(first, stop, [])
            run.parts.append((part, stop - part))
            first = stop
    if run:
        yield run


def _rounded(extents: Extents, unit: int) -> Extents:
    """To whole objects."""
    return Extents.of((at - at % unit, at + n - (at + n) % -unit - (at - at % unit)) for at, n in extents)
