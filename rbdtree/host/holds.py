"""Holds of this host: a generation that is mapped here is named in its node's document, so that nothing removes it.

And what else a map needs of its cluster."""

import socket
from contextlib import suppress
from pathlib import Path

from rbdtree import errors
from rbdtree.engine.forest import Tree
from rbdtree.engine.hold import kept
from rbdtree.engine.node import Node
from rbdtree.host.source import Source
from rbdtree.model.document import MAP, Hold
from rbdtree.model.position import Position
from rbdtree.ports import Pool, Sites

_MACHINE = Path("/etc/machine-id")


def host_name() -> str:
    return socket.gethostname().partition(".")[0]


def prefix() -> str:
    """What the owners of this host's holds begin with: machines cloned from one another differ by name."""
    machine = ""
    with suppress(OSError):
        machine = _MACHINE.read_text().strip()[:8]
    return f"{MAP}{host_name()}{f'.{machine}' if machine else ''}:"


class Keeper:
    """Holds are put on and taken off by it."""

    def __init__(self, sites: Sites) -> None:
        self._sites = sites

    def hold(self, source: Source, key: str) -> errors.Error | None:
        """What kept it from holding: a key that may only read, say. The map works without.

        Raises ``NotFound`` or ``Busy`` when the generation goes just now: there is nothing to map then."""
        if not source.holder:
            return None
        wanted = Hold(prefix() + key, Position.parse(source.position), f"{source.full_name} mapped at {host_name()}")
        try:
            self._node(source).update(lambda d: kept(d, wanted))
        except errors.Denied as error:
            return errors.Denied(
                f"generation {source.position} of {source.full_name} is not held: {error}",
                "It may be removed while it is mapped here; give this host's key the caps of 'rbdtree caps child'.",
            )
        return None

    def remind(self, source: Source) -> None:
        """Has the device that was just made know of every snapshot: before anybody writes to it."""
        if source.write:
            with suppress(errors.Error):
                self._pool(source).remind(source.image_id, wait=True)

    def release(self, source: Source, key: str) -> errors.Error | None:
        """What kept it from releasing: the hold is a leftover then, which 'rbdtree doctor' finds."""
        if not source.holder:
            return None
        try:
            self._node(source).update(lambda d: d.without_holds(prefix() + key))
        except errors.NotFound:
            return None
        except errors.Error as error:
            return type(error)(
                f"generation {source.position} of {source.full_name} stays held by this host: {error}",
                "'rbdtree doctor --mend' releases it later.",
            )
        return None

    def _node(self, source: Source) -> Node:
        return Node(self._pool(source), source.holder, source.full_name)

    def _pool(self, source: Source) -> Pool:
        for name in self._sites.names():
            if name == source.site:
                return self._sites.cluster(name).pool(source.pool, source.namespace)
        raise errors.NotFound(f"there is no site {source.site} in the configuration any more")


def leftover(trees: tuple[Tree, ...], keys: frozenset[str]) -> list[tuple[Node, Hold]]:
    """Holds of this host for maps that are not here: from before a reboot, or of an unmap without the cluster."""
    found = []
    for tree in trees:
        for member in tree.members.values():
            if member.node is None or member.document is None:
                continue
            for hold in member.document.holds:
                if hold.owner.startswith(prefix()) and hold.owner.removeprefix(prefix()) not in keys:
                    found.append((member.node, hold))
    return found


def release_leftover(node: Node, hold: Hold) -> None:
    node.update(lambda d: d.without_holds(hold.owner, hold.position))
