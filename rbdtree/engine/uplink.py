"""A branch's journal, published continuously: records become batches, batches pushes, pushes generations, in order.

    journal -> tail -> batch (ends at a flush) -> staged here -> parent -> ... -> root -> commit position

A batch is staged (its bytes in a clone beside the branch, and in the document how far in the journal it goes) before
anything is sent, so killed anywhere it is published once. The commit position moves only when the parent has it. While
the way up is shut nothing more is staged: the records stay in the journal, which Ceph bounds (``max_unpushed``); what
no longer fits is found by a snapshot of the branch instead.
"""

import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import push as pushes
from rbdtree.engine import tidy
from rbdtree.engine.batch import Batch, Batcher
from rbdtree.engine.claim import Claim
from rbdtree.engine.coalesce import Piece
from rbdtree.engine.lag import Lag, lag
from rbdtree.engine.node import Node
from rbdtree.engine.tail import JournalGap, Tail
from rbdtree.model.document import Branch, NodeDocument, Push, PushState
from rbdtree.model.extent import Extents
from rbdtree.model.journal_client import Commit
from rbdtree.model.position import Position, push_snapshot_name
from rbdtree.model.record import CompareAndWrite, Resize, SnapCreate, SnapRollback
from rbdtree.ports import Image, Journal, Reporter, Sites

MAX_UNPUSHED = 1 << 30
_SET_OPTION = "conf_rbd_journal_max_concurrent_object_sets"
"""Image metadata that every librbd client of the image obeys: a writer that finds a journal client this many object
sets behind cuts it off, and trims."""
_IDLE_SECONDS = 3.0
_SHOW_SECONDS = 1.0
_SHUT_SECONDS = 2.0
_IN_FLIGHT = 64 << 20


@dataclass(frozen=True, slots=True)
class Window:
    """What would be lost with the branch now: records that are not upstream, their bytes, the oldest's age in seconds.

    ``published`` is the newest generation made of this branch; ``shut`` says why nothing goes up.
    """

    records: int
    bytes: int
    seconds: float
    published: Position | None
    shut: str = ""


def client_id(node_id: str) -> str:
    """Of the journal client that keeps what is not upstream yet."""
    return f"rbdtree.{node_id}"


class _Again(Exception):
    """The journal must be opened anew."""


