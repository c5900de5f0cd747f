"""A rolling comparison of a node with its parent's replica: a piece at a time, with the OSDs' checksums (``verify``).

The document remembers how far it has come, so any worker goes on from there. What differs makes the node distrusted:
the next delta compares everything, and mends it.
"""

import time
from dataclasses import dataclass, replace

from rbdtree import errors
from rbdtree.engine import ends, verify
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind, NodeDocument, Scrub
from rbdtree.model.extent import Extents
from rbdtree.model.position import snapshot_name
from rbdtree.ports import Reporter, Sites


@dataclass(frozen=True, slots=True)
class Piece:
    """What one call compared: a range of the volume, how many objects differed in it, whether a pass ended."""

    offset: int
    length: int
    found: int
    finished: bool


def scrub(sites: Sites, node: Node, length: int, reporter: Reporter) -> Piece | None:
    """Compares the next ``length`` bytes; None while there is nothing to compare.

    ``Integrity`` for what differs, after it was noted."""
    document = node.read()
    upstream = ends.source_node(sites, document)
    above = upstream.read()
    both = {g.position for g in document.generations} & {g.position for g in above.generations}
    if not both or document.intent or document.distrust or document.phase:
        return None
    position = max(both)
    verdict = verify.Verdict(document.full_name, above.full_name, position)
    begun = document.scrub or Scrub()
    try:
        size, whole = _compare(node, document, upstream, above, begun.cursor_bytes, length, verdict, reporter)
    except errors.NotFound as error:
        raise errors.Changed(f"{document.full_name}: generation {position} went while it was compared") from error
    found = len(verdict.differences)
    objects = "1 object" if found == 1 else f"{found} objects"
    end = size if whole else min(size, begun.cursor_bytes + length)
    now = round(time.time(), 3)
    started = begun.started if begun.cursor_bytes else now
    finished = end >= size

    def note(d: NodeDocument) -> NodeDocument:
        if (d.scrub or Scrub()) != begun or (found and d.intent):
            # Another worker compared the same; or a copy has begun meanwhile, which would take the distrust for its
            # own, and end it: then this piece is compared once more when it has.
            return d
        total = found + (begun.found if begun.cursor_bytes else 0)
        moved = (
            Scrub(0, started, now, total) if finished else Scrub(end, started, begun.finished, max(total, begun.found))
        )
        suspicious = f"a scrub found {objects} unlike {above.full_name} at {position}" if found else d.distrust
        return replace(d, scrub=moved, distrust=suspicious)

    noted = node.update(note)
    if found and not noted.distrust:
        raise errors.Changed(f"{document.full_name} was copied to while it was compared", "It is compared again.")
    if found:
        numbers = ", ".join(str(difference.object_number) for difference in verdict.differences[:4])
        raise errors.Integrity(
            f"{document.full_name}: {objects} unlike {above.full_name} at {position} ({numbers})",
            f"The next generation mends it; 'rbdtree verify {document.full_name}' shows the bytes.",
        )
    return Piece(begun.cursor_bytes, max(0, end - begun.cursor_bytes), found, finished)


def _compare(
    node: Node,
    document: NodeDocument,
    upstream: Node,
    above: NodeDocument,
    cursor: int,
    length: int,
    verdict: verify.Verdict,
    reporter: Reporter,
) -> tuple[int, bool]:
    """(size of the volume, whether all of it was compared at once)."""
    assert verdict.position is not None
    name = snapshot_name(document.tree_id, verdict.position)
    source = upstream.pool.open(above.image_id, name)
    try:
        size = source.size()
        held = verify.held_by_both(document, above, verdict.position, size)
        piece = (held or Extents.of([(0, size)])).clip(cursor, cursor + length)
        if document.kind is Kind.CLONE:
            verify.compare_node(node, document, source, name, above, verdict, reporter, piece)
            return size, verdict.structural
        image = node.pool.open(document.image_id, name)
        try:
            verify.compare(source, image, name, name, verdict, reporter, piece)
        finally:
            image.close()
        return size, False
    finally:
        source.close()
