"""``ports.Image`` over librbd."""

import threading
import time
from calendar import timegm
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import rbd

from rbdtree import errors, heap
from rbdtree.ceph.translate import from_errno, translated
from rbdtree.model.extent import Pair
from rbdtree.ports import Ancestor, Layout, ReadDone, Snapshot, Span, WriteDone

if TYPE_CHECKING:
    from rbdtree.ceph.pool import Pool


def _join(spans: list[Span], at: int, length: int, exists: bool) -> None:
    """Neighbours become one: a terabyte of data is a quarter of a million objects, and often one span."""
    if spans and spans[-1][0] + spans[-1][1] == at and spans[-1][2] == exists:
        at, length = spans[-1][0], spans[-1][1] + length
        spans.pop()
    spans.append((at, length, exists))


_LONG = 0.35
"""An image that took this many seconds to open (a dozen round trips) is at the end of a long link."""
_MUCH = 64 << 20
"""Bytes read from a snapshot at the end of a long link before more connections to it are worth their making."""
_STATS = 4
_LANES = 3
"""That many more: a TCP connection carries no more than its buffers hold each round trip."""


class Image:
    """An open image or snapshot. Safe to use from several threads, as librbd's handles are."""

    def __init__(self, pool: "Pool", image_id: str, snapshot: str | None, read_only: bool) -> None:
        self.image_id = image_id
        self._pool = pool
        self._what = f"{pool.path}/{image_id}" + (f"@{snapshot}" if snapshot else "")
        self._snapshot = snapshot
        self._closing = threading.Lock()
        self._asked = 0
        self._moved = 0
        self._turn = 0
        began = time.monotonic()
        self._changed: dict[tuple[str | None, int, int] | None, list[Span]] = {}
        self._tracking = threading.Lock()
        self._completions: deque[rbd.Completion] = deque()
        with translated(f"open image {self._what}"):
            self._image = rbd.Image(pool.ioctx, image_id=image_id, snapshot=snapshot, read_only=read_only)
            self._open = True
            object_bytes = self._image.stat()["obj_size"]
            self.layout = Layout(object_bytes, self._image.stripe_unit(), self._image.stripe_count())
        self._lanes = [self._image]
        self._spread = snapshot is None or time.monotonic() - began < _LONG

    def size(self) -> int:
        with translated(f"size of {self._what}"):
            return int(self._image.size())

    def snapshots(self) -> tuple[Snapshot, ...]:
        with translated(f"list snapshots of {self._what}"):
            found = [s for s in self._image.list_snaps() if s["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER]
        return tuple(Snapshot(s["id"], s["name"], s["size"]) for s in sorted(found, key=lambda s: int(s["id"])))

    def changed(self, since: str | None, offset: int, length: int, *, whole_object: bool) -> list[Span]:
        spans: list[Span] = []
        if length <= 0:
            # librbd 16 asserts on an empty range (fixed by Ceph's pull request 58211).
            return spans
        # What lies between two snapshots stays so: their maps come over the link once.
        kept = (since, offset, length) if whole_object and self._snapshot else None
        if kept in self._changed:
            return self._changed[kept]
        with translated(f"diff {self._what} since {since}"):
            self._image.diff_iterate(offset, length, since, partial(_join, spans), True, whole_object)
        if kept:
            self._changed[kept] = spans
        return spans

    def written_after(self, snapshot: str, objects: list[int], skew: float) -> list[int]:
        with translated(f"objects of {self._what} at {snapshot}"):
            prefix, snapshot_id = self._image.block_name_prefix(), self._image.snap_get_id(snapshot)
            made = timegm(self._image.get_snap_timestamp(snapshot_id).utctimetuple())
            ioctx = self._pool.cluster.open_pool_id(self._image.data_pool_id())

        def late(number: int) -> bool:
            try:
                with translated(f"object {number} of {self._what}"):
                    _, written = ioctx.stat(f"{prefix}.{number:016x}")
            except errors.NotFound:
                return False
            # A writer's clock, and that of an OSD.
            return time.mktime(written) >= made - skew

        try:
            ioctx.set_namespace(self._pool.namespace)
            ioctx.set_read(snapshot_id)
            with ThreadPoolExecutor(_STATS, thread_name_prefix="stat") as threads:
                return [n for n, found in zip(objects, threads.map(late, objects), strict=True) if found]
        finally:
            ioctx.close()

    def own_data(self) -> bool:
        spans: list[int] = []
        size = self.size()
        if not size:
            return False
        with translated(f"diff {self._what}"):
            self._image.diff_iterate(0, size, None, lambda at, _n, _e: spans.append(at), False, True)
        return bool(spans)

    def ancestor(self) -> Ancestor | None:
        try:
            with translated(f"parent of {self._what}"):
                spec = self._image.get_parent_image_spec()
                return Ancestor(
                    spec["pool_name"],
                    spec["pool_namespace"],
                    str(self._image.parent_id()),
                    spec["snap_name"],
                    int(self._image.overlap()),
                )
        except errors.NotFound:
            return None

    def read(self, offset: int, length: int) -> bytes:
        self._moved += length
        with translated(f"read {self._what}"):
            return bytes(self._image.read(offset, length))

    def submit_read(self, offset: int, length: int, done: ReadDone) -> None:
        def finished(completion: rbd.Completion, data: bytes | None) -> None:
            code = completion.get_return_value()
            done(from_errno(code, f"read {self._what}") if code < 0 or data is None else data)

        self._asked += length
        self._moved += length
        if not self._spread and self._asked > _MUCH:
            self._spread = True
            threading.Thread(target=self._open_lanes, name="lanes", daemon=True).start()
        self._turn += 1
        with translated(f"read {self._what}"):
            self._remember(self._lanes[self._turn % len(self._lanes)].aio_read(offset, length, finished))

    def _open_lanes(self) -> None:
        """More handles to this snapshot, each over connections of its own. What fails is done without."""
        with ThreadPoolExecutor(_LANES, thread_name_prefix="lane") as threads:
            threads.map(self._open_lane, range(_LANES))

    def _open_lane(self, number: int) -> None:
        with suppress(errors.Error), translated(f"open image {self._what} once more"):
            ioctx = self._pool.lane(number)
            lane = rbd.Image(ioctx, image_id=self.image_id, snapshot=self._snapshot, read_only=True)
            with self._closing:
                if self._open:
                    self._lanes.append(lane)
                    return
            lane.close()

    def submit_write(self, offset: int, data: bytes, done: WriteDone) -> None:
        self._moved += len(data)
        with translated(f"write {self._what}"):
            self._remember(self._image.aio_write(data, offset, self._written("write", done)))

    def submit_zero(self, offset: int, length: int, done: WriteDone) -> None:
        # Not discard: librbd's discard silently skips what is not aligned to 64 KiB.
        with translated(f"zero {self._what}"):
            self._remember(self._image.aio_write_zeroes(offset, length, self._written("zero", done)))

    def _remember(self, completion: rbd.Completion) -> None:
        with self._tracking:
            self._completions.append(completion)
            while self._completions and self._completions[0].is_complete():
                self._completions.popleft()

    def _written(self, verb: str, done: WriteDone) -> "Callable[[rbd.Completion], None]":
        def finished(completion: rbd.Completion) -> None:
            code = completion.get_return_value()
            done(from_errno(code, f"{verb} {self._what}") if code < 0 else None)

        return finished

    def flush(self) -> None:
        with translated(f"flush {self._what}"):
            self._image.flush()

    def resize(self, size: int) -> None:
        with translated(f"resize {self._what}"):
            self._image.resize(size)

    def create_snapshot(self, name: str) -> Snapshot:
        with translated(f"create snapshot {name} of {self._what}"):
            self._image.create_snap(name)
        self._pool.remind(self.image_id, wait=False)
        return next(s for s in self.snapshots() if s.name == name)

    def remove_snapshot(self, name: str) -> None:
        with translated(f"remove snapshot {name} of {self._what}"):
            if self._image.is_protected_snap(name):
                self._image.unprotect_snap(name)
            self._image.remove_snap(name)

    def protected(self, name: str) -> bool:
        with translated(f"snapshot {name} of {self._what}"):
            return bool(self._image.is_protected_snap(name))

    def metadata(self) -> dict[str, str]:
        with translated(f"metadata of {self._what}"):
            return dict(self._image.metadata_list())

    def set_metadata(self, key: str, value: str) -> None:
        with translated(f"set metadata {key} of {self._what}"):
            self._image.metadata_set(key, value)

    def remove_metadata(self, key: str) -> None:
        with translated(f"remove metadata {key} of {self._what}"):
            try:
                self._image.metadata_remove(key)
            except KeyError:
                return

    def fast_diff(self) -> bool:
        with translated(f"features of {self._what}"):
            wanted = rbd.RBD_FEATURE_FAST_DIFF | rbd.RBD_FEATURE_OBJECT_MAP
            broken = rbd.RBD_FLAG_FAST_DIFF_INVALID | rbd.RBD_FLAG_OBJECT_MAP_INVALID
            return self._image.features() & wanted == wanted and not self._image.flags() & broken

    def watchers(self) -> list[str]:
        mine = self._pool.cluster.address()
        with translated(f"watchers of {self._what}"):
            return sorted({str(w["addr"]) for w in self._image.watchers_list()} - {mine})

    def lock_owner(self) -> str | None:
        with translated(f"lock owner of {self._what}"):
            try:
                return next((str(owner["owner"]) for owner in self._image.lock_get_owners()), None)
            except rbd.InvalidArgument:
                # Opened read-only, where librbd knows the lockers as of its last refresh; an empty list when unlocked.
                found = self._image.list_lockers()
        if not isinstance(found, dict) or found["tag"] != "internal":
            return None
        return next((str(address) for _, _, address in found["lockers"]), None)

    def break_lock(self, owner: str) -> None:
        with translated(f"break the lock of {owner} on {self._what}"):
            self._image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner)

    def set_journaling(self, on: bool) -> None:
        with translated(f"features of {self._what}"):
            features = self._image.features()
        if bool(features & rbd.RBD_FEATURE_JOURNALING) == on:
            return
        if on and not features & rbd.RBD_FEATURE_EXCLUSIVE_LOCK:
            raise errors.Unsupported(
                f"{self._what} has no exclusive lock, which journaling needs",
                "Enable it with 'rbd feature enable IMAGE exclusive-lock' where one host writes at a time.",
            )
        with translated(f"journaling of {self._what}"):
            self._image.update_features(rbd.RBD_FEATURE_JOURNALING, on)

    def checksums(self, extents: Sequence[Pair]) -> list[int | None]:
        with translated(f"checksum {self._what}"):
            prefix, pool_id = self._image.block_name_prefix(), self._image.data_pool_id()
            snapshot_id = self._image.snap_get_id(self._snapshot) if self._snapshot else None
        unit = self.layout.object_bytes
        pieces = [(f"{prefix}.{offset // unit:016x}", offset % unit, length) for offset, length in extents]
        return self._pool.cluster.checksums().pieces(pool_id, self._pool.namespace, snapshot_id, pieces)

    def close(self) -> None:
        with self._closing:
            if self._open:
                self._open = False
                # librbd goes on using the image after a callback has told of its end: closed then, memory is torn.
                for completion in self._completions:
                    completion.wait_for_complete_and_cb()
                with translated(f"close {self._what}"):
                    for lane in self._lanes:
                        lane.close()
                if self._moved > _MUCH:
                    # The next copy would come on top of what this one's threads freed.
                    heap.trim()
