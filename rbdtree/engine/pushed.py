"""The bytes of a push where it lies: packed, in an image of its own, or between two snapshots of its branch."""

from contextlib import closing
from dataclasses import replace

from rbdtree.engine import delta, extents, parcel
from rbdtree.engine.parcel import Parcel
from rbdtree.model.document import Push
from rbdtree.model.extent import Extents
from rbdtree.ports import Image, Pool

Opened = Image | Parcel


def opened(pool: Pool, push: Push) -> Opened:
    """To be read, and to be closed. ``NotFound`` when it is gone."""
    return parcel.load(pool, push.staging) if push.packed else pool.open(push.image_id, push.snapshot)


def written_late(pool: Pool, push: Push) -> bool:
    """Whether its snapshot holds more than was sent (``delta``), in the objects that it changes."""
    if push.staging:
        return False
    late: list[Extents] = []
    with closing(pool.open(push.image_id)) as head, closing(pool.open(push.image_id, push.snapshot)) as taken:
        rough = delta.near(head, push.snapshot, None).intersect(delta.near(taken, push.since, push.snapshot))
        for _ in delta.exact(head, push.snapshot, rough, late=late.append):
            pass
    return bool(late)


def changed(pool: Pool, push: Push, source: Opened) -> Extents:
    """Which bytes it changes.

    Whole sectors of one that is forced over others' bytes: they would be merged with its own otherwise."""
    if push.force:
        return extents.whole_sectors(changed(pool, replace(push, force=False), source), source.size())
    if isinstance(source, Parcel):
        return source.pushed
    if push.extents:
        return Extents.of(push.extents)
    older = pool.open(push.image_id, push.since)
    try:
        if push.staging:
            # Nobody but us writes there, and no more than the push.
            written = delta.changes(source, push.since, push.snapshot, late=lambda _: None)
            return extents.collect(extents.compared(source, older, written))
        near = delta.near(source, push.since, push.snapshot)
        return extents.collect(extents.written(pool, source, older, push.since, near))
    finally:
        older.close()
