"""Which portion a node may have, and how it gets another. Moving the bytes is the next sync's (``engine.mirror``)."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import ends
from rbdtree.engine import lease as leases
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.model.extent import Extents
from rbdtree.model.portion import WHOLE, Portion, beyond, check, common, contains, text
from rbdtree.model.position import Position
from rbdtree.plan.conflict import describe
from rbdtree.ports import Layout, Sites


@dataclass(frozen=True, slots=True)
class Change:
    """From one portion to another; ``holds``: what the newest generation there has of the volume (None: there is
    none)."""

    node: str
    before: Portion
    after: Portion
    holds: Portion | None
    pending: bool


def unit(layout: Layout) -> int:
    """What a portion is aligned to: no object lies on both sides of its ends."""
    return layout.object_bytes if layout.plain else layout.object_bytes * layout.stripe_count


def effective(sites: Sites, document: NodeDocument) -> Portion:
    """What children of this node may have at most: what it is to hold itself."""
    if document.kind is not Kind.CLONE:
        return document.portion
    return common(document.portion, Node.at(sites, document.replica).read().portion) or document.portion


def volume_bytes(tree: Tree) -> int:
    """Size of the volume now; as of the newest generation known where the root cannot be asked."""
    root = tree.root
    if root and root.node and root.document:
        try:
            image = root.node.pool.open(root.document.image_id)
            try:
                return image.size()
            finally:
                image.close()
        except errors.Error:
            pass
    documents = [m.document for m in tree.members.values() if m.document]
    newest = max((g for d in documents for g in d.generations), key=lambda g: g.position, default=None)
    if newest is None:
        raise errors.Unreachable(
            f"the root of {tree.name} cannot be reached: how large the volume is cannot be told", "Try again later."
        )
    return newest.size_bytes


def check_allowed(
    sites: Sites, tree: Tree, name: str, parent: NodeDocument, wanted: Portion, layout: Layout, kind: Kind
) -> None:
    """Raises what speaks against a child of ``parent`` with this portion."""
    check(wanted, volume_bytes(tree), unit(layout))
    above = effective(sites, parent)
    if kind is Kind.CLONE and not wanted:
        return
    if not contains(above, wanted):
        raise errors.UsageError(
            f"{name} cannot hold {text(wanted)}: its parent {parent.full_name} holds {text(above)} only",
            f"Name ranges inside, or widen the parent first: 'rbdtree portion set {parent.full_name} RANGES'.",
        )


def change(sites: Sites, tree: Tree, member: Member, wanted: Portion, *, dry_run: bool = False) -> Change:
    """Notes what the node is to hold; the next generation brings it. Twice is as good as once."""
    node, _ = document_of(member)
    document = ends.read_settled(node)
    if document.parent is None:
        raise errors.UsageError(
            f"{document.full_name} is the root: it is the volume, all of it", "Give a portion to a node below."
        )
    above = Node.at(sites, document.parent)
    layout = _layout(sites, document)
    check_allowed(sites, tree, document.full_name, above.read(), wanted, layout, document.kind)
    _check_left(tree, node, document, wanted)
    newest = document.newest
    told = Change(
        document.full_name, document.portion, wanted, newest.portion if newest else None, _pending(document, wanted)
    )
    if not dry_run:
        changed = node.update(lambda d: d if d.portion == wanted else replace(d, portion=wanted))
        above.update(ends.with_summary(changed))
    return told


def _layout(sites: Sites, document: NodeDocument) -> Layout:
    """Of the image that carries the node's generations."""
    replica = Node.at(sites, document.replica)
    image = replica.pool.open(replica.read().image_id)
    try:
        return image.layout
    finally:
        image.close()


def _pending(document: NodeDocument, wanted: Portion) -> bool:
    newest = document.newest
    return document.kind is not Kind.CLONE and newest is not None and newest.portion != wanted


def pending(document: NodeDocument) -> bool:
    """Whether the node holds other ranges than it is to hold."""
    return _pending(document, document.portion)


def _check_left(tree: Tree, node: Node, document: NodeDocument, wanted: Portion) -> None:
    """``NotEmpty`` or ``Busy`` when something outside of it is still needed at the node or below."""
    if not wanted or (document.portion and contains(wanted, document.portion)):
        return
    for name, needed in _needed(tree, document):
        if not contains(wanted, needed):
            raise errors.NotEmpty(
                f"{document.full_name} cannot go down to {text(wanted)}: {name} below it holds {text(needed)}",
                f"Narrow that first: 'rbdtree portion set {name} RANGES'.",
            )
    # Clones that follow it write where it holds something, too.
    for one in (document, *_followers(tree, document)):
        member = tree.members[one.ref.node_id]
        _check_unwritten(member.node or node, one, document.full_name, wanted)
        _check_leases(tree, one, document.full_name, wanted)


def _followers(tree: Tree, document: NodeDocument) -> Iterator[NodeDocument]:
    """Clones that hold what this node's replica holds."""
    for child in tree.children(document.ref.node_id):
        if child.kind is Kind.CLONE and child.document and not child.document.portion:
            yield child.document
            yield from _followers(tree, child.document)


def _needed(tree: Tree, document: NodeDocument) -> Iterator[tuple[str, Portion]]:
    """(name, portion) of those below that have one of their own."""
    for child in tree.children(document.ref.node_id):
        summary = child.told.summary if child.told else None
        portion = child.document.portion if child.document else summary.portion if summary else WHOLE
        if child.kind is Kind.CLONE and child.document and not portion:
            yield from _needed(tree, child.document)
        elif child.kind is Kind.MIRROR or portion:
            yield f"{tree.name}/{child.ref.name}", portion


def _check_unwritten(node: Node, document: NodeDocument, narrowed: str, wanted: Portion) -> None:
    if document.branch is None or not document.branch.image_id:
        return
    report = branches.look(node, document)
    outside = beyond(wanted, report.changed)
    if outside:
        raise errors.NotEmpty(
            f"{narrowed} cannot go down to {text(wanted)}: {describe(outside)} on the branch {report.image} are not "
            "published",
            f"Run 'rbdtree push {document.full_name}', or 'rbdtree discard {document.full_name}'.",
        )
    if report.pushes:
        raise errors.NotEmpty(
            f"{narrowed} cannot go down to {text(wanted)}: a push of {document.full_name} is not published yet",
            f"Run 'rbdtree push {document.full_name}'.",
        )


def _check_leases(tree: Tree, document: NodeDocument, narrowed: str, wanted: Portion) -> None:
    now = time.time()
    root = tree.root.document if tree.root else None
    for lease in leases.active(root or document, now):
        outside = beyond(wanted, Extents.of(lease.extents))
        if lease.holder == document.ref.node_id and outside:
            raise errors.Busy(
                f"{narrowed} cannot go down to {text(wanted)}: {document.full_name} has leased {describe(outside)} of "
                f"the rest for another {lease.expires - now:.0f} s",
                f"Run 'rbdtree lease release {document.full_name}', or wait.",
            )


def writable(document: NodeDocument, base: Position) -> Portion | None:
    """Where the branch over ``base`` may write: what the node holds of that, and is to hold. None: nowhere.

    What a branch shows elsewhere are no bytes of the volume."""
    generation = document.generation(base) or document.newest
    return common(generation.portion if generation else WHOLE, document.portion)


def outside(document: NodeDocument, base: Position, extents: Extents) -> Extents:
    """What of these writes lies where the branch may not write."""
    allowed = writable(document, base)
    return extents if allowed is None else beyond(allowed, extents)
