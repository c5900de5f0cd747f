"""``ports.Pool`` over librados and librbd."""

import struct
import weakref
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import rados
import rbd

from rbdtree import errors
from rbdtree.ceph import claim
from rbdtree.ceph.image import Image
from rbdtree.ceph.journal import Journal
from rbdtree.ceph.translate import translated
from rbdtree.ceph.watch import Watch
from rbdtree.model.document import DIRECTORY
from rbdtree.ports import MANAGERS, NO_CLONE, WORK, ClaimInfo, ImageEntry, Layout
from rbdtree.ports import Pool as PoolPort

if TYPE_CHECKING:
    from rbdtree.ceph.cluster import Cluster

_FEATURES = (
    rbd.RBD_FEATURE_LAYERING
    | rbd.RBD_FEATURE_EXCLUSIVE_LOCK
    | rbd.RBD_FEATURE_OBJECT_MAP
    | rbd.RBD_FEATURE_FAST_DIFF
    | rbd.RBD_FEATURE_DEEP_FLATTEN
)
"""Of the images we make: fencing needs the lock, cheap diffs need the maps."""
_ENTRIES = 1 << 20
_ID_BYTES = 1 << 10
_NOTIFY_MS = 5000
_OBJECT_BYTES = 8 << 20


def _string(raw: bytes) -> str:
    """A string as Ceph encodes it: its length, its bytes."""
    (length,) = struct.unpack_from("<I", raw)
    return raw[4 : 4 + length].decode()


