"""Generations of a volume and their names as RBD snapshots."""

import re
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.model.extent import Pair

_PUSH = re.compile(r"rbdtree\.([0-9a-f]{8})\.push\.(\d+)")
_SNAPSHOT = re.compile(r"rbdtree\.([0-9a-f]{8})\.(\d+)\.(\d+)")


@dataclass(frozen=True, slots=True, order=True)
class Position:
    """(epoch, sequence). The epoch rises when another node becomes root (Postgres: timeline); order is total.

    A sequence of 0 is the empty volume before its first generation.
    """

    epoch: int
    sequence: int

    @classmethod
    def parse(cls, text: str) -> "Position":
        """From ``epoch.sequence``, as ``str`` gives it."""
        epoch, dot, sequence = text.partition(".")
        if not (dot and epoch.isdecimal() and sequence.isdecimal()):
            raise errors.UsageError(f"{text!r} is not a generation", "Write epoch.sequence, for example 1.7.")
        return cls(int(epoch), int(sequence))

    def __str__(self) -> str:
        return f"{self.epoch}.{self.sequence}"


START = Position(1, 0)


@dataclass(frozen=True, slots=True)
class Generation:
    """One crash-consistent point of the volume, as one node holds it.

    ``snapshot_id`` is RBD's id at this node's replica; ``size_bytes`` the volume's size then; ``created`` when it was
    cut at the root (seconds since 1970); ``delta_bytes`` what changed since the generation before, None if unknown.
    ``author`` is the node whose push it is (empty: the root's own writes), ``push`` the push's id; ``exact`` says that
    nothing but this push lies between it and the generation before; ``others``, where it does not, which ranges
    somebody else wrote as well (empty: not known). ``arrived`` is when this node had it (0: when it was cut),
    ``followed`` when it had the next one, where that is gone since (0: it is there still, or never came).
    ``portion``: the ranges of the volume that this node holds of it (empty: all), which may differ from node to node.
    ``late``, at the root: the generation before was seen to be written to after it was made (``engine.delta``): then
    what changed in an object since may not be all that a copy of that generation lacks of it.
    """

    position: Position
    snapshot_id: int
    size_bytes: int
    created: float
    delta_bytes: int | None = None
    author: str = ""
    push: str = ""
    exact: bool = False
    others: tuple[Pair, ...] = ()
    arrived: float = 0.0
    followed: float = 0.0
    portion: tuple[Pair, ...] = ()
    late: bool = False


def snapshot_name(tree_id: str, position: Position) -> str:
    """``rbdtree.<tree id, 8 hex>.<epoch>.<sequence>``; snapshots of any other name are never touched."""
    return f"rbdtree.{tree_id[:8]}.{position.epoch}.{position.sequence}"


def push_snapshot_name(tree_id: str, number: int) -> str:
    """Of a branch or of a push staged upstream: what changed since number 0, or since the push before."""
    return f"rbdtree.{tree_id[:8]}.push.{number}"


def push_snapshot_prefix(tree_id: str) -> str:
    """What the names of all of these begin with."""
    return push_snapshot_name(tree_id, 0).removesuffix("0")


def tree_of_snapshot(name: str) -> str | None:
    """First 8 hex digits of the tree whose generation or push a snapshot is; None for anybody else's."""
    match = _SNAPSHOT.fullmatch(name) or _PUSH.fullmatch(name)
    return match[1] if match else None


def parse_snapshot_name(name: str) -> tuple[str, Position] | None:
    """(first 8 hex digits of the tree id, position) of a snapshot of ours, None for anybody else's."""
    match = _SNAPSHOT.fullmatch(name)
    return (match[1], Position(int(match[2]), int(match[3]))) if match else None
