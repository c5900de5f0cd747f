"""Retention at one node: its generations against its policy, those that go struck from its document, then removed.

The document forgets first. From then on no child can take a hold on a generation that goes; one that took it a moment
before is seen in the same compare-and-swap, and the generation stays. Snapshots of ours that no document knows are of
a retention that died here: they go, too.

A limit of age lets go of bases for good, so this host's clock is compared with the cluster's before one ends anything.
"""

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import pairwise

from rbdtree import errors
from rbdtree.engine import delta, ends
from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.model import policy
from rbdtree.model.document import USER, Child, Hold, Kind, NodeDocument, PushState, Resync
from rbdtree.model.extent import Extents
from rbdtree.model.position import Generation, Position, parse_snapshot_name, snapshot_name
from rbdtree.plan import retain as plan
from rbdtree.plan.retain import Need, Stock, Verdict
from rbdtree.ports import Image, Sites

_PROTECTED = "protected in RBD ('rbd snap unprotect')"
_EXACT_OBJECTS = 4096
_SKEW_SECONDS = 60.0
_OPEN = (PushState.TAKING, PushState.STAGED, PushState.SENT, PushState.CONFLICT)


@dataclass
class Retained:
    """What became of a node's generations. ``removed``: snapshots that are gone now, ``leftover`` ones of a retention
    that died here among them; ``resyncs``: nodes that need a resync now."""

    node: str
    verdicts: tuple[Verdict, ...] = ()
    removed: list[str] = field(default_factory=list)
    leftover: list[str] = field(default_factory=list)
    resyncs: list[str] = field(default_factory=list)
    nothing: str = ""
    """Why nothing is looked at here."""
    skewed: str = ""
    """Why no limit of age ended anything here."""


def retain(sites: Sites, node: Node, claim: Claim | None, now: float, *, dry_run: bool = False) -> Retained:
    """``now``: seconds since 1970. Without a claim, or with ``dry_run``, nothing is changed. Children are not asked:
    what they hold, and where they were last seen, is in the node's document. Only by a claim
    is it known what time it is in the cluster."""
    del sites
    began = time.monotonic()
    document = ends.read_settled(node)
    found = Retained(document.full_name)
    if document.kind is Kind.CLONE:
        found.nothing = f"a clone has no generations of its own: those of {document.replica.name} are under it"
    elif document.distrust:
        found.nothing = f"nothing goes while the node is distrusted ({document.distrust})"
    if found.nothing:
        return found
    gone = ends.find_gone(node, document)
    if gone:
        raise gone.error()
    change = claim is not None and not dry_run
    image = node.pool.open(document.image_id, read_only=not change)
    try:
        if document.newest and document.newest not in ends.present(document, image):
            found.nothing = f"nothing goes while the snapshot of its newest generation {document.position} is missing"
            return found
        if claim and change:
            claim.free(image)
        stock = stock_of(document, protected_in(image, document))
        if claim and _ended_by_age(stock, now):
            found.skewed = _skew(claim, now + time.monotonic() - began)
        if found.skewed:
            stock = replace(stock, max_pinned_age=None)
        found.verdicts = _verdicts(node, document, image, stock, now)
        left = leftovers(document, image)
        if claim and change:
            found.verdicts = _strike(node, claim, found.verdicts, found, now)
            gone_names = [snapshot_name(document.tree_id, v.position) for v in found.verdicts if v.goes]
            for name in (*left, *gone_names):
                claim.check()
                with suppress(errors.NotFound):
                    image.remove_snapshot(name)
                    found.removed.append(name)
        found.leftover = left
    finally:
        image.close()
    return found


def leftovers(document: NodeDocument, image: Image) -> list[str]:
    """Snapshots of generations that the document does not know (any more), older than its newest."""
    known = {g.position for g in document.generations}
    intent = document.intent
    known |= {p for p in (intent.since, intent.target) if p} if intent else set()
    found = []
    for snapshot in image.snapshots():
        named = parse_snapshot_name(snapshot.name)
        if named and named[0] == document.tree_id[:8] and named[1] not in known and named[1] < document.position:
            found.append(snapshot.name)
    return found


