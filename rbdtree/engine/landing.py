"""Applying a push to the root's head. Absolute writes, so doing it again after a crash is harmless."""

from collections.abc import Callable
from contextlib import ExitStack, closing

from rbdtree import errors
from rbdtree.engine import delta, extents, pushed
from rbdtree.engine.copy import Copied, Copy, Target, Window
from rbdtree.engine.node import Node
from rbdtree.model.document import Intent, NodeDocument, Push
from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import snapshot_name
from rbdtree.ports import Image, Reporter, Source

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
        return extents.collect(extents.compared(head, base, iter([list(within)]), passed))
    finally:
        base.close()


def others(
    node: Node, document: NodeDocument, intent: Intent, push: Push, passed: Callable[[], None]
) -> Extents | None:
    """What of the generation is neither the one before it nor this push, byte for byte. None: that cannot be told.
    ``passed``: told as it gets on."""
    if intent.since is None:
        return None
    since, until = (snapshot_name(document.tree_id, p) for p in (intent.since, intent.target))
    try:
        with ExitStack() as opened:
            source = opened.enter_context(closing(pushed.opened(node.pool, push)))
            wanted = pushed.changed(node.pool, push, source)
            after, before = (
                opened.enter_context(closing(node.pool.open(document.image_id, snapshot)))
                for snapshot in (until, since)
            )
            if after.size() != before.size() or wanted.clip(0, after.size()) != wanted:
                return None
            late: list[Extents] = []
            beside = delta.collect(after, since, until, late.append).subtract(wanted)
            strange = extents.collect(extents.compared(after, before, iter([list(beside)]), passed))
            strange = strange.union(Extents.of(pair for objects in late for pair in objects))
            return strange.union(extents.collect(extents.compared(after, source, iter([list(wanted)]), passed)))
    except errors.NotFound:
        return None


def apply(
    node: Node, source: Source, head: Image, reporter: Reporter, check: Callable[[int], None], wanted: Extents
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
