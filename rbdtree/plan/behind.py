"""How far a node is behind another, by their documents. Pure."""

from dataclasses import dataclass

from rbdtree.model.document import USER, NodeDocument
from rbdtree.model.position import Generation, Position


@dataclass(frozen=True, slots=True)
class Behind:
    """``seconds`` lie between the newest generation there and the one that is here, None when that is not known any
    more; ``bytes`` is an upper bound. ``oldest``: when the oldest of the missing ones was cut (seconds since 1970):
    what was written before that, since the one that is here, is nowhere else yet. 0 when nothing is missing."""

    generations: int
    seconds: float | None
    bytes: int
    oldest: float


LEVEL = Behind(0, 0.0, 0, 0.0)


def behind(position: Position | None, line: tuple[Generation, ...]) -> Behind:
    """Of a node at ``position`` (None: nothing there yet), against a ``line`` of generations, oldest first."""
    missing = [g for g in line if position is None or g.position > position]
    if not missing:
        return LEVEL
    have = next((g for g in line if g.position == position), None)
    seconds = round(line[-1].created - have.created, 3) if have else None
    # Of the one that followed it, if that is gone since.
    oldest = (have and have.followed) or missing[0].created
    return Behind(len(missing), seconds, sum(g.delta_bytes or 0 for g in missing), oldest)


@dataclass(frozen=True, slots=True)
class Pinned:
    """What generations cost that stay only because children, branches or maps hold them: bytes changed since the oldest
    one (an upper bound), and since when it is not the newest any more (seconds since 1970; 0: nothing is held)."""

    bytes: int = 0
    since: float = 0.0


def pinned(document: NodeDocument) -> Pinned:
    """By holds on generations older than the newest. What a person asked to keep is meant to stay."""
    held = {h.position for h in document.holds if not h.owner.startswith(USER)}
    line = sorted(document.generations, key=lambda g: g.position)
    oldest = next((g for g in line[:-1] if g.position in held), None)
    if oldest is None:
        return Pinned()
    after = [g for g in line if g.position > oldest.position]
    return Pinned(sum(g.delta_bytes or 0 for g in after), oldest.followed or after[0].arrived or after[0].created)
