"""Holds: who keeps which generation of a node, what for, and how much space that takes. Some end by name: people's own,
and those of hosts."""

from dataclasses import dataclass, replace

from rbdtree import errors
from rbdtree.engine import ends, retain
from rbdtree.engine.node import Node
from rbdtree.model.document import MAP, USER, Hold, Kind, NodeDocument
from rbdtree.model.name import check_name
from rbdtree.model.position import Generation, Position
from rbdtree.plan.retain import kept_by_rules

NEED = "need"


@dataclass(frozen=True, slots=True)
class Holding:
    """One hold. ``kind``: ``base`` (of an edge), ``branch``, ``map`` (of a host), ``user``, or ``need`` (no hold, but
    retention keeps the generation for it); ``name``: to end it by, where that can be done; ``pinned_bytes``: what would
    be freed if this generation alone went (None: not asked, or its snapshot is gone); ``ruled``: a keep rule spares it
    anyway."""

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
    if dry_run:
        kept(document, hold)
    else:
        node.update(lambda d: kept(d, hold))
    return position


def kept(document: NodeDocument, hold: Hold) -> NodeDocument:
    """The document with this hold. ``NotFound`` when the generation was let go, ``Busy`` while the node leaves."""
    if document.phase:
        raise errors.Busy(
            f"{document.full_name} is {document.phase}: its generations go", "Nothing of it can be kept any more."
        )
    if document.generation(hold.position) is None:
        raise errors.NotFound(
            f"{document.full_name} does not have generation {hold.position}",
            f"See 'rbdtree log {document.full_name}'.",
        )
    return document.with_hold(hold)


def remove(
    node: Node, name: str, position: Position | None, *, force: bool = False, dry_run: bool = False
) -> tuple[Position, ...]:
    """Ends what is held by this name (at ``position``, or wherever it is); which generations it was on.

    ``force``: also what a host holds, which nobody but that host can tell to be of no use any more."""
    document = _holding_node(node)

    def theirs(hold: Hold) -> bool:
        return bool(name) and name_of(hold) == name and position in (None, hold.position)

    mine = [hold for hold in document.holds if theirs(hold)]
    if not mine:
        raise errors.NotFound(
            f"{document.full_name} has no hold {name!r}{f' on {position}' if position else ''}",
            f"See 'rbdtree hold ls {document.full_name}'; those of edges and branches end by themselves.",
        )
    found = tuple(sorted({h.position for h in mine}))
    if name.startswith(MAP) and not force:
        raise errors.Busy(
            f"{document.full_name}: {', '.join(map(str, found))} may be in use ({mine[0].reason})",
            f"Run 'rbdtree unmap {document.full_name}' there, or 'rbdtree doctor --mend'; if that host is no more, "
            "give --force.",
        )
    if not dry_run:
        node.update(lambda d: replace(d, holds=tuple(h for h in d.holds if not theirs(h))))
    return found


def name_of(hold: Hold) -> str:
    """By which a person may end it: their own, or ``map:`` and the host; empty for those that end by themselves."""
    if hold.owner.startswith(MAP):
        return hold.owner.rpartition(":")[0]
    return hold.owner.removeprefix(USER) if hold.owner.startswith(USER) else ""


def listed(node: Node, *, sizes: bool = True) -> list[Holding]:
    """Oldest generation first; after the holds whatever else retention keeps an older one for. ``sizes``: with what it
    takes, and what is protected, for which the images are asked."""
    document = node.read()
    there, protected = _there(node, document) if sizes else ((), frozenset[Position]())
    stock = retain.stock_of(document, protected)
    ruled = {position for position, _ in kept_by_rules(document.generations, stock.keep)}
    rows = [(hold.position, _kind(hold), name_of(hold), hold.reason) for hold in document.holds]
    said = {(hold.position, text) for hold in document.holds for text in (hold.reason, retain.describe(hold))}
    newest = document.newest_position
    for need in stock.needs:
        if (need.position, need.reason) in said or not document.generation(need.position):
            continue
        if newest and need.position < newest:
            said.add((need.position, need.reason))
            rows.append((need.position, NEED, "", need.reason))
    taken: dict[Position, int | None] = {}
    found = []
    for position, kind, name, reason in sorted(rows, key=lambda row: (row[0], row[1] == NEED)):
        generation = document.generation(position)
        if position not in taken:
            taken[position] = _taken(node, document, there, position) if sizes else None
        created = generation.created if generation else 0.0
        found.append(
            Holding(document.full_name, position, created, kind, name, reason, taken[position], position in ruled)
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


def _there(node: Node, document: NodeDocument) -> tuple[tuple[Generation, ...], frozenset[Position]]:
    """The generations whose snapshots are there, and those that somebody protected."""
    if document.kind is Kind.CLONE:
        return (), frozenset()
    try:
        image = node.pool.open(document.image_id)
    except errors.NotFound:
        return (), frozenset()
    try:
        return ends.present(document, image), retain.protected_in(image, document)
    finally:
        image.close()


def _taken(node: Node, document: NodeDocument, there: tuple[Generation, ...], position: Position) -> int | None:
    at = next((n for n, g in enumerate(there) if g.position == position), None)
    if at is None:
        return None
    before = there[at - 1] if at else None
    after = there[at + 1] if at + 1 < len(there) else None
    return retain.cost(node, document, there[at], before, after)
