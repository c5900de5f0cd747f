"""A push at the root: leases, conflicts, then one generation more; or refused with the evidence, and kept.

Compare-and-swap on the volume: a push is published when nobody else changed the bytes it changes since the generation
its writer saw. Nothing is ever merged inside a sector.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import dropwhile, pairwise

from rbdtree import errors
from rbdtree.engine import cut, delta, ends, extents, pushed, tidy
from rbdtree.engine.cut import Root
from rbdtree.engine.node import Node
from rbdtree.engine.pushed import Opened
from rbdtree.model.document import Evidence, Lease, NodeDocument, Push, PushState
from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import Generation, snapshot_name
from rbdtree.ports import Image, Reporter

SHOWN = 16


def land(node: Node, reporter: Reporter, *, shared: bool = False) -> list[Push]:
    """Publishes or refuses every push staged at the root, in the order of their coming."""
    verdicts: list[Push] = []
    with cut.opened(node, "publish", reporter) as root:
        waiting = [p for p in root.document.pushes if p.state is PushState.STAGED]
        for push in waiting:
            verdicts.append(_land_one(root, push, shared))
        tidy.tidy(node, root.claim)
    return verdicts


def _land_one(root: Root, push: Push, shared: bool) -> Push:
    try:
        source = pushed.opened(root.node.pool, push)
    except errors.NotFound:
        return _lost(root, push)
    with closing(source):
        try:
            wanted = pushed.changed(root.node.pool, push, source)
        except errors.NotFound:
            return _lost(root, push)
        return _judge(root, push, source, wanted, shared)


def _lost(root: Root, push: Push) -> Push:
    """Taken away by hand. Whoever comes behind it must not suffer."""
    return _refuse(root, push, (Evidence("lost", push.owner_name, None, 0, ()),))


def _judge(root: Root, push: Push, source: Opened, wanted: Extents, shared: bool) -> Push:
    evidence = _overtaken(root.document, push, wanted) or leased(root.document.leases, push, wanted, time.time())
    if not evidence:
        users = root.image.watchers()
        if users and not shared:
            raise errors.Busy(
                f"the root's image {root.document.ref.image_spec} is open for writing at {', '.join(users)}: what that "
                "client writes could tear a push",
                "Unmap it there; or push with --shared if every application on it is cluster-aware.",
            )
        if root.changed():
            root.cut()
        evidence = () if push.force else _met(root, push, source, wanted)
    if evidence:
        return _refuse(root, push, evidence)
    root.reporter.step(root.node.name, f"publish {push.owner_name}'s push {push.number}")
    if wanted and wanted.pairs[-1][0] + wanted.pairs[-1][1] > root.image.size():
        wanted = wanted.clip(0, root.image.size())
    generation = root.cut(replace(push, shared=shared), (source, wanted))
    return replace(push, state=PushState.PUBLISHED, position=generation.position)


def _refuse(root: Root, push: Push, evidence: tuple[Evidence, ...]) -> Push:
    refused = replace(push, state=PushState.CONFLICT, evidence=evidence)
    root.document = root.node.update(lambda d: d.with_push(refused), root.claim.cookie)
    return refused


def _overtaken(document: NodeDocument, push: Push, wanted: Extents) -> tuple[Evidence, ...]:
    """A push stands on those its owner made before: without them its bytes were never together anywhere."""
    landed = document.has_landed(push.owner, push.number)
    if landed or (push.after and not document.has_landed(push.owner, push.after)):
        return (Evidence("earlier", push.owner_name, None, wanted.total, wanted.pairs[:SHOWN]),)
    return ()


def leased(leases: tuple[Lease, ...], push: Push, wanted: Extents, now: float) -> tuple[Evidence, ...]:
    """What of the push lies in ranges that others have leased, or have been granted since its owner's lease expired."""
    found = []
    for lease in leases:
        late = lease.lost is not None and lease.holder == push.owner and push.base <= lease.lost and not push.force
        held = lease.lost is None and lease.holder != push.owner and lease.expires > now
        overlap = wanted.intersect(Extents.of(lease.extents)) if late or held else NOTHING
        if overlap:
            reason = "late" if late else "leased"
            found.append(Evidence(reason, lease.holder_name, lease.lost, overlap.total, overlap.pairs[:SHOWN]))
    return tuple(found)


