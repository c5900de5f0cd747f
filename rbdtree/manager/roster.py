"""Which managers there are, and whose each edge is, as the sites tell."""

import json
from contextlib import suppress
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine.claim import describe, is_dead
from rbdtree.engine.forest import Forest
from rbdtree.manager.spread import Peer
from rbdtree.model.document import object_name
from rbdtree.ports import EDGE


@dataclass(frozen=True, slots=True)
class Seen:
    """A manager in the lists. ``worker``: its host and process."""

    peer: Peer
    worker: str


@dataclass(frozen=True, slots=True)
class Roster:
    """``edges``: who holds the edge to each node (``TREE/NODE``), in words; empty for nobody. ``complete``: every site
    could be asked."""

    managers: tuple[Seen, ...]
    edges: dict[str, str]
    complete: bool


def roster(forest: Forest) -> Roster:
    """Asks beside every node that was found."""
    managers: dict[str, Seen] = {}
    edges: dict[str, str] = {}
    asked: set[tuple[str, str, str]] = set()
    complete = not forest.problems
    for tree in forest.trees:
        for member in sorted(tree.members.values(), key=lambda m: m.ref.name):
            if member.node is None:
                continue
            pool = member.node.pool
            place = (pool.fsid, pool.name, pool.namespace)
            try:
                info = pool.claimed(object_name(member.ref.node_id), EDGE)
                edges[f"{tree.name}/{member.ref.name}"] = describe(info) if info and not is_dead(info.owner) else ""
                if place in asked:
                    continue
                asked.add(place)
                for entry in pool.enlisted():
                    peer = Peer.parse(entry.owner)
                    if peer and not is_dead(entry.owner):
                        worker = ""
                        with suppress(ValueError, KeyError):
                            worker = str(json.loads(entry.owner)["worker"])
                        managers[peer.manager] = Seen(peer, worker)
            except errors.Error:
                complete = False
    return Roster(tuple(managers[name] for name in sorted(managers)), edges, complete)