def _encoded(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


class Pool:
    """One pool and namespace, through one ioctx (librados' are safe to share between threads)."""

    def __init__(self, cluster: "Cluster", name: str, namespace: str, ioctx: rados.Ioctx) -> None:
        self.cluster = cluster
        self.site = cluster.site
        self.fsid = cluster.fsid
        self.name = name
        self.namespace = namespace
        self.ioctx = ioctx
        self._rbd = rbd.RBD()
        self._opened: weakref.WeakSet[Image] = weakref.WeakSet()

    def lane(self, number: int) -> rados.Ioctx:
        """The same pool over another connection."""
        ioctx = self.cluster.lane(number).open_ioctx(self.name)
        ioctx.set_namespace(self.namespace)
        return ioctx

    @property
    def path(self) -> str:
        return f"{self.site}:{self.name}" + (f"/{self.namespace}" if self.namespace else "")

    def close(self) -> None:
        """Closes what is still open of it: an image collected after its client is gone aborts the process (librbd)."""
        for image in list(self._opened):
            with suppress(errors.Error):
                image.close()
        self.ioctx.close()

    # -- images

    def images(self) -> list[ImageEntry]:
        with translated(f"list images of {self.path}"):
            return [ImageEntry(entry["id"], entry["name"]) for entry in self._rbd.list2(self.ioctx)]

    def image_id(self, name: str) -> str | None:
        # Read where RBD keeps it, not asked of an open image, which takes a dozen round trips. And from the directory,
        # which a rename changes at once; rbd_id.NAME of before stays when it dies in the middle.
        return self._in_directory(f"name_{name}")

    def _in_directory(self, key: str) -> str | None:
        try:
            with translated(f"look into {self.path}/rbd_directory"), rados.ReadOpCtx() as op:
                found, _ = self.ioctx.get_omap_vals_by_keys(op, (key,))
                self.ioctx.operate_read_op(op, "rbd_directory")
                raw = dict(found).get(key)
        except errors.NotFound:
            return None
        return None if raw is None else _string(raw)

    def _making(self, name: str, make: Callable[[], object]) -> None:
        """Once more when nothing but an old rbd_id.NAME is in the way: of an image that was renamed, or moved to the
        trash, by somebody who died or was given no answer before the end."""
        try:
            make()
        except rbd.ImageExists:
            if not self._cleared(name):
                raise
            make()

    def _cleared(self, name: str) -> bool:
        if self.image_id(name) is not None:
            return False
        try:
            raw = self.ioctx.read(f"rbd_id.{name}", _ID_BYTES)
            known = _string(raw)
            elsewhere = self._in_directory(f"id_{known}") is not None
            if not elsewhere and all(entry.image_id != known for entry in self.trashed()):
                return False
            self._remove_id(name, raw)
        except rados.Error:
            return False
        return True

    def _remove_id(self, name: str, raw: bytes) -> None:
        with rados.WriteOpCtx() as op:
            # Somebody may have cleared it at the same time, and be making an image of this name.
            op.cmpext(raw, 0)
            op.remove()
            self.ioctx.operate_write_op(op, f"rbd_id.{name}")

    def clear_half_made(self, name: str) -> str | None:
        with translated(f"clear what is left of image {self.path}/{name}"):
            listed = self.image_id(name)
            raw = self._id_object(name)
            named = _string(raw) if raw else None
            known = [image_id for image_id in (listed, named) if image_id]
            if not known or any(map(self._has_header, known)):
                return None
            if listed:
                # librbd's removal goes on where one died, with the entry in the trash too. Not without the name in the
                # directory: then it would take an image of the old format for it.
                with suppress(rbd.Error):
                    self._rbd.remove(self.ioctx, name)
                if self.image_id(name) == listed:
                    both = _encoded(name) + _encoded(listed)
                    self.ioctx.execute("rbd_directory", "rbd", "dir_remove_image", both)
            if raw and self._id_object(name) == raw:
                self._remove_id(name, raw)
            return known[0]

    def _id_object(self, name: str) -> bytes:
        try:
            return bytes(self.ioctx.read(f"rbd_id.{name}", _ID_BYTES))
        except rados.ObjectNotFound:
            return b""

    def _has_header(self, image_id: str) -> bool:
        try:
            self.ioctx.stat(f"rbd_header.{image_id}")
        except rados.ObjectNotFound:
            return False
        return True

    def create_image(self, name: str, size: int, layout: Layout, data_pool: str | None) -> str:
        order = layout.object_bytes.bit_length() - 1
        striped = layout.stripe_count > 1
        with translated(f"create image {self.path}/{name}"):
            make = partial(
                self._rbd.create,
                self.ioctx,
                name,
                size,
                order=order,
                old_format=False,
                features=_FEATURES,
                stripe_unit=layout.stripe_unit if striped else 0,
                stripe_count=layout.stripe_count if striped else 0,
                data_pool=data_pool,
            )
            self._making(name, make)
        return self._named(name)

    def _named(self, name: str) -> str:
        image_id = self.image_id(name)
        if image_id is None:
            raise errors.NotFound(f"image {self.path}/{name} vanished while it was made")
        return image_id

    def open(self, image_id: str, snapshot: str | None = None, *, read_only: bool = True) -> Image:
        image = Image(self, image_id, snapshot, read_only)
        self._opened.add(image)
        return image

    def clone(self, image_id: str, snapshot: str, into: PoolPort, name: str) -> str:
        if not isinstance(into, Pool):
            raise errors.Bug("a clone into a pool of another kind")
        # Its name from the directory, as in image_id(): to open an image takes a dozen round trips.
        parent = self._in_directory(f"id_{image_id}")
        if parent is None:
            raise errors.NotFound(f"image {self.path}/{image_id} is gone, or in the trash")
        with translated(f"clone {self.path}/{image_id}@{snapshot} to {into.path}/{name}"):
            make = partial(self._rbd.clone, self.ioctx, parent, snapshot, into.ioctx, name, features=_FEATURES)
            try:
                into._making(name, make)
            except rbd.InvalidArgument:
                with rbd.Image(self.ioctx, snapshot=snapshot, image_id=image_id, read_only=True) as image:
                    if image.size():
                        raise
                raise errors.Unsupported(f"{self.path}/{parent}@{snapshot}: {NO_CLONE[0]}", NO_CLONE[1]) from None
        return into._named(name)

    def rename(self, name: str, new: str) -> None:
        with translated(f"rename image {self.path}/{name} to {new}"):
            self._making(new, partial(self._rbd.rename, self.ioctx, name, new))

    def trash(self, image_id: str, name: str, expiry_seconds: float) -> None:
        if self.image_id(name) != image_id:
            raise errors.NotFound(f"image {self.path}/{name} is not the one with id {image_id}")
        with translated(f"move image {self.path}/{name} to the trash"):
            self._rbd.trash_move(self.ioctx, name, int(expiry_seconds))

    def restore(self, image_id: str, name: str) -> None:
        with translated(f"restore image {self.path}/{name} from the trash"):
            self._rbd.trash_restore(self.ioctx, image_id, name)

    def purge(self, image_id: str) -> None:
        with suppress(errors.NotFound), translated(f"remove image {self.path}/{image_id} from the trash"):
            self._rbd.trash_remove(self.ioctx, image_id, True)

    def trashed(self) -> list[ImageEntry]:
        with translated(f"list the trash of {self.path}"):
            return [ImageEntry(entry["id"], entry["name"], True) for entry in self._rbd.trash_list(self.ioctx)]

    # -- documents

    def read_document(self, name: str) -> tuple[int, str] | None:
        try:
            with translated(f"read {self.path}/{name}"), rados.ReadOpCtx() as op:
                found, _ = self.ioctx.get_omap_vals_by_keys(op, ("revision", "document"))
                self.ioctx.operate_read_op(op, name)
                values = dict(found)
        except errors.NotFound:
            return None
        if "revision" not in values or "document" not in values:
            return None
        # The binding has None for an empty value.
        return int(values["revision"]), (values["document"] or b"").decode()

    def create_document(self, name: str, text: str) -> None:
        with translated(f"create {self.path}/{name}"), rados.WriteOpCtx() as op:
            op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
            self.ioctx.set_omap(op, ("revision", "document"), (b"1", text.encode()))
            self.ioctx.operate_write_op(op, name)

    def swap_document(self, name: str, revision: int, text: str, cookie: str | None = None) -> None:
        try:
            with translated(f"write {self.path}/{name}"), rados.WriteOpCtx() as op:
                if cookie is not None:
                    op.execute("lock", "assert_locked", claim.assertion(WORK, cookie))
                op.omap_cmp("revision", str(revision), rados.LIBRADOS_CMPXATTR_OP_EQ)
                self.ioctx.set_omap(op, ("revision", "document"), (str(revision + 1).encode(), text.encode()))
                self.ioctx.operate_write_op(op, name)
        except errors.Busy as error:
            raise errors.Fenced(f"the claim on {self.path}/{name} was lost") from error
        except errors.Changed as error:
            raise errors.Changed(f"{self.path}/{name} was changed by others, again and again") from error

    def remove_document(self, name: str, revision: int) -> None:
        with translated(f"remove {self.path}/{name}"), rados.WriteOpCtx() as op:
            op.omap_cmp("revision", str(revision), rados.LIBRADOS_CMPXATTR_OP_EQ)
            op.remove()
            self.ioctx.operate_write_op(op, name)

    # -- objects

    def write_object(self, name: str, data: bytes) -> None:
        with translated(f"write {self.path}/{name}"):
            self.ioctx.write_full(name, data)

    def read_object(self, name: str) -> bytes:
        found: list[bytes] = []
        with translated(f"read {self.path}/{name}"):
            # One read gets an object of the usual size and sees its end.
            while not found or len(found[-1]) == _OBJECT_BYTES:
                found.append(self.ioctx.read(name, _OBJECT_BYTES, sum(map(len, found))))
        return found[0] if len(found) == 1 else b"".join(found)

    def remove_object(self, name: str) -> None:
        with suppress(errors.NotFound), translated(f"remove {self.path}/{name}"):
            self.ioctx.remove_object(name)

    # -- directory

    def entries(self) -> dict[str, str]:
        found: dict[str, str] = {}
        after = ""
        while True:
            try:
                with translated(f"read {self.path}/{DIRECTORY}"), rados.ReadOpCtx() as op:
                    page, _ = self.ioctx.get_omap_vals(op, after, "", _ENTRIES)
                    self.ioctx.operate_read_op(op, DIRECTORY)
                    batch = [(key, (value or b"").decode()) for key, value in page]
            except errors.NotFound:
                return found
            if not batch:
                return found
            found.update(batch)
            after = batch[-1][0]

    def add_entry(self, key: str, value: str) -> None:
        with translated(f"write {self.path}/{DIRECTORY}"):
            with rados.WriteOpCtx() as op:
                op.new(rados.LIBRADOS_CREATE_IDEMPOTENT)
                self.ioctx.operate_write_op(op, DIRECTORY)
            try:
                with rados.WriteOpCtx() as op:
                    # An empty value equals a missing key.
                    op.omap_cmp(key, "", rados.LIBRADOS_CMPXATTR_OP_EQ)
                    self.ioctx.set_omap(op, (key,), (value.encode(),))
                    self.ioctx.operate_write_op(op, DIRECTORY)
                return
            except rados.Error as error:
                if self.entries().get(key) == value:
                    return
                raise errors.Exists(f"{key} is in {self.path}/{DIRECTORY} already") from error

    def remove_entry(self, key: str) -> None:
        with (
            suppress(errors.NotFound),
            translated(f"write {self.path}/{DIRECTORY}"),
            rados.WriteOpCtx() as op,
        ):
            self.ioctx.remove_omap_keys(op, (key,))
            self.ioctx.operate_write_op(op, DIRECTORY)

    # -- claims

    def claim(self, name: str, cookie: str, owner: str, seconds: float, purpose: str = WORK) -> None:
        if self.read_document(name) is None:
            raise errors.NotFound(f"{self.path}/{name} is gone")
        claim.take(self.ioctx, name, purpose, cookie, owner, seconds, self.path)

    def renew_claim(self, name: str, cookie: str, owner: str, seconds: float, purpose: str = WORK) -> None:
        claim.take(self.ioctx, name, purpose, cookie, owner, seconds, self.path, renew=True)

    def unclaim(self, name: str, cookie: str, purpose: str = WORK) -> None:
        with suppress(errors.NotFound):
            claim.release(self.ioctx, name, purpose, cookie)

    def claimed(self, name: str, purpose: str = WORK) -> ClaimInfo | None:
        try:
            return next(iter(claim.holders(self.ioctx, name, purpose)), None)
        except errors.NotFound:
            return None

    def break_claim(self, name: str, info: ClaimInfo, purpose: str = WORK) -> None:
        with suppress(errors.NotFound):
            claim.break_(self.ioctx, name, purpose, info)

    # -- managers

    def enlist(self, cookie: str, text: str, seconds: float) -> None:
        claim.take(self.ioctx, DIRECTORY, MANAGERS, cookie, text, seconds, self.path, shared=True)

    def enlisted(self) -> list[ClaimInfo]:
        try:
            return claim.holders(self.ioctx, DIRECTORY, MANAGERS)
        except errors.NotFound:
            return []

    def delist(self, cookie: str) -> None:
        with suppress(errors.NotFound):
            claim.release(self.ioctx, DIRECTORY, MANAGERS, cookie)

    # -- waking others

    def watch(self, name: str, told: Callable[[], None]) -> Watch:
        return Watch(self.ioctx, name, told, self.path)

    def notify(self, name: str) -> None:
        # Nobody waits for the answers: a dead watcher gives none. The completion has to outlive the call.
        with suppress(errors.Error), translated(f"notify {self.path}/{name}"):
            self._notified = self.ioctx.aio_notify(name, lambda *_: None, "", _NOTIFY_MS)

    def remind(self, image_id: str, *, wait: bool) -> None:
        # A notification without content is the oldest there is, "the header has changed": librbd and the kernel read
        # the header again before their next request. librbd 16 and 18 do not after they have begun to watch.
        header = f"rbd_header.{image_id}"
        if not wait:
            self.notify(header)
            return
        with suppress(errors.Error), translated(f"notify {self.path}/{header}"):
            self.ioctx.notify(header, "", _NOTIFY_MS)

    def journal(self, image_id: str) -> Journal:
        return Journal(self, image_id)

    def full(self, image_id: str = "") -> str | None:
        full = self.cluster.full()
        if self.name in full or not image_id or not full:
            return full.get(self.name)
        # Only then are OSDs asked, which may not answer: another pool is full, perhaps where this image has its data.
        try:
            with (
                translated(f"open image {self.path}/{image_id}"),
                rbd.Image(self.ioctx, image_id=image_id, read_only=True) as image,
            ):
                return full.get(self.cluster.pool_name(image.data_pool_id()))
        except errors.NotFound:
            return None
