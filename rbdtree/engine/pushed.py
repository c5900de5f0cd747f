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
        return extents.collect(extents.compared(source, older, delta.changes(source, push.since, push.snapshot)))
    finally:
        older.close()
