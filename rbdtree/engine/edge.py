"""One edge brought to the newest generation: observe, plan, apply, until planning yields nothing."""

import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import ends, push, tidy
from rbdtree.engine.claim import Claim
from rbdtree.engine.clone import CloneEdge
from rbdtree.engine.copy import Tally
from rbdtree.engine.desk import Desk
from rbdtree.engine.mirror import CopyRequest, MirrorEdge
from rbdtree.engine.node import Node
from rbdtree.engine.pace import Pace
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.plan import step as steps
from rbdtree.plan.conflict import Conflict
from rbdtree.plan.edge import CloneState, MirrorState, plan_clone, plan_mirror
from rbdtree.ports import Reporter, Sites

_ROUNDS = 50


@dataclass
class Outcome(Tally):
    """What became of one node, and what was moved to it. ``local``: of what was written, what came of its own pushes.

    ``waits``: why it is not at its parent's newest generation yet, or does not hold of it all it is to hold, where that
    is no error."""

    node: str
    changed: bool = False
    local_bytes: int = 0
    seconds: float = 0.0
    error: errors.Error | None = None
    waits: str = ""
    steps: list[str] = field(default_factory=list)
    step_seconds: dict[str, float] = field(default_factory=dict)


def plan_of(state: MirrorState | CloneState) -> steps.Plan | Conflict:
    """The plan for whichever kind of edge."""
    return plan_mirror(state) if isinstance(state, MirrorState) else plan_clone(state)


class EdgeRun:
    """How edges are brought on; one for as many as share ``stop``.

    ``stop`` ends the work in good order. ``leave``: the work is another's now, nothing more is written. ``relay``: a
    delta is taken from a parent that is still receiving it.
    """

    def __init__(
        self,
        sites: Sites,
        reporter: Reporter,
        stop: threading.Event,
        *,
        dry_run: bool = False,
        expiry_seconds: float = 0,
        leave: threading.Event | None = None,
        relay: bool = False,
        pace: Pace | None = None,
    ) -> None:
        self._sites = sites
        self._reporter = reporter
        self._stop = stop
        self._dry_run = dry_run
        self._expiry_seconds = expiry_seconds
        self._leave = leave
        self._relay = relay
        self._pace = pace

    def run(self, node: Node, kind: Kind, desk: Desk) -> Outcome:
        """Raises nothing: the outcome tells. The desk is left in the end."""
        outcome = Outcome(node.name)
        began = time.monotonic()
        try:
            if kind is Kind.MIRROR:
                self._mirror(node, desk, outcome)
            else:
                self._clone(node, outcome)
        except errors.Error as error:
            outcome.error = self._explain(node, error)
        except Exception as error:
            outcome.error = errors.Bug(f"{outcome.node}: {type(error).__name__}: {error}")
            outcome.error.__cause__ = error
        finally:
            if kind is Kind.MIRROR:
                desk.leave()
        outcome.seconds = time.monotonic() - began
        return outcome

    def _explain(self, node: Node, error: errors.Error) -> errors.Error:
        """A write that timed out because a pool is full is no dead cluster."""
        if isinstance(error, errors.Unreachable):
            try:
                full = node.pool.full(node.read().image_id)
            except errors.Error:
                full = None
            if full:
                return errors.NoSpace(
                    f"{node.name}: {full}",
                    "Free space or raise the quota, then sync again: the delta goes on where it stopped.",
                )
        return error

    def _claimed(self, node: Node) -> AbstractContextManager[Claim | None]:
        return nullcontext() if self._dry_run else Claim(node, "sync", leave=self._leave)

    def _mirror(self, node: Node, desk: Desk, outcome: Outcome) -> None:
        with self._claimed(node) as claim:
            self._before(node, claim)
            edge = MirrorEdge(
                self._sites, node, claim, self._reporter, relay=self._relay, pace=self._pace, tally=outcome
            )
            try:
                self._rounds(edge, outcome, desk, claim)
                outcome.waits = outcome.waits or edge.lacks
            finally:
                edge.close()
            if claim:
                after(self._sites, node, claim, self._reporter, self._expiry_seconds)

    def _clone(self, node: Node, outcome: Outcome) -> None:
        with self._claimed(node) as claim:
            self._before(node, claim)
            edge = CloneEdge(self._sites, node, claim, self._reporter, self._expiry_seconds)
            self._rounds(edge, outcome, None, claim)
            if claim and edge.stays:
                self._reporter.note(outcome.node, f"its branch {edge.stays}")
            if claim:
                after(self._sites, node, claim, self._reporter, self._expiry_seconds)

    def _before(self, node: Node, claim: Claim | None) -> None:
        """A discard or a branch that was not finished: the image in the way is none of the node's any more."""
        document = node.read()
        if claim and document.discarding:
            document = branches.clear(self._sites, node, document, claim, self._expiry_seconds)
        if claim and branches.half_made(node, document):
            branches.remake(self._sites, node, document, claim)

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
        began = time.monotonic()
        plan = plan_of(edge.observe())
        edge.follow_policy()
        _add(outcome.step_seconds, "observe", began)
        if not isinstance(plan, tuple):
            raise plan.error()
        outcome.steps += [str(step) for step in plan]
        if not plan or claim is None:
            return False
        try:
            for step in plan:
                if self._stop.is_set():
                    raise errors.Interrupted("interrupted", "Run the sync again: it goes on where it stopped.")
                began = time.monotonic()
                request = edge.apply(step)
                if isinstance(request, CopyRequest) and desk and isinstance(edge, MirrorEdge):
                    self._copy(desk, request, claim, edge, outcome)
                _add(outcome.step_seconds, type(step).__name__.lower(), began)
                outcome.changed = True
        except errors.Changed as error:
            # Something moved while we worked: look again and plan anew.
            self._reporter.note(outcome.node, str(error))
        if isinstance(edge, MirrorEdge) and edge.waits:
            outcome.waits = edge.waits
            return False
        return True

    def _copy(self, desk: Desk, request: CopyRequest, claim: Claim, edge: MirrorEdge, outcome: Outcome) -> None:
        try:
            copied = desk.copy(request, claim.check, edge.record)
        except BaseException:
            outcome.count_failed(request.target)
            raise
        if request.local:
            outcome.local_bytes += request.target.written_bytes
        outcome.count(copied, request.target)


def _add(seconds: dict[str, float], step: str, began: float) -> None:
    seconds[step] = seconds.get(step, 0.0) + time.monotonic() - began


def after(sites: Sites, node: Node, claim: Claim, reporter: Reporter, expiry_seconds: float) -> None:
    """Pushes of or through this node: what became of them, and the branch moved on when it holds nothing else."""
    known = node.read()
    document = branches.unreserve(node, known, claim)
    if not document.pushes and document.branch is None and not document.discarding:
        if ends.needed_by(known):
            branches.pin(sites, node)
        return
    branches.clear(sites, node, document, claim, expiry_seconds)
    push.hear(sites, node)
    said = branches.move_on(sites, node, claim)
    if said:
        reporter.note(document.full_name, said)
    tidy.tidy(node, claim)
    branches.pin(sites, node)


def summarise(sites: Sites, document: NodeDocument) -> None:
    """What the parent tells of this node and all below it."""
    if document.parent is not None:
        fresh = Node.at(sites, document.ref).read()
        Node.at(sites, document.parent).update(ends.with_summary(fresh))