def protected_in(image: Image, document: NodeDocument) -> frozenset[Position]:
    """Generations whose snapshots somebody protected, RBD's way to say that they must stay."""
    return frozenset(
        g.position
        for g in ends.present(document, image)
        if image.protected(snapshot_name(document.tree_id, g.position))
    )


def _ended_by_age(stock: Stock, now: float) -> bool:
    return any(v.lapsed for v in plan.plan_retain(replace(stock, max_pinned_bytes=None), now))


def _skew(claim: Claim, now: float) -> str:
    """How this host's clock differs from the cluster's, in words; empty when they agree."""
    ahead = now - claim.cluster_time()
    if abs(ahead) <= _SKEW_SECONDS:
        return ""
    which = "ahead of" if ahead > 0 else "behind"
    return f"the clock of this host is {plan.in_words(abs(ahead))} {which} the cluster's: no limit of age ends anything"


def _verdicts(node: Node, document: NodeDocument, image: Image, stock: Stock, now: float) -> tuple[Verdict, ...]:
    found = plan.plan_retain(stock, now)
    if stock.max_pinned_bytes is None or not any(v.pinned and not v.goes for v in found):
        return found
    return plan.plan_retain(replace(stock, pinned_bytes=_pinned_bytes(node, document, image, found)), now)


def _strike(node: Node, claim: Claim, decided: tuple[Verdict, ...], found: Retained, now: float) -> tuple[Verdict, ...]:
    """Those that go out of the document, in one operation with the holds that lapse and what is said of it."""
    wanted = {v.position: v for v in decided if v.goes}
    protected = frozenset(v.position for v in decided if any(w == _PROTECTED for w in v.why))
    final: list[Verdict] = []

    def change(document: NodeDocument) -> NodeDocument:
        # Holds and pushes may have come since: what is needed now, and was not then, stays.
        needs = stock_of(document, protected).needs
        final.clear()
        for verdict in decided:
            if verdict.position in wanted:
                foreseen = {(n.edge, n.held) for n, _ in verdict.lapsed}
                new = [n for n in needs if n.position == verdict.position and (n.edge, n.held) not in foreseen]
                if new or document.generation(verdict.position) is None:
                    why = tuple(n.reason for n in new) or ("is gone already",)
                    final.append(Verdict(verdict.generation, False, why))
                    continue
            final.append(verdict)
        going = frozenset(v.position for v in final if v.goes)
        return _without(document, going, final, now)

    if wanted:
        node.update(change, claim.cookie)
        decided = tuple(final)
    found.resyncs = [need.name for v in decided if v.goes for need, _ in v.lapsed if need.held]
    return decided


def _without(document: NodeDocument, going: frozenset[Position], verdicts: list[Verdict], now: float) -> NodeDocument:
    if not going:
        return document
    document = replace(document, generations=plan.struck(document.generations, going))
    for verdict in verdicts:
        if not verdict.goes:
            continue
        for need, why in verdict.lapsed:
            if need.held:
                document = document.without_holds(need.edge, verdict.position)
                document = document.with_resync(Resync(need.edge, need.name, verdict.position, why, now))
    return document


def stock_of(document: NodeDocument, protected: frozenset[Position] = frozenset()) -> Stock:
    """What the planner wants to know of a node."""
    wanted = policy.effective(document.policy, document.tree_policy)
    return Stock(
        document.generations,
        wanted.keep,
        (*_fixed(document, protected), *_pins(document), *_boundaries(document)),
        wanted.max_pinned_age,
        wanted.max_pinned_bytes,
    )


def _fixed(document: NodeDocument, protected: frozenset[Position]) -> Iterator[Need]:
    """What stays whatever the limits are."""
    below = dict(edges_below(document))
    for hold in document.holds:
        if not _may_lapse(hold, below):
            yield Need(hold.position, describe(hold))
    for push in document.pushes:
        if push.state in _OPEN:
            yield Need(push.base, f"push {push.number} of {push.owner_name} is judged against it")
    if document.branch:
        yield Need(document.branch.base, f"branch of {document.full_name}")
    intent = document.intent
    for position in {intent.since, intent.target} if intent else ():
        if position:
            yield Need(position, "the replica is between it and the next one")
    for position in sorted(protected):
        yield Need(position, _PROTECTED)


