"""A push at the root: leases, conflicts, then one generation more; or refused with the evidence, and kept.

Compare-and-swap on the volume: a push is published when nobody else changed the bytes it changes since the generation
its writer saw. Nothing is ever merged inside a sector.
"""

import time
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import cut, delta, extents, landing, tidy
from rbdtree.engine.cut import Root
from rbdtree.engine.node import Node
from rbdtree.model.document import Evidence, Lease, Push, PushState
from rbdtree.model.extent import Extents
from rbdtree.model.position import Generation, snapshot_name
from rbdtree.ports import Image, Reporter

_SHOWN = 16


def land(node: Node, reporter: Reporter, *, shared: bool = False) -> list[Push]:
    """Publishes or refuses every push staged at the root, in the order of their coming."""
    verdicts: list[Push] = []
    with cut.opened(node, "publish", reporter) as root:
        waiting = [p for p in root.document.pushes if p.state is PushState.STAGED]
        for push in waiting:
            if root.document.has_landed(push.owner, push.number):
                continue
            verdicts.append(_land_one(root, push, shared))
        tidy.tidy(node, root.claim)
    return verdicts


def _land_one(root: Root, push: Push, shared: bool) -> Push:
    wanted = landing.read_extents(root.node, push)
    evidence = leased(root.document.leases, push, wanted, time.time())
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
        evidence = () if push.force else _met(root, push, wanted)
    if evidence:
        refused = replace(push, state=PushState.CONFLICT, evidence=evidence)
        root.document = root.node.update(lambda d: d.with_push(refused), root.claim.cookie)
        return refused
    root.reporter.step(root.node.name, f"publish {push.owner_name}'s push {push.number}")
    if wanted and wanted.pairs[-1][0] + wanted.pairs[-1][1] > root.image.size():
        wanted = wanted.clip(0, root.image.size())
    generation = root.cut(replace(push, shared=shared), wanted)
    return replace(push, state=PushState.PUBLISHED, position=generation.position)


def leased(leases: tuple[Lease, ...], push: Push, wanted: Extents, now: float) -> tuple[Evidence, ...]:
    """What of the push lies in ranges that others have leased."""
    found = []
    for lease in leases:
        if lease.holder == push.owner or lease.expires <= now:
            continue
        overlap = wanted.intersect(Extents.of(lease.extents))
        if overlap:
            found.append(Evidence("leased", lease.holder_name, None, overlap.total, overlap.pairs[:_SHOWN]))
    return tuple(found)


def _met(root: Root, push: Push, wanted: Extents) -> tuple[Evidence, ...]:
    """Bytes that the push changes and that others changed since its base, and that are not equal by chance."""
    document, node = root.document, root.node
    line = [g for g in document.generations if g.position > push.base]
    base = document.generation(push.base)
    if base is None:
        return (Evidence("base gone", "", push.base, wanted.total, wanted.pairs[:_SHOWN]),)
    found: list[Evidence] = []
    size = root.image.size()
    beyond = wanted.clip(size, max(size, *(offset + length for offset, length in wanted), 0) if wanted else size)
    if beyond:
        found.append(Evidence("volume shrank", "", document.newest_position, beyond.total, beyond.pairs[:_SHOWN]))
    mine = node.pool.open(push.image_id, push.snapshot)
    newest = node.pool.open(document.image_id, snapshot_name(document.tree_id, document.position))
    try:
        before = base
        for generation in line:
            if not generation.push.startswith(f"{push.owner}:"):
                changed = _changed(node, document.image_id, document.tree_id, before, generation, wanted)
                clash = extents.collect(extents.compared(mine, newest, iter([list(changed.clip(0, size))])))
                if clash:
                    author = generation.author or document.name
                    found.append(Evidence("changed", author, generation.position, clash.total, clash.pairs[:_SHOWN]))
            before = generation
    finally:
        mine.close()
        newest.close()
    return tuple(found)


def _changed(
    node: Node, image_id: str, tree_id: str, before: Generation, after: Generation, wanted: Extents
) -> Extents:
    """Bytes of ``wanted`` that really changed between two generations of the root."""
    since, until = (snapshot_name(tree_id, g.position) for g in (before, after))
    newer, older = node.pool.open(image_id, until), node.pool.open(image_id, since)
    try:
        size = min(newer.size(), older.size())
        rough = _within(newer, since, until, wanted).clip(0, size)
        return extents.collect(extents.compared(newer, older, iter([list(rough)])))
    finally:
        newer.close()
        older.close()


def _within(image: Image, since: str, until: str, wanted: Extents) -> Extents:
    rough = delta.coarse(image, since, until)
    unit = image.layout.object_bytes
    objects = Extents.of((offset - offset % unit, length + offset % unit + unit) for offset, length in wanted)
    near = rough.intersect(objects)
    return Extents.of(pair for batch in delta.exact(image, since, near) for pair in batch).intersect(wanted)
