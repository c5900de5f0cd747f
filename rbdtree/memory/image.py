"""An open image or snapshot, as a client sees it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import xxhash

from rbdtree import errors
from rbdtree.memory.storage import Change, Kept, Objects, Volume
from rbdtree.model.extent import Extents, Pair
from rbdtree.ports import Ancestor, ReadDone, Snapshot, Span, WriteDone

if TYPE_CHECKING:
    from rbdtree.memory.pool import Pool


class Image:
    """An open image or snapshot."""

    def __init__(self, pool: "Pool", volume: Volume, snapshot: str | None, read_only: bool) -> None:
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

    def _find(self, name: str) -> Kept:
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
            self._volume.changes.append(Change(next(self._storage.numbers), offset, length, False))

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
                volume.changes.append(Change(next(self._storage.numbers), size, volume.size - size, True))
            volume.size = size

    def create_snapshot(self, name: str) -> Snapshot:
        with self._storage.guard:
            self._changeable()
            if any(s.entry.name == name for s in self._volume.snapshots):
                raise errors.Exists(f"snapshot {name} exists")
            at = next(self._storage.numbers)
            entry = Snapshot(at, name, self._volume.size)
            self._volume.snapshots.append(Kept(entry, dict(self._volume.objects), at))
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

    def checksums(self, extents: Sequence[Pair]) -> list[int | None]:
        unit, found = self.layout.object_bytes, list[int | None]()
        for offset, length in extents:
            data, at = self._objects.get(offset // unit), offset % unit
            found.append(None if data is None else xxhash.xxh64_intdigest(data[at : at + length]))
        return found

    def close(self) -> None:
        with self._storage.guard:
            if self._open and not self._read_only:
                self._volume.watchers[self._pool.address] -= 1
                self._volume.watchers += Counter()
                if not self._volume.watchers[self._pool.address] and self._volume.lock_owner == self._pool.address:
                    self._volume.lock_owner = None
            self._open = False
