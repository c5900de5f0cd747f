"""Which manager takes which edge. Pure.

Nobody decides for the others: each goes by the list of managers, in which everybody says how many edges it has and
which clusters it reaches. The one with the least takes a free edge at once, the others give it a moment each, in an
order that all agree on. Who has two more than another gives one away, when it is idle. That two want the same edge is
harmless: its lock decides.
"""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

MOMENT_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A manager as the list shows it. ``fsids``: the clusters it reaches; ``load``: edges it has; ``told``: when, by
    a clock of its own, as each cluster has a list, and of one that it does not reach any more an old entry."""

    manager: str
    fsids: frozenset[str]
    load: int
    told: float = field(default=0.0, compare=False)

    def text(self, identity: str) -> str:
        """For the list; ``identity`` is the process, so that others can tell whether it lives."""
        told = {"manager": self.manager, "fsids": sorted(self.fsids), "load": self.load, "told": self.told}
        return json.dumps({**json.loads(identity), **told})

    @classmethod
    def parse(cls, text: str) -> "Peer | None":
        """None for an entry of something else."""
        try:
            told = json.loads(text)
            return cls(
                str(told["manager"]), frozenset(map(str, told["fsids"])), int(told["load"]), float(told.get("told", 0))
            )
        except (ValueError, KeyError, TypeError):
            return None


def _order(edge: str, manager: str) -> str:
    return hashlib.blake2b(f"{edge} {manager}".encode(), digest_size=8).hexdigest()


def takes(me: Peer, others: Iterable[Peer], edge: str, needs: frozenset[str], free_seconds: float) -> bool:
    """Whether I take an edge that has been free for so long."""
    if not needs <= me.fsids:
        return False
    mine = (me.load, _order(edge, me.manager))
    before = sum(
        needs <= other.fsids and (other.load, _order(edge, other.manager)) < mine
        for other in others
        if other.manager != me.manager
    )
    return free_seconds >= before * MOMENT_SECONDS


def newest(entries: Iterable[Peer]) -> list[Peer]:
    """Of each manager what it told last."""
    found: dict[str, Peer] = {}
    for entry in entries:
        if entry.manager not in found or found[entry.manager].told < entry.told:
            found[entry.manager] = entry
    return list(found.values())


def gives(me: Peer, others: Iterable[Peer], idle: dict[str, frozenset[str]]) -> str | None:
    """The edge, of my ``idle`` ones with the clusters each needs, that I let go; None: none."""
    lighter = [other for other in others if other.manager != me.manager and other.load <= me.load - 2]
    for other in sorted(lighter, key=lambda o: o.load):
        fitting = [edge for edge, needs in idle.items() if needs <= other.fsids]
        if fitting:
            return min(fitting, key=lambda edge: _order(edge, other.manager))
    return None
