"""A branch's writes on their way up: staged at the node, copied hop by hop, published at the root; the verdict back.

Every hop needs the clusters of one edge. An id (node, number) makes each idempotent: killed anywhere and run again, a
push is published once.
"""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import delta, ends, extents, landing, marks, parcel, portion, publish, pushed, tidy
from rbdtree.engine.claim import Claim
from rbdtree.engine.copy import Copy, Target, Window
from rbdtree.engine.node import Node, cluster_of
from rbdtree.engine.pace import Pace, Paces
from rbdtree.engine.parcel import Parcel
from rbdtree.model.document import Evidence, Kind, Lease, NodeDocument, Push, PushState
from rbdtree.model.extent import Extents
from rbdtree.model.position import Position, push_snapshot_name
from rbdtree.ports import Image, Reporter, Silent, Sites, Source

FEW = 1024
"""Extents that a push's entry in a document may list; with more, snapshots tell which bytes they are."""


@dataclass
class PushOutcome:
    """What became of a node's pushes: published where, refused why, or how far they came.

    ``waiting``: that many are neither yet. ``stopped``: why it went no further; ``border``: only because the next
    cluster is none of this host's, and the host above goes on."""

    node: str
    staged: int = 0
    sent_bytes: int = 0
    published: list[Position] = field(default_factory=list)
    refused: list[Push] = field(default_factory=list)
    waiting: int = 0
    stopped: errors.Error | None = None
    border: bool = False


def stage(sites: Sites, node: Node) -> int:
    """Takes what the branch holds as a push of its own; how many pushes of this node are under way then.

    Nothing at a node that has no branch: it may still have to pass on what its children sent."""
    with Claim(node, "push", wait=True) as claim:
        document = branches.clear(sites, node, node.read(), claim)
        if document.branch is None and any(p.owner != document.ref.node_id for p in document.pushes):
            return 0
        document = branches.remake(sites, node, document, claim)
        document = seal_taken(node, document, claim)
        try:
            report = branches.look(node, document, briefly=True)
        except errors.Busy:
            if not branches.swapping(document):
                raise
            # The sync that moves it goes on; whatever was written since is found behind it.
            return len(branches.own_pushes(document))
        refused = next((p for p in report.pushes if p.state is PushState.CONFLICT), None)
        if refused:
            raise conflict(document, refused)
        if report.changed:
            _take(node, document, claim)
        return len(branches.own_pushes(node.read()))


def conflict(document: NodeDocument, push: Push) -> errors.Conflict:
    """The refusal of a push, in words."""
    met = "; ".join(_describe(e) for e in push.evidence)
    return errors.Conflict(
        f"push {push.number} of {document.full_name} was refused: {met}",
        f"The branch is kept. 'rbdtree resolve {document.full_name}' with {_ways(push)} ends it.",
    )


def _ways(push: Push) -> str:
    """What may be done about a refused push, in words."""
    ours = not any(e.reason == "portion" for e in push.evidence)
    return f"{'--take ours, ' if ours else ''}--take theirs or --park IMAGE"


def _describe(evidence: Evidence) -> str:
    shown = ", ".join(f"{offset}+{length}" for offset, length in evidence.extents[:3])
    more = "" if len(evidence.extents) <= 3 else ", ..."
    where = f"{evidence.total_bytes} bytes ({shown}{more})"
    match evidence.reason:
        case "leased":
            return f"{where} are leased by {evidence.author}"
        case "late":
            return f"{where} were leased by {evidence.author} until that lease expired and another node got them"
        case "base gone":
            return f"its base generation {evidence.position} is gone at the root"
        case "earlier":
            return "a push that it was written on top of was refused"
        case "lost":
            return "its staged copy upstream is gone"
        case "portion":
            return f"{where} are outside the portion that {evidence.author} holds"
        case "volume shrank":
            return f"{where} are beyond the end of the volume since generation {evidence.position}"
        case _:
            return f"{where} were changed by {evidence.author} in generation {evidence.position}"


def seal_taken(node: Node, document: NodeDocument, claim: Claim) -> NodeDocument:
    """Finishes a push whose snapshot may or may not have been taken."""
    for push in document.pushes:
        if push.state is PushState.TAKING and push.owner == document.ref.node_id:
            document = _seal(node, push, claim)
    return document


