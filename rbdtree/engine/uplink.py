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
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import extents, marks, tidy
from rbdtree.engine import push as pushes
from rbdtree.engine.batch import Batch, Batcher
from rbdtree.engine.claim import SECONDS, Claim, identity, is_dead
from rbdtree.engine.coalesce import Piece
from rbdtree.engine.coalesce import pieces as coalesced
from rbdtree.engine.lag import Lag, lag
from rbdtree.engine.node import Node
from rbdtree.engine.tail import JournalGap, Tail
from rbdtree.engine.zeroes import differing
from rbdtree.model.document import Branch, NodeDocument, Push, PushState
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.journal_client import Commit
from rbdtree.model.position import Position, push_snapshot_name, push_snapshot_prefix
from rbdtree.model.record import Change, CompareAndWrite, OpFinish, Resize, SnapCreate, SnapRollback, Write, Zero
from rbdtree.ports import Image, Journal, Reporter, Sites

_GLANCE_SECONDS = 0.1
_IDLE_SECONDS = 3.0
_SHOW_SECONDS = 1.0
_SHUT_SECONDS = 2.0
_FLUSH_SECONDS = 5.0
"""How long to wait for a flush."""
_DRAIN_SECONDS = 5.0
"""How long a run that ends goes on reading what comes."""
_MARK_SECONDS = 60.0
"""Between two marks while there is no rest: what a snapshot push would have to send again."""
_AHEAD = 16
"""Pushes that may wait above for the rest of the way."""
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


class _Again(Exception):
    """The journal must be opened anew: the branch, or how far it is published, changed elsewhere."""


