"""A push of a branch with a journal: as that tells it, by the uplink that runs, or in its place."""

import time

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import push as pushes
from rbdtree.engine.claim import SECONDS, is_dead
from rbdtree.engine.milestone import number_of
from rbdtree.engine.node import Node
from rbdtree.engine.session import Again
from rbdtree.engine.uplink import Uplink
from rbdtree.model.document import Branch, NodeDocument, PushState
from rbdtree.ports import Reporter, Sites

_GLANCE_SECONDS = 0.1


def push(sites: Sites, node: Node, reporter: Reporter, *, shared: bool = False) -> pushes.PushOutcome:
    """``push.push``; of a branch with a journal, as that tells it, also beside a running uplink."""
    branch = node.read().branch
    if branch is None or branch.uplink != branches.JOURNAL:
        return pushes.push(sites, node, reporter, shared=shared)
    before = {p.push_id for p in node.read().pushes if p.state is PushState.PUBLISHED}
    run = Uplink(sites, node, reporter, shared=shared, join=True)
    stopped: errors.Error | None = None
    try:
        _Join(run, node, reporter).wait()
    except errors.Conflict:
        pass
    except (errors.Unreachable, errors.NotFound) as error:
        stopped = error
    outcome = pushes.carry(sites, node, reporter, shared=shared)
    document = node.read()
    mine = [p for p in document.pushes if p.owner == node.node_id and p.push_id not in before]
    outcome.published = sorted({*run.way.published, *outcome.published, *(p.position for p in mine if p.position)})
    outcome.staged = len(outcome.published) + outcome.waiting
    outcome.stopped = outcome.stopped or stopped
    return outcome


class _Join:
    def __init__(self, run: Uplink, node: Node, reporter: Reporter) -> None:
        self._run = run
        self._node = node
        self._reporter = reporter
        self._last = -1
        """Number of the newest push that holds what lies before the mark."""

    def wait(self) -> None:
        """Until everything written before is in pushes: by a run that is under way, or, where none is, by this one.

        A run that is under way is only given a mark to come to: two that publish the same records would send each
        other back to the beginning all the time. Whether it lives is told by what it does.
        """
        milestones = self._run.milestones
        seen: object = None
        patience = 0.0
        while True:
            document = self._node.read()
            branch = self._run.session.branch(document)
            if self._passed(document, branch):
                return
            mine = branches.own_pushes(document)
            state = (branch.session, branch.taken, branch.since, [(p.number, p.state) for p in mine])
            if state != seen:
                seen, patience = state, time.monotonic() + SECONDS
            runs = branch.session and not is_dead(branch.session) and time.monotonic() < patience
            try:
                if runs:
                    if milestones.asked < 0 and not branch.skip_to:
                        milestones.make()
                    time.sleep(_GLANCE_SECONDS)
                    continue
                self._run.catch_up()
                return
            except (Again, errors.Fenced):
                # Somebody else is at it.
                continue
            except errors.Busy as error:
                if not branch.session:
                    raise
                self._reporter.note(self._node.name, f"waits: {error}")
                patience = time.monotonic() + SECONDS

    def _passed(self, document: NodeDocument, branch: Branch) -> bool:
        """Whether all before the mark is in pushes that are on their way; or a push was refused."""
        milestones = self._run.milestones
        mine = branches.own_pushes(document)
        if any(p.state is PushState.CONFLICT for p in mine):
            return True
        if milestones.asked < 0:
            return False
        if branch.image_id != milestones.image_id:
            # It moved on, for all was published; or somebody threw it away.
            return True
        if number_of(branch.since) < milestones.asked:
            return False
        if self._last < 0:
            self._last = branches.top(document)
        return all(p.state is PushState.SENT for p in mine if p.number <= self._last)