class Uplink:
    """One run. ``run`` returns when stopped, and raises what a person must see to."""

    def __init__(
        self,
        sites: Sites,
        node: Node,
        reporter: Reporter,
        *,
        interval: float = 1.0,
        max_unpushed: int = MAX_UNPUSHED,
        shared: bool = False,
        show: Callable[[Window], None] = lambda _: None,
    ) -> None:
        self.stop = threading.Event()
        self.published: Position | None = None
        self._sites = sites
        self._node = node
        self._reporter = reporter
        self._interval = interval
        self._max_unpushed = max_unpushed
        self._shared = shared
        self._show = show
        self._shown = 0.0
        self._shut = ""
        self._session = uuid.uuid4().hex
        self._client = client_id(node.node_id)
        self._marked = True

    def run(self, *, once: bool = False) -> None:
        """Until stopped; with ``once`` until everything written before is published."""
        branch = self._begin()
        while True:
            journal = self._node.pool.journal(branch.image_id)
            try:
                self._register(journal, branch)
                self._follow(journal, once)
                return
            except JournalGap as gap:
                self._reporter.note(self._node.name, f"{gap}: publishing by a snapshot what the journal lost")
                self._recover(journal)
            except _Again:
                continue
            finally:
                journal.close()
            branch = branches.require(self._node.read())

    # -- begin

    def _begin(self) -> Branch:
        """This run is the one; an older one stops at its next batch."""
        with Claim(self._node, "uplink", wait=True) as claim:
            document = self._node.read()
            branch = branches.require(document)
            if branch.uplink != branches.JOURNAL:
                raise errors.UsageError(
                    f"the branch of {document.full_name} is pushed by snapshots",
                    f"Switch it with 'rbdtree branch {document.full_name} --uplink journal'.",
                )
            branch = replace(branch, session=self._session)
            self._node.update(lambda d: replace(d, branch=branch), claim.cookie)
        return branch

    def _register(self, journal: Journal, branch: Branch) -> None:
        if any(client.client_id == self._client for client in journal.clients()):
            return
        image = self._node.pool.open(branch.image_id, read_only=False)
        try:
            sets = max(2, self._max_unpushed // (journal.object_bytes * journal.splay_width))
            image.set_metadata(_SET_OPTION, str(sets))
        finally:
            image.close()
        journal.register(self._client)
        # What was written before this client was there is in the branch alone.
        self._snapshot_push()

    def _recover(self, journal: Journal) -> None:
        try:
            journal.unregister(self._client)
        except errors.NotFound:
            return

    def _snapshot_push(self) -> None:
        with Claim(self._node, "uplink", wait=True) as claim:
            self._node.update(self._forget_taken, claim.cookie)
        pushes.stage(self._sites, self._node)
        self._carry()

    @staticmethod
    def _forget_taken(document: NodeDocument) -> NodeDocument:
        return replace(document, branch=document.branch and replace(document.branch, taken=()))

    # -- follow

    def _follow(self, journal: Journal, once: bool) -> None:
        self._settle(journal)
        branch = branches.require(self._node.read())
        tail = Tail(journal, self._client)
        taken = tuple(Commit(*position) for position in branch.taken)
        front = taken[0][1:] if taken else (-1, -1)
        batcher = Batcher(journal.splay_width, taken or tail.committed, seconds=0.0 if once else self._interval)
        skipping = branch.skip_to
        quiet_since = time.monotonic()
        while True:
            came = False
            for entry in tail.poll():
                came = True
                if entry.place[:2] <= front:
                    continue
                for batch in batcher.add(entry):
                    skipping = self._batch(journal, batch, skipping)
                if self.stop.is_set():
                    break
            for batch in batcher.due():
                skipping = self._batch(journal, batch, skipping)
            self._tell(journal)
            now = time.monotonic()
            quiet_since = now if came or batcher.pending else quiet_since
            if once or self.stop.is_set():
                if not came:
                    for batch in batcher.cut():
                        skipping = self._batch(journal, batch, skipping)
                    self._mark()
                    self._tell(journal, force=True)
                    return
            elif now - quiet_since > _IDLE_SECONDS:
                self._mark()
                if tail.wait(self.stop):
                    continue
            elif not came:
                tail.wait(self.stop)

    def _batch(self, journal: Journal, batch: Batch, skipping: str) -> str:
        """Publishes one batch, or passes over it; what to skip to from then on."""
        event = batch.event
        if skipping:
            if isinstance(event, SnapCreate) and event.name == skipping:
                self._passed(journal, batch)
                return ""
            return skipping
        document = self._node.read()
        branch = branches.require(document)
        if branch.session != self._session:
            raise errors.Fenced(
                f"another uplink of {document.full_name} was started", "One is enough: the newest goes on."
            )
        if isinstance(event, Resize):
            raise errors.Unsupported(
                f"the branch of {document.full_name} was resized to {event.size} bytes: a volume is resized at the root",
                f"Resize it back, then 'rbdtree branch {document.full_name} --uplink snapshot' and push.",
            )
        if isinstance(event, SnapRollback):
            self._recover(journal)
            raise _Again
        if isinstance(event, SnapCreate) and event.name.startswith(push_snapshot_name(document.tree_id, 0)[:-1]):
            self._passed(journal, batch)
            return ""
        if event is not None and not isinstance(event, CompareAndWrite):
            self._passed(journal, batch)
            return ""
        self._publish(journal, document, batch)
        return ""

    def _passed(self, journal: Journal, batch: Batch) -> None:
        """Records that need no push: only the position moves."""

        def change(document: NodeDocument) -> NodeDocument:
            if document.branch is None:
                return document
            return replace(document, branch=replace(document.branch, taken=_positions(batch), skip_to=""))

        self._node.update(change)
        self._settle(journal)

    def _publish(self, journal: Journal, document: NodeDocument, batch: Batch) -> None:
        with Claim(self._node, "uplink", wait=True) as claim:
            push = self._stage(document, batch, claim)
            branch = branches.require(self._node.read())
            if branch.session != self._session:
                raise errors.Fenced(f"another uplink of {document.full_name} was started")
            moved = replace(branch, taken=_positions(batch))
            self._node.update(lambda d: replace(d.with_push(push), push_number=push.number, branch=moved), claim.cookie)
        self._marked = False
        self._carry()
        self._settle(journal)

    def _stage(self, document: NodeDocument, batch: Batch, claim: Claim) -> Push:
        """The batch's bytes in a clone beside the branch, sealed. Its number is used again if we die here."""
        branch, pool = branches.require(document), self._node.pool
        number = document.push_number + 1
        wanted, checked = batch.extents, batch.overlapped
        if isinstance(batch.event, CompareAndWrite):
            # Whether it took effect is known to the image alone.
            wanted = checked = Extents.of([(batch.event.offset, len(batch.event.data))])
        few = wanted.pairs if len(wanted) <= pushes.FEW else ()
        name = f"{document.ref.image}.push-{document.ref.node_id[:8]}-{number}"
        push = Push(
            owner=document.ref.node_id,
            owner_name=document.name,
            number=number,
            base=branch.base,
            state=PushState.STAGED,
            created=time.time(),
            staging=name,
            extents=few,
            since=push_snapshot_name(document.tree_id, 0),
            snapshot=push_snapshot_name(document.tree_id, number),
        )
        stale = pool.image_id(name)
        if stale:
            # Of a run that died before it entered the push: its bytes may be another batch's.
            tidy.drop_image(self._node, stale, name)
        image_id = pushes.staging(self._sites, self._node, document, push, name)
        head = pool.open(image_id, read_only=False)
        try:
            if not few:
                head.create_snapshot(push.since)
            write(head, list(batch.pieces))
            if checked:
                write(head, self._as_in_branch(branch, checked))
            head.flush()
            claim.check()
            head.create_snapshot(push.snapshot)
        finally:
            head.close()
        return replace(push, image_id=image_id)

    def _as_in_branch(self, branch: Branch, extents: Extents) -> list[Piece]:
        image = self._node.pool.open(branch.image_id)
        try:
            return [Piece(offset, length, image.read(offset, length)) for offset, length in extents]
        finally:
            image.close()

    # -- the way up

    def _carry(self) -> None:
        """Until the parent has what is staged here, however long the way up is shut; raises a conflict."""
        while True:
            try:
                outcome = pushes.carry(self._sites, self._node, self._reporter, shared=self._shared)
            except (errors.Unreachable, errors.Busy, errors.NoSpace) as error:
                outcome = pushes.PushOutcome(self._node.name, stopped=error)
            document = self._node.read()
            if outcome.refused:
                raise pushes.conflict(document, outcome.refused[0])
            self.published = max([*outcome.published, *([self.published] if self.published else [])], default=None)
            waiting = [p for p in branches.own_pushes(document) if p.state is PushState.STAGED]
            self._shut = str(outcome.stopped) if outcome.stopped else ""
            if not waiting:
                return
            self._reporter.note(self._node.name, f"waits: {self._shut or 'the parent has not taken it'}")
            journal = self._node.pool.journal(branches.require(document).image_id)
            try:
                self._tell(journal, force=True)
            finally:
                journal.close()
            if self.stop.wait(_SHUT_SECONDS):
                raise errors.Interrupted(
                    f"stopped while the way up was shut: {self._shut}", "What is staged goes up with the next run."
                )

    def _settle(self, journal: Journal) -> None:
        """Commits what the parent has; old staged images go."""
        document = self._node.read()
        branch = branches.require(document)
        if any(p.state in (PushState.TAKING, PushState.STAGED) for p in branches.own_pushes(document)):
            self._carry()
            document = self._node.read()
        if branch.taken:
            journal.commit(self._client, [Commit(*position) for position in branch.taken])
        old = [p for p in document.pushes if p.state is PushState.PUBLISHED and p.staging and p.image_id]
        if len(old) > _KEPT:
            with Claim(self._node, "uplink", wait=True) as claim:
                for push in old[:-_KEPT]:
                    tidy.forget_image(self._node, push, claim)

    def _mark(self) -> None:
        """Everything written is published: from here on a snapshot knows what is not. ``since`` moves to it."""
        document = self._node.read()
        branch = branches.require(document)
        if self._marked or branches.own_pushes(document):
            return
        name = push_snapshot_name(document.tree_id, document.push_number)
        image = self._node.pool.open(branch.image_id, read_only=False)
        try:
            if all(s.name != name for s in image.snapshots()):
                image.create_snapshot(name)
            # A write between the last record we saw and the snapshot is in the journal, and comes before it.
            self._node.update(
                lambda d: replace(d, branch=d.branch and replace(d.branch, since=name)) if d.branch else d
            )
            if branch.since != name:
                image.remove_snapshot(branch.since)
        finally:
            image.close()
        self._marked = True

    def _tell(self, journal: Journal, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._shown < _SHOW_SECONDS:
            return
        self._shown = now
        try:
            seen = lag(journal, self._client)
        except JournalGap:
            seen = Lag()
        self._show(Window(seen.records, seen.bytes, seen.seconds(time.time()), self.published, self._shut))


_KEPT = 8
"""Published pushes whose bytes stay beside the branch, for the node's own sync to take them from."""


def _positions(batch: Batch) -> tuple[tuple[int, int, int], ...]:
    return tuple((p.object_number, p.tag_tid, p.entry_tid) for p in batch.positions)


def write(image: Image, pieces: list[Piece]) -> None:
    """Disjoint pieces, many at a time, bounded in bytes; returns when all are written."""
    answers: queue.SimpleQueue[tuple[int, Exception | None]] = queue.SimpleQueue()
    in_flight = 0
    failure: Exception | None = None

    def answered(size: int, error: Exception | None) -> None:
        answers.put((size, error))

    def wait_one() -> None:
        nonlocal in_flight, failure
        size, error = answers.get()
        in_flight -= size
        failure = failure or error

    waiting = 0
    for piece in _cut(pieces):
        size = piece.length if piece.data is not None else 512
        while waiting and in_flight + size > _IN_FLIGHT:
            wait_one()
            waiting -= 1
        if failure:
            break
        in_flight += size
        waiting += 1
        done = partial(answered, size)
        if piece.data is None:
            image.submit_zero(piece.offset, piece.length, done)
        else:
            image.submit_write(piece.offset, piece.data, done)
    for _ in range(waiting):
        wait_one()
    if failure:
        raise failure


def _cut(pieces: list[Piece]) -> Iterator[Piece]:
    """No piece crosses 4 MiB of data."""
    step = 4 << 20
    for piece in pieces:
        if piece.data is None or piece.length <= step:
            yield piece
            continue
        for at in range(0, piece.length, step):
            data = piece.data[at : at + step]
            yield Piece(piece.offset + at, len(data), data)
