"""The bytes of a push where it lies: packed, in an image of its own, or between two snapshots of its branch."""

from dataclasses import replace

from rbdtree.engine import delta, extents, parcel
from rbdtree.engine.parcel import Parcel
from rbdtree.model.document import Push
from rbdtree.model.extent import Extents
from rbdtree.ports import Image, Pool


def opened(pool: Pool, push: Push) -> Image | Parcel:
    """To be read, and to be closed. ``NotFound`` when it is gone."""
    return parcel.load(pool, push.staging) if push.packed else pool.open(push.image_id, push.snapshot)


def written_late(pool: Pool, push: Push) -> bool:
    """Whether its snapshot holds more than was sent (``delta``)."""
    if push.packed:
        return False
    late: list[Extents] = []
    head = pool.open(push.image_id)
    try:
        delta.collect(head, push.snapshot, None, late.append)
    finally:
        head.close()
    return bool(late)


def changed(pool: Pool, push: Push, source: Image | Parcel) -> Extents:
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
        return extents.collect(
            extents.written(source, older, push.since, delta.near(source, push.since, push.snapshot))
        )
    finally:
        older.close()
