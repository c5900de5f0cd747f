"""Images to measure with: made, changed at random, hashed; through librbd, with no code of the tool.

Two shapes hold the same bytes: ``small`` has its objects side by side, ``thin`` has as many spread over 1 TiB. Half of
the objects are written before the first generation.
"""

import hashlib
import os
import random
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import rados
import rbd
from sites import Site

OBJECT = 4 << 20
FEATURES = (
    rbd.RBD_FEATURE_LAYERING
    | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
    | rbd.RBD_FEATURE_OBJECT_MAP
    | rbd.RBD_FEATURE_FAST_DIFF
    | rbd.RBD_FEATURE_DEEP_FLATTEN
)
_DEPTH = 64

Pair = tuple[int, int]


@dataclass(frozen=True)
class Shape:
    """An image of ``size`` bytes in which only the objects ``slots`` are ever written."""

    size: int
    slots: tuple[int, ...]

    @classmethod
    def small(cls, objects: int) -> "Shape":
        return cls(objects * OBJECT, tuple(range(objects)))

    @classmethod
    def thin(cls, objects: int, size: int = 1 << 40) -> "Shape":
        chosen = random.Random(objects).sample(range(size // OBJECT), objects)
        return cls(size, tuple(sorted(chosen)))

    def half(self) -> list[Pair]:
        """Every other object, whole."""
        return [(slot * OBJECT, OBJECT) for slot in self.slots[::2]]

    def pieces(self, count: int, length: int) -> list[Pair]:
        """``count`` aligned places anywhere in the objects, ascending."""
        per_object = OBJECT // length
        chosen = random.sample(range(len(self.slots) * per_object), count)
        places = (divmod(number, per_object) for number in chosen)
        return sorted((self.slots[slot] * OBJECT + place * length, length) for slot, place in places)


class Hand:
    """A connection of the measuring script to one site; from there, unless ``at`` says from where."""

    def __init__(self, site: Site, at: Site | None = None) -> None:
        self.site = site
        self.rbd = rbd.RBD()
        self.cluster, self.ioctx = (at or site).call(self._connect)

    def _connect(self) -> "tuple[rados.Rados, rados.Ioctx]":
        cluster = rados.Rados(conffile=str(self.site.conf))
        cluster.conf_set("rbd_cache", "false")
        cluster.connect(timeout=20)
        return cluster, cluster.open_ioctx("rbd")

    def close(self) -> None:
        self.ioctx.close()
        self.cluster.shutdown()

    def open(self, name: str, snapshot: str | None = None, read_only: bool = True) -> "rbd.Image":
        return rbd.Image(self.ioctx, name, snapshot=snapshot, read_only=read_only)

    def create(self, name: str, size: int) -> None:
        self.rbd.create(self.ioctx, name, size, old_format=False, features=FEATURES)

    def remove(self, name: str) -> None:
        """With its snapshots, unless it is gone already."""
        try:
            with self.open(name, read_only=False) as image:
                for snapshot in list(image.list_snaps()):
                    if snapshot["namespace"] == rbd.RBD_SNAP_NAMESPACE_TYPE_USER:
                        image.remove_snap(snapshot["name"])
            self.rbd.remove(self.ioctx, name)
        except rbd.ImageNotFound:
            return

    def empty_trash(self) -> None:
        for entry in list(self.rbd.trash_list(self.ioctx)):
            with rbd.Image(self.ioctx, image_id=entry["id"]) as image:
                for snapshot in list(image.list_snaps()):
                    image.remove_snap(snapshot["name"])
            self.rbd.trash_remove(self.ioctx, entry["id"], True)

    def names(self) -> list[str]:
        return list(self.rbd.list(self.ioctx))

    def write(self, images: Iterable[str], extents: list[Pair]) -> None:
        """Fresh random bytes at the extents, the same in every image."""
        opened = [self.open(name, read_only=False) for name in images]
        room = threading.BoundedSemaphore(_DEPTH)
        try:
            for offset, length in extents:
                data = os.urandom(length)
                for image in opened:
                    room.acquire()
                    image.aio_write(data, offset, lambda _: room.release())
            for _ in range(_DEPTH):
                room.acquire()
            for image in opened:
                image.flush()
        finally:
            for image in opened:
                image.close()

    def digest(self, name: str, snapshot: str | None = None, objects: Iterable[int] | None = None) -> str:
        """SHA-256 over number and content of every object that is not all zeroes (of ``objects`` only, if given)."""
        found = hashlib.sha256()
        with self.open(name, snapshot) as image:
            size = image.size()
            found.update(size.to_bytes(8, "little"))
            if objects is None:
                spans: list[Pair] = []
                image.diff_iterate(0, size, None, lambda at, n, _: spans.append((at, n)), True, True)
                objects = {number for at, n in spans for number in range(at // OBJECT, -(-(at + n) // OBJECT))}
            for number in sorted(objects):
                data = image.read(number * OBJECT, min(OBJECT, size - number * OBJECT))
                if data != bytes(len(data)):
                    found.update(number.to_bytes(8, "little"))
                    found.update(data)
        return found.hexdigest()

    def counter(self, name: str) -> int:
        """A performance counter of the OSDs, summed."""
        return sum(int(self._osd(socket)["osd"][name]) for socket in self._sockets())

    def _sockets(self) -> list[str]:
        return [str(path) for path in (self.site.conf.parent / "run").glob("osd.*.asok")]

    def _osd(self, socket: str) -> Any:
        import json
        import subprocess

        answer = subprocess.run(
            ["ceph", "--admin-daemon", socket, "perf", "dump"], check=True, capture_output=True
        ).stdout
        return json.loads(answer)