def _take(node: Node, document: NodeDocument, claim: Claim) -> None:
    branch = branches.require(document)
    number = document.push_number + 1
    push = Push(
        owner=document.ref.node_id,
        owner_name=document.name,
        number=number,
        base=branch.base,
        state=PushState.TAKING,
        created=time.time(),
        image_id=branch.image_id,
        since=branch.since,
        snapshot=push_snapshot_name(document.tree_id, number),
        after=branches.top(document),
    )
    node.update(lambda d: replace(d.with_push(push), push_number=number), claim.cookie)
    _seal(node, push, claim)


def _seal(node: Node, push: Push, claim: Claim) -> NodeDocument:
    image = node.pool.open(push.image_id, read_only=False)
    try:
        ends.seal(node.pool, image, push.snapshot)
    finally:
        image.close()

    def change(d: NodeDocument) -> NodeDocument:
        skip = push.snapshot if d.branch and d.branch.uplink == branches.JOURNAL else ""
        moved = replace(d.branch, since=push.snapshot, skip_to=skip) if d.branch else None
        return replace(d.with_push(replace(push, state=PushState.STAGED)), branch=moved)

    return node.update(change, claim.cookie)


@dataclass(frozen=True)
class _Going:
    """One edge that pushes go up, and what they may."""

    node: Node
    claim: Claim
    reporter: Reporter
    pace: Pace | None
    stop: Callable[[], None] | None

    def check(self) -> None:
        self.claim.check()
        if self.stop and self.pace and self.pace.limited:
            self.stop()

    def spend(self, count: int) -> None:
        if self.pace:
            self.pace.spend(count)


def forward(
    sites: Sites,
    node: Node,
    reporter: Reporter,
    leases: tuple[Lease, ...] | None = None,
    *,
    paces: Paces | None = None,
    check: Callable[[], None] | None = None,
) -> int:
    """Copies every push staged at this node into its parent; bytes sent. Nothing at the root.

    ``leases``: as the root has them, when it can be asked; otherwise what the parent was last told counts. ``paces``:
    how fast the edges may go; as fast as they can without. ``check`` raises what ends their waiting for that.
    """
    sent = 0
    document = node.read()
    # No more than these: what is staged meanwhile may never end.
    due = {p.push_id for p in document.pushes if p.state is PushState.STAGED}
    while due and document.parent is not None:
        pace = paces.of(document) if paces else None
        if pace:
            # Without the claim: others have work here.
            pace.wait(check or (lambda: None))
        with Claim(node, "push", wait=True) as claim:
            document = node.read()
            due &= {p.push_id for p in document.pushes if p.state is PushState.STAGED}
            if document.parent is None:
                break
            going = _Going(node, claim, reporter, pace, check)
            for push in (p for p in document.pushes if p.push_id in due):
                sent += _forward_one(sites, going, document, Node.at(sites, document.parent), push, leases)
                due.discard(push.push_id)
                if pace and pace.delay():
                    break
    return sent


def _forward_one(
    sites: Sites,
    going: _Going,
    document: NodeDocument,
    parent: Node,
    push: Push,
    leases: tuple[Lease, ...] | None,
) -> int:
    node, claim = going.node, going.claim
    above = parent.read()
    sent = 0
    if above.push(push.push_id) is None and not above.has_landed(push.owner, push.number):
        with closing(pushed.opened(node.pool, push)) as source:
            wanted = pushed.changed(node.pool, push, source)
            evidence = _strange(document, push, wanted)
            # Who was granted what since is for the root to say: what is known here may be of before the last grant.
            known = tuple(x for x in above.leases if x.lost is None) if leases is None else leases
            evidence = evidence or publish.leased(known, push, wanted, time.time())
            if evidence:
                refused = replace(push, state=PushState.CONFLICT, evidence=evidence)
                node.update(lambda d: d.with_push(refused), claim.cookie)
                return 0
            going.reporter.step(node.name, f"push {push.number} to {above.name}, {wanted.total} bytes")
            sectors = extents.whole_sectors(wanted, source.size())
            if isinstance(source, Parcel) or sectors.total <= parcel.LIMIT:
                packed = source if isinstance(source, Parcel) else parcel.of_source(source, sectors, wanted)
                going.spend(packed.data_bytes)
                staged = _send(parent, push, packed)
            else:
                staged = _copy(sites, going, parent, above, push, source, wanted)
        claim.check()
        parent.update(lambda d: d if d.push(push.push_id) else d.with_push(staged))
        sent = wanted.total
    node.update(lambda d: d.with_push(replace(push, state=PushState.SENT)), claim.cookie)
    return sent


