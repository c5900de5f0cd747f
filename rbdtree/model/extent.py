"""Byte ranges of the volume: sorted, disjoint, coalesced, half open.

    offset   0    4    8    12   16
             |----|    |----|         Extents.of([(0, 4), (8, 4)])

Offsets and lengths are bytes in the volume, at every node (images are thin: same size everywhere).
"""

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

Pair = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Extents:
    """A set of bytes, as (offset, length) pairs in ascending order that neither touch nor overlap."""

    pairs: tuple[Pair, ...] = ()

    @classmethod
    def of(cls, pairs: Iterable[Pair]) -> Self:
        """Any pairs, in any order, overlapping or not; empty ones vanish."""
        merged: list[Pair] = []
        start = end = -1
        for offset, length in sorted(pair for pair in pairs if pair[1] > 0):
            if offset <= end:
                end = max(end, offset + length)
                continue
            if start >= 0:
                merged.append((start, end - start))
            start, end = offset, offset + length
        if start >= 0:
            merged.append((start, end - start))
        return cls(tuple(merged))

    def __iter__(self) -> Iterator[Pair]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)

    def __bool__(self) -> bool:
        return bool(self.pairs)

    @property
    def total(self) -> int:
        """Bytes covered."""
        return sum(length for _, length in self.pairs)

    def overlaps(self, start: int, end: int) -> bool:
        """Whether any byte of [start, end) is in it. O(log n)."""
        at = bisect_left(self.pairs, (end, 0)) - 1
        return start < end and at >= 0 and self.pairs[at][0] + self.pairs[at][1] > start

    def clip(self, start: int, end: int) -> "Extents":
        """What lies in [start, end)."""
        return Extents(
            tuple(
                (max(offset, start), min(offset + length, end) - max(offset, start))
                for offset, length in self.pairs
                if max(offset, start) < min(offset + length, end)
            )
        )

    def union(self, other: "Extents") -> "Extents":
        """Bytes in either."""
        return Extents.of((*self.pairs, *other.pairs))

    def intersect(self, other: "Extents") -> "Extents":
        """Bytes in both."""
        found: list[Pair] = []
        mine, theirs = iter(self.pairs), iter(other.pairs)
        a, b = next(mine, None), next(theirs, None)
        while a and b:
            start, end = max(a[0], b[0]), min(a[0] + a[1], b[0] + b[1])
            if start < end:
                found.append((start, end - start))
            if a[0] + a[1] <= b[0] + b[1]:
                a = next(mine, None)
            else:
                b = next(theirs, None)
        return Extents(tuple(found))

    def subtract(self, other: "Extents") -> "Extents":
        """Bytes in this one only."""
        if not self.pairs:
            return self
        low, high = self.pairs[0][0], self.pairs[-1][0] + self.pairs[-1][1]
        return self.intersect(other.complement(low, high))

    def complement(self, start: int, end: int) -> "Extents":
        """The bytes of [start, end) that are not in this one."""
        inside = self.clip(start, end).pairs
        edges = ((start, 0), *inside, (end, 0))
        gaps = ((a[0] + a[1], b[0] - a[0] - a[1]) for a, b in pairwise(edges))
        return Extents(tuple(gap for gap in gaps if gap[1] > 0))

    def few(self, count: int) -> "Extents":
        """These bytes, and the narrowest gaps between them, in ``count`` pairs at most."""
        gaps = [(b[0] - a[0] - a[1], a[0] + a[1]) for a, b in pairwise(self.pairs)]
        narrow = sorted(gaps)[: max(0, len(self.pairs) - count)]
        return Extents.of((*self.pairs, *((offset, length) for length, offset in narrow)))


NOTHING = Extents()
