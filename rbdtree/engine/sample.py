"""A look at bytes that should not have changed: every sync compares a few of them, chosen at random."""

import queue
import random
from functools import partial

from rbdtree.engine import delta
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.portion import WHOLE, Portion, clip
from rbdtree.ports import Image

PIECES = 8
PIECE = 64 << 10


def first_difference(source: Image, head: Image, since: str | None, until: str, portion: Portion = WHOLE) -> int | None:
    """Offset of a piece of the portion, outside the delta, in which the images differ, None when all are equal."""
    if since is None or not source.fast_diff():
        return None
    size = min(source.size(), head.size())
    present = delta.coarse(source, None, until)
    unchanged = present.subtract(delta.coarse(source, since, until)).clip(0, size)
    picked = _pick(clip(portion, unchanged))
    theirs, mine = _read_all(source, head, picked)
    return next((pair[0] for pair in picked if theirs[pair] != mine[pair]), None)


def prepare(source: Image, until: str) -> None:
    """Looks at the source's object map ahead of time."""
    if source.fast_diff():
        delta.coarse(source, None, until)


def _pick(extents: Extents) -> list[Pair]:
    if not extents:
        return []
    chosen = random.choices(extents.pairs, weights=[length for _, length in extents], k=PIECES)
    picked: set[Pair] = set()
    for offset, length in chosen:
        at = offset + random.randrange(max(1, length - PIECE + 1))
        picked.add((at, min(PIECE, offset + length - at)))
    return sorted(picked)


def _read_all(source: Image, head: Image, pieces: list[Pair]) -> tuple[dict[Pair, bytes], dict[Pair, bytes]]:
    """All at once: on a long link a read is a round trip."""
    answers: queue.SimpleQueue[tuple[int, Pair, bytes | Exception]] = queue.SimpleQueue()

    def answered(side: int, piece: Pair, result: bytes | Exception) -> None:
        answers.put((side, piece, result))

    found: tuple[dict[Pair, bytes], dict[Pair, bytes]] = ({}, {})
    for side, image in enumerate((source, head)):
        for piece in pieces:
            image.submit_read(*piece, partial(answered, side, piece))
    failure: Exception | None = None
    for _ in range(2 * len(pieces)):
        side, piece, result = answers.get()
        if isinstance(result, bytes):
            found[side][piece] = result
        else:
            failure = failure or result
    if failure:
        raise failure
    return found
