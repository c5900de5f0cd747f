"""Ceph's encoding (``src/include/encoding.h``): little-endian integers, strings with a u32 length, and frames.

A frame (``ENCODE_START(version, compat)``) is u8 version, u8 compat, u32 length, body. Whoever decodes reads the
fields it knows and skips the rest of the body; a ``compat`` above what it knows means that it must not.
"""

import struct

_FRAME = struct.Struct("<BBI")


class Malformed(Exception):
    """The bytes are no such structure. Never leaves this package: decoders say where and raise ``errors.Integrity``."""


class TooNew(Exception):
    """A frame says that this decoder must not read it; becomes ``errors.Unsupported``."""


def frame(body: bytes, version: int = 1, compat: int = 1) -> bytes:
    """``ENCODE_START ... ENCODE_FINISH`` around a body."""
    return _FRAME.pack(version, compat, len(body)) + body


def string(text: str | bytes) -> bytes:
    """A ``std::string`` or ``bufferlist``."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<I", len(raw)) + raw


class Reader:
    """Reads fields one after another, and never past the end of what it may."""

    def __init__(self, raw: bytes, at: int = 0, end: int | None = None) -> None:
        self._raw = raw
        self._at = at
        self._end = len(raw) if end is None else end

    def _take(self, length: int) -> int:
        """Where the next ``length`` bytes begin."""
        at = self._at
        if at + length > self._end:
            raise Malformed(f"{length} bytes wanted, {self._end - at} left")
        self._at = at + length
        return at

    def _number(self, form: str, length: int) -> int:
        (value,) = struct.unpack_from(form, self._raw, self._take(length))
        return int(value)

    def u8(self) -> int:
        return self._number("<B", 1)

    def u32(self) -> int:
        return self._number("<I", 4)

    def i32(self) -> int:
        return self._number("<i", 4)

    def u64(self) -> int:
        return self._number("<Q", 8)

    def i64(self) -> int:
        return self._number("<q", 8)

    def blob(self) -> bytes:
        """A ``bufferlist``."""
        length = self.u32()
        at = self._take(length)
        return self._raw[at : at + length]

    def text(self) -> str:
        try:
            return self.blob().decode()
        except UnicodeDecodeError as error:
            raise Malformed("a string that is not UTF-8") from error

    def frame(self, known: int) -> tuple[int, "Reader"]:
        """(version, reader of the body) of a frame; this reader goes on behind it. ``known``: newest version known."""
        at = self._take(_FRAME.size)
        version, compat, length = _FRAME.unpack_from(self._raw, at)
        body = self._take(length)
        if compat > known:
            raise TooNew(f"version {version}, readable from {compat} on; {known} is known here")
        return version, Reader(self._raw, body, body + length)

    @property
    def left(self) -> int:
        """Bytes not read yet."""
        return self._end - self._at
