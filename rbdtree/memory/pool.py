"""A pool and namespace, as a client sees it: images, documents, claims, watches."""

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from rbdtree import errors
from rbdtree.memory.image import Image
from rbdtree.memory.storage import Contents, Held, Volume
from rbdtree.model.document import DIRECTORY
from rbdtree.ports import NO_CLONE, WORK, ClaimInfo, ImageEntry, Journal, Layout
from rbdtree.ports import Pool as PoolPort

if TYPE_CHECKING:
    from rbdtree.memory.cluster import Cluster


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

    def __init__(self, cluster: "Cluster", name: str, namespace: str, place: Contents) -> None:
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

    def _volume(self, image_id: str) -> Volume:
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
            volume = self.place.images[name] = Volume(f"{next(self.storage.numbers):x}", size, layout)
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
            self.place.claims[name, purpose] = Held(cookie, self.address, owner, self.storage.clock() + seconds)

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
            held = Held(cookie, self.address, text, self.storage.clock() + seconds)
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
