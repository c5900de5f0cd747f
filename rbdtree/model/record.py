"""What a journal says that happened to an image: one class for each of ``librbd::journal::EventType``.

Offsets and lengths are bytes in the image. An operation (anything with an ``op_tid``) begins at its record and ends at
the ``OpFinish`` with the same number; only then its snapshot exists, and only if the result is 0. Numbers begin anew
with every tag.
"""

from dataclasses import dataclass
from enum import IntEnum


class Space(IntEnum):
    """``cls::rbd::SnapshotNamespaceType``."""

    USER = 0
    GROUP = 1
    TRASH = 2
    MIRROR = 3


SPACES = frozenset(int(space) for space in Space)


@dataclass(frozen=True, slots=True)
class Write:
    """``AioWriteEvent``. A write larger than rbd_journal_max_payload_bytes (16 KiB) is several of them."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Zero:
    """``AioDiscardEvent`` with granularity 0: what write_zeroes journals; exact."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class Discard:
    """``AioDiscardEvent`` of a discard, which librbd has cut to its granularity before: all of it reads zero."""

    offset: int
    length: int
    granularity: int


@dataclass(frozen=True, slots=True)
class WriteSame:
    """``AioWriteSameEvent``: ``length`` bytes filled with a pattern."""

    offset: int
    length: int
    pattern: bytes


@dataclass(frozen=True, slots=True)
class CompareAndWrite:
    """``AioCompareAndWriteEvent``: journaled before librbd compares. ``data`` was written if ``expected`` was there."""

    offset: int
    expected: bytes
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """``AioFlushEvent``: what was acknowledged before it is durable."""


@dataclass(frozen=True, slots=True)
class OpFinish:
    """``OpFinishEvent``: an operation ended; ``result`` is 0 or a negative errno."""

    op_tid: int
    result: int


@dataclass(frozen=True, slots=True)
class _Snapshot:
    op_tid: int
    name: str
    space: Space


@dataclass(frozen=True, slots=True)
class SnapCreate(_Snapshot):
    """``SnapCreateEvent``. No write lies between it and its OpFinish: all before it is what the snapshot holds."""


@dataclass(frozen=True, slots=True)
class SnapRemove(_Snapshot):
    """``SnapRemoveEvent``."""


@dataclass(frozen=True, slots=True)
class SnapProtect(_Snapshot):
    """``SnapProtectEvent``."""


@dataclass(frozen=True, slots=True)
class SnapUnprotect(_Snapshot):
    """``SnapUnprotectEvent``."""


@dataclass(frozen=True, slots=True)
class SnapRollback(_Snapshot):
    """``SnapRollbackEvent``: the image becomes what the snapshot is."""


@dataclass(frozen=True, slots=True)
class SnapRename:
    """``SnapRenameEvent``."""

    op_tid: int
    snapshot_id: int
    name: str
    new: str


@dataclass(frozen=True, slots=True)
class Rename:
    """``RenameEvent``: of the image."""

    op_tid: int
    name: str


@dataclass(frozen=True, slots=True)
class Resize:
    """``ResizeEvent``. Writes may lie between it and its OpFinish, already within the new size."""

    op_tid: int
    size: int


@dataclass(frozen=True, slots=True)
class Flatten:
    """``FlattenEvent``: changes no byte."""

    op_tid: int


@dataclass(frozen=True, slots=True)
class DemotePromote:
    """``DemotePromoteEvent``."""


@dataclass(frozen=True, slots=True)
class SnapLimit:
    """``SnapLimitEvent``."""

    op_tid: int
    limit: int


@dataclass(frozen=True, slots=True)
class UpdateFeatures:
    """``UpdateFeaturesEvent``."""

    op_tid: int
    features: int
    enabled: bool


@dataclass(frozen=True, slots=True)
class MetadataSet:
    """``MetadataSetEvent``."""

    op_tid: int
    key: str
    value: str


@dataclass(frozen=True, slots=True)
class MetadataRemove:
    """``MetadataRemoveEvent``."""

    op_tid: int
    key: str


Change = Write | Zero | Discard | WriteSame
"""Changes bytes, whatever was there."""
SnapshotOperation = SnapCreate | SnapRemove | SnapProtect | SnapUnprotect | SnapRollback | SnapRename
Harmless = Rename | Flatten | SnapLimit | UpdateFeatures | MetadataSet | MetadataRemove
"""Operations that change no byte, no size and no snapshot."""
Event = SnapshotOperation | Resize | DemotePromote | OpFinish | CompareAndWrite
"""Changes something else, or depends on what was there."""
Record = Change | Flush | Event | Harmless
