"""Pieces of a batch, written into images and read from them."""

import queue
from collections.abc import Iterator
from functools import partial

from rbdtree.engine.coalesce import Piece
from rbdtree.engine.extents import SECTOR
from rbdtree.engine.zeroes import differing
from rbdtree.model.extent import Extents
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


def unlike(image: Image, pieces: list[Piece], *, same: bool = False) -> Iterator[Piece]:
    """What the image holds where it differs from the pieces, by sectors; ``same``: where it does not."""
    for piece in cut(pieces):
        for at in range(0, piece.length, _STEP):
            length = min(_STEP, piece.length - at)
            wanted = piece.data[at : at + length] if piece.data is not None else bytes(length)
            found = image.read(piece.offset + at, length)
            where = Extents.of((low, high - low) for low, high in differing(found, wanted, SECTOR))
            for low, size in Extents.of([(0, length)]).subtract(where) if same else where:
                yield Piece(piece.offset + at + low, size, found[low : low + size])


def inverted(image: Image, pieces: list[Piece]) -> list[Piece]:
    """Other bytes, in the sectors that hold those of the pieces already."""
    return [
        Piece(offset, length, bytes(255 - byte for byte in data or b""))
        for offset, length, data in unlike(image, pieces, same=True)
    ]


def write(image: Image, pieces: list[Piece]) -> None:
    """Disjoint pieces, many at a time, bounded in bytes; returns when all are written."""
    answers: queue.SimpleQueue[tuple[int, Exception | None]] = queue.SimpleQueue()
    in_flight = 0
    failure: Exception | None = None

    def answered(size: int, error: Exception | None) -> None:
        answers.put((size, error))

    def wait_one() -> None:
        nonlocal in_flight, failure
        size, error = answers.get()
        in_flight -= size
        failure = failure or error

    waiting = 0
    for piece in cut(pieces):
        size = piece.length if piece.data is not None else 512
        while waiting and in_flight + size > IN_FLIGHT:
            wait_one()
            waiting -= 1
        if failure:
            break
        in_flight += size
        waiting += 1
        done = partial(answered, size)
        if piece.data is None:
            image.submit_zero(piece.offset, piece.length, done)
        else:
            image.submit_write(piece.offset, piece.data, done)
    for _ in range(waiting):
        wait_one()
    if failure:
        raise failure
