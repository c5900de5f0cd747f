"""Are two nodes equal at a generation? Checksums by the OSDs first, reading only where these cannot tell.

An OSD's checksum covers one object of one image, so it tells something only when both images are cut alike; objects
that one side does not have (holes, a clone's parent), and objects whose checksums differ (a hole at the end may or
may not be part of an object), are read.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from rbdtree import errors
from rbdtree.engine import delta, ends
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.engine.node import Node
from rbdtree.engine.zeroes import differing
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.portion import clip
from rbdtree.model.position import Position, snapshot_name
from rbdtree.ports import Image, Reporter, Sites

_BATCH = 512
_READERS = 8
_PIECE = 4 << 20


@dataclass(frozen=True, slots=True)
class Difference:
    """One object (of the verified node's image) with the extents in it that differ, bytes of the volume."""

    object_number: int
    extents: tuple[Pair, ...]


@dataclass
class Verdict:
    """What comparing a node with another found. Equal when there are no differences and no error.

    ``checksummed_bytes`` were compared by the OSDs, ``read_bytes`` by reading both sides, ``structural`` says when a
    clone was found to stand on the compared snapshot without data of its own.
    """

    node: str
    against: str
    position: Position | None = None
    differences: list[Difference] = field(default_factory=list)
    checksummed_bytes: int = 0
    read_bytes: int = 0
    structural: bool = False
    error: errors.Error | None = None

    @property
    def equal(self) -> bool:
        return not self.differences and self.error is None


def _common(mine: NodeDocument, theirs: NodeDocument, at: Position | None) -> Position:
    both = {g.position for g in mine.generations} & {g.position for g in theirs.generations}
    if at is not None:
        if at not in both:
            raise errors.NotFound(
                f"generation {at} is not at both {mine.full_name} and {theirs.full_name}",
                "See 'rbdtree log' for who has which.",
            )
        return at
    if not both:
        raise errors.NotFound(
            f"{mine.full_name} and {theirs.full_name} have no generation in common yet",
            "Run 'rbdtree sync' first.",
        )
    return max(both)


def verify(
    sites: Sites, tree: Tree, member: Member, against: Member, at: Position | None, reporter: Reporter
) -> Verdict:
    """Compares one node with another (its parent, or the root), at ``at`` or their newest common generation."""
    verdict = Verdict(f"{tree.name}/{member.ref.name}", f"{tree.name}/{against.ref.name}")
    try:
        node, document = document_of(member)
        other, theirs = document_of(against)
        if theirs.kind is Kind.CLONE:
            other = Node.at(sites, theirs.replica)
            theirs = other.read()
        verdict.position = _common(document, theirs, at)
        name = snapshot_name(document.tree_id, verdict.position)
        source = _open(other, theirs, name)
        try:
            within = held_by_both(document, theirs, verdict.position, source.size())
            compare_node(node, document, source, name, theirs, verdict, reporter, within)
        finally:
            source.close()
    except errors.Error as error:
        verdict.error = error
    reporter.finished(verdict.node, "" if verdict.equal else "differs")
    return verdict


def held_by_both(mine: NodeDocument, theirs: NodeDocument, position: Position, size: int) -> Extents | None:
    """What both have of this generation; None: all of it."""
    portions = [found.portion for d in (mine, theirs) if (found := d.generation(position)) and found.portion]
    if not portions:
        return None
    held = Extents.of([(0, size)])
    for portion in portions:
        held = clip(portion, held)
    return held


def _open(node: Node, document: NodeDocument, snapshot: str | None) -> Image:
    try:
        return node.pool.open(document.image_id, snapshot)
    except errors.NotFound as error:
        gone = ends.find_gone(node, document)
        if gone:
            raise gone.error() from error
        raise errors.Diverged(
            f"{document.full_name}: snapshot {snapshot} of {document.ref.image_spec} was removed by hand",
            f"Run 'rbdtree sync {document.full_name}': it goes back to the newest generation both ends have.",
        ) from error


def compare_node(
    node: Node,
    document: NodeDocument,
    source: Image,
    snapshot: str,
    theirs: NodeDocument,
    verdict: Verdict,
    reporter: Reporter,
    within: Extents | None = None,
) -> None:
    """A node with the open ``snapshot`` of another; a clean clone of it needs no comparing (``structural``).

    Nor does a clone that is its node's branch: what it holds itself was written there and is not pushed yet."""
    clone = document.kind is Kind.CLONE
    branch = document.branch is not None and document.branch.image_id == document.image_id
    image = _open(node, document, None if clone else snapshot)
    try:
        if clone:
            ancestor = image.ancestor()
            right = ancestor is not None and ancestor.snapshot == snapshot and ancestor.overlap_bytes == source.size()
            # Image ids are unique in one cluster only.
            here = theirs.ref.fsid == document.replica.fsid
            same = here and ancestor is not None and ancestor.image_id == theirs.image_id
            if right and same and image.size() == source.size() and (branch or not image.own_data()):
                verdict.structural = True
                return
        compare(source, image, None if clone else snapshot, snapshot, verdict, reporter, within)
    finally:
        image.close()


def compare(
    source: Image,
    image: Image,
    mine: str | None,
    theirs: str,
    verdict: Verdict,
    reporter: Reporter,
    within: Extents | None = None,
) -> None:
    """All bytes of the two, or those ``within`` ranges; what differs goes into the verdict. ``mine``/``theirs``: the
    snapshots they are open at."""
    if source.size() != image.size():
        raise errors.Integrity(
            f"{verdict.node} is {image.size()} bytes long at {verdict.position}, {verdict.against} {source.size()}"
        )
    size, unit = source.size(), image.layout.object_bytes
    written = delta.coarse(source, None, theirs).union(delta.coarse(image, None, mine)).clip(0, size)
    if within is not None:
        written = written.intersect(within)
    alike = source.layout == image.layout and source.layout.plain
    done = 0
    with ThreadPoolExecutor(_READERS) as readers, ThreadPoolExecutor(2) as askers:
        for batch in _batches(written, unit):
            suspects = batch
            if alike:
                objects = [(number * unit, unit) for number in batch]
                pair = [askers.submit(one.checksums, objects) for one in (source, image)]
                suspects = _suspects(batch, pair[0].result(), pair[1].result(), source, image)
                verdict.checksummed_bytes += (len(batch) - len(suspects)) * unit
            ranges = [(n * unit, min(size, (n + 1) * unit)) for n in suspects]
            for (low, high), pairs in zip(ranges, readers.map(_reader(source, image), ranges), strict=True):
                verdict.read_bytes += high - low
                found = pairs if within is None else Extents.of(pairs).intersect(within).pairs
                if found:
                    verdict.differences.append(Difference(low // unit, tuple(found)))
            done += len(batch) * unit
            reporter.copying(verdict.node, done, written.total)


def _suspects(
    numbers: list[int], theirs: list[int | None], mine: list[int | None], source: Image, image: Image
) -> list[int]:
    layered = source.ancestor() is not None or image.ancestor() is not None
    found = []
    for number, a, b in zip(numbers, theirs, mine, strict=True):
        if a != b or (a is None and layered):
            found.append(number)
    return found


def _reader(source: Image, image: Image) -> Callable[[Pair], list[Pair]]:
    def read(bounds: Pair) -> list[Pair]:
        found: list[Pair] = []
        low, high = bounds
        for at in range(low, high, _PIECE):
            length = min(_PIECE, high - at)
            ours, others = image.read(at, length), source.read(at, length)
            if ours != others:
                found += [(at + start, end - start) for start, end in differing(ours, others)]
        return list(Extents.of(found))

    return read


def _batches(extents: Extents, unit: int) -> Iterator[list[int]]:
    batch: list[int] = []
    last = -1
    for offset, length in extents:
        for number in range(max(last + 1, offset // unit), (offset + length - 1) // unit + 1):
            batch.append(number)
            last = number
            if len(batch) == _BATCH:
                yield batch
                batch = []
    if batch:
        yield batch
