"""What a cluster in memory keeps."""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from rbdtree.ports import Layout, Snapshot

if TYPE_CHECKING:
    from rbdtree.memory.pool import Watch


Objects = dict[int, bytes]
Place = tuple[str, str]


class Change(NamedTuple):
    at: int
    offset: int
    length: int
    shrink: bool
    late: int = 0
    """The snapshot that it went into, although it was made before: then no diff from there on has it."""


class Held(NamedTuple):
    cookie: str
    address: str
    owner: str
    expires: float


@dataclass
class Kept:
    entry: Snapshot
    objects: Objects
    at: int
    protected: bool = False


@dataclass
class Volume:
    """An image: its objects (always whole, absent where nothing was written), snapshots and history of changes."""

    image_id: str
    size: int
    layout: Layout
    parent: "tuple[Place, Volume, Kept] | None" = None
    overlap: int = 0
    objects: Objects = field(default_factory=dict)
    snapshots: list[Kept] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    watchers: Counter[str] = field(default_factory=Counter)
    lock_owner: str | None = None


@dataclass
class Contents:
    images: dict[str, Volume] = field(default_factory=dict)
    trash: dict[str, tuple[str, Volume]] = field(default_factory=dict)
    documents: dict[str, tuple[int, str]] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)
    claims: dict[tuple[str, str], Held] = field(default_factory=dict)
    managers: dict[tuple[str, str], Held] = field(default_factory=dict)
    watches: "dict[str, list[Watch]]" = field(default_factory=dict)
    capacity: int | None = None


class Storage:
    """What a cluster keeps; every ``Cluster`` over it is one client."""

    def __init__(self, fsid: str, places: list[Place], clock: Callable[[], float] = time.time) -> None:
        self.fsid = fsid
        self.places = {place: Contents() for place in places}
        self.clock = clock
        self.numbers = itertools.count(1)
        self.fenced: set[str] = set()
        self.guard = threading.RLock()

    def fence(self, address: str) -> None:
        """That client can do nothing any more, and holds no image open."""
        with self.guard:
            self.fenced.add(address)
            for place in self.places.values():
                for volume in (*place.images.values(), *(volume for _, volume in place.trash.values())):
                    volume.watchers.pop(address, None)
                    if volume.lock_owner == address:
                        volume.lock_owner = None

    def limit(self, pool: str, objects: int | None) -> None:
        """A pool takes this many objects and no more."""
        for (name, _), place in self.places.items():
            if name == pool:
                place.capacity = objects
