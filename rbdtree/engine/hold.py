"""Holds: who keeps which generation of a node, what for, and how much space that takes. People's own, by name."""

from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine import ends, retain
from rbdtree.engine.node import Node
from rbdtree.model.document import MAP, USER, Hold, Kind, NodeDocument
from rbdtree.model.name import check_name
from rbdtree.model.position import Generation, Position
from rbdtree.plan.retain import kept_by_rules


@dataclass(frozen=True, slots=True)
class Holding:
    """One hold. ``kind``: ``base`` (of an edge), ``branch`` or ``user``; ``pinned_bytes``: what would be freed if this
    generation alone went (None: not asked, or its snapshot is gone); ``ruled``: a keep rule spares it anyway."""

    node: str
    position: Position
    created: float
    kind: str
    name: str
    reason: str
    pinned_bytes: int | None
    ruled: bool


def add(node: Node, name: str, position: Position | None, reason: str, *, dry_run: bool = False) -> Position:
    """Keeps a generation (None: the newest) until the hold is removed."""
    check_name("hold", name)
    document = _holding_node(node)
    position = position or document.newest_position
    if position is None:
        raise errors.NotFound(f"{document.full_name} has no generation yet", "Run 'rbdtree sync' first.")
    hold = Hold(f"{USER}{name}", position, reason)

    def change(d: NodeDocument) -> NodeDocument:
        if d.generation(position) is None:
            raise errors.NotFound(
                f"{d.full_name} does not have generation {position}", f"See 'rbdtree log {d.full_name}'."
            )
        return d.with_hold(hold)

    if dry_run:
        change(document)
    else:
        node.update(change)
    return position


def remove(node: Node, name: str, position: Position | None, *, dry_run: bool = False) -> tuple[Position, ...]:
    """Ends a person's hold of this name (at ``position``, or wherever it is); which generations it was on."""
    document = _holding_node(node)
    owner = f"{USER}{name}"
    mine = tuple(h.position for h in document.holds if h.owner == owner and position in (None, h.position))
    if not mine:
        raise errors.NotFound(
            f"{document.full_name} has no hold {name!r}{f' on {position}' if position else ''} of a person",
            f"See 'rbdtree hold ls {document.full_name}'; those of edges and branches end by themselves.",
        )
    if not dry_run:
        node.update(lambda d: d.without_holds(owner, position))
    return mine


def listed(node: Node, *, sizes: bool = True) -> list[Holding]:
    """Oldest generation first. ``sizes``: with what each takes, for which the images are asked."""
    document = node.read()
    ruled = {position for position, _ in kept_by_rules(document.generations, retain.stock_of(document).keep)}
    there = _there(node, document) if sizes else ()
    taken: dict[Position, int | None] = {}
    found = []
    for hold in sorted(document.holds, key=lambda h: (h.position, h.owner)):
        generation = document.generation(hold.position)
        if hold.position not in taken:
            taken[hold.position] = _taken(node, document, there, hold.position) if sizes else None
        found.append(
            Holding(
                document.full_name,
                hold.position,
                generation.created if generation else 0.0,
                _kind(hold),
                hold.owner.removeprefix(USER) if hold.owner.startswith(USER) else "",
                hold.reason,
                taken[hold.position],
                hold.position in ruled,
            )
        )
    return found


def _kind(hold: Hold) -> str:
    for prefix, kind in ((USER, "user"), (MAP, "map")):
        if hold.owner.startswith(prefix):
            return kind
    return "branch" if hold.branch else "base"


def _holding_node(node: Node) -> NodeDocument:
    document = ends.read_settled(node)
    if document.kind is Kind.CLONE:
        raise errors.UsageError(
            f"{document.full_name} is a clone: its generations are those of {document.tree}/{document.replica.name}",
            f"Hold them there: {document.tree}/{document.replica.name}.",
        )
    return document


def _there(node: Node, document: NodeDocument) -> tuple[Generation, ...]:
    if document.kind is Kind.CLONE or not document.holds:
        return ()
    try:
        image = node.pool.open(document.image_id)
    except errors.NotFound:
        return ()
    try:
        return ends.present(document, image)
    finally:
        image.close()


def _taken(node: Node, document: NodeDocument, there: tuple[Generation, ...], position: Position) -> int | None:
    at = next((n for n, g in enumerate(there) if g.position == position), None)
    if at is None:
        return None
    before = there[at - 1] if at else None
    after = there[at + 1] if at + 1 < len(there) else None
    return retain.cost(node, document, there[at], before, after)
