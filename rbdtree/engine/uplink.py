"""A branch's journal, published continuously: records become batches, batches pushes, pushes generations, in order.

    journal -> tail -> batch (ends at a flush) -> staged here -> parent -> ... -> root -> commit position

A batch is staged (its bytes in a clone beside the branch, and in the document how far in the journal it goes) before
anything is sent, so killed anywhere it is published once. The commit position moves only when the parent has it. While
the way up is shut nothing more is staged: the records stay in the journal, which Ceph bounds (``max_unpushed``); what
no longer fits is found by a snapshot of the branch instead.
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import marks, pieces
from rbdtree.engine.batch import Batch, Batcher
from rbdtree.engine.coalesce import Piece
from rbdtree.engine.doubt import covered
from rbdtree.engine.loss import Teller, Window
from rbdtree.engine.milestone import Milestones
from rbdtree.engine.node import Node
from rbdtree.engine.pace import Paces
from rbdtree.engine.session import SHUT_SECONDS, Again, Session, positions
from rbdtree.engine.stage import base, stage
from rbdtree.engine.tail import JournalGap, Tail
from rbdtree.engine.way import Way
from rbdtree.model.document import Branch
from rbdtree.model.extent import Extents
from rbdtree.model.journal_client import Commit
from rbdtree.model.position import push_snapshot_prefix
from rbdtree.model.record import CompareAndWrite, OpFinish, Resize, SnapCreate, SnapRollback
from rbdtree.ports import Journal, Reporter, Sites

_FLUSH_SECONDS = 5.0
"""How long to wait for a flush."""
_LOOK_SECONDS = 0.05
_DRAIN_SECONDS = 5.0
"""How long a run that ends goes on reading what comes."""
_MARK_SECONDS = 60.0
"""How long a run that ends waits for the journal to come to its mark."""


class Uplink:
    """One run. ``run`` returns when stopped, and raises what a person must see to.

    ``join``: a push, which ends where it stands now (``join.join``, not ``run()``); where the way up is shut it gives
    up. ``paces``: the limits of the edges above; none without.
    """

    def __init__(
        self,
        sites: Sites,
        node: Node,
        reporter: Reporter,
        *,
        interval: float = 1.0,
        max_unpushed: int | None = None,
        shared: bool = False,
        join: bool = False,
        show: Callable[[Window], None] | None = None,
        paces: Paces | None = None,
    ) -> None:
        self.session = Session(sites, node, reporter, join=join)
        self.stop = self.session.stop
        self.way = Way(self.session, shared=shared, paces=paces)
        self.milestones = Milestones(self.session, self.way)
        self._teller = Teller(node, self.way, show)
        self._node = node
        self._interval = interval
        self._max_unpushed = max_unpushed
        self._leaving = 0.0

    def run(self, *, once: bool = False) -> None:
        """Until stopped; with ``once`` until everything written before is published."""
        self.session.begin()
        try:
            with self._teller.telling():
                self._go_on(once)
        finally:
            self.session.end()

    def _go_on(self, once: bool) -> None:
        while True:
            try:
                self._run(once)
                return
            except Again:
                continue
            except errors.Unreachable as error:
                if self.stop.is_set():
                    raise
                self.way.shut = str(error)
                self.session.reporter.note(self._node.name, f"waits: {error}")
                self.stop.wait(SHUT_SECONDS)
            except errors.Fenced:
                # A claim that was lost while this host stood still; or somebody else's turn.
                self.session.branch(self._node.read())

    def catch_up(self) -> None:
        """Once, without waiting for anything: ``Again`` and ``Fenced`` when somebody else is at it."""
        self._leaving = 0.0
        self.session.begin()
        self._run(True)

    def _run(self, once: bool) -> None:
        branch = self.session.open()
        journal = self._node.pool.journal(branch.image_id)
        try:
            self._register(journal, branch)
            self._follow(journal, once)
        except JournalGap as gap:
            self.session.reporter.note(self._node.name, f"{gap}: publishing by a snapshot what the journal lost")
            self._forget(journal)
            raise Again from gap
        finally:
            journal.close()

    # -- begin

    def _limit(self, journal: Journal) -> None:
        """How far the writer lets us fall behind; who has the image open obeys what it was opened with."""
        if self._max_unpushed is None:
            return
        limit = str(max(2, self._max_unpushed // (journal.object_bytes * journal.splay_width)))
        with self.session.claim():
            # The branch may have moved on meanwhile.
            self.session.mine(self._node.read())
            image = self._node.pool.open(self.session.image_id, read_only=False)
            try:
                if image.metadata().get(marks.JOURNAL_LIMIT) != limit:
                    image.set_metadata(marks.JOURNAL_LIMIT, limit)
            finally:
                image.close()

    def _register(self, journal: Journal, branch: Branch) -> None:
        self._limit(journal)
        session = self.session
        registered = any(client.client_id == session.client for client in journal.clients())
        if registered and (branch.taken or branch.skip_to):
            return
        with session.claim() as claim:
            # First: positions of another journal must never be taken for positions of this one.
            session.update(lambda b: replace(session.mine_of(b), taken=(), skip_to=""), claim)
            session.taken = ()
            if not registered:
                journal.register(session.client)
            self._teller.based = base(session, claim)
            self.milestones.doubt.clear()

    def _forget(self, journal: Journal) -> None:
        with suppress(errors.NotFound):
            journal.unregister(self.session.client)

    # -- follow

    def _follow(self, journal: Journal, once: bool) -> None:
        self._teller.begun, self.way.shut = True, ""
        if once and self.milestones.passed():
            return
        self.way.settle(journal)
        document = self._node.read()
        branch = self.session.mine(document)
        self.milestones.begin(document, branch)
        tail = Tail(journal, self.session.client)
        taken = tuple(Commit(*position) for position in branch.taken)
        front = taken[0][1:] if taken else (-1, -1)
        batcher = Batcher(
            journal.splay_width,
            taken or tail.committed,
            seconds=_MARK_SECONDS if once else self._interval,
            patience=_MARK_SECONDS if once else _FLUSH_SECONDS,
        )
        quiet_since = time.monotonic()
        while True:
            came = self._read(journal, tail, batcher, front)
            if not came:
                self.milestones.overdue(journal)
            now = time.monotonic()
            quiet_since = now if came or batcher.pending else quiet_since
            if once or self.stop.is_set():
                if not self._leaving:
                    self._leaving = now
                    self.milestones.asked = self.milestones.asked if self.session.join else -1
                if came and not once and now - self._leaving < _DRAIN_SECONDS:
                    continue
                for batch in batcher.cut() if not once and self.milestones.asked < 0 else ():
                    self._batch(journal, batch)
                if self._left(came):
                    return
            elif self.milestones.wanted(now - quiet_since):
                self.milestones.make()
            self.way.again()
            if not came:
                tail.wait(threading.Event() if self.stop.is_set() else self.stop)
            elif not once:
                # While much comes, looking for the next record at once would cost more than publishing all of them.
                self.stop.wait(min(_LOOK_SECONDS, self._interval / 10))

    def _read(self, journal: Journal, tail: Tail, batcher: Batcher, front: tuple[int, int]) -> bool:
        """What there is now; whether anything came. After a stop no more than a while."""
        came, end = False, float("inf")
        for entry in tail.poll():
            if entry.place[:2] <= front:
                continue
            came = True
            for batch in batcher.add(entry):
                self._batch(journal, batch)
            if self.stop.is_set():
                end = min(end, time.monotonic() + _DRAIN_SECONDS)
                if time.monotonic() > end:
                    break
        for batch in batcher.due():
            self._batch(journal, batch)
        return came

    def _left(self, came: bool) -> bool:
        """Whether this run may end: a mark that it made says that everything before it is published."""
        milestones = self.milestones
        if milestones.asked < 0 and (milestones.due or (came and not self.stop.is_set())):
            milestones.make()
            return False
        if milestones.passed():
            return True
        seconds = time.monotonic() - self._leaving
        if self.stop.is_set() and (came or seconds > 3 * _DRAIN_SECONDS):
            return True
        if not came and seconds > _MARK_SECONDS:
            raise errors.Unreachable(f"{self._node.name}: the journal does not come to the mark that was made")
        return milestones.asked < 0

    def _batch(self, journal: Journal, batch: Batch) -> None:
        """Publishes one batch, or passes over it."""
        document = self._node.read()
        branch = self.session.mine(document)
        event = batch.event
        if branch.skip_to:
            if isinstance(event, SnapCreate) and event.name == branch.skip_to:
                self._pass(journal, batch)
        elif isinstance(event, Resize):
            raise errors.Unsupported(
                f"the branch of {document.full_name} was resized to {event.size} bytes: volumes are at the root",
                f"Resize it back, then 'rbdtree branch {document.full_name} --uplink snapshot' and push.",
            )
        elif isinstance(event, SnapRollback):
            self._forget(journal)
            raise Again
        elif isinstance(event, SnapCreate) and event.name.startswith(push_snapshot_prefix(document.tree_id)):
            self.milestones.creating(event, batch)
        elif isinstance(event, OpFinish) and (name := self.milestones.created(event, branch)) is not None:
            if name:
                self.milestones.reached(journal, branch, batch, name)
            else:
                self._pass(journal, batch)
        elif isinstance(event, CompareAndWrite):
            # Whether it took effect is known to the image alone.
            where = Extents.of([(event.offset, len(event.data))])
            self._publish(journal, branch, pieces.read(self._node.pool, branch.image_id, None, where), batch, where)
        elif batch.pieces:
            self._publish(journal, branch, list(batch.pieces), batch, batch.overlapped)
        else:
            self._pass(journal, batch)

    def _pass(self, journal: Journal, batch: Batch) -> None:
        """Records that need no push: only the position moves."""
        taken = positions(batch)
        self.session.move(lambda b: replace(b, taken=taken, skip_to=""))
        self.way.settle(journal)

    def _publish(
        self, journal: Journal, branch: Branch, changed: list[Piece], batch: Batch, overlapped: Extents
    ) -> None:
        taken = positions(batch)
        doubt = Extents.of(branch.doubt).union(overlapped)
        self.milestones.doubt.add(changed, doubt)
        pairs = covered(doubt)
        self.milestones.due = True
        stage(self.session, changed, lambda b: replace(b, taken=taken, doubt=pairs))
        self.way.carry()
        self.way.settle(journal)
