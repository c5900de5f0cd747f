"""Bring nodes to the newest generation: parents first, siblings side by side, equal deltas read once.

One thread an edge: observe, plan, apply, until planning yields nothing; then its children. One bad edge stops nobody
else.
"""

import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass, field

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import copy as copying
from rbdtree.engine import ends, push, tidy
from rbdtree.engine.claim import Claim
from rbdtree.engine.clone import CloneEdge
from rbdtree.engine.desk import Desk
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.engine.mirror import CopyRequest, MirrorEdge
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.plan import step as steps
from rbdtree.plan.conflict import Conflict
from rbdtree.plan.edge import CloneState, MirrorState, plan_clone, plan_mirror
from rbdtree.ports import Reporter, Silent, Sites

_ROUNDS = 50


@dataclass
class Outcome:
    """What became of one node."""

    node: str
    changed: bool = False
    written_bytes: int = 0
    local_bytes: int = 0
    seconds: float = 0.0
    error: errors.Error | None = None
    steps: list[str] = field(default_factory=list)


def plan_of(state: MirrorState | CloneState) -> steps.Plan | Conflict:
    """The plan for whichever kind of edge."""
    return plan_mirror(state) if isinstance(state, MirrorState) else plan_clone(state)


class Sync:
    """One run over a tree (``only``: the names of the nodes to bring on, None: all)."""

    def __init__(
        self,
        sites: Sites,
        reporter: Reporter | None = None,
        *,
        only: frozenset[str] | None = None,
        dry_run: bool = False,
        expiry_seconds: float = 0,
        window: int = copying.WINDOW,
    ) -> None:
        self.stop = threading.Event()
        self._sites = sites
        self._reporter = reporter or Silent()
        self._only = only
        self._dry_run = dry_run
        self._expiry_seconds = expiry_seconds
        self._window = copying.Window(window)
        self._guard = threading.Lock()
        self.outcomes: dict[str, Outcome] = {}

    def run(self, tree: Tree) -> list[Outcome]:
        """Returns one outcome a node, in the order in which they ended. Raises nothing of a single edge's."""
        for top in tree.tops():
            if top.kind is not Kind.ROOT and (self._only is None or top.ref.name in self._only):
                # Its parent was not found: the edge says why, and what is below it goes on.
                self._together(tree, [top])
                continue
            root = top.kind is Kind.ROOT
            if root and top.node and top.document and top.document.branch and not self._dry_run:
                with Claim(top.node, "sync", wait=True) as claim:
                    self._after(top.node, claim)
            self._below(tree, top)
        return list(self.outcomes.values())

    def _below(self, tree: Tree, parent: Member) -> None:
        """The children of a node, each with all below it."""
        self._together(tree, tree.children(parent.ref.node_id))

    def _together(self, tree: Tree, members: list[Member]) -> None:
        wanted = [m for m in members if self._only is None or m.ref.name in self._only]
        if not wanted:
            return
        desk = Desk(sum(c.kind is Kind.MIRROR for c in wanted), self._reporter, self.stop, self._window)
        threads = [
            threading.Thread(target=self._edge, args=(tree, child, desk), name=f"sync-{child.ref.name}", daemon=True)
            for child in wanted
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                # In small sips: a signal must reach the main thread.
                thread.join(0.2)

    def _edge(self, tree: Tree, child: Member, desk: Desk) -> None:
        outcome = Outcome(f"{tree.name}/{child.ref.name}")
        began = time.monotonic()
        try:
            node, _ = document_of(child)
            if child.kind is Kind.MIRROR:
                self._mirror(node, desk, outcome)
            else:
                self._clone(node, outcome)
        except errors.Error as error:
            outcome.error = self._explain(child, error)
        except Exception as error:
            outcome.error = errors.Bug(f"{outcome.node}: {type(error).__name__}: {error}")
            outcome.error.__cause__ = error
        finally:
            if child.kind is Kind.MIRROR:
                desk.leave()
        outcome.seconds = time.monotonic() - began
        with self._guard:
            self.outcomes[outcome.node] = outcome
        self._reporter.finished(outcome.node, str(outcome.error) if outcome.error else "")
        if not self.stop.is_set():
            self._below(tree, child)
            if child.document and not self._dry_run and not isinstance(outcome.error, errors.Unreachable):
                self._summarise(child.document, quiet=outcome.error is not None)

    def _explain(self, child: Member, error: errors.Error) -> errors.Error:
        """A write that timed out because a pool is full is no dead cluster."""
        if isinstance(error, errors.Unreachable) and child.node is not None:
            try:
                full = child.node.pool.full(child.document.image_id if child.document else "")
            except errors.Error:
                full = None
            if full:
                return errors.NoSpace(
                    f"{child.ref.name}: {full}",
                    "Free space or raise the quota, then sync again: the delta goes on where it stopped.",
                )
        return error

    def _summarise(self, document: NodeDocument, *, quiet: bool) -> None:
        """What the parent tells of this node and all below it; a parent out of reach hears it another time."""
        try:
            if document.parent is not None:
                fresh = Node.at(self._sites, document.ref).read()
                Node.at(self._sites, document.parent).update(ends.with_summary(fresh))
        except errors.Error as error:
            if not quiet:
                self._reporter.note(document.full_name, f"its parent was not told: {error}")

    def _mirror(self, node: Node, desk: Desk, outcome: Outcome) -> None:
        with self._claimed(node) as claim:
            self._before(node, claim)
            edge = MirrorEdge(self._sites, node, claim, self._reporter)
            try:
                self._rounds(edge, outcome, desk, claim)
            finally:
                edge.close()
            if claim:
                self._after(node, claim)

    def _clone(self, node: Node, outcome: Outcome) -> None:
        with self._claimed(node) as claim:
            self._before(node, claim)
            edge = CloneEdge(self._sites, node, claim, self._reporter, self._expiry_seconds)
            self._rounds(edge, outcome, None, claim)
            if claim and edge.stays:
                self._reporter.note(outcome.node, f"its branch {edge.stays}")
            if claim:
                self._after(node, claim)

    def _before(self, node: Node, claim: Claim | None) -> None:
        """A discard or a branch that was not finished: the image in the way is none of the node's any more."""
        document = node.read()
        if claim and document.discarding:
            document = branches.clear(self._sites, node, document, claim, self._expiry_seconds)
        if claim and branches.half_made(node, document):
            branches.remake(self._sites, node, document, claim)

    def _after(self, node: Node, claim: Claim) -> None:
        """Pushes of or through this node: what became of them, and the branch moved on when it holds nothing else."""
        document = node.read()
        if not document.pushes and document.branch is None and not document.discarding:
            return
        branches.clear(self._sites, node, document, claim, self._expiry_seconds)
        push.hear(self._sites, node)
        said = branches.move_on(self._sites, node, claim)
        if said:
            self._reporter.note(document.full_name, said)
        tidy.tidy(node, claim)
        branches.pin(self._sites, node)

    def _claimed(self, node: Node) -> "Claim | nullcontext[None]":
        return nullcontext() if self._dry_run else Claim(node, "sync")

    def _rounds(self, edge: MirrorEdge | CloneEdge, outcome: Outcome, desk: Desk | None, claim: Claim | None) -> None:
        for _ in range(_ROUNDS):
            if not self._round(edge, outcome, desk, claim):
                return
        raise errors.Bug(f"{outcome.node}: planning does not come to an end")

    def _round(
        self,
        edge: MirrorEdge | CloneEdge,
        outcome: Outcome,
        desk: Desk | None,
        claim: Claim | None,
    ) -> bool:
        """Plans and carries it out; False when there was nothing to do."""
        plan = plan_of(edge.observe())
        if not isinstance(plan, tuple):
            raise plan.error()
        outcome.steps += [str(step) for step in plan]
        if not plan or claim is None:
            return False
        try:
            for step in plan:
                if self.stop.is_set():
                    raise errors.Interrupted("interrupted", "Run the sync again: it goes on where it stopped.")
                request = edge.apply(step)
                if isinstance(request, CopyRequest) and desk and isinstance(edge, MirrorEdge):
                    desk.copy(request, claim.check, edge.record)
                    if request.local:
                        outcome.local_bytes += request.target.written_bytes
                    outcome.written_bytes += request.target.written_bytes + request.target.zeroed_bytes
                outcome.changed = True
        except errors.Changed as error:
            # Something moved while we worked: look again and plan anew.
            self._reporter.note(outcome.node, str(error))
        return True
