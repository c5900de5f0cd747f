"""Why an edge cannot go on without a person: values with the evidence inside."""

from dataclasses import dataclass

from rbdtree import errors
from rbdtree.model.extent import Extents
from rbdtree.model.position import Position

_SHOWN = 3


def describe(extents: Extents) -> str:
    """The first few extents and the total, in a phrase."""
    shown = ", ".join(f"{offset}+{length}" for offset, length in extents.pairs[:_SHOWN])
    more = f" and {len(extents) - _SHOWN} more" if len(extents) > _SHOWN else ""
    return f"{extents.total} bytes in {len(extents)} extents ({shown}{more})"


@dataclass(frozen=True, slots=True)
class HeadChanged:
    """Somebody wrote into a replica: its head differs from its newest generation (None: it should be empty)."""

    node: str
    image: str
    since: Position | None
    extents: Extents

    def error(self) -> errors.Error:
        base = f"its generation {self.since}" if self.since else "an empty image"
        return errors.Diverged(
            f"{self.node} has diverged: {self.image} differs from {base} in {describe(self.extents)}",
            f"Stop whoever writes to {self.image}; then 'rbdtree rollback {self.node}' keeps those bytes in a snapshot "
            "and returns to the generation.",
        )


@dataclass(frozen=True, slots=True)
class HeadResized:
    """Somebody resized a replica."""

    node: str
    image: str
    since: Position | None
    size_bytes: int
    expected_bytes: int

    def error(self) -> errors.Error:
        return errors.Diverged(
            f"{self.node} has diverged: {self.image} is {self.size_bytes} bytes long, its generation {self.since} "
            f"{self.expected_bytes}",
            f"Run 'rbdtree rollback {self.node}' to return to the generation.",
        )


@dataclass(frozen=True, slots=True)
class NoCommonGeneration:
    """Parent and child have no generation in common, so there is no delta."""

    node: str
    upstream: Position | None
    downstream: Position | None

    def error(self) -> errors.Error:
        return errors.Diverged(
            f"{self.node} (newest {self.downstream}) has no generation in common with its parent "
            f"(newest {self.upstream})",
            f"Run 'rbdtree resync {self.node}': it compares everything and writes what differs.",
        )


@dataclass(frozen=True, slots=True)
class NeedsResync:
    """The parent let go of the child's base, as it had pinned it for too long: there is no delta."""

    node: str
    base: Position
    reason: str

    def error(self) -> errors.Error:
        return errors.Diverged(
            f"{self.node} needs a resync: its parent let go of {self.base}, which it stands on ({self.reason})",
            f"Run 'rbdtree resync {self.node}': it compares everything and writes what differs.",
        )


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The parent does not know this child (any more): it was removed with --forget while its cluster was away."""

    node: str
    parent: str

    def error(self) -> errors.Error:
        return errors.Diverged(
            f"{self.node} is no child of {self.parent} any more: it was forgotten there while it could not be reached",
            f"Run 'rbdtree remove {self.node}', or 'rbdtree detach {self.node}' to keep its image.",
        )


@dataclass(frozen=True, slots=True)
class ImageGone:
    """The image with the recorded id is not there; ``replaced_by`` has its name now."""

    node: str
    image: str
    image_id: str
    replaced_by: str | None

    def error(self) -> errors.Error:
        if self.replaced_by:
            return errors.Diverged(
                f"{self.node}: {self.image} was replaced: it has id {self.replaced_by}, "
                f"the node's image was {self.image_id}",
                f"Move the other image away and restore the node's ('rbd trash ls'), or 'rbdtree remove {self.node}' "
                "(the other image is left alone) and add it again.",
            )
        return errors.Diverged(
            f"{self.node}: its image {self.image} (id {self.image_id}) is gone",
            f"Restore it ('rbd trash ls'), or 'rbdtree remove {self.node}' and add it again.",
        )


@dataclass(frozen=True, slots=True)
class InUse:
    """A clone node's image is open somewhere, so it stays at its generation."""

    node: str
    image: str
    position: Position | None
    by: tuple[str, ...]

    def error(self) -> errors.Error:
        return errors.Busy(
            f"{self.node} stays at {self.position}: {self.image} is in use by {', '.join(self.by)}",
            "Unmap it and sync again.",
        )


@dataclass(frozen=True, slots=True)
class CloneChanged:
    """A clone node's image holds data of its own, or does not stand where its document says."""

    node: str
    image: str
    seen: str

    def error(self) -> errors.Error:
        return errors.Diverged(
            f"{self.node} has diverged: {self.image} {self.seen}",
            f"Keep it with 'rbdtree detach {self.node}', or trash it with 'rbdtree rollback {self.node}'.",
        )


Conflict = HeadChanged | HeadResized | NoCommonGeneration | NeedsResync | Forgotten | ImageGone | InUse | CloneChanged