class Uplink:
    """One run. ``run`` returns when stopped, and raises what a person must see to.

    ``join``: a push, which ends where it stands now (``join()``, not ``run()``); where the way up is shut it gives up.
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
    ) -> None:
        self.stop = threading.Event()
        self.published: list[Position] = []
        self._sites = sites
        self._node = node
        self._reporter = reporter
        self._interval = interval
        self._max_unpushed = max_unpushed
        self._shared = shared
        self._join = join
        self._show = show
        self._shut = ""
        self._seen = Lag()
        """The loss window as it was known last."""
        self._following = False
        self._based: tuple[int, int] = (0, 0)
        """Number and bytes of a push that holds what the journal does not tell."""
        self._above = True
        """Whether some push may be neither published nor refused."""
        self._carried_at = 0.0
        self._session = identity(f"uplink {uuid.uuid4().hex}", node.pool.cluster.address())
        self._client = marks.journal_client(node.node_id)
        self._image_id = ""
        self._taken: tuple[tuple[int, int, int], ...] = ()
        self._leaving = 0.0
        self._asked = -1
        """Number of the newest mark that this run made."""
        self._marked_image = ""
        self._last = -1
        """Number of the newest push that holds what lies before it."""
        self._creating: SnapCreate | None = None
        self._creation: Batch | None = None
        self._created_at = 0.0
        self._unmarked = False
        self._marked_at = time.monotonic()
        self._doubtful: list[Change] = []
        """What was published of the bytes in doubt; not known of those that an earlier run published."""

    def run(self, *, once: bool = False) -> None:
        """Until stopped; with ``once`` until everything written before is published."""
        self._begin()
        try:
            with self._telling():
                self._go_on(once)
        finally:
            with suppress(errors.Error):
                self._update(self._ended)

    def _go_on(self, once: bool) -> None:
        while True:
            try:
                self._run(once)
                return
            except _Again:
                continue
            except errors.Unreachable as error:
                if self.stop.is_set():
                    raise
                self._shut = str(error)
                self._reporter.note(self._node.name, f"waits: {error}")
                self.stop.wait(_SHUT_SECONDS)
            except errors.Fenced:
                # A claim that was lost while this host stood still; or somebody else's turn.
                self._branch(self._node.read())

    def _ended(self, branch: Branch) -> Branch:
        """Pushes need not wait for this run any more."""
        return replace(branch, session="") if branch.session == self._session else branch

    def join(self) -> None:
        """Until everything written before is in pushes: by a run that is under way, or, where none is, by this one.

        A run that is under way is only given a mark to come to: two that publish the same records would send each
        other back to the beginning all the time. Whether it lives is told by what it does.
        """
        seen: object = None
        patience = 0.0
        while True:
            document = self._node.read()
            branch = self._branch(document)
            if self._passed(document, branch):
                return
            mine = branches.own_pushes(document)
            state = (branch.session, branch.taken, branch.since, [(p.number, p.state) for p in mine])
            if state != seen:
                seen, patience = state, time.monotonic() + SECONDS
            runs = branch.session and not is_dead(branch.session) and time.monotonic() < patience
            self._leaving = 0.0
            try:
                if runs:
                    if self._asked < 0 and not branch.skip_to:
                        self._mark()
                    time.sleep(_GLANCE_SECONDS)
                    continue
                self._begin()
                self._run(True)
                return
            except (_Again, errors.Fenced):
                # Somebody else is at it.
                continue
            except errors.Busy as error:
                if not branch.session:
                    raise
                self._reporter.note(self._node.name, f"waits: {error}")
                patience = time.monotonic() + SECONDS

    def _passed(self, document: NodeDocument, branch: Branch) -> bool:
        """Whether all before the mark is in pushes that are on their way; or a push was refused."""
        mine = branches.own_pushes(document)
        if any(p.state is PushState.CONFLICT for p in mine):
            return True
        if self._asked < 0:
            return False
        if branch.image_id != self._marked_image:
            # It moved on, for all was published; or somebody threw it away.
            return True
        if _number(branch.since) < self._asked:
            return False
        if self._last < 0:
            self._last = branches.top(document)
        return all(p.state is PushState.SENT for p in mine if p.number <= self._last)

    def _run(self, once: bool) -> None:
        with self._claim():
            # Whoever moves the branch on, or gives it up, is done.
            branch = self._branch(self._node.read())
        self._image_id, self._taken, self._creating = branch.image_id, branch.taken, None
        journal = self._node.pool.journal(branch.image_id)
        try:
            self._register(journal, branch)
            self._follow(journal, once)
        except JournalGap as gap:
            self._reporter.note(self._node.name, f"{gap}: publishing by a snapshot what the journal lost")
            self._forget(journal)
            raise _Again from gap
        finally:
            journal.close()

    # -- begin

    def _begin(self) -> None:
        """This run is the one; an older one stops at its next batch."""
        with self._claim() as claim:
            document = branches.clear(self._sites, self._node, self._node.read(), claim)
            document = branches.remake(self._sites, self._node, document, claim)
            document = pushes.seal_taken(self._node, document, claim)
            tidy.drop_unfinished(self._node, document)
            branch = branches.require(document)
            if branch.uplink != branches.JOURNAL:
                raise errors.UsageError(
                    f"the branch of {document.full_name} is pushed by snapshots",
                    f"Switch it with 'rbdtree branch {document.full_name} --uplink journal'.",
                )
            if not self._join:
                self._update(lambda b: replace(b, session=self._session), claim)

    @contextmanager
    def _claim(self) -> Iterator[Claim]:
        """However long somebody else is at work on the node."""
        while True:
            claim = Claim(self._node, "uplink", wait=True)
            try:
                claim.__enter__()
                break
            except errors.Busy as error:
                self._reporter.note(self._node.name, f"waits: {error}")
                if self._join or self.stop.wait(_SHUT_SECONDS):
                    raise
        try:
            yield claim
        finally:
            claim.__exit__()

    def _ours(self, branch: Branch) -> bool:
        return self._join or branch.session == self._session

    def _branch(self, document: NodeDocument) -> Branch:
        branch = branches.require(document)
        if branch.uplink != branches.JOURNAL or not self._ours(branch):
            raise errors.Fenced(
                f"another uplink of {document.full_name} was started, or another way to push was chosen",
                "One is enough: the newest goes on.",
            )
        return branch

    def _mine(self, document: NodeDocument) -> Branch:
        """The branch, if all is as this run knows it."""
        branch = self._branch(document)
        if (branch.image_id, branch.taken) != (self._image_id, self._taken):
            raise _Again
        return branch

    def _update(self, change: Callable[[Branch], Branch], claim: Claim | None = None) -> NodeDocument:
        def changed(document: NodeDocument) -> NodeDocument:
            return replace(document, branch=change(branches.require(document)))

        return self._node.update(changed, claim.cookie if claim else None)

    def _limit(self, journal: Journal) -> None:
        """How far the writer lets us fall behind; who has the image open obeys what it was opened with."""
        if self._max_unpushed is None:
            return
        limit = str(max(2, self._max_unpushed // (journal.object_bytes * journal.splay_width)))
        with self._claim():
            # The branch may have moved on meanwhile.
            self._mine(self._node.read())
            image = self._node.pool.open(self._image_id, read_only=False)
            try:
                if image.metadata().get(marks.JOURNAL_LIMIT) != limit:
                    image.set_metadata(marks.JOURNAL_LIMIT, limit)
            finally:
                image.close()

    def _register(self, journal: Journal, branch: Branch) -> None:
        self._limit(journal)
        registered = any(client.client_id == self._client for client in journal.clients())
        if registered and (branch.taken or branch.skip_to):
            return
        with self._claim() as claim:
            # First: positions of another journal must never be taken for positions of this one.
            self._update(lambda b: replace(self._mine_of(b), taken=(), skip_to=""), claim)
            self._taken = ()
            if not registered:
                journal.register(self._client)
            self._base(claim)

    def _mine_of(self, branch: Branch) -> Branch:
        if not self._ours(branch) or (branch.image_id, branch.taken) != (self._image_id, self._taken):
            raise _Again
        return branch

    def _forget(self, journal: Journal) -> None:
        with suppress(errors.NotFound):
            journal.unregister(self._client)

    def _base(self, claim: Claim) -> None:
        """What the journal does not tell: a snapshot, and a push of what changed until then. Later records count."""
        document, pool = self._node.read(), self._node.pool
        tidy.drop_unfinished(self._node, document)
        branch, report = branches.require(document), branches.look(self._node, document)
        refused = next((p for p in report.pushes if p.state is PushState.CONFLICT), None)
        if refused:
            raise pushes.conflict(document, refused)
        number = document.push_number + 1
        push = Push(
            owner=document.ref.node_id,
            owner_name=document.name,
            number=number,
            base=branch.base,
            state=PushState.STAGED,
            created=time.time(),
            image_id=branch.image_id,
            since=branch.since,
            snapshot=push_snapshot_name(document.tree_id, number),
            after=branches.top(document),
        )
        # The number is used up first: a snapshot of a run that died here is of an earlier time.
        self._node.update(lambda d: replace(d, push_number=number), claim.cookie)
        image = pool.open(branch.image_id, read_only=False)
        try:
            image.create_snapshot(push.snapshot)
        finally:
            image.close()
        newer = pool.open(branch.image_id, push.snapshot)
        try:
            changed = extents.collect(extents.of_push(pool, push, newer))
        finally:
            newer.close()
        self._doubtful = []

        def based(d: NodeDocument) -> NodeDocument:
            moved = replace(branches.require(d), since=push.snapshot, skip_to=push.snapshot, taken=(), doubt=())
            return replace(d.with_push(push) if changed else d, branch=moved)

        self._node.update(based, claim.cookie)
        self._based = (number, changed.total)

    # -- follow

    def _follow(self, journal: Journal, once: bool) -> None:
        self._following, self._shut = True, ""
        if once and self._at_mark():
            return
        self._settle(journal)
        document = self._node.read()
        branch = self._mine(document)
        self._unmarked = _number(branch.since) < document.push_number or bool(branch.doubt)
        tail = Tail(journal, self._client)
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
            if not came and self._creating and time.monotonic() - self._created_at > _FLUSH_SECONDS:
                self._unfinished(journal)
            now = time.monotonic()
            quiet_since = now if came or batcher.pending else quiet_since
            if once or self.stop.is_set():
                if not self._leaving:
                    self._leaving = now
                    self._asked = self._asked if self._join else -1
                if came and not once and now - self._leaving < _DRAIN_SECONDS:
                    continue
                for batch in batcher.cut() if not once and self._asked < 0 else ():
                    self._batch(journal, batch)
                if self._left(came):
                    return
            elif self._unmarked and (
                now - quiet_since > _IDLE_SECONDS or now - self._marked_at > _MARK_SECONDS or self._much_doubt()
            ):
                self._mark()
            if self._above and now - self._carried_at > _SHUT_SECONDS:
                self._carry()
            if not came:
                tail.wait(threading.Event() if self.stop.is_set() else self.stop)

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
        if self._asked < 0 and (self._unmarked or (came and not self.stop.is_set())):
            self._mark()
            return False
        if self._at_mark():
            return True
        seconds = time.monotonic() - self._leaving
        if self.stop.is_set() and (came or seconds > 3 * _DRAIN_SECONDS):
            return True
        if not came and seconds > _MARK_SECONDS:
            raise errors.Unreachable(f"{self._node.name}: the journal does not come to the mark that was made")
        return self._asked < 0

    def _at_mark(self) -> bool:
        """Whether everything before the mark is in pushes, whoever made them."""
        return 0 <= self._asked <= _number(self._branch(self._node.read()).since)

    def _batch(self, journal: Journal, batch: Batch) -> None:
        """Publishes one batch, or passes over it."""
        document = self._node.read()
        branch = self._mine(document)
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
            raise _Again
        elif isinstance(event, SnapCreate) and event.name.startswith(push_snapshot_prefix(document.tree_id)):
            self._creating, self._created_at, self._creation = event, time.monotonic(), batch
        elif isinstance(event, OpFinish) and self._creating and event.op_tid == self._creating.op_tid:
            name, self._creating = self._creating.name, None
            if event.result == 0 and _number(name) > _number(branch.since):
                self._reached(journal, branch, batch, name)
            else:
                self._pass(journal, batch)
        elif isinstance(event, CompareAndWrite):
            # Whether it took effect is known to the image alone.
            where = Extents.of([(event.offset, len(event.data))])
            self._publish(journal, self._as_in(branch, None, where), batch, where)
        elif batch.pieces:
            self._publish(journal, list(batch.pieces), batch, batch.overlapped)
        else:
            self._pass(journal, batch)

    def _pass(self, journal: Journal, batch: Batch) -> None:
        """Records that need no push: only the position moves."""
        taken = _positions(batch)
        self._update(lambda b: replace(self._mine_of(b), taken=taken, skip_to=""))
        self._taken = taken
        self._settle(journal)

    def _publish(self, journal: Journal, pieces: list[Piece], batch: Batch, overlapped: Extents) -> None:
        taken = _positions(batch)
        doubt = Extents.of(self._mine(self._node.read()).doubt).union(overlapped)
        if doubt:
            sent = Extents.of((p.offset, p.length) for p in pieces).intersect(doubt)
            self._doubtful += [_change(part) for part in _clipped(pieces, sent)]
            self._doubtful = [_change(part) for part in coalesced(self._doubtful)]
        pairs = _covered(doubt)
        self._unmarked = True
        self._push(pieces, lambda b: replace(b, taken=taken, doubt=pairs))
        self._carry()
        self._settle(journal)

    def _push(self, pieces: list[Piece], change: Callable[[Branch], Branch]) -> None:
        """Stages the pieces, and in the same step ``change`` of the branch."""
        with self._claim() as claim:
            document = self._node.read()
            self._mine(document)
            push = self._stage(document, pieces, claim)

            def staged(d: NodeDocument) -> NodeDocument:
                moved = change(self._mine(d))
                return replace(d.with_push(push), push_number=push.number, branch=moved)

            self._taken = branches.require(self._node.update(staged, claim.cookie)).taken

    def _stage(self, document: NodeDocument, pieces: list[Piece], claim: Claim) -> Push:
        """Bytes in a clone beside the branch, sealed. Its number is used again if we die here."""
        branch, pool = branches.require(document), self._node.pool
        number = document.push_number + 1
        wanted = Extents.of((piece.offset, piece.length) for piece in pieces)
        few = wanted.pairs if len(wanted) <= pushes.FEW else ()
        name = tidy.staging_name(document, document.ref.node_id, number)
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
            after=branches.top(document),
        )
        tidy.drop_unfinished(self._node, document)
        image_id = pushes.staging(self._sites, self._node, document, push, name)
        head = pool.open(image_id, read_only=False)
        try:
            if not few:
                # What the push changes must differ between the two snapshots, also where these bytes are there already.
                write(head, self._inverted(head, pieces))
                head.flush()
                head.create_snapshot(push.since)
            write(head, pieces)
            head.flush()
            claim.check()
            head.create_snapshot(push.snapshot)
        finally:
            head.close()
        return replace(push, image_id=image_id)

    @staticmethod
    def _inverted(head: Image, pieces: list[Piece]) -> list[Piece]:
        """Other bytes, in the sectors that hold those of the pieces already."""
        same = []
        for piece in _cut(pieces):
            for at in range(0, piece.length, 4 << 20):
                length = min(4 << 20, piece.length - at)
                wanted = piece.data[at : at + length] if piece.data is not None else bytes(length)
                found = head.read(piece.offset + at, length)
                apart = Extents.of((low, high - low) for low, high in differing(found, wanted, extents.SECTOR))
                for low, size in Extents.of([(0, length)]).subtract(apart):
                    part = bytes(255 - byte for byte in found[low : low + size])
                    same.append(Piece(piece.offset + at + low, size, part))
        return same

    def _as_in(self, branch: Branch, snapshot: str | None, where: Extents) -> list[Piece]:
        image = self._node.pool.open(branch.image_id, snapshot)
        try:
            return [Piece(offset, length, image.read(offset, length)) for offset, length in where]
        finally:
            image.close()

    # -- marks

    def _mark(self) -> None:
        """A snapshot of the branch. When the journal comes to it, all that it holds is in pushes."""
        with self._claim() as claim:
            document = self._node.read()
            branch = self._branch(document)
            if self._asked == document.push_number or branch.skip_to:
                return
            tidy.drop_unfinished(self._node, document)
            number = document.push_number + 1
            self._node.update(lambda d: replace(d, push_number=number), claim.cookie)
            image = self._node.pool.open(branch.image_id, read_only=False)
            try:
                image.create_snapshot(push_snapshot_name(document.tree_id, number))
            finally:
                image.close()
        self._asked, self._marked_image = number, branch.image_id
        self._marked_at = time.monotonic()

    def _reached(self, journal: Journal, branch: Branch, batch: Batch, name: str) -> None:
        """The journal is read up to a mark: what was in doubt is compared with it, and put right."""
        taken = _positions(batch)
        wrong = self._wrong(branch, name)
        moved = partial(replace, since=name, taken=taken, doubt=())
        if wrong:
            self._push(self._as_in(branch, name, wrong), moved)
        else:
            self._update(lambda b: moved(self._mine_of(b)))
            self._taken = taken
        self._doubtful = []
        document = self._node.read()
        self._unmarked = _number(name) < document.push_number and not wrong
        self._carry()
        self._settle(journal)
        self._clean(document, name)

    def _unfinished(self, journal: Journal) -> None:
        """A mark that is there, whose end nobody journaled: its creator let go of the image first."""
        event, batch, self._creating = self._creating, self._creation, None
        branch = self._mine(self._node.read())
        image = self._node.pool.open(branch.image_id)
        try:
            there = event is not None and any(s.name == event.name for s in image.snapshots())
        finally:
            image.close()
        if event and batch and there and _number(event.name) > _number(branch.since):
            self._reached(journal, branch, batch, event.name)

    def _wrong(self, branch: Branch, name: str) -> Extents:
        """Bytes in doubt that the branch has otherwise than they were published."""
        doubt = Extents.of(branch.doubt)
        if not doubt:
            return doubt
        known = Extents.of((p.offset, p.length) for p in coalesced(list(self._doubtful)))
        wrong = list(doubt.subtract(known))
        image = self._node.pool.open(branch.image_id, name)
        try:
            for piece in coalesced(list(self._doubtful)):
                for part in _cut([piece]):
                    for at in range(0, part.length, 4 << 20):
                        length = min(4 << 20, part.length - at)
                        mine = part.data[at : at + length] if part.data is not None else bytes(length)
                        there = image.read(part.offset + at, length)
                        wrong += [
                            (part.offset + at + low, high - low) for low, high in differing(there, mine, extents.SECTOR)
                        ]
        finally:
            image.close()
        return Extents.of(wrong)

    def _much_doubt(self) -> bool:
        held = sum(len(change.data) for change in self._doubtful if isinstance(change, Write))
        return held > _IN_FLIGHT and time.monotonic() - self._marked_at > _DRAIN_SECONDS

    def _clean(self, document: NodeDocument, name: str) -> None:
        """Older marks go; not the first snapshot, and none that a push is made of."""
        needed = {s for p in document.pushes if p.image_id == self._image_id for s in (p.since, p.snapshot)}
        image = self._node.pool.open(self._image_id, read_only=False)
        try:
            for snapshot in image.snapshots():
                ours = snapshot.name.startswith(push_snapshot_prefix(document.tree_id)) and snapshot.name not in needed
                if ours and 0 < _number(snapshot.name) < _number(name):
                    image.remove_snapshot(snapshot.name)
        finally:
            image.close()

    # -- the way up

    def _carry(self) -> None:
        """Until the parent has what is staged here, however long the way up is shut; raises a conflict."""
        said = ""
        while True:
            try:
                outcome = pushes.carry(self._sites, self._node, self._reporter, shared=self._shared)
            except (errors.Unreachable, errors.Busy, errors.NoSpace, errors.Changed) as error:
                if self._join:
                    raise
                outcome = pushes.PushOutcome(self._node.name, stopped=error)
            document = self._node.read()
            self.published += [position for position in outcome.published if position not in self.published]
            refused = [p for p in branches.own_pushes(document) if p.state is PushState.CONFLICT]
            if refused:
                raise pushes.conflict(document, refused[0])
            mine = branches.own_pushes(document)
            self._shut = str(outcome.stopped) if outcome.stopped else ""
            self._above, self._carried_at = bool(mine), time.monotonic()
            if all(p.state is PushState.SENT for p in mine) and len(mine) <= _AHEAD:
                return
            if self._join and outcome.stopped:
                raise outcome.stopped
            text = f"waits: {self._shut or 'the parent has not taken it'}"
            if text != said:
                self._reporter.note(self._node.name, text)
                said = text
            if self.stop.wait(_SHUT_SECONDS):
                raise errors.Interrupted(
                    f"stopped while the way up was shut: {self._shut}", "What is staged goes up with the next run."
                )

    def _settle(self, journal: Journal) -> None:
        """Commits what the parent has; old staged images go."""
        document = self._node.read()
        while any(p.state in (PushState.STAGED, PushState.CONFLICT) for p in branches.own_pushes(document)):
            self._carry()
            document = self._node.read()
        branch = self._mine(document)
        if branch.taken:
            journal.commit(self._client, [Commit(*position) for position in branch.taken])
        done = [p for p in document.pushes if p.owner == self._node.node_id and p.state is PushState.PUBLISHED]
        old = done[:-_KEPT]
        if len(old) >= _KEPT:
            with self._claim() as claim:
                for push in old:
                    if push.staging and push.image_id:
                        tidy.forget_image(self._node, push, claim)
                gone = {p.push_id for p in old if p.image_id != branch.image_id}
                self._node.update(
                    lambda d: replace(d, pushes=tuple(p for p in d.pushes if p.push_id not in gone)), claim.cookie
                )

    # -- the loss window

    @contextmanager
    def _telling(self) -> Iterator[None]:
        """The loss window, again and again: also while the rest of the run waits for a cluster that does not answer."""
        if self._show is None:
            yield
            return
        over = threading.Event()

        def tell() -> None:
            while not over.wait(_SHOW_SECONDS):
                self._tell()

        teller = threading.Thread(target=tell, name="loss-window", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join(_SHUT_SECONDS)
            if not teller.is_alive():
                self._tell()

    def _tell(self) -> None:
        """What cannot be asked now is as it was last, and grows older."""
        if self._show is None or not self._following:
            return
        now = time.time()
        records, size, since = self._seen.records, self._seen.bytes, self._seen.since
        # A node of its own: they are not made for two threads.
        node = Node(self._node.pool, self._node.node_id, self._node.name)
        with suppress(errors.Error):
            document = node.read()
            journal = node.pool.journal(branches.require(document).image_id)
            try:
                self._seen = lag(journal, self._client)
            except JournalGap:
                # Something is lost to the journal, and in no push yet.
                self._seen = replace(self._seen, records=max(1, records), since=since or now, exact=False)
            finally:
                journal.close()
            records, size, since = self._seen.records, self._seen.bytes, self._seen.since
            for push in branches.own_pushes(document):
                if push.state in (PushState.TAKING, PushState.STAGED) and not push.staging:
                    # Taken by a snapshot: no record of the journal tells of it.
                    records += 1
                    size += self._based[1] if self._based[0] == push.number else 0
                    since = min(since or push.created, push.created)
        newest = self.published[-1] if self.published else None
        self._show(Window(records, size, max(0.0, now - since) if since else 0.0, newest, self._shut))


_KEPT = 8
"""Published pushes whose bytes stay beside the branch, for the node's own sync to take them from."""


