"""The node document: what one node knows, kept in one RADOS object beside its image, as ``codec`` writes it."""

from dataclasses import dataclass, replace
from enum import StrEnum

from rbdtree.model.extent import Pair
from rbdtree.model.policy import Settings
from rbdtree.model.position import START, Generation, Position

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


PARCEL = "parcel.rbdtree."
"""What the names of packed pushes begin with."""


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
    """What a child told its parent about itself and its own children, for those who cannot reach it.

    ``trouble``: why it is not brought on, in words; ``told``: when this was written, in seconds since 1970.
    ``portion``: the ranges that it is to hold.
    """

    state: State
    position: Position | None
    size_bytes: int
    children: tuple["Child", ...] = ()
    trouble: str = ""
    told: float = 0.0
    portion: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class Child:
    """One edge, seen from upstream."""

    edge: str
    kind: Kind
    ref: NodeRef
    summary: Summary | None = None


@dataclass(frozen=True, slots=True)
class Hold:
    """Why a generation must not be removed yet.

    ``owner`` is an edge's UUID, ``branch:`` and a node's, or ``user:`` and a name; ``branch``: a branch at or below the
    owner stands on it.
    """

    owner: str
    position: Position
    reason: str
    branch: bool = False


MAP = "map:"
"""What the owners of holds begin with that keep what a host has mapped."""
USER = "user:"
"""What the owner of a person's hold begins with; its name follows."""


@dataclass(frozen=True, slots=True)
class Resync:
    """An edge whose base ``position`` was let go here at ``since``, as it had pinned it for too long (``reason``: which
    limit, in words): no delta leads to its child any more."""

    edge: str
    name: str
    position: Position
    reason: str
    since: float


class PushState(StrEnum):
    """How far a push is, as this node knows."""

    TAKING = "taking"
    STAGED = "staged"
    SENT = "sent"
    PUBLISHED = "published"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class Evidence:
    """Why a push was refused: bytes of it that somebody else changed (``position``, ``author``) or has leased."""

    reason: str
    author: str
    position: Position | None
    total_bytes: int
    extents: tuple[Pair, ...]


@dataclass(frozen=True, slots=True)
class Push:
    """A branch's changes on their way up. (owner, number) is its id at every hop.

    Its bytes are packed in the parcel that ``staging`` names; or they are what changed between two snapshots of
    ``image_id`` in this node's pool: the owner's branch, or further up an image they were copied into (``staging`` its
    name). ``extents``: which bytes, when they are few; otherwise the two snapshots tell. ``force``: overwrite what
    others changed since ``base``; ``shared``: it was applied while others had the root open. ``after``: number of the
    push that it was written on top of, 0 for the first of a branch; without that one it is not published either.
    """

    owner: str
    owner_name: str
    number: int
    base: Position
    state: PushState
    created: float
    image_id: str = ""
    staging: str = ""
    extents: tuple[Pair, ...] = ()
    since: str = ""
    snapshot: str = ""
    force: bool = False
    shared: bool = False
    after: int = 0
    position: Position | None = None
    evidence: tuple[Evidence, ...] = ()

    @property
    def push_id(self) -> str:
        return f"{self.owner}:{self.number}"

    @property
    def packed(self) -> bool:
        """Whether its bytes are in a parcel."""
        return self.staging.startswith(PARCEL)

    @property
    def here(self) -> bool:
        """Whether its bytes are in this node's pool."""
        return bool(self.image_id or self.packed)

    @property
    def staged_apart(self) -> bool:
        """Whether they are there in something of their own, to be removed when nobody needs it."""
        return bool(self.staging) and self.here


@dataclass(frozen=True, slots=True)
class Branch:
    """A node's writable clone over a generation. ``image_id`` is empty while it is being made.

    ``since`` is the snapshot after which nothing has been pushed yet (a journal uplink renews it when it is idle).
    Of a journal uplink: ``session`` is the run that is under way, ``taken`` the journal position (object, tag, entry;
    newest first) up to which records are in pushes, ``skip_to`` a snapshot that a push took: records before its
    creation are in that. ``doubt``: published in the journal's order, which may not be the image's; to be compared at
    the next mark.
    """

    image: str
    image_id: str
    base: Position
    uplink: str
    since: str
    session: str = ""
    taken: tuple[tuple[int, int, int], ...] = ()
    skip_to: str = ""
    doubt: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to publish writes to ``extents`` until ``expires`` (seconds since 1970), in the root's document.

    ``lost``: it expired, and when the volume was at this generation somebody else was granted the ranges. What its
    holder wrote over that one, or over an earlier one, is not published any more."""

    holder: str
    holder_name: str
    extents: tuple[Pair, ...]
    epoch: int
    expires: float
    lost: Position | None = None


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a manager does not get on with an edge: the last error, how often it came since ``since``, and when it is
    tried again (``next_try``; 0: a person has to see to it first). ``kind`` is the error's class."""

    kind: str
    message: str
    hint: str
    count: int
    since: float
    seen: float
    next_try: float
    manager: str

    def again(self, now: float) -> str:
        """How often it came, and when it is tried again, in words."""
        often = f"{self.count} times; " if self.count > 1 else ""
        left = round(self.next_try - now)
        if not self.next_try:
            return f"{often}somebody has to see to it"
        if left < 0:
            return f"{often}it was to be tried again {-left} s ago"
        return f"{often}it is tried again in {left} s"