def _met(root: Root, push: Push, source: Opened, wanted: Extents) -> tuple[Evidence, ...]:
    """Bytes that the push changes and that others changed since its base, and that are not equal by chance."""
    document, node = root.document, root.node
    sectors = extents.whole_sectors(wanted, root.image.size())
    there = ends.present(document, root.image)
    if all(g.position != push.base for g in there):
        return (Evidence("base gone", "", push.base, wanted.total, wanted.pairs[:SHOWN]),)
    found: list[Evidence] = []
    # What one of the owner's own pushes put there was judged then: whoever changed it before is no news.
    settled = NOTHING
    size = root.image.size()
    line = [g for g in there if g.position >= push.base]

    def mine(generation: Generation) -> bool:
        return generation.push.startswith(f"{push.owner}:")

    def own(generation: Generation) -> bool:
        return generation.exact and mine(generation)

    # Own pushes settle what is below them, and below the oldest of others' generations there is nothing: a branch that
    # nobody else interferes with is not compared with every push it ever made.
    steps = list(dropwhile(lambda step: own(step[1]), pairwise(line)))
    with ExitStack() as opened:
        for before, generation in reversed(steps):
            changed = _changed(node, document.image_id, document.tree_id, before, generation, sectors)
            if own(generation):
                settled = settled.union(changed)
                continue
            if mine(generation) and generation.others:
                foreign = changed.intersect(Extents.of(generation.others))
                settled, changed = settled.union(changed.subtract(foreign)), foreign
            changed = changed.subtract(settled).clip(0, size)
            if not changed:
                continue
            name = snapshot_name(document.tree_id, line[-1].position)
            newest = opened.enter_context(closing(node.pool.open(document.image_id, name)))
            clash = extents.collect(extents.compared(source, newest, iter([list(changed)])))
            if clash:
                # In a push of the owner's: the root's host, at the same time.
                author = document.name if mine(generation) else generation.author or document.name
                found.append(Evidence("changed", author, generation.position, clash.total, clash.pairs[:SHOWN]))
    beyond = wanted.subtract(wanted.clip(0, size))
    if beyond:
        found.append(Evidence("volume shrank", "", document.newest_position, beyond.total, beyond.pairs[:SHOWN]))
    return tuple(reversed(found))


def _changed(
    node: Node, image_id: str, tree_id: str, before: Generation, after: Generation, wanted: Extents
) -> Extents:
    """Bytes of ``wanted`` that really changed between two generations of the root."""
    since, until = (snapshot_name(tree_id, g.position) for g in (before, after))
    newer, older = node.pool.open(image_id, until), node.pool.open(image_id, since)
    try:
        size = min(newer.size(), older.size())
        late: list[Extents] = []
        rough = _within(newer, since, until, wanted, late.append).clip(0, size)
        changed = extents.collect(extents.compared(newer, older, iter([list(rough)])))
        if late:
            objects = Extents.of(pair for one in late for pair in one)
            changed = changed.union(_written_late(newer, older, since, objects).intersect(wanted))
        # What a shrink cut off is zero when the volume grows again.
        return changed.union(wanted.clip(newer.size(), max(newer.size(), older.size())))
    finally:
        newer.close()
        older.close()


def _written_late(newer: Image, older: Image, since: str, objects: Extents) -> Extents:
    """What of these objects was written late into ``since``, open as ``older``: both have it, and who stands on it may
    not have seen it. Where an object was written to in time as well that cannot be told, and nobody is refused for it.
    """
    line = [s.name for s in newer.snapshots()]
    before = line[: line.index(since)] if since in line else []
    if not before:
        return NOTHING
    alone = objects.subtract(delta.coarse(older, before[-1], since))
    return Extents.of(pair for batch in delta.exact(newer, before[-1], alone) for pair in batch).intersect(alone)


def _within(image: Image, since: str, until: str, wanted: Extents, late: Callable[[Extents], None]) -> Extents:
    rough = delta.coarse(image, since, until)
    unit = image.layout.object_bytes
    objects = Extents.of((offset - offset % unit, length + offset % unit + unit) for offset, length in wanted)
    near = rough.intersect(objects)
    return Extents.of(pair for batch in delta.exact(image, since, near, late=late) for pair in batch).intersect(wanted)
