"""What is at the ends of an edge: documents against images."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import delta
from rbdtree.engine.node import Node
from rbdtree.engine.zeroes import differing, runs
from rbdtree.model.document import Child, Hold, Kind, NodeDocument
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.position import Generation, Position, snapshot_name
from rbdtree.plan.conflict import Forgotten, ImageGone
from rbdtree.plan.state import summary_of
from rbdtree.ports import Image, Pool, Sites, Snapshot

_PIECE = 4 << 20
_READERS = 8

Change = Callable[[NodeDocument], NodeDocument]


def source_node(sites: Sites, document: NodeDocument) -> Node:
    """The node whose image carries the generations this child is fed from: the parent's replica."""
    if document.parent is None:
        raise errors.Bug(f"{document.full_name} has no parent")
    if document.kind is Kind.CLONE:
        return Node.at(sites, document.replica)
    parent = Node.at(sites, document.parent)
    replica = parent.read().replica
    return parent if replica.node_id == parent.node_id else Node.at(sites, replica)


def find_forgotten(sites: Sites, child: NodeDocument, above: NodeDocument) -> Forgotten | None:
    """Whether the parent lists this child; ``above`` is the document of the replica it is fed from."""
    if child.parent is None:
        return None
    try:
        parent = above if child.parent.node_id == above.ref.node_id else Node.at(sites, child.parent).read()
    except (errors.Denied, errors.NotFound):
        # Not for this host to know.
        return None
    return None if parent.child(child.edge) else Forgotten(child.full_name, parent.full_name)


def read_settled(node: Node) -> NodeDocument:
    """The document of a node that is neither joining nor leaving its tree; ``Busy`` for one that is."""
    document = node.read()
    if document.phase:
        raise errors.Busy(
            f"{document.full_name} is {document.phase}, and that was not finished",
            "Run that command again: it goes on where it stopped.",
        )
    return document


def present(document: NodeDocument, image: Image) -> tuple[Generation, ...]:
    """The recorded generations whose very snapshot (name and id) the image has."""
    seen = {(s.name, s.snapshot_id) for s in image.snapshots()}
    return tuple(
        g for g in document.generations if (snapshot_name(document.tree_id, g.position), g.snapshot_id) in seen
    )


def whole(pool: Pool, image: Image, name: str) -> Snapshot | None:
    """The snapshot of this name, unless its maker died over it, or was given no answer in time.

    librbd enters a snapshot into the image's header first and makes its object map then. What is left between the two
    is listed, and cannot be opened (Ceph 16: ENOENT); so nobody has used it."""
    found = next((s for s in image.snapshots() if s.name == name), None)
    if found:
        try:
            pool.open(image.image_id, name).close()
        except errors.NotFound:
            return None
    return found


def seal(pool: Pool, image: Image, name: str) -> Snapshot:
    """Makes it, unless it is there already, whole. The image is open for writing, and nobody else makes snapshots of
    this name: its claim is ours."""
    there = whole(pool, image, name)
    if there:
        return there
    if any(s.name == name for s in image.snapshots()):
        image.remove_snapshot(name)
    return image.create_snapshot(name)


def find_gone(node: Node, document: NodeDocument) -> ImageGone | None:
    """Whether the node's image was removed, trashed, or replaced by another of its name. A rename is no harm."""
    named = node.pool.image_id(document.ref.image)
    if named == document.image_id:
        return None
    gone = ImageGone(document.full_name, document.ref.image_spec, document.image_id, named)
    if any(entry.image_id == document.image_id for entry in node.pool.trashed()):
        return gone
    try:
        node.pool.open(document.image_id).close()
    except errors.NotFound:
        return gone
    return None


def head_changes(node: Node, head: Image, document: NodeDocument, newest: Generation | None) -> Extents:
    """What somebody wrote into a replica that should equal ``newest`` (None: that should be empty)."""
    since = snapshot_name(document.tree_id, newest.position) if newest else None
    rough = delta.coarse(head, since, None)
    if not rough or since is None:
        return rough
    written = Extents.of(pair for batch in delta.exact(head, since, rough) for pair in batch)
    if not written:
        return written
    sealed = node.pool.open(document.image_id, since)
    try:
        return different(sealed, head, written)
    finally:
        sealed.close()


