"""Images of ours on their way into RBD's trash, out of it again, or away for good."""

from contextlib import closing, suppress

from rbdtree import errors
from rbdtree.engine import delta, extents
from rbdtree.model.position import push_snapshot_prefix
from rbdtree.ports import Pool


def spec(pool: Pool, image_id: str) -> str:
    """What ``rbd trash restore`` wants to be given."""
    return "/".join(part for part in (pool.name, pool.namespace, image_id) if part)


def put_back(pool: Pool, image_id: str, name: str) -> None:
    """An image that was taken away has its name again; nothing when it has it, or is gone for good.

    Also one that has its name, and is in the trash still: whoever put it back died, and there it would expire."""
    if any(entry.image_id == image_id for entry in pool.trashed()):
        try:
            pool.restore(image_id, name)
        except errors.Busy:
            # Its way into the trash was not finished; the next one finishes it.
            if pool.image_id(name) != image_id:
                raise


def wanted_back(pool: Pool, image_id: str, since: str | None) -> bool:
    """Whether somebody came for an image before it was taken away: has it open, or wrote to it since this snapshot
    (None: at all). Nobody finds it by its name any more, so what is true now remains true."""
    try:
        image = pool.open(image_id)
    except errors.NotFound:
        return False
    try:
        if image.watchers():
            return True
        if since is None or all(s.name != since for s in image.snapshots()):
            return image.own_data()
        rough = delta.coarse(image, since, None)
        if not rough and image.size() == next(s.size_bytes for s in image.snapshots() if s.name == since):
            return False
        with closing(pool.open(image_id, since)) as older:
            if image.size() != older.size():
                return True
            with closing(extents.written(pool, image, older, since, rough)) as found:
                return any(found)
    finally:
        image.close()


def unwritten(pool: Pool, image_id: str) -> bool:
    """Whether nobody has the image open, and nobody wrote to it since its newest snapshot."""
    try:
        image = pool.open(image_id)
    except errors.NotFound:
        return True
    try:
        newest = max(image.snapshots(), key=lambda s: s.snapshot_id, default=None)
        written = bool(delta.coarse(image, newest.name, None)) if newest else image.own_data()
        return not written and not image.watchers()
    finally:
        image.close()


def finish(pool: Pool, image_id: str, tree_id: str, *, purge: bool) -> None:
    """Our snapshots off an image in the trash, which could not expire with them; ``purge``: the image as well."""
    with suppress(errors.NotFound):
        remove_snapshots(pool, image_id, tree_id)
    if purge:
        with suppress(errors.Busy, errors.NotEmpty):
            pool.purge(image_id)


def remove_snapshots(pool: Pool, image_id: str, tree_id: str) -> None:
    """Ours, off a branch that is given up: the trash cannot expire an image with snapshots."""
    prefix = push_snapshot_prefix(tree_id)
    image = pool.open(image_id, read_only=False)
    try:
        for snapshot in image.snapshots():
            if snapshot.name.startswith(prefix):
                image.remove_snapshot(snapshot.name)
    finally:
        image.close()
