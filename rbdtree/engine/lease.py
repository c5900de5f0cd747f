"""Leases: who may publish writes to which range. They live in the root's document.

No lease has to work for data to be safe (a late push is refused by what others changed); it prevents wasted work.
"""

import time
from collections.abc import Callable
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import cut
from rbdtree.engine.cut import Root
from rbdtree.engine.node import Node
from rbdtree.model import portion
from rbdtree.model.document import Kind, Lease, NodeDocument
from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import Position
from rbdtree.plan.conflict import describe

_REMEMBERED_SECONDS = 30 * 86400.0
"""How long it is known of a lease that expired whose it was."""


def prepare(root_node: Node, holder: NodeDocument, wanted: Extents | None) -> None:
    """What the holder has to be brought to is cut, when the root changed. Raises what ``acquire`` would."""
    with cut.opened(root_node, "lease") as root:
        size = root.image.size()
        check(root.document, holder, wanted or everything(holder, size), size, time.time())
        if root.changed():
            root.cut()


def acquire(root_node: Node, holder: NodeDocument, wanted: Extents | None, seconds: float) -> Lease:
    """Grants a range (None: all that the holder holds); cuts a generation when the root changed since its newest.

    The caller brings the holder up to it. ``Busy`` when another holds any of the range."""
    with cut.opened(root_node, "lease") as root:
        now = time.time()
        extents = wanted or everything(holder, root.image.size())
        check(root.document, holder, extents, root.image.size(), now)
        if root.changed():
            root.cut()
        lease = Lease(holder.ref.node_id, holder.name, extents.pairs, root.document.epoch, now + seconds)
        newest = root.document.position
        current = holder.branch is None or holder.branch.base >= newest

        def granted(leases: tuple[Lease, ...]) -> tuple[Lease, ...]:
            others = _lost(leases, holder.ref.node_id, extents, newest)
            return (*_without(others, holder.ref.node_id, extents, lost=current), lease)

        _store(root, granted, now)
        return lease


def _lost(leases: tuple[Lease, ...], holder: str, extents: Extents, newest: Position) -> tuple[Lease, ...]:
    """Leases of others, which have expired if they are in the way: what another is granted now they have lost."""
    found: list[Lease] = []
    for lease in leases:
        held = Extents.of(lease.extents)
        taken = held.intersect(extents) if lease.holder != holder and lease.lost is None else NOTHING
        kept = held.subtract(taken)
        found += [
            replace(lease, extents=part.pairs, lost=at) for part, at in ((kept, lease.lost), (taken, newest)) if part
        ]
    return tuple(found)


def _held(holder: NodeDocument) -> portion.Portion:
    """A clone's is its replica's where it has none of its own."""
    newest = holder.newest
    return holder.portion or (newest.portion if newest and holder.kind is Kind.CLONE else portion.WHOLE)


def everything(holder: NodeDocument, size_bytes: int) -> Extents:
    """All that a node can lease."""
    return portion.inside(_held(holder), size_bytes)


def check(root: NodeDocument, holder: NodeDocument, extents: Extents, size_bytes: int, now: float) -> None:
    """Raises what speaks against granting these ranges."""
    if extents.clip(0, size_bytes) != extents:
        raise errors.UsageError(f"the range ends beyond the volume ({size_bytes} bytes)", "Give a smaller --portion.")
    strange = portion.beyond(_held(holder), extents)
    if strange:
        raise errors.UsageError(
            f"{describe(strange)} are outside the portion that {holder.full_name} holds: {portion.text(_held(holder))}",
            "Give a --portion inside.",
        )
    for other in active(root, now):
        overlap = Extents.of(other.extents).intersect(extents)
        if other.holder != holder.ref.node_id and overlap:
            raise errors.Busy(
                f"{overlap.total} bytes from {overlap.pairs[0][0]} on are leased by {other.holder_name} "
                f"for another {other.expires - now:.0f} s",
                "Wait, ask for another range, or release that lease.",
            )


def of(root: NodeDocument, holder: NodeDocument, now: float) -> tuple[Lease, ...]:
    """The holder's; ``NotFound`` without one."""
    mine = tuple(lease for lease in active(root, now) if lease.holder == holder.ref.node_id)
    if not mine:
        raise errors.NotFound(
            f"{holder.full_name} holds no lease (any more)", f"Run 'rbdtree lease acquire {holder.full_name}'."
        )
    return mine


def renew(root_node: Node, holder: NodeDocument, seconds: float) -> tuple[Lease, ...]:
    """All of a holder's leases, from now on; ``NotFound`` without one."""
    with cut.opened(root_node, "lease") as root:
        now = time.time()
        renewed = tuple(replace(lease, expires=now + seconds) for lease in of(root.document, holder, now))
        before = of(root.document, holder, now)
        _store(root, lambda leases: (*(x for x in leases if x not in before), *renewed), now)
        return renewed


def release(root_node: Node, holder: NodeDocument, wanted: Extents | None) -> int:
    """Gives ranges back (None: all); how many leases were touched."""
    with cut.opened(root_node, "lease") as root:
        before = active(root.document, time.time())
        everything = wanted or Extents.of(pair for lease in before for pair in lease.extents)
        _store(root, lambda leases: _without(leases, holder.ref.node_id, everything), time.time())
        return sum(lease.holder == holder.ref.node_id for lease in before)


def active(document: NodeDocument, now: float) -> tuple[Lease, ...]:
    """Those that have not expired."""
    return tuple(lease for lease in document.leases if lease.expires > now and lease.lost is None)


def _without(leases: tuple[Lease, ...], holder: str, extents: Extents, *, lost: bool = False) -> tuple[Lease, ...]:
    """What is left of them when this holder gives these ranges back; ``lost``: also what is known of lost ones."""
    found = []
    for lease in leases:
        rest = Extents.of(lease.extents)
        given = lease.holder == holder and (lost or lease.lost is None)
        rest = rest.subtract(extents) if given else rest
        if rest:
            found.append(replace(lease, extents=rest.pairs))
    return tuple(found)


def _store(root: Root, change: Callable[[tuple[Lease, ...]], tuple[Lease, ...]], now: float) -> None:
    def update(document: NodeDocument) -> NodeDocument:
        known = tuple(lease for lease in document.leases if lease.expires > now - _REMEMBERED_SECONDS)
        return replace(document, leases=change(known))

    root.document = root.node.update(update, root.claim.cookie)
