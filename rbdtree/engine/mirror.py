"""An edge to a mirror at work: what is at its ends, and its steps carried out.

Needs the clusters of these two ends only. Copying itself is ``engine.copy``'s, deciding ``plan.edge``'s.
"""

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from rbdtree import errors
from rbdtree.engine import delta, ends, pushed, relay, sample, zeroing
from rbdtree.engine.claim import Claim, worker_name
from rbdtree.engine.copy import Tally, Target
from rbdtree.engine.node import Node, cluster_of
from rbdtree.engine.pace import Pace
from rbdtree.model import portion as portions
from rbdtree.model.document import Intent, NodeDocument, PushState
from rbdtree.model.extent import NOTHING, Extents, Pair
from rbdtree.model.position import Generation, Position, snapshot_name
from rbdtree.plan import step as steps
from rbdtree.plan.conflict import Forgotten
from rbdtree.plan.edge import MirrorState, Pending
from rbdtree.ports import Image, Reporter, Sites, Source


@dataclass(frozen=True, slots=True)
class CopyRequest:
    """What a shared copy needs to know of one edge. Edges of equal ``key`` can share one read of ``planned(start)``."""

    key: tuple[str, str]
    source: Source
    planned: Callable[[int], Iterable[list[Pair]]]
    target: Target
    start: int = 0
    compare: bool = False
    local: bool = False
    pace: Pace | None = None