def _send(parent: Node, push: Push, packed: Parcel) -> Push:
    """Packed, into the parent's pool. The same push is always the same parcel: one that is there is made whole."""
    name = parcel.store(parent.pool, parcel.stem(push.owner, push.number, parent.node_id), parent.node_id, packed)
    return replace(push, state=PushState.STAGED, image_id="", staging=name, since="", extents=(), evidence=())


def _strange(document: NodeDocument, push: Push, wanted: Extents) -> tuple[Evidence, ...]:
    """What of an own push lies outside the node's portion. Those of children were looked at there."""
    if push.owner != document.ref.node_id:
        return ()
    found = portion.outside(document, push.base, wanted)
    shown = found.pairs[: publish.SHOWN]
    return (Evidence("portion", document.name, None, found.total, shown),) if found else ()


def _copy(
    sites: Sites,
    going: _Going,
    parent: Node,
    above: NodeDocument,
    push: Push,
    source: Image,
    wanted: Extents,
) -> Push:
    """Into an image at the parent, sealed by a snapshot."""
    name = tidy.staging_name(above, push.owner, push.number)
    since = push_snapshot_name(above.tree_id, 0)
    image_id = _staging(parent, source, name)
    head = parent.pool.open(image_id, read_only=False)
    try:
        _take_over(sites, above, head)
        few = wanted.pairs if len(wanted) <= FEW else ()
        # Whole sectors: what is compared with others' writes, and what a forced push is.
        around = extents.whole_sectors(wanted, head.size()).subtract(wanted)
        if not few and not ends.whole(parent.pool, head, since):
            # What lies around the push is no part of it: there already, when it begins.
            _fill(going, source, head, around)
            _tell_apart(going, push, source, head, wanted)
            ends.seal(parent.pool, head, since)
        if not ends.whole(parent.pool, head, push.snapshot):
            _fill(going, source, head, wanted.union(around) if few else wanted, going.reporter)
            going.claim.check()
            ends.seal(parent.pool, head, push.snapshot)
    finally:
        head.close()
    return replace(push, state=PushState.STAGED, image_id=image_id, staging=name, since=since, extents=few, evidence=())


def _fill(going: _Going, source: Source, head: Image, wanted: Extents, reporter: Reporter | None = None) -> None:
    """Zeroes where nothing was written need not be."""
    told, name = reporter or Silent(), going.node.name
    target = Target(name, head, delta.coarse(head, None, None))
    Copy(
        source,
        [target],
        [list(wanted)],
        check=going.check,
        progress=lambda c: told.copying(name, c.passed_bytes, c.total_bytes),
        window=Window(landing.WINDOW),
        pace=going.pace,
    ).run()
    if target.failed:
        raise target.failed
    head.flush()


def _take_over(sites: Sites, above: NodeDocument, head: Image) -> None:
    """Fences whoever has a staged image open: only pushers ever do, and with the claim here that one is dead.

    RBD would wait 30 s for its lock, and as long for its answer at every snapshot."""
    cluster = cluster_of(sites, above.ref)
    for address in {*head.watchers(), head.lock_owner()} - {None, cluster.address()}:
        cluster.fence(str(address))


def _tell_apart(going: _Going, push: Push, source: Image, head: Image, wanted: Extents) -> None:
    """What the push changes must differ between the two snapshots upstream too.

    It would not where it pushes zeroes."""
    size = min(head.size(), source.size())
    known = extents.collect(extents.compared(source, head, iter([list(wanted.clip(0, size))])))
    same = wanted.subtract(known)
    if not same:
        return
    older = going.node.pool.open(push.image_id, push.since)
    try:
        _fill(going, older, head, same)
    finally:
        older.close()


