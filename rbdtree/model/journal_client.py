"""Who reads a journal, how far, and under which tags it was written: what ``cls_journal`` keeps in the header."""

import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from rbdtree import errors
from rbdtree.model.encoding import Malformed, Reader, TooNew, frame, string

_POSITION = struct.Struct("<QQQ")
_Decoded = TypeVar("_Decoded")

CLIENT_DATA = frame(struct.pack("<I", 2), 2, 1)
"""``librbd::journal::ClientData`` of type CliClientMeta. librbd decodes every client's data: with anything else
``rbd mirror image disable`` fails with EBADMSG."""


class Commit(NamedTuple):
    """``cls::journal::ObjectPosition``: the last entry committed in one splay slot."""

    object_number: int
    tag_tid: int
    entry_tid: int


@dataclass(frozen=True, slots=True)
class Client:
    """``cls::journal::Client``. ``positions``: newest first, at most one a splay slot; the image itself is ""."""

    client_id: str
    data: bytes = CLIENT_DATA
    positions: tuple[Commit, ...] = ()
    disconnected: bool = False

    def encode(self) -> bytes:
        """As it lies in the header's omap."""
        state = bytes([1 if self.disconnected else 0])
        return frame(string(self.client_id) + string(self.data) + encode_positions(self.positions) + state)


@dataclass(frozen=True, slots=True)
class Predecessor:
    """The last entry of the tag before, as whoever made the tag saw it."""

    mirror_uuid: str
    tag_tid: int
    entry_tid: int


@dataclass(frozen=True, slots=True)
class TagData:
    """``librbd::journal::TagData`` (has no frame). ``mirror_uuid`` is "" for a local writer."""

    mirror_uuid: str = ""
    predecessor: Predecessor | None = None
    predecessor_uuid: str = ""

    def encode(self) -> bytes:
        before = self.predecessor or Predecessor(self.predecessor_uuid, 0, 0)
        valid = bytes([self.predecessor is not None])
        order = struct.pack("<QQ", before.tag_tid, before.entry_tid)
        return string(self.mirror_uuid) + string(before.mirror_uuid) + valid + order


@dataclass(frozen=True, slots=True)
class Tag:
    """``cls::journal::Tag``: one for every time somebody took the exclusive lock."""

    tag_tid: int
    tag_class: int
    data: TagData

    def encode(self) -> bytes:
        return frame(struct.pack("<QQ", self.tag_tid, self.tag_class) + string(self.data.encode()))


@dataclass(frozen=True, slots=True)
class Header:
    """The journal at one moment, as one client must see it.

    Sets below ``minimum_set`` are gone; sets below ``active_set`` get no more entries; all tags below
    ``next_tag_tid`` - 1 are over. ``client`` is None when it is not registered.
    """

    active_set: int
    minimum_set: int
    next_tag_tid: int
    client: Client | None


def encode_positions(positions: Iterable[Commit]) -> bytes:
    """``cls::journal::ObjectSetPosition``."""
    packed = [frame(_POSITION.pack(*position)) for position in positions]
    return frame(struct.pack("<I", len(packed)) + b"".join(packed))


def _positions(reader: Reader) -> tuple[Commit, ...]:
    _, body = reader.frame(1)
    found: list[Commit] = []
    for _ in range(body.u32()):
        _, one = body.frame(1)
        found.append(Commit(one.u64(), one.u64(), one.u64()))
    return tuple(found)


def _client(reader: Reader) -> Client:
    _, body = reader.frame(1)
    return Client(body.text(), body.blob(), _positions(body), bool(body.u8()))


def _tag(reader: Reader) -> Tag:
    _, body = reader.frame(1)
    tag_tid, tag_class = body.u64(), body.u64()
    raw = Reader(body.blob())
    if not raw.left:
        return Tag(tag_tid, tag_class, TagData())
    mirror_uuid, before, valid = raw.text(), raw.text(), raw.u8()
    predecessor = Predecessor(before, raw.u64(), raw.u64()) if valid else None
    return Tag(tag_tid, tag_class, TagData(mirror_uuid, predecessor, before))


def _decoded(raw: bytes, what: str, decoder: Callable[[Reader], _Decoded]) -> _Decoded:
    try:
        return decoder(Reader(raw))
    except Malformed as error:
        raise errors.Integrity(f"{what}: {error}") from error
    except TooNew as error:
        raise errors.Unsupported(f"{what}: {error}") from error


def decode_positions(raw: bytes) -> tuple[Commit, ...]:
    """Of an encoded ``ObjectSetPosition``."""
    return _decoded(raw, "journal positions", _positions)


def decode_client(raw: bytes) -> Client:
    """Of an encoded ``cls::journal::Client``."""
    return _decoded(raw, "journal client", _client)


def decode_tag(raw: bytes) -> Tag:
    """Of an encoded ``cls::journal::Tag``."""
    return _decoded(raw, "journal tag", _tag)


def decode_clients(raw: bytes) -> tuple[Client, ...]:
    """The answer of cls_journal's ``client_list``."""
    return _decoded(raw, "journal clients", lambda reader: tuple(_client(reader) for _ in range(reader.u32())))


def decode_tags(raw: bytes) -> tuple[Tag, ...]:
    """The answer of cls_journal's ``tag_list``."""
    return _decoded(raw, "journal tags", lambda reader: tuple(_tag(reader) for _ in range(reader.u32())))
