"""``ports`` in memory, for property tests of plans and the engine; the conformance suite keeps it honest.

It misbehaves where librbd does: a diff reports what was written rather than what changed, an object born after the
start snapshot is reported whole, and the cheap diff overlooks what a shrink with a snapshot took away.
"""

import itertools
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import xxhash

from rbdtree import errors
from rbdtree.model.document import DIRECTORY
from rbdtree.model.extent import Extents
from rbdtree.ports import (
    NO_CLONE,
    WORK,
    Ancestor,
    ClaimInfo,
    ImageEntry,
    Journal,
    Layout,
    ReadDone,
    Snapshot,
    Span,
    WriteDone,
)
from rbdtree.ports import Pool as PoolPort

Objects = dict[int, bytes]
Place = tuple[str, str]


class _Change(NamedTuple):
    at: int
    offset: int
    length: int
    shrink: bool
    late: int = 0
    """The snapshot that it went into, although it was made before: then no diff from there on has it."""


class _Held(NamedTuple):
    cookie: str
    address: str
    owner: str
    expires: float


@dataclass
class _Snapshot:
    entry: Snapshot
    objects: Objects
    at: int
    protected: bool = False


@dataclass
class _Volume:
    """An image: its objects (always whole, absent where nothing was written), snapshots and history of changes."""

    image_id: str
    size: int
    layout: Layout
    parent: "tuple[Place, _Volume, _Snapshot] | None" = None
    overlap: int = 0
    objects: Objects = field(default_factory=dict)
    snapshots: list[_Snapshot] = field(default_factory=list)
    changes: list[_Change] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    watchers: Counter[str] = field(default_factory=Counter)
    lock_owner: str | None = None


@dataclass
class _Place:
    images: dict[str, _Volume] = field(default_factory=dict)
    trash: dict[str, tuple[str, _Volume]] = field(default_factory=dict)
    documents: dict[str, tuple[int, str]] = field(default_factory=dict)
    raw: dict[str, bytes] = field(default_factory=dict)
    entries: dict[str, str] = field(default_factory=dict)
    claims: dict[tuple[str, str], _Held] = field(default_factory=dict)
    managers: dict[tuple[str, str], _Held] = field(default_factory=dict)
    watches: "dict[str, list[Watch]]" = field(default_factory=dict)
    capacity: int | None = None


class Storage:
    """What a cluster keeps; every ``Cluster`` over it is one client."""

    def __init__(self, fsid: str, places: list[Place], clock: Callable[[], float] = time.time) -> None:
        self.fsid = fsid
        self.places = {place: _Place() for place in places}
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


