"""Applying a push to the root's head. Absolute writes, so doing it again after a crash is harmless."""

from collections.abc import Callable

from rbdtree.engine import extents
from rbdtree.engine.copy import Copied, Copy, Target
from rbdtree.engine.node import Node
from rbdtree.model.document import Push
from rbdtree.model.extent import Extents
from rbdtree.ports import Image, Reporter


def read_extents(node: Node, push: Push) -> Extents:
    """The bytes that a push staged at this node changes."""
    newer = node.pool.open(push.image_id, push.snapshot)
    try:
        return extents.collect(extents.of_push(node.pool, push, newer))
    finally:
        newer.close()


def apply(
    node: Node, push: Push, head: Image, reporter: Reporter, check: Callable[[], None], known: Extents | None = None
) -> Copied:
    """Writes the push's extents into ``head``."""
    wanted = known if known is not None else read_extents(node, push)
    source = node.pool.open(push.image_id, push.snapshot)
    target = Target(node.name, head, Extents.of([(0, head.size())]))
    try:
        copied = Copy(
            source,
            [target],
            [list(wanted)],
            check=check,
            progress=lambda c: reporter.copying(node.name, c.passed_bytes, c.total_bytes),
        ).run()
    finally:
        source.close()
    if target.failed:
        raise target.failed
    head.flush()
    return copied