def _staging(parent: Node, source: Image, name: str) -> str:
    """An empty image at ``parent`` for a push to be copied into; the one of a run that died is used again."""
    tidy.clear_half_made(parent.pool, name)
    found = parent.pool.image_id(name)
    if found is None:
        found = parent.pool.create_image(name, source.size(), source.layout, None)
    parent.pool.add_entry(marks.image_entry(found), parent.node_id)
    return found


def hear(sites: Sites, node: Node) -> None:
    """Takes over what the parent knows of pushes that were sent to it."""
    document = node.read()
    waiting = [p for p in document.pushes if p.state is PushState.SENT]
    if not waiting or document.parent is None:
        return
    above = Node.at(sites, document.parent).read()

    def change(d: NodeDocument) -> NodeDocument:
        for push in d.pushes:
            told = _told(above, push) if push.state is PushState.SENT else None
            if told and told.state in (PushState.PUBLISHED, PushState.CONFLICT):
                d = d.with_push(replace(push, state=told.state, position=told.position, evidence=told.evidence))
        return d

    node.update(change)


def _told(above: NodeDocument, push: Push) -> Push | None:
    """What a parent knows of a push, if only by the generation it became."""
    told = above.push(push.push_id)
    if told:
        return told
    generation = next((g for g in above.generations if g.push == push.push_id), None)
    if generation:
        return replace(push, state=PushState.PUBLISHED, position=generation.position)
    if above.has_landed(push.owner, push.number):
        # It landed long ago, and the verdict and the generation are gone: it is in the newest one. Or its owner took it
        # back, and knows nothing of it any more.
        return replace(push, state=PushState.PUBLISHED, position=above.position)
    return None


def climb(sites: Sites, node: Node) -> tuple[list[Node], errors.Error | None]:
    """The nodes from this one up to the root, or as far as this host reaches, and what stopped it."""
    chain = [node]
    try:
        while (parent := chain[-1].read().parent) is not None:
            above = Node.at(sites, parent)
            above.read()
            chain.append(above)
    except (errors.Unreachable, errors.NotFound, errors.Denied) as error:
        return chain, error
    return chain, None


def _at_border(sites: Sites, node: Node) -> bool:
    """Whether the parent is on a cluster that this host's configuration does not know."""
    parent = node.read().parent
    try:
        return parent is not None and not Node.at(sites, parent)
    except errors.NotFound:
        return True
    except errors.Error:
        return False


def push(sites: Sites, node: Node, reporter: Reporter, *, shared: bool = False) -> PushOutcome:
    """What the branch holds, staged and carried."""
    staged = stage(sites, node)
    outcome = carry(sites, node, reporter, shared=shared)
    outcome.staged = staged
    return outcome


def carry(
    sites: Sites,
    node: Node,
    reporter: Reporter,
    *,
    shared: bool = False,
    paces: Paces | None = None,
    check: Callable[[], None] | None = None,
) -> PushOutcome:
    """What is staged at the node, all the way up as far as this host reaches, and the verdict back.

    ``paces`` and ``check`` as in ``forward``."""
    document = node.read()
    outcome = PushOutcome(document.full_name)
    under_way = {p.push_id for p in branches.own_pushes(document)}
    chain, outcome.stopped = climb(sites, node)
    outcome.border = outcome.stopped is not None and _at_border(sites, chain[-1])
    top = chain[-1].read()
    leases = top.leases if top.kind is Kind.ROOT else None
    try:
        for hop in chain[:-1]:
            outcome.sent_bytes += forward(sites, hop, reporter, leases, paces=paces, check=check)
        if top.kind is Kind.ROOT:
            publish.land(chain[-1], reporter, shared=shared)
    except errors.Unreachable as error:
        outcome.stopped = error
    for hop in reversed(chain[:-1]):
        hear(sites, hop)
    for mine in node.read().pushes:
        if mine.push_id not in under_way:
            continue
        if mine.state is PushState.PUBLISHED and mine.position:
            outcome.published.append(mine.position)
        elif mine.state is PushState.CONFLICT:
            outcome.refused.append(mine)
        else:
            outcome.waiting += 1
    return outcome