class Image:
    """An open image or snapshot."""

    def __init__(self, pool: "Pool", volume: _Volume, snapshot: str | None, read_only: bool) -> None:
        self.image_id = volume.image_id
        self.layout = volume.layout
        self._pool = pool
        self._storage = pool.storage
        self._volume = volume
        self._read_only = read_only or snapshot is not None
        self._at = self._find(snapshot) if snapshot is not None else None
        self._open = True
        if not self._read_only:
            volume.watchers[pool.address] += 1

    def _find(self, name: str) -> _Snapshot:
        found = next((s for s in self._volume.snapshots if s.entry.name == name), None)
        if found is None:
            raise errors.NotFound(f"image {self.image_id} has no snapshot {name}")
        return found

    @property
    def _objects(self) -> Objects:
        return self._at.objects if self._at else self._volume.objects

    def size(self) -> int:
        return self._at.entry.size_bytes if self._at else self._volume.size

    def snapshots(self) -> tuple[Snapshot, ...]:
        return tuple(s.entry for s in self._volume.snapshots)

    def changed(self, since: str | None, offset: int, length: int, *, whole_object: bool) -> list[Span]:
        with self._storage.guard:
            found = self._changed(since, whole_object).clip(offset, min(offset + length, self.size()))
            there = Extents.of((n * self.layout.object_bytes, self.layout.object_bytes) for n in self._objects)
            spans = [(at, n, True) for at, n in found.intersect(there)]
            return sorted(spans + [(at, n, False) for at, n in found.subtract(there)])

    def _changed(self, since: str | None, whole_object: bool) -> Extents:
        unit = self.layout.object_bytes
        if since is None:
            whole = set(self._objects)
            if self._volume.parent:
                _, _, over = self._volume.parent
                whole |= {n for n in over.objects if n * unit < self._volume.overlap}
            return Extents.of((n * unit, unit) for n in whole)
        start = self._find(since)
        until = self._at.at if self._at else next(self._storage.numbers)
        if start.at > until:
            raise errors.NotFound(f"snapshot {since} is younger than what image {self.image_id} is open at")
        between = [s.entry.size_bytes for s in self._volume.snapshots if start.at < s.at < until and whole_object]
        pairs: list[tuple[int, int]] = []
        for change in self._volume.changes:
            if not start.at < change.at < until:
                continue
            if change.shrink and between and min(between) <= change.offset:
                continue
            first, last = change.offset // unit, (change.offset + change.length - 1) // unit
            for number in range(first, last + 1):
                low, high = number * unit, (number + 1) * unit
                if change.late == start.at and not whole_object:
                    continue
                if not whole_object and number in start.objects:
                    low, high = max(low, change.offset), min(high, change.offset + change.length)
                if number in self._objects or number in start.objects or change.late == start.at:
                    pairs.append((low, high - low))
        return Extents.of(pairs)

    def written_after(self, snapshot: str, objects: list[int], skew: float) -> list[int]:
        unit = self.layout.object_bytes
        with self._storage.guard:
            at = self._find(snapshot).at
            late = {change.offset // unit for change in self._volume.changes if change.late == at}
            return [number for number in objects if number in late and number in self._find(snapshot).objects]

    def own_data(self) -> bool:
        return bool(self._objects)

    def ancestor(self) -> Ancestor | None:
        if not self._volume.parent:
            return None
        (pool, namespace), volume, snapshot = self._volume.parent
        return Ancestor(pool, namespace, volume.image_id, snapshot.entry.name, self._volume.overlap)

    def _object(self, number: int) -> bytes:
        unit = self.layout.object_bytes
        found = self._objects.get(number)
        if found is None and self._volume.parent and number * unit < self._volume.overlap:
            _, parent, snapshot = self._volume.parent
            found = snapshot.objects.get(number)
            if found is not None:
                found = found[: max(0, self._volume.overlap - number * unit)].ljust(unit, b"\0")
            del parent
        return found if found is not None else bytes(unit)

    def read(self, offset: int, length: int) -> bytes:
        with self._storage.guard:
            self._alive()
            if offset + length > self.size():
                raise errors.CephError(f"read past the end of {self.image_id}")
            unit = self.layout.object_bytes
            first, last = offset // unit, (offset + length + unit - 1) // unit
            whole = b"".join(self._object(number) for number in range(first, last))
            return whole[offset - first * unit : offset - first * unit + length]

    def submit_read(self, offset: int, length: int, done: ReadDone) -> None:
        try:
            data = self.read(offset, length)
        except errors.Error as error:
            done(error)
        else:
            done(data)

    def submit_write(self, offset: int, data: bytes, done: WriteDone) -> None:
        self._submit(done, offset, len(data), data)

    def submit_zero(self, offset: int, length: int, done: WriteDone) -> None:
        self._submit(done, offset, length, None)

    def _submit(self, done: WriteDone, offset: int, length: int, data: bytes | None) -> None:
        try:
            self._write(offset, length, data)
        except errors.Error as error:
            done(error)
        else:
            done(None)

    def _alive(self) -> None:
        if self._pool.address in self._storage.fenced:
            raise errors.Fenced("this client was fenced")

    def _changeable(self) -> None:
        self._alive()
        if self._read_only:
            raise errors.Busy(f"image {self.image_id} is open read-only")

    def _writable(self) -> None:
        self._changeable()
        self._volume.lock_owner = self._pool.address

    def _write(self, offset: int, length: int, data: bytes | None) -> None:
        with self._storage.guard:
            self._writable()
            if offset + length > self._volume.size:
                raise errors.CephError(f"write past the end of {self.image_id}")
            unit = self.layout.object_bytes
            for number in range(offset // unit, (offset + length + unit - 1) // unit):
                low, high = max(offset, number * unit), min(offset + length, (number + 1) * unit)
                self._write_object(number, low - number * unit, high - low, data and data[low - offset : high - offset])
            self._volume.changes.append(_Change(next(self._storage.numbers), offset, length, False))

    def _write_object(self, number: int, offset: int, length: int, data: bytes | None) -> None:
        objects = self._volume.objects
        unit = self.layout.object_bytes
        if data is None and number not in objects and not self._volume.parent:
            return
        if data is None and length == unit and not self._volume.parent:
            objects.pop(number, None)
            return
        limit = self._pool.place.capacity
        used = sum(len(volume.objects) for volume in self._pool.place.images.values())
        if number not in objects and limit is not None and used >= limit:
            raise errors.NoSpace(f"pool {self._pool.name} is full")
        old = self._object(number)
        objects[number] = old[:offset] + (data or bytes(length)) + old[offset + length :]

    def flush(self) -> None:
        self._alive()

    def resize(self, size: int) -> None:
        with self._storage.guard:
            self._writable()
            volume, unit = self._volume, self.layout.object_bytes
            if size < volume.size:
                edge = size // unit
                for number in [n for n in volume.objects if n >= edge]:
                    kept = volume.objects.pop(number)[: max(0, size - number * unit)]
                    if kept:
                        volume.objects[number] = kept.ljust(unit, b"\0")
                volume.overlap = min(volume.overlap, size)
                volume.changes.append(_Change(next(self._storage.numbers), size, volume.size - size, True))
            volume.size = size

    def create_snapshot(self, name: str) -> Snapshot:
        with self._storage.guard:
            self._changeable()
            if any(s.entry.name == name for s in self._volume.snapshots):
                raise errors.Exists(f"snapshot {name} exists")
            at = next(self._storage.numbers)
            entry = Snapshot(at, name, self._volume.size)
            self._volume.snapshots.append(_Snapshot(entry, dict(self._volume.objects), at))
            return entry

    def remove_snapshot(self, name: str) -> None:
        with self._storage.guard:
            self._changeable()
            found = self._find(name)
            self._volume.snapshots.remove(found)
            found.entry = replace(found.entry, name=f"removed-{found.entry.snapshot_id}")

    def protected(self, name: str) -> bool:
        with self._storage.guard:
            return self._find(name).protected

    def metadata(self) -> dict[str, str]:
        return dict(self._volume.metadata)

    def set_metadata(self, key: str, value: str) -> None:
        self._changeable()
        self._volume.metadata[key] = value

    def remove_metadata(self, key: str) -> None:
        self._changeable()
        self._volume.metadata.pop(key, None)

    def fast_diff(self) -> bool:
        return True

    def watchers(self) -> list[str]:
        return sorted(set(self._volume.watchers) - {self._pool.address})

    def lock_owner(self) -> str | None:
        return self._volume.lock_owner

    def break_lock(self, owner: str) -> None:
        with self._storage.guard:
            self._changeable()
            if self._volume.lock_owner != owner:
                raise errors.Busy(f"image {self.image_id} is not locked by {owner}")
            self._storage.fence(owner)

    def set_journaling(self, on: bool) -> None:
        if on:
            raise errors.Unsupported("images in memory have no journal")

    def checksums(self, objects: list[int]) -> list[int | None]:
        found = (self._objects.get(number) for number in objects)
        return [None if data is None else xxhash.xxh64_intdigest(data) for data in found]

    def close(self) -> None:
        with self._storage.guard:
            if self._open and not self._read_only:
                self._volume.watchers[self._pool.address] -= 1
                self._volume.watchers += Counter()
                if not self._volume.watchers[self._pool.address] and self._volume.lock_owner == self._pool.address:
                    self._volume.lock_owner = None
            self._open = False


class Watch:
    """Somebody waiting for notifications of one object."""

    def __init__(self, pool: "Pool", name: str, told: Callable[[], None]) -> None:
        self._told = told
        self._pool = pool
        self._name = name
        self._lost = False

    def tell(self) -> None:
        """On a thread of its own, as Ceph does."""

        def call() -> None:
            with suppress(Exception):
                self._told()

        threading.Thread(target=call, name=f"told-{self._name}", daemon=True).start()

    def lose(self) -> None:
        """The object is gone."""
        self._lost = True
        self.tell()

    def alive(self) -> bool:
        return not self._lost and self._pool.address not in self._pool.storage.fenced

    def close(self) -> None:
        with self._pool.storage.guard:
            watches = self._pool.place.watches.get(self._name, [])
            if self in watches:
                watches.remove(self)


class Pool:
    """One pool and namespace, seen by one client."""

    def __init__(self, cluster: "Cluster", name: str, namespace: str, place: _Place) -> None:
        self.cluster = cluster
        self.site = cluster.site
        self.fsid = cluster.fsid
        self.name = name
        self.namespace = namespace
        self.storage = cluster.storage
        self.address = cluster.address()
        self.place = place

    def images(self) -> list[ImageEntry]:
        return [ImageEntry(volume.image_id, name) for name, volume in self.place.images.items()]

    def image_id(self, name: str) -> str | None:
        volume = self.place.images.get(name)
        return volume.image_id if volume else None

    def _volume(self, image_id: str) -> _Volume:
        trashed = (volume for _, volume in self.place.trash.values())
        for volume in (*self.place.images.values(), *trashed):
            if volume.image_id == image_id:
                return volume
        raise errors.NotFound(f"no image with id {image_id}")

    def create_image(self, name: str, size: int, layout: Layout, data_pool: str | None) -> str:
        del data_pool
        with self.storage.guard:
            self._alive()
            if name in self.place.images:
                raise errors.Exists(f"image {name} exists")
            volume = self.place.images[name] = _Volume(f"{next(self.storage.numbers):x}", size, layout)
            return volume.image_id

    def open(self, image_id: str, snapshot: str | None = None, *, read_only: bool = True) -> Image:
        with self.storage.guard:
            self._alive()
            return Image(self, self._volume(image_id), snapshot, read_only)

    def clone(self, image_id: str, snapshot: str, into: PoolPort, name: str) -> str:
        if not isinstance(into, Pool):
            raise errors.Bug("a clone into a pool of another kind")
        with self.storage.guard:
            self._alive()
            over = Image(self, self._volume(image_id), snapshot, True)
            if not over.size():
                raise errors.Unsupported(f"{image_id}@{snapshot}: {NO_CLONE[0]}", NO_CLONE[1])
            clone = into.create_image(name, over.size(), over.layout, None)
            volume = into.place.images[name]
            found = next(s for s in self._volume(image_id).snapshots if s.entry.name == snapshot)
            volume.parent = ((self.name, self.namespace), self._volume(image_id), found)
            volume.overlap = over.size()
            volume.metadata = dict(self._volume(image_id).metadata)
            return clone

    def clear_half_made(self, name: str) -> str | None:
        """None: an image in memory is made and removed at one stroke."""
        del name
        self._alive()
        return None

    def rename(self, name: str, new: str) -> None:
        with self.storage.guard:
            self._alive()
            if new in self.place.images:
                raise errors.Exists(f"image {new} exists")
            if name not in self.place.images:
                raise errors.NotFound(f"no image {name}")
            self.place.images[new] = self.place.images.pop(name)

    def trash(self, image_id: str, name: str, expiry_seconds: float) -> None:
        del expiry_seconds
        with self.storage.guard:
            self._alive()
            if self.image_id(name) != image_id:
                raise errors.NotFound(f"image {name} is not the one with id {image_id}")
            self.place.trash[image_id] = (name, self.place.images.pop(name))

    def restore(self, image_id: str, name: str) -> None:
        with self.storage.guard:
            self._alive()
            if image_id not in self.place.trash:
                raise errors.NotFound(f"no image {image_id} in the trash")
            if name in self.place.images:
                raise errors.Exists(f"image {name} exists")
            self.place.images[name] = self.place.trash.pop(image_id)[1]

    def purge(self, image_id: str) -> None:
        with self.storage.guard:
            self._alive()
            _, volume = self.place.trash.get(image_id, ("", None))
            if volume is None:
                return
            if volume.snapshots:
                raise errors.NotEmpty(f"image {image_id} has snapshots")
            if volume.watchers:
                raise errors.Busy(f"image {image_id} is in use")
            del self.place.trash[image_id]

    def trashed(self) -> list[ImageEntry]:
        return [ImageEntry(image_id, name, True) for image_id, (name, _) in self.place.trash.items()]

    def read_document(self, name: str) -> tuple[int, str] | None:
        self._alive()
        return self.place.documents.get(name)

    def create_document(self, name: str, text: str) -> None:
        with self.storage.guard:
            self._alive()
            if name in self.place.documents:
                raise errors.Exists(f"{name} exists")
            self.place.documents[name] = (1, text)

    def _alive(self) -> None:
        if self.address in self.storage.fenced:
            raise errors.Fenced("this client was fenced")

    def swap_document(self, name: str, revision: int, text: str, claim: str | None = None) -> None:
        with self.storage.guard:
            self._alive()
            if name in self.place.documents and claim is not None and self._holder(name) != (claim, self.address):
                raise errors.Fenced(f"the claim on {name} was lost")
            self._compare(name, revision)
            self.place.documents[name] = (revision + 1, text)

    def _compare(self, name: str, revision: int) -> None:
        found = self.place.documents.get(name)
        if found is None:
            raise errors.NotFound(f"{name} is gone")
        if found[0] != revision:
            raise errors.Changed(f"{name} is at revision {found[0]}, not {revision}")

    def remove_document(self, name: str, revision: int) -> None:
        with self.storage.guard:
            self._alive()
            self._compare(name, revision)
            del self.place.documents[name]
            for key in [key for key in self.place.claims if key[0] == name]:
                del self.place.claims[key]
            for watch in self.place.watches.pop(name, []):
                watch.lose()

    def write_object(self, name: str, data: bytes) -> None:
        with self.storage.guard:
            self._alive()
            self.place.raw[name] = bytes(data)

    def read_object(self, name: str) -> bytes:
        with self.storage.guard:
            self._alive()
            if name not in self.place.raw:
                raise errors.NotFound(f"{name} is gone")
            return self.place.raw[name]

    def remove_object(self, name: str) -> None:
        with self.storage.guard:
            self._alive()
            self.place.raw.pop(name, None)

    def entries(self) -> dict[str, str]:
        self._alive()
        return dict(self.place.entries)

    def add_entry(self, key: str, value: str) -> None:
        with self.storage.guard:
            self._alive()
            if self.place.entries.setdefault(key, value) != value:
                raise errors.Exists(f"{key} is taken")

    def remove_entry(self, key: str) -> None:
        self._alive()
        self.place.entries.pop(key, None)

    def _holder(self, name: str, purpose: str = WORK) -> tuple[str, str] | None:
        """Cookie and address of whoever holds a claim that has not expired."""
        held = self.place.claims.get((name, purpose))
        return (held.cookie, held.address) if held and held.expires > self.storage.clock() else None

    def claim(self, name: str, cookie: str, owner: str, seconds: float, purpose: str = WORK) -> None:
        with self.storage.guard:
            self._alive()
            if name not in self.place.documents:
                raise errors.NotFound(f"{name} is gone")
            if self._holder(name, purpose) not in (None, (cookie, self.address)):
                raise errors.Busy(f"{name} is claimed")
            self.place.claims[name, purpose] = _Held(cookie, self.address, owner, self.storage.clock() + seconds)

    def renew_claim(self, name: str, cookie: str, owner: str, seconds: float, purpose: str = WORK) -> None:
        with self.storage.guard:
            self._alive()
            if self._holder(name, purpose) is None:
                raise errors.NotFound(f"the claim on {name} ran out")
            self.claim(name, cookie, owner, seconds, purpose)

    def unclaim(self, name: str, cookie: str, purpose: str = WORK) -> None:
        self._drop_claim(name, (cookie, self.address), purpose)

    def _drop_claim(self, name: str, holder: tuple[str, str], purpose: str) -> None:
        with self.storage.guard:
            self._alive()
            if self._holder(name, purpose) == holder:
                del self.place.claims[name, purpose]

    def claimed(self, name: str, purpose: str = WORK) -> ClaimInfo | None:
        with self.storage.guard:
            self._alive()
            if self._holder(name, purpose) is None:
                return None
            held = self.place.claims[name, purpose]
            return ClaimInfo(held.cookie, held.owner, held.expires, held.address)

    def break_claim(self, name: str, info: ClaimInfo, purpose: str = WORK) -> None:
        self._drop_claim(name, (info.cookie, info.holder), purpose)

    def enlist(self, cookie: str, text: str, seconds: float) -> None:
        with self.storage.guard:
            self._alive()
            held = _Held(cookie, self.address, text, self.storage.clock() + seconds)
            self.place.managers[cookie, self.address] = held

    def enlisted(self) -> list[ClaimInfo]:
        with self.storage.guard:
            self._alive()
            now = self.storage.clock()
            return [
                ClaimInfo(held.cookie, held.owner, held.expires, held.address)
                for held in self.place.managers.values()
                if held.expires > now
            ]

    def delist(self, cookie: str) -> None:
        with self.storage.guard:
            self._alive()
            self.place.managers.pop((cookie, self.address), None)

    def watch(self, name: str, told: Callable[[], None]) -> "Watch":
        with self.storage.guard:
            self._alive()
            if name not in self.place.documents and not (name == DIRECTORY and self.place.entries):
                raise errors.NotFound(f"{name} is gone")
            watch = Watch(self, name, told)
            self.place.watches.setdefault(name, []).append(watch)
            return watch

    def notify(self, name: str) -> None:
        with self.storage.guard:
            if self.address in self.storage.fenced:
                return
            watches = list(self.place.watches.get(name, []))
        for watch in watches:
            watch.tell()

    def remind(self, image_id: str, *, wait: bool) -> None:
        return

    def journal(self, image_id: str) -> Journal:
        raise errors.NotFound(f"image {image_id} has no journal")

    def full(self, image_id: str = "") -> str | None:
        used = sum(len(volume.objects) for volume in self.place.images.values())
        limit = self.place.capacity
        return f"pool {self.name} is full" if limit is not None and used >= limit else None


class Cluster:
    """One client of a storage."""

    def __init__(self, site: str, storage: Storage) -> None:
        self.site = site
        self.storage = storage
        self.fsid = storage.fsid
        self._address = f"memory/{next(storage.numbers)}"

    def pool(self, name: str, namespace: str = "") -> Pool:
        place = self.storage.places.get((name, namespace))
        if place is None:
            raise errors.NotFound(f"site {self.site} has no pool {name!r}")
        return Pool(self, name, namespace, place)

    def places(self) -> tuple[list[Place], list[errors.Error]]:
        return list(self.storage.places), []

    def address(self) -> str:
        return self._address

    def fence(self, address: str) -> None:
        self.storage.fence(address)

    def close(self) -> None:
        return


class Sites:
    """Named clusters; ``storages`` may be shared with other clients."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self._storages = storages
        self._clusters = {name: Cluster(name, storage) for name, storage in storages.items()}

    def names(self) -> list[str]:
        return list(self._clusters)

    def cluster(self, site: str) -> Cluster:
        if site not in self._clusters:
            raise errors.NotFound(f"there is no site {site!r}")
        return self._clusters[site]

    def renew(self, site: str) -> None:
        self._clusters[site] = Cluster(site, self._storages[site])

    def end_retired(self) -> None:
        return


def protect(storage: Storage, image_id: str, name: str) -> None:
    """``rbd snap protect``"""
    for place in storage.places.values():
        for volume in place.images.values():
            if volume.image_id == image_id:
                next(s for s in volume.snapshots if s.entry.name == name).protected = True


def write_late(storage: Storage, image_id: str, offset: int, data: bytes | None) -> None:
    """A write, inside one object, by a host that opened the image while its newest snapshot was made, and does not know
    of it (``engine.delta``). None: it removes the object."""
    for place in storage.places.values():
        for volume in place.images.values():
            if volume.image_id == image_id:
                unit, newest = volume.layout.object_bytes, volume.snapshots[-1]
                number, low = offset // unit, offset % unit
                alone = newest.objects.get(number) is volume.objects.get(number)
                old = volume.objects.pop(number, bytes(unit))
                if data is not None:
                    volume.objects[number] = old[:low] + data + old[low + len(data) :]
                if alone:
                    newest.objects.pop(number, None)
                    newest.objects.update({n: o for n, o in volume.objects.items() if n == number})
                at, late = next(storage.numbers), newest.at if alone else 0
                volume.changes.append(_Change(at, number * unit + low, len(data or old), False, late))


def corrupt(storage: Storage, image_id: str, number: int, offset: int, data: bytes) -> None:
    """Flips stored bytes of an object, in the head and in every snapshot, as a broken disk would."""
    for place in storage.places.values():
        for volume in place.images.values():
            if volume.image_id == image_id:
                for objects in (volume.objects, *(s.objects for s in volume.snapshots)):
                    old = objects[number]
                    objects[number] = old[:offset] + data + old[offset + len(data) :]