def _may_lapse(hold: Hold, below: dict[str, Child]) -> bool:
    """Only what a mirror holds as its base: a clone's would free nothing, RBD keeps it for the clone."""
    child = below.get(hold.owner)
    return not hold.branch and child is not None and child.kind is Kind.MIRROR


def describe(hold: Hold) -> str:
    """Who holds what for, in words."""
    return f"hold {hold.owner.removeprefix(USER)!r}: {hold.reason}" if hold.owner.startswith(USER) else hold.reason


def _pins(document: NodeDocument) -> Iterator[Need]:
    below = dict(edges_below(document))
    held = set()
    for hold in document.holds:
        if _may_lapse(hold, below):
            held.add((hold.owner, hold.position))
            name = f"{document.tree}/{below[hold.owner].ref.name}"
            yield Need(hold.position, hold.reason, name, hold.owner, True)
    for edge, child in below.items():
        position = child.summary.position if child.summary else None
        if child.kind is Kind.MIRROR and position and (edge, position) not in held and not document.resync(edge):
            name = f"{document.tree}/{child.ref.name}"
            yield Need(position, f"{name} was last seen there", name, edge, then="its parent has it still")


def _boundaries(document: NodeDocument) -> Iterator[Need]:
    """At the root a push is judged by what others changed since its base: what a branch's own pushes changed, and what
    others did, must stay told apart."""
    bases = [hold.position for hold in document.holds if hold.branch]
    bases += [push.base for push in document.pushes if push.state in _OPEN]
    if document.kind is not Kind.ROOT or not bases:
        return
    for one, two in pairwise(document.generations):
        if one.position > min(bases) and plan.writer(one) != plan.writer(two):
            yield Need(
                one.position,
                f"pushes of the branch over {min(bases)} are told from others' writes by it",
                edge="branch",
                then="its next push may meet its own earlier ones as a conflict",
            )


def edges_below(document: NodeDocument) -> Iterator[tuple[str, Child]]:
    """Every edge below the node, as far as it was told."""
    waiting = list(document.children)
    while waiting:
        child = waiting.pop()
        yield child.edge, child
        if child.summary:
            waiting += child.summary.children


def _pinned_bytes(
    node: Node, document: NodeDocument, image: Image, verdicts: tuple[Verdict, ...]
) -> dict[Position, int]:
    there = {g.position: g for g in ends.present(document, image)}
    staying = [v for v in verdicts if not v.goes and v.position in there]
    found = {}
    before: Generation | None = None
    for number, verdict in enumerate(staying):
        if not verdict.pinned:
            before = verdict.generation
        elif number + 1 < len(staying):
            after = staying[number + 1].generation
            found[verdict.position] = cost(node, document, verdict.generation, before, after)
    return found


def cost(
    node: Node, document: NodeDocument, generation: Generation, before: Generation | None, after: Generation | None
) -> int:
    """Bytes that nothing but this generation keeps: there in it, other in ``after``, and other in ``before``.

    In whole objects when they are very many. ``after`` None: what it keeps since the head moved on."""
    name = snapshot_name(document.tree_id, generation.position)
    later = snapshot_name(document.tree_id, after.position) if after else None
    older = snapshot_name(document.tree_id, before.position) if before else None
    newer, mine = node.pool.open(document.image_id, later), node.pool.open(document.image_id, name)
    try:
        rough = delta.coarse(newer, name, later).intersect(delta.coarse(mine, None, name))
        # What a shrink cut off is kept as well.
        rough = rough.union(delta.coarse(mine, None, name).clip(newer.size(), max(newer.size(), mine.size())))
        if older:
            rough = rough.intersect(delta.coarse(mine, older, name))
        if rough.total > _EXACT_OBJECTS * mine.layout.object_bytes:
            return rough.total
        size = newer.size()
        found = _exact(newer, name, rough.clip(0, size)).union(rough.clip(size, max(size, mine.size())))
        if older:
            found = found.intersect(_exact(mine, older, rough))
        return found.intersect(rough).total
    finally:
        newer.close()
        mine.close()


def _exact(image: Image, since: str, within: Extents) -> Extents:
    return Extents.of(pair for batch in delta.exact(image, since, within) for pair in batch)
