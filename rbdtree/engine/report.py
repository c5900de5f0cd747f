"""What ``status`` and ``log`` show: values with the figures of ``docs/json.md``, made from a tree as found."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import delta
from rbdtree.engine.claim import describe
from rbdtree.engine.clone import CloneEdge
from rbdtree.engine.edge import plan_of
from rbdtree.engine.forest import Member, Tree
from rbdtree.engine.mirror import MirrorEdge
from rbdtree.engine.portion import pending as portion_pending
from rbdtree.engine.push import conflict as refusal
from rbdtree.model.document import Kind, NodeDocument, Push, PushState, State, Summary
from rbdtree.model.portion import WHOLE, Portion
from rbdtree.model.position import Generation, Position, snapshot_name
from rbdtree.plan.behind import behind
from rbdtree.plan.conflict import Conflict, InUse
from rbdtree.plan.edge import MirrorState
from rbdtree.plan.state import replica_state
from rbdtree.ports import Silent, Sites


@dataclass(frozen=True, slots=True)
class NodeReport:
    """One node. Lags are against the root's newest generation; None where nobody can know."""

    name: str
    node_id: str
    parent: str | None
    kind: Kind
    site: str
    image: str
    state: State
    position: Position | None
    size_bytes: int | None
    lag_generations: int | None
    lag_seconds: float | None
    lag_bytes: int | None
    doing: str = ""
    problem: str = ""
    failures: int = 0
    """Of a manager, in a row, of what it tries now; ``next_try``: when it does again, in seconds since 1970."""
    next_try: float | None = None
    generations: int = 0
    intent: Position | None = None
    intent_done_bytes: int | None = None
    intent_size_bytes: int | None = None
    branch: str = ""
    branch_base: Position | None = None
    uplink: str = ""
    pushes: tuple[Push, ...] = ()
    portion: Portion = WHOLE
    portion_pending: bool = False
    """Whether its newest generation holds other ranges than these, which it is to hold."""


@dataclass(frozen=True, slots=True)
class TreeReport:
    """One tree, nodes parents first."""

    name: str
    tree_id: str
    size_bytes: int | None
    position: Position
    nodes: tuple[NodeReport, ...]

    def children(self, parent: str | None) -> list[NodeReport]:
        return [n for n in self.nodes if n.parent == parent]


@dataclass(frozen=True, slots=True)
class LogEntry:
    """One generation and who has it."""

    position: Position
    created: float
    size_bytes: int
    delta_bytes: int | None
    author: str
    nodes: tuple[str, ...]


def report(sites: Sites, tree: Tree, *, check: bool = True) -> TreeReport:
    """``check`` looks at the images too (diverged heads, missing images, what is in use), not at documents alone."""
    ordered = _ordered(tree)
    with ThreadPoolExecutor(8) as threads:
        nodes = tuple(threads.map(lambda m: _node(sites, tree, m, check), ordered))
    root = tree.root
    size: int | None = None
    if root and root.document and root.node:
        try:
            image = root.node.pool.open(root.document.image_id)
            size = image.size()
            image.close()
        except errors.Error:
            size = None
    if size is None:
        size = max((n.size_bytes or 0 for n in nodes), default=None)
    return TreeReport(tree.name, tree.tree_id, size, tree.position, nodes)


def _ordered(tree: Tree) -> list[Member]:
    found: list[Member] = []

    def walk(member: Member) -> None:
        found.append(member)
        for child in tree.children(member.ref.node_id):
            walk(child)

    for top in tree.tops():
        walk(top)
    return found


def _node(sites: Sites, tree: Tree, member: Member, check: bool) -> NodeReport:
    parent = tree.members.get(member.parent_id)
    document = member.document
    if document is None:
        return _hearsay(tree, member, parent)
    state, doing = replica_state(document, tree.position), ""
    problem = document.distrust or needs_resync(tree, document.edge)
    if check and member.node:
        try:
            claimed = member.node.pool.claimed(member.node.object)
            doing = describe(claimed) if claimed else ""
            conflict, lost = (None, ()) if claimed else _conflict(sites, member, document)
            if conflict:
                problem = str(conflict.error())
                state = state if isinstance(conflict, InUse) else State.DIVERGED
            elif lost:
                names = ", ".join(str(position) for position in lost)
                problem = f"the snapshot of {names} was removed by hand; the next sync puts that right"
        except errors.Error as error:
            problem = str(error)
    refused = next((p for p in branches.own_pushes(document) if p.state is PushState.CONFLICT), None)
    if refused and not problem:
        met = refusal(document, refused)
        problem = f"{met}. {met.hint}"
    now = time.time()
    if document.trouble and not problem:
        problem = f"{document.trouble.message} ({document.trouble.again(now)})"
    if document.phase:
        problem = problem or f"{document.phase}: run the command again to finish"
    generations, seconds, size = _lag(tree, document.newest_position)
    if check and size and document.newest and document.newest.portion:
        size = _lag_inside(tree, document.newest, size)
    return NodeReport(
        name=document.name,
        node_id=document.ref.node_id,
        parent=parent.ref.name if parent else None,
        kind=document.kind,
        site=document.ref.site,
        image=document.ref.image_spec,
        state=state,
        position=document.newest_position,
        size_bytes=document.newest.size_bytes if document.newest else None,
        lag_generations=0 if document.kind is Kind.ROOT else generations,
        lag_seconds=0 if document.kind is Kind.ROOT else seconds,
        lag_bytes=0 if document.kind is Kind.ROOT else size,
        doing=doing,
        problem=problem,
        failures=document.trouble.count if document.trouble else 0,
        next_try=(document.trouble.next_try or None) if document.trouble else None,
        generations=len(document.generations),
        intent=document.intent.target if document.intent else None,
        intent_done_bytes=document.intent.done_bytes if document.intent else None,
        intent_size_bytes=document.intent.size_bytes if document.intent else None,
        branch=branches.spec(document, document.branch) if document.branch else "",
        branch_base=document.branch.base if document.branch else None,
        uplink=document.branch.uplink if document.branch else "",
        pushes=branches.own_pushes(document),
        portion=_portion(document),
        portion_pending=portion_pending(document),
    )


