"""Pieces of a batch: cut, clipped, read from an image and compared with one."""

from collections.abc import Iterator

from rbdtree.engine.coalesce import Piece
from rbdtree.engine.extents import SECTOR
from rbdtree.engine.zeroes import differing
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.record import Change, Write, Zero
from rbdtree.ports import Image, Pool

IN_FLIGHT = 64 << 20
_STEP = 4 << 20


def cut(pieces: list[Piece]) -> Iterator[Piece]:
    """No piece crosses 4 MiB of data."""
    for piece in pieces:
        if piece.data is None or piece.length <= _STEP:
            yield piece
            continue
        for at in range(0, piece.length, _STEP):
            data = piece.data[at : at + _STEP]
            yield Piece(piece.offset + at, len(data), data)


def clipped(pieces: list[Piece], where: Extents) -> Iterator[Piece]:
    """What of the pieces lies there."""
    for piece in pieces:
        for offset, length in where.intersect(Extents.of([(piece.offset, piece.length)])):
            low = offset - piece.offset
            yield Piece(offset, length, None if piece.data is None else piece.data[low : low + length])


def change(piece: Piece) -> Change:
    """The piece as a record would have it."""
    return Zero(piece.offset, piece.length) if piece.data is None else Write(piece.offset, piece.data)


def read(pool: Pool, image_id: str, snapshot: str | None, where: Extents) -> list[Piece]:
    """What an image, or a snapshot of it, holds there."""
    image = pool.open(image_id, snapshot)
    try:
        return [Piece(offset, length, image.read(offset, length)) for offset, length in where]
    finally:
        image.close()


def unlike(image: Image, pieces: list[Piece]) -> Iterator[Pair]:
    """Where the image differs from the pieces, by sectors."""
    for piece in cut(pieces):
        for at in range(0, piece.length, _STEP):
            length = min(_STEP, piece.length - at)
            wanted = piece.data[at : at + length] if piece.data is not None else bytes(length)
            found = image.read(piece.offset + at, length)
            for low, high in differing(found, wanted, SECTOR):
                yield piece.offset + at + low, high - low
