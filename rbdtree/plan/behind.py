"""How far a node is behind another, by their documents. Pure."""

from dataclasses import dataclass

from rbdtree.model.document import NodeDocument
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
    """What generations cost that stay only because somebody holds them: bytes changed since the oldest one (an upper
    bound), and when that was cut. ``owners``: edges, branches and people who hold it back."""

    bytes: int = 0
    oldest: float = 0.0
    owners: tuple[str, ...] = ()


def pinned(document: NodeDocument) -> Pinned:
    """By holds on generations older than the newest."""
    newest = document.newest_position
    held = sorted((h for h in document.holds if newest and h.position < newest), key=lambda h: h.position)
    there = [h for h in held if document.generation(h.position)]
    if not there:
        return Pinned()
    oldest = document.generation(there[0].position)
    assert oldest is not None
    cost = sum(g.delta_bytes or 0 for g in document.generations if g.position > oldest.position)
    return Pinned(cost, oldest.created, tuple(dict.fromkeys(h.owner for h in there if h.position == oldest.position)))
