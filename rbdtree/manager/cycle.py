"""One cycle of a node: everything that is due there, in an order in which one part helps the next.

    root    publish what was pushed, cut by the schedule, push its own branch
    others  take the branch's changes, carry pushes up, hear of them, bring the node on
    all     retention, scrub, how much the branch holds, tell the parent

A part that fails keeps the others from nothing; the first error is the cycle's. What there is to do is decided anew by
every part from what it reads, so a cycle may end anywhere and be run again, here or elsewhere.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import cut, ends, publish, push, retain, scrub
from rbdtree.engine.claim import Claim
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import EdgeRun, Outcome, after
from rbdtree.engine.node import Node
from rbdtree.engine.pace import Paces
from rbdtree.manager import answer, glance
from rbdtree.manager.unit import Unit
from rbdtree.model.document import Child, Kind, NodeDocument, PushState, Scrub, Trouble
from rbdtree.model.position import Position
from rbdtree.plan.scrub import plan_scrub
from rbdtree.ports import Reporter, Sites

_RETAIN_SECONDS = 60.0
"""Retention looks no more often than this when generations, or what needs them, have changed,"""
_RETAIN_IDLE_SECONDS = 600.0
"""and this often when nothing has: time alone makes a child slow."""
_SCRUB_AGAIN_SECONDS = 10.0
"""After a scrub that compared nothing, as while a delta is half applied."""
_WEIGH_SECONDS = 60.0
"""Between two looks at how much a branch holds."""
_SKEW_SECONDS = 60.0


@dataclass
class Cycle:
    """What came of one. Bytes as in ``Outcome``; ``parts`` are seconds by part and by step."""

    name: str
    edge: Outcome | None = None
    cut: Position | None = None
    unfrozen: str = ""
    """Why the cut is not of clean file systems."""
    published: int = 0
    refused: int = 0
    sent_bytes: int = 0
    scrubbed_bytes: int = 0
    scrub_found: int = 0
    removed: int = 0
    """Snapshots that retention removed."""
    let_go: tuple[str, ...] = ()
    """Nodes that need a resync since."""
    skewed: str = ""
    """Why no limit of age ended anything."""
    error: errors.Error | None = None
    trouble: Trouble | None = None
    seconds: float = 0.0
    glanced: bool = False
    """Documents alone said that the edge rests."""
    parts: dict[str, float] = field(default_factory=dict)

    @property
    def changed(self) -> bool:
        edge = self.edge is not None and self.edge.changed
        return bool(
            edge or self.cut or self.published or self.refused or self.sent_bytes or self.scrubbed_bytes or self.removed
        )


Frozen = Callable[[str], AbstractContextManager[list[str]]]
"""Freezes what this host has mapped of a tree's volume, by the tree's id, while it is cut; yields what went wrong."""


class Cycles:
    """Runs them, for units on any thread. ``stop``: the manager ends, what is under way is left in good order."""

    def __init__(
        self,
        sites: Sites,
        reporter: Reporter,
        stop: threading.Event,
        manager: str,
        *,
        expiry_seconds: float = 0,
        clock: Callable[[], float] = time.time,
        frozen: "Frozen | None" = None,
        paces: Paces | None = None,
    ) -> None:
        self._sites = sites
        self._frozen = frozen or (lambda _: nullcontext([]))
        self._reporter = reporter
        self._stop = stop
        self._manager = manager
        self._expiry_seconds = expiry_seconds
        self._clock = clock
        self._paces = paces or Paces(clock)

    def run(self, unit: Unit, desk: Desk, *, whole: bool) -> Cycle:
        """Raises nothing. The desk was entered for this unit if it is a mirror, and is left in the end."""
        cycle = Cycle(unit.name)
        began = time.monotonic()
        entered = _Entered(desk, unit.document.kind is Kind.MIRROR)
        try:
            node = Node.at(self._sites, unit.ref)
            node.name = unit.name
            unit.document = ends.read_settled(node)
            parts = self._root(unit, node, cycle) if unit.is_root else self._edge(unit, node, cycle, entered, whole)
            parts.append(("retain", lambda: self._retain(unit, node, cycle)))
            parts.append(("scrub", lambda: self._scrub(unit, node, cycle)))
            parts.append(("weigh", lambda: self._weigh(unit, node)))
            for name, part in parts:
                self._part(cycle, name, part)
                if cycle.error and answer.answer(cycle.error) is answer.Answer.STOP:
                    break
        except errors.Error as error:
            cycle.error = cycle.error or error
        except Exception as error:
            cycle.error = errors.Bug(f"{unit.name}: {type(error).__name__}: {error}")
            cycle.error.__cause__ = error
        finally:
            entered.leave()
        self._tell(unit, cycle)
        cycle.seconds = time.monotonic() - began
        return cycle

    def _part(self, cycle: Cycle, name: str, part: Callable[[], None]) -> None:
        if self._stop.is_set():
            raise errors.Interrupted("the manager was stopped")
        began = time.monotonic()
        try:
            part()
        except errors.Error as error:
            cycle.error = cycle.error or error
        except Exception as error:
            if cycle.error is None:
                cycle.error = errors.Bug(f"{cycle.name}: {type(error).__name__}: {error}")
                cycle.error.__cause__ = error
        cycle.parts[name] = cycle.parts.get(name, 0.0) + time.monotonic() - began

    # -- the root

    def _root(self, unit: Unit, node: Node, cycle: Cycle) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("take", lambda: self._take(unit, node)),
            ("publish", lambda: self._publish(unit, node, cycle)),
            ("cut", lambda: self._cut(unit, node, cycle)),
            ("branch", lambda: self._branch(unit, node)),
        ]

    def _publish(self, unit: Unit, node: Node, cycle: Cycle) -> None:
        unit.document = node.read()
        if glance.staged(unit.document):
            for verdict in publish.land(node, self._reporter):
                cycle.published += verdict.state is PushState.PUBLISHED
                cycle.refused += verdict.state is PushState.CONFLICT
            unit.document = node.read()

    def _cut(self, unit: Unit, node: Node, cycle: Cycle) -> None:
        """By the schedule, when anything changed; and what a cut that died left behind, at any time."""
        now = self._clock()
        tick = max((schedule.last(now) for schedule in unit.policy.schedule), default=0.0)
        newest = unit.document.newest
        made = newest.created if newest else 0.0
        # A generation from the future was made before the clock was set back; it says nothing about now.
        due = tick != unit.ticked and (tick > made or made > now + _SKEW_SECONDS)
        if not due and unit.document.intent is None:
            return
        with cut.opened(node, "cut", self._reporter) as root:
            if due and root.changed():
                with self._frozen(unit.document.tree_id) as troubles:
                    cycle.cut = root.cut().position
                cycle.unfrozen = "; ".join(troubles)
            unit.document = root.document
        unit.ticked = tick if due else unit.ticked

    def _branch(self, unit: Unit, node: Node) -> None:
        unit.document = document = node.read()
        moving = any(p.state is not PushState.CONFLICT for p in document.pushes)
        if document.discarding or (document.branch and moving):
            with Claim(node, "sync", wait=True, leave=unit.leave) as claim:
                after(self._sites, node, claim, self._reporter, self._expiry_seconds)
            unit.document = node.read()

    # -- an edge

    def _edge(
        self, unit: Unit, node: Node, cycle: Cycle, entered: "_Entered", whole: bool
    ) -> list[tuple[str, Callable[[], None]]]:
        return [
            ("take", lambda: self._take(unit, node)),
            ("carry", lambda: self._carry(unit, node, cycle)),
            ("sync", lambda: self._sync(unit, node, cycle, entered, whole)),
        ]

    def _take(self, unit: Unit, node: Node) -> None:
        """The branch's changes as a push, as often as the policy wants. A journal uplink has a thread of its own."""
        every, branch = unit.policy.push, unit.document.branch
        if every is None or branch is None or branch.uplink != branches.SNAPSHOT or not branch.image_id:
            return
        if any(p.state is PushState.CONFLICT for p in branches.own_pushes(unit.document)):
            # Said by status and check; nothing goes up before it is resolved.
            return
        if unit.pushed and time.monotonic() < unit.pushed + every:
            return
        push.stage(self._sites, node)
        unit.pushed = time.monotonic()

    def _carry(self, unit: Unit, node: Node, cycle: Cycle) -> None:
        def check() -> None:
            if self._stop.is_set():
                raise errors.Interrupted("the manager was stopped", "What is staged goes up when one runs again.")
            if unit.leave.is_set():
                raise errors.Fenced(f"the edge to {unit.name} is to be another manager's")

        document = node.read()
        if glance.staged(document):
            cycle.sent_bytes += push.forward(self._sites, node, self._reporter, paces=self._paces, check=check)
            document = node.read()
        if any(p.state is PushState.SENT for p in document.pushes):
            push.hear(self._sites, node)

    def _sync(self, unit: Unit, node: Node, cycle: Cycle, entered: "_Entered", whole: bool) -> None:
        unit.document = document = node.read()
        relays = unit.policy.cut_through
        if not whole and document.parent is not None:
            above = ends.source_node(self._sites, document)
            there = above.read()
            parent = there if document.parent.node_id == above.node_id else self._parent(document).read()
            if glance.settled(document, there, parent, relays=relays):
                cycle.glanced = True
                return
        run = EdgeRun(
            self._sites,
            self._reporter,
            self._stop,
            expiry_seconds=self._expiry_seconds,
            leave=unit.leave,
            relay=relays,
            pace=self._paces.of(unit.document),
        )
        entered.handed_on = True
        cycle.edge = run.run(node, document.kind, entered.desk)
        unit.document = node.read()
        if cycle.edge.error:
            raise cycle.edge.error

    def _parent(self, document: NodeDocument) -> Node:
        if document.parent is None:
            raise errors.Bug(f"{document.full_name} has no parent")
        return Node.at(self._sites, document.parent)

    # -- all

    def _retain(self, unit: Unit, node: Node, cycle: Cycle) -> None:
        document, now = unit.document, time.monotonic()
        if document.kind is Kind.CLONE or unit.policy.keep.all or len(document.generations) < 2:
            return
        stock = retain.stock_of(document)
        pause = _RETAIN_IDLE_SECONDS if stock == unit.retained else _RETAIN_SECONDS
        if unit.retain_looked and now < unit.retain_looked + pause:
            return
        with Claim(node, "retain", wait=True, leave=unit.leave) as claim:
            found = retain.retain(self._sites, node, claim, self._clock())
        unit.retained, unit.retain_looked = stock, now
        unit.document = node.read()
        cycle.removed, cycle.let_go, cycle.skewed = len(found.removed), tuple(found.resyncs), found.skewed
        for name in found.resyncs:
            self._reporter.note(name, "needs a resync: what it stood on was let go")

    def _weigh(self, unit: Unit, node: Node) -> None:
        """What its branch holds and has not pushed; a journal's uplink tells that by itself."""
        branch, now = unit.document.branch, time.monotonic()
        if branch is None or branch.uplink != branches.SNAPSHOT or not branch.image_id:
            unit.unpublished_bytes = None
        elif not unit.weighed or now >= unit.weighed + _WEIGH_SECONDS:
            unit.weighed = now
            # It may be moving on, or gone: those who need it say so.
            with suppress(errors.Error):
                unit.unpublished_bytes = branches.weigh(node, branch)

    def _scrub(self, unit: Unit, node: Node, cycle: Cycle) -> None:
        policy = unit.policy
        began, newest = time.monotonic(), unit.document.newest
        if policy.scrub is None or unit.is_root or began < unit.scrub_due:
            return
        unit.scrub_due = began + _SCRUB_AGAIN_SECONDS
        if newest is None:
            return
        done = unit.document.scrub or Scrub()
        length, pause = plan_scrub(done, newest.size_bytes, policy.scrub, policy.scrub_rate, self._clock())
        try:
            piece = scrub.scrub(self._sites, node, length, self._reporter)
        except errors.Integrity:
            cycle.scrub_found += 1
            raise
        if piece:
            cycle.scrubbed_bytes = piece.length
            unit.scrub_due = began + pause

    def _tell(self, unit: Unit, cycle: Cycle) -> None:
        """The trouble there is, or that it is over, into the node's document; and what is new to its parent."""
        error = cycle.error
        if error and answer.answer(error) is answer.Answer.STOP:
            return
        try:
            node = Node.at(self._sites, unit.ref)
            document = node.read()
            found = self._trouble(unit, document.trouble, error) or unit.uplink_trouble
            cycle.trouble = unit.trouble = found
            if _worth_a_write(document.trouble, found):
                document = node.update(lambda d: replace(d, trouble=found))
            unit.document = document
            if document.parent is not None:
                self._parent(document).update(ends.with_summary(document))
        except errors.Error as failure:
            if cycle.trouble is None:
                cycle.error = cycle.error or failure
                cycle.trouble = unit.trouble = self._trouble(unit, unit.document.trouble, cycle.error)
            if cycle.trouble:
                self._tell_parent(unit, cycle.trouble)

    def _trouble(self, unit: Unit, known: Trouble | None, error: errors.Error | None) -> Trouble | None:
        if error is None:
            return None
        return answer.trouble(unit.trouble or known, error, self._clock(), self._manager)

    def _tell_parent(self, unit: Unit, found: Trouble) -> None:
        """Of a node whose own cluster cannot be asked."""
        parent = unit.document.parent
        if parent is None:
            return

        def hearsay(child: Child) -> Child:
            if child.edge != unit.document.edge or child.summary is None or child.summary.trouble == found.message:
                return child
            told = round(self._clock(), 3)
            return replace(child, summary=replace(child.summary, trouble=found.message, told=told))

        try:
            Node.at(self._sites, parent).update(lambda d: replace(d, children=tuple(map(hearsay, d.children))))
        except errors.Error:
            # Nobody to be told.
            return


def _worth_a_write(known: Trouble | None, found: Trouble | None) -> bool:
    """Not what may have passed before anybody could read of it; nor what waits for a person and is told already: each
    write would wake whoever waits for a change of the document."""
    if found is None or found == known:
        return found != known
    if answer.kind_of(found) is answer.Answer.RETRY:
        return known is not None or found.count > 1
    same = known is not None and (known.kind, known.message) == (found.kind, found.message)
    return not same or bool(found.next_try)


@dataclass
class _Entered:
    """A unit's place at its desk, until the run of its edge takes it over."""

    desk: Desk
    mirror: bool
    handed_on: bool = False

    def leave(self) -> None:
        if self.mirror and not self.handed_on:
            self.handed_on = True
            self.desk.leave()