def different(sealed: Image, head: Image, written: Extents) -> Extents:
    """What was written is not always what is different: a rollback writes the old bytes back.

    Beyond either end all of it is."""
    end = min(sealed.size(), head.size())
    pieces = [
        (at, min(_PIECE, offset + length - at))
        for offset, length in written.clip(0, end)
        for at in range(offset, offset + length, _PIECE)
    ]

    def compare(piece: Pair) -> list[Pair]:
        mine, theirs = head.read(*piece), sealed.read(*piece)
        return [] if mine == theirs else [(piece[0] + low, high - low) for low, high in differing(mine, theirs)]

    with ThreadPoolExecutor(_READERS, thread_name_prefix="compare") as threads:
        found = [pair for pairs in threads.map(compare, pieces) for pair in pairs]
    return Extents.of(found).union(written.subtract(Extents.of([(0, end)])))


def not_zero(head: Image, extents: Extents) -> Extents:
    """What of these extents holds data."""
    found = []
    for offset, length in extents:
        for at in range(offset, offset + length, _PIECE):
            data = head.read(at, min(_PIECE, offset + length - at))
            found += [(at + low, high - low) for low, high, zero in runs(data, 0, len(data)) if not zero]
    return Extents.of(found)


def held_by(document: NodeDocument, edge: str) -> frozenset[Position]:
    """Generations of this (upstream) node that the edge holds."""
    return frozenset(hold.position for hold in document.holds if hold.owner == edge)


def needed_by(document: NodeDocument) -> frozenset[Position]:
    """Generations that branches at or below this node stand on: pushes are judged against them at the root."""
    return frozenset(hold.position for hold in document.holds if hold.branch)


def hold(child: NodeDocument, position: Position) -> Change:
    """Upstream: the child needs this generation. ``Changed`` when it is not there any more."""

    def change(document: NodeDocument) -> NodeDocument:
        if document.generation(position) is None:
            raise errors.Changed(f"generation {position} left {document.full_name} before it could be held")
        if position == child.newest_position:
            # What it stands on is there: a delta leads on from it.
            document = document.without_resync(child.edge)
        if position in held_by(document, child.edge):
            return document
        pins = position in needed_by(child)
        reason = f"branch at or below {child.full_name}" if pins else f"base of {child.full_name}"
        return document.with_hold(Hold(child.edge, position, reason, pins))

    return change


def pin(child: NodeDocument) -> Change:
    """Upstream: exactly the generations that branches at or below the child stand on are held for them."""

    def change(document: NodeDocument) -> NodeDocument:
        needed = needed_by(child)
        for held in document.holds:
            if held.owner == child.edge and held.branch and held.position not in needed:
                document = document.without_holds(child.edge, held.position)
                if held.position == child.position:
                    document = document.with_hold(replace(held, branch=False, reason=f"base of {child.full_name}"))
        for position in sorted(needed):
            if document.generation(position) and position not in pinned_by(document, child.edge):
                reason = f"branch at or below {child.full_name}"
                document = document.with_hold(Hold(child.edge, position, reason, True))
        return document

    return change


def pinned_by(document: NodeDocument, edge: str) -> frozenset[Position]:
    """Generations of this (upstream) node that the edge holds for branches."""
    return frozenset(hold.position for hold in document.holds if hold.owner == edge and hold.branch)


def recovered(child: NodeDocument) -> Change:
    """Upstream: the child has come on without its base; its summary is brought along."""
    return lambda document: with_summary(child)(document.without_resync(child.edge))


def release(child: NodeDocument, position: Position) -> Change:
    """Upstream: the child needs this generation no more; its summary is brought along."""

    def change(document: NodeDocument) -> NodeDocument:
        return with_summary(child)(document.without_holds(child.edge, position))

    return change


def with_summary(child: NodeDocument) -> Change:
    """Upstream: what the parent tells others of this child (nothing, when it is not its parent)."""

    def change(document: NodeDocument) -> NodeDocument:
        if document.child(child.edge) is None:
            return document
        told = summary_of(child, document.position if document.kind is not Kind.CLONE else None)
        known = document.child(child.edge)
        if known and known.summary and replace(known.summary, told=told.told) == told:
            return document
        told = replace(told, told=round(time.time(), 3))
        return replace(
            document,
            children=tuple(replace(c, summary=told) if c.edge == child.edge else c for c in document.children),
        )

    return change


def with_child(child: Child) -> Change:
    """Upstream: one child more."""

    def change(document: NodeDocument) -> NodeDocument:
        others = tuple(c for c in document.children if c.edge != child.edge)
        return replace(document, children=(*others, child))

    return change