class MirrorEdge:
    """An edge to a mirror, under the child's claim; without a claim it only observes. Close it after use."""

    def __init__(
        self,
        sites: Sites,
        child: Node,
        claim: Claim | None,
        reporter: Reporter,
        now: Callable[[], float] = time.time,
        *,
        relay: bool = False,
        pace: Pace | None = None,
        tally: Tally | None = None,
    ) -> None:
        self.child = child
        self._sites = sites
        self._claim = claim
        self._reporter = reporter
        self._now = now
        self.document = child.read()
        self.name = self.document.full_name
        self.upstream = ends.source_node(sites, self.document)
        self._cluster = cluster_of(sites, self.document.ref)
        self._head: Image | None = None
        self._source: tuple[Position | None, Image] | None = None
        self._above: NodeDocument | None = None
        self._local: list[Source] = []
        self._begun_by_another = False
        self._sealed: Position | None = None
        """By this worker: nobody need look whether its head was written to since."""
        self._relays = relay
        self._pace = pace
        self.waits = ""
        """Why the newest generation is not here yet, when its parent is still receiving it."""
        self._tally = tally or Tally()
        """Of what is relayed. Other copies are for whoever makes them."""
        self.lacks = ""
        """Why it holds another portion than it is to hold, while it is at its parent's newest generation."""

    def close(self) -> None:
        """Closes the images, and says in the document that this worker left in good order.

        Not when the head could not be closed: whoever comes next has to take RBD's lock away from this client."""
        orderly = True
        for image in (self._head, self._source and self._source[1], *self._local):
            if image is not None:
                try:
                    image.close()
                except errors.Error:
                    orderly = orderly and image is not self._head
        self._head, self._source, self._local = None, None, []
        if self._claim and orderly:
            with suppress(errors.Error):
                self.child.update(self._goodbye, self._claim.cookie)

    def _goodbye(self, document: NodeDocument) -> NodeDocument:
        if document.intent is None or document.intent.client != self._cluster.address():
            return document
        return replace(document, intent=replace(document.intent, client=""))

    # -- observe

    def observe(self) -> MirrorState:
        """Both ends, read at the same time. Fences a predecessor that may still be alive."""
        self.document = ends.read_settled(self.child)
        gone = None if self._head else ends.find_gone(self.child, self.document)
        if gone:
            return MirrorState(self.name, gone.image, (), gone=gone)
        with ThreadPoolExecutor(1) as threads:
            above = threads.submit(self._observe_upstream)
            head = self._open_head()
            mine = ends.present(self.document, head)
            newest = mine[-1] if mine else None
            intent = self.document.intent
            self._begun_by_another = intent is not None
            changed = Extents()
            if not intent and (newest is None or newest.position != self._sealed):
                changed = ends.head_changes(self.child, head, self.document, newest)
            self._above, upstream, forgotten = above.result()
        downstream = {g.position for g in mine}
        if intent and ends.whole(self.child.pool, head, self._snapshot(intent.target)):
            downstream.add(intent.target)
        return MirrorState(
            node=self.name,
            image=self.document.ref.image_spec,
            upstream=tuple(g.position for g in self._takeable(upstream, newest)),
            downstream=tuple(sorted(downstream)),
            lost=tuple(g.position for g in self.document.generations if g not in mine),
            pending=Pending(intent.since, intent.target) if intent else None,
            held=ends.held_by(self._above, self.document.edge),
            changed=changed,
            head_bytes=head.size(),
            expected_bytes=newest.size_bytes if newest else 0,
            history=self.document.history,
            needed=ends.needed_by(self.document),
            gone=forgotten,
            arriving=self._arriving(intent),
            lapsed=self._lapsed(),
            distrusted=bool(self.document.distrust),
        )

    def _lapsed(self) -> str:
        found = self._above.resync(self.document.edge) if self._above else None
        return found.reason if found else ""

    def follow_policy(self) -> None:
        """The tree's settings, as the parent has them."""
        above = self._above
        if self._claim and above and above.tree_policy != self.document.tree_policy:
            self._update(lambda d: replace(d, tree_policy=above.tree_policy))

    def _takeable(self, upstream: tuple[Generation, ...], newest: Generation | None) -> tuple[Generation, ...]:
        """Without newer generations of which the parent holds nothing for this node."""
        wanted, intent = self.document.portion, self.document.intent
        standing = newest.portion if newest else None
        found = []
        for generation in upstream:
            known = newest is not None and generation.position <= newest.position
            if intent and intent.target == generation.position:
                standing = intent.portion
            elif not known:
                chosen = portions.choose(wanted, standing, generation.portion)
                if chosen is None:
                    continue
                standing = chosen
            found.append(generation)
        self.lacks = ""
        if upstream and standing != wanted:
            last, asked = upstream[-1], portions.text(wanted)
            if portions.contains(last.portion, wanted):
                self.lacks = f"holds {asked} from the next generation on"
            else:
                there = f"{self.upstream.name} holds {portions.text(last.portion)} of {last.position}"
                self.lacks = f"holds {asked} when its parent does: {there}"
        return tuple(found)

    def _arriving(self, intent: Intent | None) -> Pending | None:
        """What the parent is receiving itself, if that may be taken from it meanwhile, or was."""
        found = relay.arriving(self._above) if self._above else None
        begun = intent is not None and found is not None and intent.target == found.target
        # Bytes of own pushes need not come down again; which generation they are is known when it is sealed.
        wanted = self._relays and not self.document.pushes and not self.document.distrust
        return found if (begun or wanted) and self._same_portion(intent) else None

    def _same_portion(self, intent: Intent | None) -> bool:
        """Whether neither this node nor its parent changes its portion with what is arriving."""
        above, newest = self._above, self.document.newest
        coming = above.intent if above else None
        if above is None or coming is None or (above.newest and above.newest.portion != coming.portion):
            return False
        mine = intent.portion if intent else self.document.portion
        return portions.contains(coming.portion, mine) and (newest is None or newest.portion == mine)

    def _observe_upstream(self) -> tuple[NodeDocument, tuple[Generation, ...], Forgotten | None]:
        document = self.upstream.read()
        try:
            image = self._open_source(document, document.newest_position)
        except errors.NotFound:
            image = self._open_source(document, None)
        return document, ends.present(document, image), ends.find_forgotten(self._sites, self.document, document)

    def _snapshot(self, position: Position) -> str:
        return snapshot_name(self.document.tree_id, position)

    def _open_source(self, document: NodeDocument, position: Position | None) -> Image:
        """The upstream replica at a generation (None: its head); kept open until another generation is asked for."""
        if self._source is None or self._source[0] != position:
            opened = self.upstream.pool.open(document.image_id, self._snapshot(position) if position else None)
            if self._source:
                self._source[1].close()
            self._source = (position, opened)
        return self._source[1]

    def _open_head(self) -> Image:
        if self._head is None:
            intent = self.document.intent
            if self._claim and intent and intent.client not in ("", self._cluster.address()):
                self._fence(intent)
            self._head = self.child.pool.open(self.document.image_id, read_only=self._claim is None)
            if self._claim:
                self._claim.free(self._head)
        return self._head

    def _fence(self, intent: Intent) -> None:
        """A worker that held the claim before us and did not say goodbye may come back and write."""
        self._reporter.note(self.name, f"takes over from {intent.worker}, which left at {intent.done_bytes} bytes")
        image = self.child.pool.open(self.document.image_id, read_only=False)
        try:
            if image.lock_owner() == intent.client:
                image.break_lock(intent.client)
            else:
                self._cluster.fence(intent.client)
        finally:
            image.close()

    # -- apply

    def apply(self, step: steps.Step) -> CopyRequest | None:
        """Carries out one step; a copy is handed back as a request, to be shared with siblings."""
        self._check()
        self._reporter.step(self.name, str(step))
        match step:
            case steps.Hold(position):
                self._above = self.upstream.update(ends.hold(self.document, position))
            case steps.Intend(since, target):
                self._intend(since, target)
            case steps.Copy(since, target):
                return self._copy(since, target)
            case steps.Relay(since, target):
                self._relay(since, target)
            case steps.RollBack(target):
                return self._roll_back(target)
            case steps.Seal(position):
                self._seal(position)
            case steps.Settle(position):
                self._settle(position)
            case steps.Abandon():
                self._update(lambda d: replace(d, intent=None))
            case steps.Forget(position):
                self._update(partial(_forget, position))
            case steps.Release(position):
                self._above = self.upstream.update(ends.release(self.document, position))
            case steps.Recover():
                self._above = self.upstream.update(ends.recovered(self.document))
            case _:
                raise errors.Bug(f"{step} is not a step of a mirror")
        return None

    def _check(self) -> None:
        if self._claim is None:
            raise errors.Bug(f"{self.name}: a step without a claim")
        self._claim.check()

    def _update(self, change: Callable[[NodeDocument], NodeDocument]) -> None:
        self.document = self.child.update(change, self._claim.cookie if self._claim else None)

    def _upstream_document(self) -> NodeDocument:
        if self._above is None:
            self._above = self.upstream.read()
        return self._above

    def _intend(self, since: Position | None, target: Position) -> None:
        self._begun_by_another = False
        generation = self._upstream_document().generation(target) or self.document.generation(target)
        coming = self._upstream_document().intent
        if generation is None and target.sequence and not (coming and coming.target == target):
            raise errors.Changed(f"generation {target} left {self.upstream.name}")
        if since != target and self.document.generation(target) is None:
            # Of a retention that died: taken for the seal of this delta, it would end it half applied.
            head, name = self._open_head(), self._snapshot(target)
            if any(snapshot.name == name for snapshot in head.snapshots()):
                with suppress(errors.NotFound):
                    head.remove_snapshot(name)
        now = self._now()
        intent = Intent(
            target=target,
            since=since,
            size_bytes=generation.size_bytes if generation else 0,
            started=now,
            moved=now,
            worker=worker_name(),
            client=self._cluster.address(),
            portion=self._choose(since, target),
        )
        self._update(lambda d: replace(d, intent=intent))

    def _choose(self, since: Position | None, target: Position) -> portions.Portion:
        """What the node will hold of ``target``."""
        mine, above = self.document.generation(target), self._upstream_document()
        if since == target:
            return mine.portion if mine else portions.WHOLE
        base = self.document.generation(since) if since else None
        offered = above.generation(target) or above.intent
        chosen = portions.choose(
            self.document.portion,
            base.portion if base else None,
            offered.portion if offered else portions.WHOLE,
        )
        if chosen is None:
            raise errors.Busy(
                f"{self.name} waits: {self.upstream.name} holds nothing of {portions.text(self.document.portion)} at "
                f"{target}",
                "The next generation there has it.",
            )
        return chosen

    def _shift(self, intent: Intent, size: int) -> tuple[Extents, Extents]:
        """Ranges that the head must get whole, and ranges that it may hold and must not, as its portion changes."""
        if intent.since is None:
            return NOTHING, NOTHING
        base = self.document.generation(intent.since)
        new = portions.inside(intent.portion, size)
        if base is None:
            # Forgotten since: its portion is not known any more.
            return new, new.complement(0, size)
        old = portions.inside(base.portion, size)
        return new.subtract(old), old.subtract(new)

    def _intent(self) -> Intent:
        intent = self.document.intent
        if intent is None:
            raise errors.Bug(f"{self.name}: a copy without an intent")
        if intent.client != self._cluster.address():
            mine = replace(intent, client=self._cluster.address(), worker=worker_name())
            self._update(lambda d: replace(d, intent=mine))
            return mine
        return intent

    def _copy(self, since: Position | None, target: Position) -> CopyRequest:
        head, intent = self._open_head(), self._intent()
        source = self._open_source(self._upstream_document(), target)
        first, last = self._snapshot(since) if since else None, self._snapshot(target)
        compare = bool(self.document.distrust)
        # What is distrusted is compared from the beginning, also where another has taken part of it meanwhile.
        if (compare and intent.relayed) or not relay.counts(intent, self._upstream_document()):
            intent = self._record_relayed(0, 0.0, intent.size_bytes)
        size = source.size()
        portion, (added, removed) = intent.portion, self._shift(intent, size)
        if self._begun_by_another and not compare:
            self._check_resumed(head, source, first, last, added.union(removed))
        if head.size() != size:
            head.resize(size)
        mine = None if compare or added or removed else self._own_push(since, target, head)
        if mine:
            return mine
        # What exists in the head exists in its last generation, or was written by this very delta.
        existing = delta.coarse(head, None, None)
        outside = portions.beyond(portion, existing)
        zeroing.zero(head, outside if compare else outside.intersect(removed), self._check)

        into = Target(self.name, head, Extents.of([(0, size)]) if compare else existing)
        if first and not compare and head.layout.plain:
            into.end_of = partial(delta.end_of_data, head)
        alone = compare or (self._pace is not None and self._pace.limited)

        def changes(start: int) -> Iterable[list[Pair]]:
            return delta.changes(source, first, last, start, portion, wary=self._late(since, target))

        def planned(start: int) -> Iterable[list[Pair]]:
            if compare:
                there = delta.coarse(source, None, last).union(existing)
                yield list(portions.clip(portion, there).clip(start, size))
                return
            if added:
                changed = Extents.of(p for pairs in changes(start) for p in pairs)
                yield list(delta.coarse(source, None, last).intersect(added).clip(start, size).union(changed))
                return
            yield from changes(start)
            if first:
                # What is looked at when it is sealed. Of 1 TiB it takes 0.15 s, while the copy goes on.
                sample.prepare(source, last)

        return CopyRequest(
            # What is compared depends on what this head holds: nobody else's. Nor does one slow edge slow the others:
            # whoever has a limit at any time of day reads alone all day.
            # A portion is read with those who have the same.
            key=(
                self.upstream.node_id,
                f"{since} {target} {self.child.node_id if alone else ''}{portion}{added.pairs}",
            ),
            source=source,
            planned=planned,
            target=into,
            start=intent.done_bytes,
            compare=compare,
            pace=self._pace,
        )

    def _late(self, since: Position | None, target: Position) -> bool:
        """Whether all objects of a delta have to be asked for late writes."""
        line = self._upstream_document().generations
        return since is not None and any(g.late for g in line if since < g.position <= target)

    def _relay(self, since: Position | None, target: Position) -> None:
        """What the parent has of a delta that it is still receiving, as it comes."""
        head, intent, above = self._open_head(), self._intent(), self._upstream_document()
        run = relay.Relay(
            self.upstream,
            lambda: self.upstream.pool.open(above.image_id),
            head,
            self._snapshot(since) if since else None,
            self._check,
            intent.portion,
            self._tally,
        )
        self.waits = run.run(intent, self._record_relayed, self._reporter, self.name, self._pace)

    def _record_relayed(self, done_bytes: int, relayed: float, size_bytes: int) -> Intent:
        def change(document: NodeDocument) -> NodeDocument:
            if document.intent is None:
                return document
            now = self._now()
            # Who takes the delta from here sees by the new beginning that what it took does not count either.
            started = document.intent.started if done_bytes else now
            moved = replace(
                document.intent,
                done_bytes=done_bytes,
                relayed=relayed,
                size_bytes=size_bytes,
                started=started,
                moved=now,
            )
            return replace(document, intent=moved)

        self._update(change)
        return self._intent()

    def _own_push(self, since: Position | None, target: Position, head: Image) -> CopyRequest | None:
        """A generation that is a push which went up from or through here: its bytes need not come down again."""
        generation = self._upstream_document().generation(target)
        push = self.document.push(generation.push) if generation and generation.exact else None
        follows = since is not None and (since.epoch, since.sequence + 1) == (target.epoch, target.sequence)
        if push is None or not push.here or not follows or push.state is PushState.CONFLICT:
            return None
        pool = self.child.pool
        try:
            if pushed.written_late(pool, push):
                return None
            newer = pushed.opened(pool, push)
        except errors.NotFound:
            return None
        self._local.append(newer)
        if newer.size() > head.size():
            return None
        return CopyRequest(
            key=(self.child.node_id, f"push {push.push_id}"),
            source=newer,
            planned=lambda _: [list(portions.clip(self._intent().portion, pushed.changed(pool, push, newer)))],
            target=Target(self.name, head, Extents.of([(0, head.size())])),
            local=True,
        )

    def _check_resumed(self, head: Image, source: Image, since: str | None, until: str, shifted: Extents) -> None:
        """A half-written head may differ from its base (None: from zeroes) only where the delta or the portion does."""
        if since and all(s.name != since for s in head.snapshots()):
            return
        unit = max(head.layout.object_bytes, source.layout.object_bytes)
        rough = delta.coarse(source, since, until).union(shifted)
        around = Extents.of((at - at % unit, n + at % unit + unit) for at, n in rough)
        sizes = [s.size_bytes for s in source.snapshots() if s.name in (since, until)]
        foreign = delta.coarse(head, since, None).clip(0, min([*sizes, head.size()])).subtract(around)
        if foreign and since is None:
            foreign = ends.not_zero(head, foreign)
        elif foreign:
            sealed = self.child.pool.open(self.document.image_id, since)
            try:
                foreign = ends.different(sealed, head, foreign)
            finally:
                sealed.close()
        if foreign:
            raise errors.Diverged(
                f"{self.name} has diverged: while a delta was half applied, somebody else wrote "
                f"{foreign.total} bytes from {foreign.pairs[0][0]} on",
                f"Stop whoever writes to it; then run 'rbdtree rollback {self.name}'.",
            )

    def _roll_back(self, target: Position) -> CopyRequest | None:
        head = self._open_head()
        self._intent()
        if not target.sequence:
            head.resize(0)
            return None
        source = self.child.pool.open(self.document.image_id, self._snapshot(target))
        smaller, larger = sorted((head.size(), source.size()))
        changed = delta.collect(head, self._snapshot(target), None)
        changed = changed.union(Extents.of([(smaller, larger - smaller)])).clip(0, source.size())
        head.resize(source.size())
        if self._source:
            self._source[1].close()
        self._source = (None, source)
        return CopyRequest(
            key=(self.child.node_id, f"rollback {target}"),
            source=source,
            planned=lambda _: [list(changed)],
            target=Target(self.name, head, Extents.of([(0, source.size())])),
        )

    def record(self, done_bytes: int) -> None:
        """How far the copy is, for whoever resumes it."""

        def change(document: NodeDocument) -> NodeDocument:
            intent = document.intent
            if intent is None or intent.since == intent.target or intent.done_bytes >= done_bytes:
                return document
            return replace(document, intent=replace(intent, done_bytes=done_bytes, moved=self._now()))

        self._update(change)

    def _seal(self, position: Position) -> None:
        head, intent = self._open_head(), self._intent()
        self._check_held(intent, position)
        source = self._open_source(self._upstream_document(), position)
        if not self.document.distrust:
            since = self._snapshot(intent.since) if intent.since else None
            wrong = sample.first_difference(source, head, since, self._snapshot(position), intent.portion)
            if wrong is not None:
                self._distrust(f"unchanged bytes at {wrong} differ from {self.upstream.name} at {position}")
        head.flush()
        if head.size() != source.size():
            raise errors.Diverged(
                f"{self.name}: {self.document.ref.image_spec} was resized during the copy",
                "Run the sync again.",
            )
        self._check()
        ends.seal(self.child.pool, head, self._snapshot(position))
        self._sealed = position

    def _check_held(self, intent: Intent, position: Position) -> None:
        """What was read upstream was held all the time: of a snapshot that is gone a diff may tell too little."""
        self._above = self.upstream.read()
        since = None if self.document.distrust else intent.since
        lost = {p for p in (since, position) if p} - ends.held_by(self._above, self.document.edge)
        if lost:
            raise errors.Changed(f"{self.upstream.name} let go of {min(lost)} while it was copied")

    def _distrust(self, seen: str) -> None:
        now = self._now()
        self._update(lambda d: d.with_distrust(seen, now))
        raise errors.Integrity(
            f"{self.name}: {seen}",
            f"Look with 'rbdtree verify {self.name}'; the next sync compares everything before it goes on.",
        )

    def _settle(self, position: Position) -> None:
        snapshot = next(s for s in self._open_head().snapshots() if s.name == self._snapshot(position))
        above = self._upstream_document().generation(position)
        generation = Generation(
            position,
            snapshot.snapshot_id,
            snapshot.size_bytes,
            above.created if above else self._intent().started,
            above.delta_bytes if above else None,
            above.author if above else "",
            above.push if above else "",
            above.exact if above else False,
            arrived=self._now(),
            portion=self._intent().portion,
        )
        leases, begun = self._upstream_document().leases, self._intent().started
        self._update(
            lambda d: replace(
                d.with_generation(generation),
                intent=None,
                distrust="",
                epoch=position.epoch,
                leases=leases,
                begun=begun,
            )
        )


def _forget(position: Position, document: NodeDocument) -> NodeDocument:
    """Without a generation whose snapshot is gone, and without its holds: nothing is left to keep for a child. What a
    branch stands on is still wanted above."""
    generations = tuple(g for g in document.generations if g.position != position)
    holds = tuple(h for h in document.holds if h.position != position or h.branch)
    return replace(document, generations=generations, holds=holds)