def _positions(batch: Batch) -> tuple[tuple[int, int, int], ...]:
    return tuple((p.object_number, p.tag_tid, p.entry_tid) for p in batch.positions)


def _number(name: str) -> int:
    """Of a mark, or of a push's snapshot."""
    return int(name.rpartition(".")[2])


def _change(piece: Piece) -> Change:
    return Zero(piece.offset, piece.length) if piece.data is None else Write(piece.offset, piece.data)


def _clipped(pieces: list[Piece], where: Extents) -> Iterator[Piece]:
    for piece in pieces:
        for offset, length in where.intersect(Extents.of([(piece.offset, piece.length)])):
            low = offset - piece.offset
            yield Piece(offset, length, None if piece.data is None else piece.data[low : low + length])


def _covered(doubt: Extents) -> tuple[Pair, ...]:
    """As few as a document may list: then what lies between them counts as well."""
    pairs = doubt.pairs
    while len(pairs) > pushes.FEW:
        joined = ((low, high + size - low) for (low, _), (high, size) in zip(pairs[::2], pairs[1::2], strict=False))
        pairs = (*joined, *(pairs[-1:] if len(pairs) % 2 else ()))
    return pairs


def push(sites: Sites, node: Node, reporter: Reporter, *, shared: bool = False) -> pushes.PushOutcome:
    """``push.push``; of a branch with a journal, as that tells it, also beside a running uplink."""
    branch = node.read().branch
    if branch is None or branch.uplink != branches.JOURNAL:
        return pushes.push(sites, node, reporter, shared=shared)
    before = {p.push_id for p in node.read().pushes if p.state is PushState.PUBLISHED}
    run = Uplink(sites, node, reporter, shared=shared, join=True)
    stopped: errors.Error | None = None
    try:
        run.join()
    except errors.Conflict:
        pass
    except (errors.Unreachable, errors.NotFound) as error:
        stopped = error
    outcome = pushes.carry(sites, node, reporter, shared=shared)
    document = node.read()
    mine = [p for p in document.pushes if p.owner == node.node_id and p.push_id not in before]
    outcome.published = sorted({*run.published, *outcome.published, *(p.position for p in mine if p.position)})
    outcome.staged = len(outcome.published) + outcome.waiting
    outcome.stopped = outcome.stopped or stopped
    return outcome


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
