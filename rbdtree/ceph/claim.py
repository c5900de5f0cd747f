"""RADOS object class ``lock``, called directly: the binding's durations are off by a second, and it can neither list
nor break (Ceph 16).

Wire format: Ceph's ``src/cls/lock/cls_lock_ops.h``; little-endian, every struct in a frame (version, compat, length).
"""

import struct

import rados

from rbdtree.ceph.translate import translated
from rbdtree.ports import ClaimInfo

_EXCLUSIVE = 1
_SHARED = 2
_MAY_RENEW = 1
_MUST_RENEW = 2
_REPLY_BYTES = 64 << 10


def _frame(body: bytes) -> bytes:
    return struct.pack("<BBI", 1, 1, len(body)) + body


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<I", len(raw)) + raw


def take(
    ioctx: rados.Ioctx,
    oid: str,
    lock: str,
    cookie: str,
    owner: str,
    seconds: float,
    path: str,
    *,
    renew: bool = False,
    shared: bool = False,
) -> None:
    """Takes the lock, or renews it when ``cookie`` holds it (``renew``: only that, else ``NotFound``). ``Busy`` when
    somebody else does, unless all of them hold it ``shared``."""
    whole = int(seconds)
    kind = _SHARED if shared else _EXCLUSIVE
    body = _string(lock) + bytes([kind]) + _string(cookie) + _string("") + _string(owner)
    body += struct.pack("<IIB", whole, int((seconds - whole) * 1e9), _MUST_RENEW if renew else _MAY_RENEW)
    with translated(f"claim {path}/{oid}"):
        ioctx.execute(oid, "lock", "lock", _frame(body), _REPLY_BYTES)


def release(ioctx: rados.Ioctx, oid: str, lock: str, cookie: str) -> None:
    """Gives the lock back; ``NotFound`` when it is not held."""
    with translated(f"unclaim {oid}"):
        ioctx.execute(oid, "lock", "unlock", _frame(_string(lock) + _string(cookie)), _REPLY_BYTES)


def assertion(lock: str, cookie: str) -> bytes:
    """Input of ``lock.assert_locked``: first in a write operation, it makes the rest of it the holder's only."""
    return _frame(_string(lock) + bytes([_EXCLUSIVE]) + _string(cookie) + _string(""))


def holders(ioctx: rados.Ioctx, oid: str, lock: str) -> list[ClaimInfo]:
    """All of them; of a lock that is not shared one at most."""
    with translated(f"look at the claim on {oid}"):
        _, raw = ioctx.execute(oid, "lock", "get_info", _frame(_string(lock)), _REPLY_BYTES)
    reader = _Reader(raw)
    reader.frame()
    return [_holder(reader) for _ in range(reader.number("I"))]


def _holder(reader: "_Reader") -> ClaimInfo:
    reader.frame()
    kind, number = reader.number("B"), reader.number("q")
    cookie = reader.string()
    reader.frame()
    seconds, nanoseconds = reader.number("I"), reader.number("I")
    reader.skip_address()
    return ClaimInfo(cookie, reader.string(), seconds + nanoseconds / 1e9, f"{kind}.{number}")


def break_(ioctx: rados.Ioctx, oid: str, lock: str, held: ClaimInfo) -> None:
    """Takes the lock away from this very holder; nothing when it is gone already."""
    kind, _, number = held.holder.partition(".")
    body = _string(lock) + struct.pack("<Bq", int(kind), int(number)) + _string(held.cookie)
    with translated(f"break the claim on {oid}"):
        ioctx.execute(oid, "lock", "break_lock", _frame(body), _REPLY_BYTES)


class _Reader:
    def __init__(self, raw: bytes) -> None:
        self.raw = raw
        self.at = 0

    def number(self, form: str) -> int:
        (value,) = struct.unpack_from("<" + form, self.raw, self.at)
        self.at += struct.calcsize("<" + form)
        return int(value)

    def string(self) -> str:
        length = self.number("I")
        self.at += length
        return self.raw[self.at - length : self.at].decode()

    def frame(self) -> int:
        self.at += 2
        return self.number("I")

    def skip_address(self) -> None:
        """entity_addr_t: marker 1 and a frame, or (old clients) 136 plain bytes beginning with 0."""
        if self.raw[self.at] == 1:
            self.at += 1
            length = self.frame()
            self.at += length
        else:
            self.at += 136
