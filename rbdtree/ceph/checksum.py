"""Checksums that the OSDs compute: ``rados_checksum`` of librados (C), which the Python binding does not have.

No data moves (PrimaryLogPG::do_checksum): 512 MiB take a second on one OSD. The C library needs a connection of its
own, made when first asked for.
"""

import ctypes
import errno
import struct
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from rbdtree.ceph.translate import from_errno

_XXHASH64 = 1
_OF_NOTHING = 0xEF46DB3751D8E999
"""xxhash64 of no bytes."""
_PARALLEL = 16

Piece = tuple[str, int, int]
"""An object, and offset and length in it."""


class Checksums:
    """A librados client that can do nothing but checksum objects."""

    def __init__(self, conf: str, name: str, options: dict[str, str]) -> None:
        self._lib = ctypes.CDLL("librados.so.2")
        self._rados = ctypes.c_void_p()
        self._check(self._lib.rados_create2(ctypes.byref(self._rados), b"ceph", name.encode(), ctypes.c_uint64(0)))
        self._check(self._lib.rados_conf_read_file(self._rados, conf.encode()))
        for key, value in options.items():
            self._check(self._lib.rados_conf_set(self._rados, key.encode(), value.encode()))
        self._check(self._lib.rados_connect(self._rados))

    def pieces(self, pool_id: int, namespace: str, snapshot_id: int | None, pieces: list[Piece]) -> list[int | None]:
        """xxhash64 (seed 0) of each piece as of the snapshot, as far as its object goes; None where there is none."""
        io = ctypes.c_void_p()
        self._check(self._lib.rados_ioctx_create2(self._rados, ctypes.c_int64(pool_id), ctypes.byref(io)))
        try:
            self._lib.rados_ioctx_set_namespace(io, namespace.encode())
            if snapshot_id is not None:
                self._lib.rados_ioctx_snap_set_read(io, ctypes.c_uint64(snapshot_id))
            with ThreadPoolExecutor(_PARALLEL) as threads:
                return list(threads.map(partial(self._one, io), pieces))
        finally:
            self._lib.rados_ioctx_destroy(io)

    def _one(self, io: ctypes.c_void_p, piece: Piece) -> int | None:
        oid, offset, length = piece
        reply = ctypes.create_string_buffer(12)
        seed = struct.pack("<Q", 0)
        code = self._lib.rados_checksum(
            io,
            oid.encode(),
            _XXHASH64,
            seed,
            ctypes.c_size_t(len(seed)),
            ctypes.c_size_t(length),
            ctypes.c_uint64(offset),
            ctypes.c_size_t(0),
            reply,
            ctypes.c_size_t(len(reply)),
        )
        if code == -errno.ENOENT:
            return None
        self._check(code, f"checksum {oid}")
        count, value = struct.unpack("<IQ", reply.raw)
        # Of a piece that begins beyond the end of its object there is none.
        return int(value) if count else _OF_NOTHING

    def _check(self, code: int, doing: str = "connect for checksums") -> None:
        if code < 0:
            raise from_errno(code, doing)

    def close(self) -> None:
        """Ends the connection."""
        if self._rados:
            self._lib.rados_shutdown(self._rados)
            self._rados = ctypes.c_void_p()
