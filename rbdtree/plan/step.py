"""What a plan is made of. Every step is idempotent: carried out twice it does what it does once."""

from dataclasses import dataclass

from rbdtree.model.position import Position


@dataclass(frozen=True, slots=True)
class Hold:
    """Upstream: this generation must stay, the edge needs it."""

    position: Position

    def __str__(self) -> str:
        return f"hold {self.position} upstream"


@dataclass(frozen=True, slots=True)
class Intend:
    """In the child's document: the replica is on its way and inconsistent until settled.

    ``since == target`` announces a rollback to that generation; sequence 0 is the empty volume.
    """

    since: Position | None
    target: Position

    def __str__(self) -> str:
        return f"intend {self.since or 'empty'} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Copy:
    """Write everything that changed between the two generations into the child's head. ``since`` None: everything."""

    since: Position | None
    target: Position

    def __str__(self) -> str:
        return f"copy {self.since or 'all'} -> {self.target}"


@dataclass(frozen=True, slots=True)
class Relay:
    """Write what the parent has of a delta that it is still receiving itself into the child's head, as it comes."""

    since: Position | None
    target: Position

    def __str__(self) -> str:
        return f"relay {self.since or 'all'} -> {self.target}"


@dataclass(frozen=True, slots=True)
class RollBack:
    """Bring the child's head back to a generation it has sealed itself (sequence 0: to nothing)."""

    target: Position

    def __str__(self) -> str:
        return f"roll back to {self.target}"


@dataclass(frozen=True, slots=True)
class Seal:
    """The snapshot of this generation at the child."""

    position: Position

    def __str__(self) -> str:
        return f"seal {self.position}"


@dataclass(frozen=True, slots=True)
class Settle:
    """Publish the generation in the child's document and drop the intent."""

    position: Position

    def __str__(self) -> str:
        return f"settle {self.position}"


@dataclass(frozen=True, slots=True)
class Abandon:
    """Drop the intent without a new generation (after a rollback)."""

    def __str__(self) -> str:
        return "abandon the intent"


@dataclass(frozen=True, slots=True)
class Forget:
    """Strike a generation whose snapshot somebody removed by hand from the child's document."""

    position: Position

    def __str__(self) -> str:
        return f"forget {self.position}, its snapshot is gone"


@dataclass(frozen=True, slots=True)
class Release:
    """Upstream: the edge needs this generation no more."""

    position: Position

    def __str__(self) -> str:
        return f"release {self.position} upstream"


@dataclass(frozen=True, slots=True)
class Recover:
    """Upstream: the edge, whose base was let go there, needs no resync any more."""

    def __str__(self) -> str:
        return "needs no resync any more"


@dataclass(frozen=True, slots=True)
class Clone:
    """Make a clone over this generation beside the child's image."""

    position: Position

    def __str__(self) -> str:
        return f"clone over {self.position}"


@dataclass(frozen=True, slots=True)
class Swap:
    """The new clone takes the image's name, the old one goes to the trash."""

    position: Position

    def __str__(self) -> str:
        return f"swap to {self.position}"


Step = Hold | Intend | Copy | Relay | RollBack | Seal | Settle | Abandon | Forget | Release | Recover | Clone | Swap
Plan = tuple[Step, ...]