@dataclass(frozen=True, slots=True)
class Scrub:
    """How far the comparison of this node with its parent has come.

    Everything before ``cursor_bytes`` of the pass that began at ``started`` is done; ``finished`` is when the last
    whole pass ended (0: never), ``found`` how many objects differed in it and in the one under way."""

    cursor_bytes: int = 0
    started: float = 0.0
    finished: float = 0.0
    found: int = 0


@dataclass(frozen=True, slots=True)
class Intent:
    """A change of the replica in flight.

    ``since`` is the generation the head had, None when it was empty; every byte of the volume before ``done_bytes`` is
    already that of ``target``. ``client`` is the RADOS address of the worker, to fence it should it come back from the
    dead; empty when it left in good order. ``image_id``: the clone made ahead of the swap. ``push``: id of the push
    that is being applied at the root. ``moved``: when it last got on. ``relayed``: ``started`` of the parent's own copy
    from which the bytes before ``done_bytes`` were taken while it was under way; 0: from a sealed generation.
    ``portion``: what the node will hold of the target.
    """

    target: Position
    since: Position | None
    size_bytes: int
    started: float
    worker: str
    client: str
    done_bytes: int = 0
    image_id: str = ""
    push: str = ""
    moved: float = 0.0
    relayed: float = 0.0
    portion: tuple[Pair, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeDocument:
    """One node. ``generations`` are those its own image carries (a clone node lists the one it is over).

    ``phase`` is empty but while the node joins or leaves its tree (``joining``, ``removing``, ``detaching``): the
    command that died there goes on when it is run again. ``policy``: this node's own settings;
    ``tree_policy``: those of the whole tree, at the root as they are, elsewhere as of the last sync. ``begun``: when
    the copy of the newest generation began that led to its seal. ``resyncs``: edges fed from here that need a resync.
    ``portion``: the ranges of the volume that the node is to hold (empty: all; of a clone: what its replica
    holds); what it does hold, its generations tell.
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
    branch: Branch | None = None
    push_number: int = 0
    pushes: tuple[Push, ...] = ()
    landed: tuple[tuple[str, int], ...] = ()
    leases: tuple[Lease, ...] = ()
    discarding: tuple[tuple[str, str], ...] = ()
    policy: Settings = ()
    tree_policy: Settings = ()
    trouble: Trouble | None = None
    scrub: Scrub | None = None
    begun: float = 0.0
    resyncs: tuple[Resync, ...] = ()
    portion: tuple[Pair, ...] = ()

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

    def push(self, push_id: str) -> Push | None:
        return next((p for p in self.pushes if p.push_id == push_id), None)

    def with_push(self, push: Push) -> "NodeDocument":
        known = [p.push_id for p in self.pushes]
        if push.push_id not in known:
            return replace(self, pushes=(*self.pushes, push))
        return replace(self, pushes=tuple(push if p.push_id == push.push_id else p for p in self.pushes))

    def without_push(self, push_id: str) -> "NodeDocument":
        return replace(self, pushes=tuple(p for p in self.pushes if p.push_id != push_id))

    def has_landed(self, owner: str, number: int) -> bool:
        """Whether the root has published this push (pushes of an owner land in order)."""
        return dict(self.landed).get(owner, 0) >= number

    def with_hold(self, hold: Hold) -> "NodeDocument":
        others = tuple(h for h in self.holds if (h.owner, h.position) != (hold.owner, hold.position))
        return replace(self, holds=(*others, hold))

    def resync(self, edge: str) -> Resync | None:
        return next((r for r in self.resyncs if r.edge == edge), None)

    def with_resync(self, resync: Resync) -> "NodeDocument":
        return replace(self, resyncs=(*self.without_resync(resync.edge).resyncs, resync))

    def without_resync(self, edge: str) -> "NodeDocument":
        return replace(self, resyncs=tuple(r for r in self.resyncs if r.edge != edge))

    def without_holds(self, owner: str, position: Position | None = None) -> "NodeDocument":
        kept = tuple(h for h in self.holds if h.owner != owner or (position is not None and h.position != position))
        return replace(self, holds=kept)

    def with_distrust(self, seen: str, now: float) -> "NodeDocument":
        """The next copy compares everything, and one that was begun begins anew: whoever takes it from here while it
        arrives sees by its new beginning that it has to look again."""
        begun = self.intent and replace(self.intent, done_bytes=0, relayed=0.0, started=now)
        return replace(self, distrust=seen, intent=begun)

    def with_generation(self, generation: Generation) -> "NodeDocument":
        others = [g for g in self.generations if g.position != generation.position]
        return replace(self, generations=tuple(sorted([*others, generation], key=lambda g: g.position)))
