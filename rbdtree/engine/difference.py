"""What changed between two generations, asked of the first node that has both and answers."""

from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine import delta
from rbdtree.engine.forest import Tree
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind
from rbdtree.model.extent import Extents
from rbdtree.model.position import Position, snapshot_name


@dataclass(frozen=True, slots=True)
class Difference:
    """``extents`` as librbd knows them: what was written, so at least what changed. From sequence 0: all there is."""

    since: Position
    to: Position
    size_bytes: int
    node: str
    extents: Extents


def between(tree: Tree, since: Position, to: Position | None) -> Difference:
    """``to`` None: the newest generation."""
    known = {g.position for m in tree.members.values() if m.document for g in m.document.generations}
    if not known:
        raise errors.NotFound(f"{tree.name} has no generation yet", f"Make one with 'rbdtree cut {tree.name}'.")
    target = to or tree.position
    for position in (since, target):
        if position.sequence and position not in known:
            raise errors.NotFound(
                f"{tree.name} has no generation {position}", f"List them with 'rbdtree log {tree.name}'."
            )
    if since >= target:
        raise errors.UsageError(f"generation {since} is not older than {target}", "Give the older one with --since.")
    holders = sorted(
        (m for m in tree.members.values() if m.document and m.kind is not Kind.CLONE),
        key=lambda m: m.kind != Kind.ROOT,
    )
    for member in holders:
        document, node = member.document, member.node
        if document is None or node is None or document.generation(target) is None:
            continue
        if since.sequence and document.generation(since) is None:
            continue
        return _ask(node, document.image_id, document.tree_id, document.full_name, since, target)
    raise errors.NotFound(
        f"no reachable node of {tree.name} has both {since} and {target}", f"See 'rbdtree log {tree.name}'."
    )


def _ask(node: Node, image_id: str, tree_id: str, name: str, since: Position, to: Position) -> Difference:
    first = snapshot_name(tree_id, since) if since.sequence else None
    last = snapshot_name(tree_id, to)
    image = node.pool.open(image_id, last)
    try:
        return Difference(since, to, image.size(), name, delta.collect(image, first, last))
    finally:
        image.close()
