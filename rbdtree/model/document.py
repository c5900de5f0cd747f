"""The node document: what one node knows, kept in one RADOS object beside its image.

The JSON written is ``encode``'s; ``docs/design.md`` shows it. Unknown newer formats are refused, older ones migrated in
``decode``.
"""

import json
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from rbdtree import errors
from rbdtree.model.position import START, Generation, Position

FORMAT = 1
DIRECTORY = "rbdtree_directory"
"""Object in every pool and namespace in use: omap ``node.<uuid>`` -> what it is, ``image.<image id>`` -> node uuid."""


class Kind(StrEnum):
    """What a node keeps: the volume itself, a copy of it, or a clone over the nearest replica above."""

    ROOT = "root"
    MIRROR = "mirror"
    CLONE = "clone"


class State(StrEnum):
    """Replica states; DRBD's words where they fit."""

    ABSENT = "absent"
    SEEDING = "seeding"
    INCONSISTENT = "inconsistent"
    OUTDATED = "outdated"
    UP_TO_DATE = "up-to-date"
    DIVERGED = "diverged"
    UNREACHABLE = "unreachable"


def object_name(node_id: str) -> str:
    """The RADOS object that holds the document of this node."""
    return f"rbdtree.node.{node_id}"


@dataclass(frozen=True, slots=True)
class NodeRef:
    """Where a node is. ``site`` is a name in somebody's configuration, ``fsid`` says which cluster was meant."""

    node_id: str
    name: str
    site: str
    fsid: str
    pool: str
    namespace: str
    image: str

    @property
    def image_spec(self) -> str:
        path = "/".join(part for part in (self.pool, self.namespace, self.image) if part)
        return f"{self.site}:{path}"


@dataclass(frozen=True, slots=True)
class Summary:
    """What a child told its parent about itself and its own children, for those who cannot reach it."""

    state: State
    position: Position | None
    size_bytes: int
    children: tuple["Child", ...] = ()


@dataclass(frozen=True, slots=True)
class Child:
    """One edge, seen from upstream."""

    edge: str
    kind: Kind
    ref: NodeRef
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a generation must not be removed yet. ``owner`` is an edge's UUID."""

    owner: str
    position: Position
    reason: str


@dataclass(frozen=True, slots=True)
class Intent:
    """A change of the replica in flight.

    ``since`` is the generation the head had, None when it was empty; every byte of the volume before ``done_bytes`` is
    already that of ``target``. ``client`` is the RADOS address of the worker, to fence it should it come back from the
    dead; empty when it left in good order. ``image_id``: the clone made ahead of the swap.
    """

    target: Position
    since: Position | None
    size_bytes: int
    started: float
    worker: str
    client: str
    done_bytes: int = 0
    image_id: str = ""


@dataclass(frozen=True, slots=True)
class NodeDocument:
    """One node. ``generations`` are those its own image carries (a clone node lists the one it is over).

    ``phase`` is empty but while the node joins or leaves its tree (``joining``, ``removing``, ``detaching``): the
    command that died there goes on when it is run again.
    """

    tree_id: str
    tree: str
    kind: Kind
    ref: NodeRef
    image_id: str
    replica: NodeRef
    parent: NodeRef | None = None
    edge: str = ""
    epoch: int = 1
    last_sequence: int = 0
    history: bool = False
    distrust: str = ""
    generations: tuple[Generation, ...] = ()
    holds: tuple[Hold, ...] = ()
    children: tuple[Child, ...] = ()
    intent: Intent | None = None
    phase: str = ""

    @property
    def name(self) -> str:
        return self.ref.name

    @property
    def full_name(self) -> str:
        return f"{self.tree}/{self.ref.name}"

    @property
    def newest(self) -> Generation | None:
        return self.generations[-1] if self.generations else None

    @property
    def newest_position(self) -> Position | None:
        return self.generations[-1].position if self.generations else None

    @property
    def position(self) -> Position:
        return self.generations[-1].position if self.generations else START

    def generation(self, position: Position) -> Generation | None:
        return next((g for g in self.generations if g.position == position), None)

    def child(self, edge: str) -> Child | None:
        return next((c for c in self.children if c.edge == edge), None)

    def with_hold(self, hold: Hold) -> "NodeDocument":
        others = tuple(h for h in self.holds if (h.owner, h.position) != (hold.owner, hold.position))
        return replace(self, holds=(*others, hold))

    def without_holds(self, owner: str, position: Position | None = None) -> "NodeDocument":
        kept = tuple(h for h in self.holds if h.owner != owner or (position is not None and h.position != position))
        return replace(self, holds=kept)

    def with_generation(self, generation: Generation) -> "NodeDocument":
        others = [g for g in self.generations if g.position != generation.position]
        return replace(self, generations=tuple(sorted([*others, generation], key=lambda g: g.position)))


def encode(document: NodeDocument) -> str:
    """JSON text, keys sorted, so that equal documents are equal texts."""
    return json.dumps({"format": FORMAT, **_plain(document)}, sort_keys=True, separators=(",", ":"))


def decode(text: str, where: str) -> NodeDocument:
    """The document in ``text``; ``where`` names its object in messages.

    Raises ``Unsupported`` for a newer format and ``Diverged`` for text that is no document.
    """
    try:
        raw = json.loads(text)
        if raw["format"] > FORMAT:
            raise errors.Unsupported(
                f"{where} has document format {raw['format']}, this rbdtree knows {FORMAT}",
                "Upgrade rbdtree on this host.",
            )
        return _document(raw)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise errors.Diverged(
            f"{where} does not hold a node document ({type(error).__name__}: {error})",
            "Restore the object, or list what is left with 'rbdtree marks'.",
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, Position):
        return str(value)
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__slots__") and not isinstance(value, str):
        return {name: _plain(getattr(value, name)) for name in value.__slots__}
    return value


def _position(raw: str | None) -> Position | None:
    return None if raw is None else Position.parse(raw)


def _child(raw: dict[str, Any]) -> Child:
    summary = raw["summary"]
    return Child(raw["edge"], Kind(raw["kind"]), NodeRef(**raw["ref"]), _summary(summary) if summary else None)


def _summary(raw: dict[str, Any]) -> Summary:
    children = tuple(_child(child) for child in raw["children"])
    return Summary(State(raw["state"]), _position(raw["position"]), raw["size_bytes"], children)


def _generation(raw: dict[str, Any]) -> Generation:
    return Generation(**{**raw, "position": Position.parse(raw["position"])})


def _hold(raw: dict[str, Any]) -> Hold:
    return Hold(raw["owner"], Position.parse(raw["position"]), raw["reason"])


def _intent(raw: dict[str, Any]) -> Intent:
    return Intent(
        **{**raw, "target": Position.parse(raw["target"]), "since": _position(raw["since"])},
    )


def _document(raw: dict[str, Any]) -> NodeDocument:
    return NodeDocument(
        tree_id=raw["tree_id"],
        tree=raw["tree"],
        kind=Kind(raw["kind"]),
        ref=NodeRef(**raw["ref"]),
        image_id=raw["image_id"],
        replica=NodeRef(**raw["replica"]),
        parent=NodeRef(**raw["parent"]) if raw["parent"] else None,
        edge=raw["edge"],
        epoch=raw["epoch"],
        last_sequence=raw["last_sequence"],
        history=raw["history"],
        distrust=raw["distrust"],
        generations=tuple(_generation(g) for g in raw["generations"]),
        holds=tuple(_hold(h) for h in raw["holds"]),
        children=tuple(_child(c) for c in raw["children"]),
        intent=_intent(raw["intent"]) if raw["intent"] else None,
        phase=raw["phase"],
    )
