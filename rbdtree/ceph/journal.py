"""``ports.Journal``: the object class ``cls_journal`` (``src/cls/journal``) and the journal's objects, by librados.

journal.<image id>                        header: omap only
journal_data.<pool id>.<image id>.<n>     entries; <pool id> is the header's, wherever the data is
"""

import struct
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING

import rados

from rbdtree import errors
from rbdtree.ceph.translate import from_errno, translated
from rbdtree.model.encoding import string
from rbdtree.model.journal_client import (
    CLIENT_DATA,
    Client,
    Commit,
    Header,
    Tag,
    decode_client,
    decode_clients,
    decode_tags,
    encode_positions,
)
from rbdtree.ports import ReadDone

if TYPE_CHECKING:
    from rbdtree.ceph.pool import Pool

_REPLY_BYTES = 256 << 10
_PAGE = 64
_NOTIFY_MS = 5000
_NUMBERS = ("active_set", "minimum_set", "next_tag_tid")


class Journal:
    """The journal of one image. Order, splay width and pool of the data are fixed when librbd makes it."""

    def __init__(self, pool: "Pool", image_id: str) -> None:
        self.image_id = image_id
        self._ioctx = pool.ioctx
        self._data = pool.ioctx
        self._cluster = pool.cluster
        self._oid = f"journal.{image_id}"
        self._what = f"the journal of {pool.path}/{image_id}"
        self._newest_tag = -1
        self._notified: rados.Completion | None = None
        values = self._values(("order", "splay_width", "pool_id"))
        try:
            self.object_bytes = 1 << values["order"][0]
            self.splay_width = int(values["splay_width"][0])
            (data_pool,) = struct.unpack("<q", values["pool_id"])
        except (KeyError, IndexError, struct.error) as error:
            raise errors.NotFound(f"{self._what} has no header ({error})") from error
        with translated(f"open {self._what}"):
            home = int(pool.ioctx.get_pool_id())
        self._prefix = f"journal_data.{home}.{image_id}."
        if data_pool not in (-1, home):
            self._data = pool.cluster.open_pool_id(data_pool)
            self._data.set_namespace(pool.namespace)

    def _values(self, keys: tuple[str, ...]) -> dict[str, bytes]:
        with translated(f"read {self._what}"), rados.ReadOpCtx() as op:
            found, _ = self._ioctx.get_omap_vals_by_keys(op, keys)
            self._ioctx.operate_read_op(op, self._oid)
            return dict(found)

    def _execute(self, method: str, body: bytes) -> bytes:
        with translated(f"{method} of {self._what}"):
            _, answer = self._ioctx.execute(self._oid, "journal", method, body, _REPLY_BYTES)
        return answer

    def header(self, client_id: str) -> Header:
        key = f"client_{client_id}"
        values = self._values((*_NUMBERS, key))
        try:
            active, minimum, next_tag = (int(struct.unpack("<Q", values[name])[0]) for name in _NUMBERS)
        except (KeyError, struct.error) as error:
            raise errors.Integrity(f"{self._what} lacks or garbles {error}") from error
        if next_tag - 1 != self._newest_tag:
            # Whoever wrote under the tag before let go or was blocklisted: OSDs that answer reads with this map, or a
            # newer one, know it, so nothing of that writer's lands behind those reads.
            with translated(f"latest map for {self._what}"):
                self._cluster.wait_for_latest_map()
            self._newest_tag = next_tag - 1
        return Header(active, minimum, next_tag, decode_client(values[key]) if key in values else None)

    def clients(self) -> tuple[Client, ...]:
        found: list[Client] = []
        after = ""
        while True:
            page = decode_clients(self._execute("client_list", string(after) + struct.pack("<Q", _PAGE)))
            found += page
            if len(page) < _PAGE:
                return tuple(found)
            after = page[-1].client_id

    def tags(self, client_id: str, after: int | None = None) -> tuple[Tag, ...]:
        found: list[Tag] = []
        start = after or 0
        while True:
            body = struct.pack("<QQ", start, _PAGE) + string(client_id) + b"\0"
            page = decode_tags(self._execute("tag_list", body))
            found += page
            if len(page) < _PAGE:
                return tuple(tag for tag in found if after is None or tag.tag_tid > after)
            start = page[-1].tag_tid

    def register(self, client_id: str) -> None:
        self._execute("client_register", string(client_id) + string(CLIENT_DATA))

    def unregister(self, client_id: str) -> None:
        self._execute("client_unregister", string(client_id))
        self._notify()

    def commit(self, client_id: str, positions: Iterable[Commit]) -> None:
        self._execute("client_commit", string(client_id) + encode_positions(positions))
        self._notify()

    def _notify(self) -> None:
        """The writer looks at the header again, and trims. Nobody waits for the answer: a dead writer gives none."""
        with suppress(errors.Error), translated(f"notify {self._what}"):
            self._notified = self._ioctx.aio_notify(self._oid, lambda *_: None, "", _NOTIFY_MS)

    def submit_read(self, number: int, offset: int, length: int, done: ReadDone) -> None:
        oid = f"{self._prefix}{number}"

        def finished(completion: rados.Completion, data: bytes | None) -> None:
            code = completion.get_return_value()
            if code < 0:
                done(from_errno(code, f"read {oid}"))
            else:
                # The binding hands out a whole buffer of garbage where nothing was read (Ceph 16: no resize to 0).
                done(data if data and code else b"")

        with translated(f"read {oid}"):
            self._data.aio_read(oid, length, offset, finished)

    def object_size(self, number: int) -> int | None:
        try:
            with translated(f"size of {self._prefix}{number}"):
                size, _ = self._data.stat(f"{self._prefix}{number}")
        except errors.NotFound:
            return None
        return int(size)

    def close(self) -> None:
        if self._data is not self._ioctx:
            self._data.close()
