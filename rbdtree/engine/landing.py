"""Applying a push to the root's head. Absolute writes, so doing it again after a crash is harmless."""

from collections.abc import Callable
from contextlib import ExitStack, closing

from rbdtree import errors
from rbdtree.engine import delta, extents, pushed
from rbdtree.engine.copy import Copied, Copy, Target, Window
from rbdtree.engine.node import Node
from rbdtree.engine.parcel import Parcel
from rbdtree.engine.pushed import Opened
from rbdtree.model.document import Intent, NodeDocument, Push
from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import snapshot_name
from rbdtree.ports import Image, Reporter

WINDOW = 48 << 20
"""Bytes in flight of a push, which copies to one target at a time. librbd takes as much again."""


def newer(
    node: Node, document: NodeDocument, intent: Intent, head: Image, wanted: Extents, passed: Callable[[], None]
) -> Extents:
    """Of ``wanted``, what of the head is not what its newest generation holds. ``passed``: told as it gets on."""
    if intent.since is None:
        return NOTHING
    try:
        base = node.pool.open(document.image_id, snapshot_name(document.tree_id, intent.since))
    except errors.NotFound:
        return NOTHING
    try:
        within = wanted.clip(0, min(head.size(), base.size()))
        return _unequal(head, base, within, passed)
    finally:
        base.close()


def others(
    node: Node,
    document: NodeDocument,
    intent: Intent,
    push: Push,
    passed: Callable[[], None],
    known: tuple[Opened, Extents] | None = None,
) -> Extents | None:
    """What of the generation is neither the one before it nor this push, byte for byte. None: that cannot be told.

    ``passed``: told as it gets on. ``known``: the push, open already, and what it changes."""
    if intent.since is None:
        return None
    since, until = (snapshot_name(document.tree_id, p) for p in (intent.since, intent.target))
    try:
        with ExitStack() as opened:
            if known is None:
                source = opened.enter_context(closing(pushed.opened(node.pool, push)))
                known = source, pushed.changed(node.pool, push, source)
            source, wanted = known
            after = opened.enter_context(closing(node.pool.open(document.image_id, until)))
            size = next((s.size_bytes for s in after.snapshots() if s.name == since), None)
            if after.size() != size or wanted.clip(0, size) != wanted:
                return None
            late: list[Extents] = []
            strange = delta.collect(after, since, until, late.append).subtract(wanted)
            if strange:
                before = opened.enter_context(closing(node.pool.open(document.image_id, since)))
                strange = extents.collect(extents.compared(after, before, iter([list(strange)]), passed))
            strange = strange.union(Extents.of(pair for objects in late for pair in objects))
            return strange.union(_unequal(after, source, wanted, passed))
    except errors.NotFound:
        return None


def _unequal(image: Image, other: Opened, within: Extents, passed: Callable[[], None]) -> Extents:
    """What differs, where nothing should."""
    if not isinstance(other, Parcel):
        within = extents.suspect(image, other, within, passed)
    return extents.collect(extents.compared(image, other, iter([list(within)]), passed))


def apply(
    node: Node, source: Opened, head: Image, reporter: Reporter, check: Callable[[int], None], wanted: Extents
) -> Copied:
    """Writes these extents of a push into ``head``. ``check``: told again and again how many bytes are done."""
    target = Target(node.name, head, Extents.of([(0, head.size())]))
    copy = Copy(
        source,
        [target],
        [list(wanted.clip(0, head.size()))],
        check=lambda: check(copy.copied.passed_bytes),
        progress=lambda c: reporter.copying(node.name, c.passed_bytes, c.total_bytes),
        window=Window(WINDOW),
    )
    copied = copy.run()
    if target.failed:
        raise target.failed
    head.flush()
    return copied
