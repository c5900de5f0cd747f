"""A look at bytes that should not have changed: every sync compares a few of them, chosen at random."""

import random

from rbdtree.engine import delta
from rbdtree.model.extent import Extents
from rbdtree.ports import Image

PIECES = 8
PIECE = 64 << 10


def first_difference(source: Image, head: Image, since: str | None, until: str) -> int | None:
    """Offset of a piece outside the delta in which the two images differ, None when all looked at are equal."""
    if since is None:
        return None
    size = min(source.size(), head.size())
    if not source.fast_diff():
        return None
    present = delta.coarse(source, None, until)
    unchanged = present.subtract(delta.coarse(source, since, until)).clip(0, size)
    for offset, length in _pick(unchanged):
        if source.read(offset, length) != head.read(offset, length):
            return offset
    return None


def _pick(extents: Extents) -> list[tuple[int, int]]:
    if not extents:
        return []
    chosen = random.choices(extents.pairs, weights=[length for _, length in extents], k=PIECES)
    picked: set[tuple[int, int]] = set()
    for offset, length in chosen:
        at = offset + random.randrange(max(1, length - PIECE + 1))
        picked.add((at, min(PIECE, offset + length - at)))
    return sorted(picked)