def _portion(document: NodeDocument) -> Portion:
    """What a node is to hold; of a clone: what it shows by now."""
    clone = document.kind is Kind.CLONE and not document.portion and document.newest
    return document.newest.portion if clone and document.newest else document.portion


def _lag_inside(tree: Tree, held: Generation, most: int) -> int:
    """Bytes of the volume that changed since inside the portion: asked of the root, if it has that generation still."""
    root = tree.root
    document, node = (root.document, root.node) if root else (None, None)
    if document is None or node is None or not document.newest or document.generation(held.position) is None:
        return most
    since, until = (snapshot_name(document.tree_id, p) for p in (held.position, document.newest.position))
    try:
        image = node.pool.open(document.image_id, until)
        try:
            changed = delta.changes(image, since, until, portion=held.portion)
            return min(most, sum(length for pairs in changed for _, length in pairs))
        finally:
            image.close()
    except errors.Error:
        return most


def _conflict(sites: Sites, member: Member, document: NodeDocument) -> tuple[Conflict | None, tuple[Position, ...]]:
    """What the next sync would stumble over, and generations whose snapshot is gone."""
    if document.kind is Kind.ROOT or member.node is None or document.phase:
        return None, ()
    edge = (MirrorEdge if document.kind is Kind.MIRROR else CloneEdge)(sites, member.node, None, Silent())
    try:
        state = edge.observe()
    finally:
        edge.close()
    plan = plan_of(state)
    return None if isinstance(plan, tuple) else plan, state.lost if isinstance(state, MirrorState) else ()


def needs_resync(tree: Tree, edge: str) -> str:
    """Why the node above let go of what this edge's child stands on; empty when it did not."""
    documents = (m.document for m in tree.members.values() if m.document)
    found = next((r for d in documents if (r := d.resync(edge))), None)
    return f"needs a resync: {found.position}, which it stood on, was let go ({found.reason})" if found else ""


def _hearsay(tree: Tree, member: Member, parent: Member | None) -> NodeReport:
    told: Summary | None = member.told.summary if member.told else None
    position = told.position if told else None
    generations, seconds, size = _lag(tree, position) if told else (None, None, None)
    return NodeReport(
        name=member.ref.name,
        node_id=member.ref.node_id,
        parent=parent.ref.name if parent else None,
        kind=member.kind,
        site=member.ref.site,
        image=member.ref.image_spec,
        state=State.UNREACHABLE,
        position=position,
        size_bytes=told.size_bytes if told else None,
        lag_generations=generations,
        lag_seconds=seconds,
        lag_bytes=size,
        portion=told.portion if told else WHOLE,
        problem="; ".join(
            said
            for said in (
                needs_resync(tree, member.told.edge if member.told else ""),
                member.problem,
                told.trouble if told else "",
            )
            if said
        ),
    )


def _lag(tree: Tree, position: Position | None) -> tuple[int | None, float | None, int | None]:
    """(generations, seconds, bytes) that a node at ``position`` is behind the root."""
    root = tree.root
    if root is None or root.document is None:
        return None, None, None
    found = behind(position, root.document.generations)
    return found.generations, found.seconds, found.bytes


def log(tree: Tree, node: str = "") -> list[LogEntry]:
    """Newest first; of one node, or of everything that any node has."""
    holders: dict[Position, list[str]] = {}
    best: dict[Position, LogEntry] = {}
    members = [tree.member(node)] if node else list(_ordered(tree))
    for member in _ordered(tree):
        for g in member.document.generations if member.document else ():
            holders.setdefault(g.position, []).append(member.ref.name)
    for member in members:
        for g in member.document.generations if member.document else ():
            if g.position not in best:
                best[g.position] = LogEntry(
                    g.position, g.created, g.size_bytes, g.delta_bytes, g.author, tuple(holders[g.position])
                )
    return [best[position] for position in sorted(best, reverse=True)]
