"""Bytes whose order the journal does not tell for sure: published as it has them, compared with the branch later."""

from rbdtree.engine import pieces
from rbdtree.engine import push as pushes
from rbdtree.engine.coalesce import Piece
from rbdtree.engine.coalesce import pieces as coalesced
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.record import Change, Write
from rbdtree.ports import Image


class Doubt:
    """What was published of the bytes in doubt; not known of those that an earlier run published."""

    def __init__(self) -> None:
        self._published: list[Change] = []

    def clear(self) -> None:
        """The branch was compared, or pushed as it is."""
        self._published = []

    def add(self, sent: list[Piece], doubt: Extents) -> None:
        """These are published, of which some are in doubt."""
        if not doubt:
            return
        met = Extents.of((p.offset, p.length) for p in sent).intersect(doubt)
        self._published += [pieces.change(part) for part in pieces.clipped(sent, met)]
        self._published = [pieces.change(part) for part in coalesced(self._published)]

    def bytes(self) -> int:
        """How much is kept for the comparison."""
        return sum(len(change.data) for change in self._published if isinstance(change, Write))

    def wrong(self, image: Image, doubt: Extents) -> Extents:
        """What of ``doubt`` the branch has otherwise than it was published."""
        known = coalesced(list(self._published))
        found = list(doubt.subtract(Extents.of((p.offset, p.length) for p in known)))
        found += pieces.unlike(image, known)
        return Extents.of(found)


def covered(doubt: Extents) -> tuple[Pair, ...]:
    """As few as a document may list: then what lies between them counts as well."""
    pairs = doubt.pairs
    while len(pairs) > pushes.FEW:
        joined = ((low, high + size - low) for (low, _), (high, size) in zip(pairs[::2], pairs[1::2], strict=False))
        pairs = (*joined, *(pairs[-1:] if len(pairs) % 2 else ()))
    return pairs
