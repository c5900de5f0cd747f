"""The next generation at the root: intend, snapshot, settle.

A cut that died after its snapshot is finished by the next one, which then makes its own; one that died before left
nothing but a number to use again.
"""

import time
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import delta, ends
from rbdtree.engine.claim import Claim, worker_name
from rbdtree.engine.node import Node
from rbdtree.model.document import Intent, Kind, NodeDocument
from rbdtree.model.position import Generation, Position, snapshot_name
from rbdtree.ports import Image, Snapshot

_EXACT_OBJECTS = 4096


def cut(node: Node) -> Generation:
    """Waits for another cut that is under way."""
    with Claim(node, "cut", wait=True) as claim:
        document = ends.read_settled(node)
        if document.kind is not Kind.ROOT:
            raise errors.UsageError(f"{document.full_name} is not the root: generations are cut there")
        gone = ends.find_gone(node, document)
        if gone:
            raise gone.error()
        # Nothing is written: librbd hands the snapshot to whoever holds the image's lock, and takes it from nobody.
        image = node.pool.open(document.image_id, read_only=False)
        try:
            claim.free(image)
            document = _finish(node, document, image, claim)
            position = _next(document)
            intent = Intent(
                position,
                document.newest_position,
                image.size(),
                time.time(),
                worker_name(),
                "",
            )
            document = node.update(lambda d: replace(d, intent=intent), claim.cookie)
            claim.check()
            snapshot = image.create_snapshot(snapshot_name(document.tree_id, position))
            document = _settle(node, document, snapshot, claim)
        finally:
            image.close()
    found = document.generation(position)
    if found is None:
        raise errors.Bug(f"generation {position} was not recorded")
    return found


def _next(document: NodeDocument) -> Position:
    """One past everything ever numbered here, also what retention removed."""
    return Position(document.epoch, document.last_sequence + 1)


def _finish(node: Node, document: NodeDocument, image: Image, claim: Claim) -> NodeDocument:
    if document.intent is None:
        return document
    name = snapshot_name(document.tree_id, document.intent.target)
    snapshot = next((s for s in image.snapshots() if s.name == name), None)
    if snapshot:
        return _settle(node, document, snapshot, claim)
    return node.update(lambda d: replace(d, intent=None), claim.cookie)


def _settle(node: Node, document: NodeDocument, snapshot: Snapshot, claim: Claim) -> NodeDocument:
    intent = document.intent
    if intent is None:
        raise errors.Bug("a cut without an intent")
    generation = Generation(
        position=intent.target,
        snapshot_id=snapshot.snapshot_id,
        size_bytes=snapshot.size_bytes,
        created=intent.started,
        delta_bytes=_measure(node, document, intent),
    )
    return node.update(
        lambda d: replace(
            d.with_generation(generation),
            intent=None,
            last_sequence=max(d.last_sequence, intent.target.sequence),
        ),
        claim.cookie,
    )


def _measure(node: Node, document: NodeDocument, intent: Intent) -> int | None:
    """Bytes that changed since the generation before; whole objects when there are very many, None when it is not
    cheap to know."""
    until = snapshot_name(document.tree_id, intent.target)
    since = snapshot_name(document.tree_id, intent.since) if intent.since else None
    try:
        image = node.pool.open(document.image_id, until)
    except errors.NotFound:
        return None
    try:
        if not image.fast_diff():
            return None
        rough = delta.coarse(image, since, until)
        if since is None or rough.total > _EXACT_OBJECTS * image.layout.object_bytes:
            return rough.total
        return sum(length for batch in delta.exact(image, since, rough) for _, length in batch)
    except errors.NotFound:
        return None
    finally:
        image.close()
