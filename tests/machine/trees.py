"""The engine against a model: random volumes, trees, syncs and crashes over ``rbdtree.memory``.

The model is plain bytes: what the root held when a snapshot was made. After every rule every snapshot of ours, at every
node, must hold just that.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from faults import Crash, Worker, bury
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rbdtree import errors, memory
from rbdtree.engine import copy as copying
from rbdtree.engine import desk, edge, forest, leave, marks, membership, policy, portion, registry, resync, retain, sync
from rbdtree.engine import hold as holds
from rbdtree.engine.claim import SECONDS, Claim
from rbdtree.engine.cut import cut
from rbdtree.engine.forest import Tree
from rbdtree.engine.verify import verify
from rbdtree.model.codec import decode
from rbdtree.model.document import USER, Kind, NodeDocument
from rbdtree.model.extent import Extents
from rbdtree.model.name import ImageSpec, NodeName
from rbdtree.model.portion import WHOLE, Portion, beyond, clip, inside
from rbdtree.model.position import parse_snapshot_name, snapshot_name
from rbdtree.ports import Layout, Silent

UNIT = 16384
LAYOUT = Layout(UNIT, UNIT, 1)
LARGEST = 8 * UNIT
PLACE = ("p", "")
DEPTH = 3

spots = st.integers(0, LARGEST // 4096 - 1).map(lambda n: n * 4096)
lengths = st.sampled_from([512, 4096, 4096 + 512, UNIT, 3 * UNIT])
seeds = st.integers(0, 9)
effects = st.integers(1, 30)
rarely = st.none() | st.none() | st.none() | effects
changes = st.tuples(st.sampled_from(["write", "write", "blank", "zero", "resize", "snapshot"]), spots, lengths)
kinds = st.sampled_from([Kind.MIRROR, Kind.CLONE])
ranges = st.just(WHOLE) | st.lists(st.tuples(st.integers(0, 7), st.integers(1, 4)), min_size=1, max_size=2).map(
    lambda found: Extents.of((at * UNIT, n * UNIT) for at, n in found).clip(0, LARGEST).pairs
)
ways = st.sampled_from(["before", "after", "torn"])


@contextmanager
def quiet_deaths() -> Iterator[None]:
    """Threads of a worker that died end without a traceback."""
    before = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        if not isinstance(args.exc_value, Crash):
            before(args)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before


class StopsAfter(Silent):
    """A person who presses Ctrl-C when told for the n-th time how far the copy is."""

    def __init__(self, count: int) -> None:
        self.left = count
        self.stop = threading.Event()

    def copying(self, node: str, done_bytes: int, total_bytes: int | None) -> None:
        self.left -= 1
        if self.left < 0:
            self.stop.set()


class Trees(RuleBasedStateMachine):
    """A root at a, mirrors at b, clones beside either."""

    def __init__(self) -> None:
        super().__init__()
        self.now = time.time() + 10 * 86400
        """By the clusters' clocks: days later than generations say, so that every slow child is over a limit of age."""
        self.storages = {name: memory.Storage(name, [PLACE], clock=lambda: self.now) for name in "ab"}
        self.host = memory.Sites(self.storages).cluster("a").pool("p")
        self.bytes = bytearray()
        self.recorded: dict[str, tuple[int, bytes]] = {}
        self.robbed: set[tuple[str, str]] = set()
        self.let_go = False
        self.portions: dict[tuple[str, int], Portion] = {}
        """What each sealed snapshot holds: (image, snapshot id)."""
        self.asked = False
        """Whether somebody was given another portion since the newest generation."""
        self.count = 0
        random.seed(0)

    # -- helpers

    def work(
        self, call: Callable[[Any], Any], dies_at: int | None = None, how: str = "before", late: Executor | None = None
    ) -> Any:
        """A process does something, and may die of it; None then, and others go on when its claims have run out."""
        worker = Worker(self.storages, dies_at, how, late)
        with quiet_deaths():
            try:
                answer = call(worker.sites)
            except Crash:
                answer = None
        if worker.dead:
            self.now += SECONDS + 1
            bury(self.storages, worker)
            return None
        return answer

    def tree(self, sites: Any) -> Tree:
        found = forest.look(sites)
        assert not found.problems, found.problems
        return found.tree("t")

    def root(self) -> Any:
        image_id = self.host.image_id("root")
        assert image_id
        return self.host.open(image_id, read_only=False)

    def documents(self) -> dict[str, tuple[str, NodeDocument]]:
        """By node name: the site and the document, as they lie in the storage."""
        found = {}
        for site, storage in self.storages.items():
            for name, (_, text) in storage.places[PLACE].documents.items():
                document = decode(text, name)
                found[document.name] = (site, document)
        return found

    def volume(self, site: str, image_id: str) -> Any:
        place = self.storages[site].places[PLACE]
        volumes = [*place.images.values(), *(volume for _, volume in place.trash.values())]
        return next((v for v in volumes if v.image_id == image_id), None)

    def content(self, site: str, volume: Any, snapshot: str | None = None) -> bytes:
        image = memory.Image(memory.Sites(self.storages).cluster(site).pool("p"), volume, snapshot, True)
        return image.read(0, image.size())

    def excused(self, error: errors.Error | None) -> bool:
        """After a snapshot was removed by hand there may be nothing in common any more; or after a limit."""
        if not isinstance(error, errors.Diverged):
            return False
        lapsed = self.let_go and "needs a resync" in str(error)
        return lapsed or ((bool(self.robbed) or self.let_go) and "no generation in common" in str(error))

    def sync(self, sites: Any, only: str | None = None) -> list[sync.Outcome]:
        outcomes = sync.Sync(sites, only=self.path_to(only) if only else None).run(self.tree(sites))
        for outcome in outcomes:
            assert outcome.error is None or self.excused(outcome.error), repr(outcome.error)
        return outcomes

    def path_to(self, name: str) -> frozenset[str]:
        """Of a node and all that it is fed through, as the command has it."""
        found = {name}
        while (parent := self.documents()[name][1].parent) and parent.name in self.documents():
            name = parent.name
            found.add(name)
        return frozenset(found)

    def picked(self, number: int, wanted: Callable[[NodeDocument], bool] = lambda _: True) -> NodeDocument | None:
        found = [d for _, (_, d) in sorted(self.documents().items()) if wanted(d)]
        return found[number % len(found)] if found else None

    # -- what the host at the root does

    @initialize(objects=st.integers(1, 6))
    def begin(self, objects: int) -> None:
        """A root, a mirror of it and a clone below, all at the first generation."""
        self.init(objects)
        self.write(0, LARGEST, 1)
        self.count = 1
        for kind, above in ((Kind.MIRROR, "root"), (Kind.CLONE, "n2")):
            self.join(kind, self.documents()[above][1], False, None)
        self.cut(None, "before")
        self.sync_all()

    def init(self, objects: int) -> None:
        wish = membership.Wish(objects * UNIT, LAYOUT)
        self.work(lambda s: membership.init(s, forest.look(s), "t", "root", ImageSpec("a", "p", "", "root"), wish))
        self.bytes = bytearray(objects * UNIT)

    @rule(changes=st.lists(changes, min_size=1, max_size=4))
    def change(self, changes: list[tuple[str, int, int]]) -> None:
        for kind, offset, length in changes:
            if kind == "write":
                self.write(offset, length, 1 + offset % 7)
            elif kind == "blank":
                self.write(offset, length, 0)
            elif kind == "zero":
                self.zero(offset, length)
            elif kind == "resize":
                # There is no clone of 0 bytes.
                self.resize(offset or 4096)
            else:
                self.snapshot_of_the_host()

    def write(self, offset: int, length: int, seed: int) -> None:
        data = random.Random(seed).randbytes(length) if seed else bytes(length)
        data = data[: max(0, len(self.bytes) - offset)]
        if data:
            image = self.root()
            image.submit_write(offset, data, self.done)
            self.bytes[offset : offset + len(data)] = data
            image.close()

    def zero(self, offset: int, length: int) -> None:
        length = min(length, len(self.bytes) - offset)
        if length > 0:
            image = self.root()
            image.submit_zero(offset, length, self.done)
            self.bytes[offset : offset + length] = bytes(length)
            image.close()

    def resize(self, size: int) -> None:
        image = self.root()
        image.resize(size)
        image.close()
        del self.bytes[size:]
        self.bytes += bytes(size - len(self.bytes))

    def snapshot_of_the_host(self) -> None:
        self.count += 1
        image = self.root()
        image.create_snapshot(f"mine-{self.count}")
        image.close()

    def done(self, error: Exception | None) -> None:
        assert error is None

    # -- what rbdtree does

    @rule(
        kind=st.sampled_from([Kind.MIRROR, Kind.CLONE]),
        parent=seeds,
        history=st.booleans(),
        dies=rarely,
        wanted=st.none() | ranges,
    )
    def add(self, kind: Kind, parent: int, history: bool, dies: int | None, wanted: Portion | None) -> None:
        documents = self.documents()
        above = self.picked(parent, lambda d: not d.phase and depth(d, documents) < DEPTH)
        if above is None or len(documents) > 6:
            return
        self.join(kind, above, history, dies, self.fitting(wanted) if wanted is not None else None)

    def fitting(self, wanted: Portion) -> Portion:
        """Within the volume of today, whose end may lie inside an object."""
        return Extents(wanted).clip(0, len(self.bytes)).pairs

    @rule(node=seeds, wanted=ranges, dies=rarely)
    def other_portion(self, node: int, wanted: Portion, dies: int | None) -> None:
        document = self.picked(node, lambda d: d.kind is not Kind.ROOT and not d.phase)
        if document:
            self.give(document.name, self.fitting(wanted), dies)

    def give(self, name: str, wanted: Portion, dies: int | None = None) -> bool:
        """Whether it was allowed."""

        def give(sites: Any) -> bool:
            tree = self.tree(sites)
            try:
                portion.change(sites, tree, tree.member(name), wanted)
            except (errors.UsageError, errors.NotEmpty):
                return False
            return True

        before = {n: d.portion for n, (_, d) in self.documents().items()}
        given = self.work(give, dies)
        if given is False:
            assert {n: d.portion for n, (_, d) in self.documents().items()} == before
        else:
            self.asked = True
        return bool(given)

    def join(
        self,
        kind: Kind,
        above: NodeDocument,
        history: bool,
        dies: int | None,
        wanted: Portion | None = None,
    ) -> None:
        self.count += 1
        site = above.replica.site if kind is Kind.CLONE or self.count % 2 else "b"
        name, spec = NodeName("t", f"n{self.count}"), ImageSpec(site, "p", "", f"n{self.count}")
        wish = membership.Wish(history=history, portion=wanted)
        self.asked = self.asked or wanted is not None

        def join(sites: Any) -> Any:
            try:
                return membership.add(sites, forest.look(sites), name, above.name, kind, spec, wish)
            except errors.UsageError:
                assert wanted is not None
                return membership.add(sites, forest.look(sites), name, above.name, kind, spec, membership.Wish())

        self.work(join, dies, "after" if dies and dies % 2 else "before")
        if name.node not in self.documents() or self.documents()[name.node][1].phase:
            self.work(join)

    @rule(dies=rarely, how=ways)
    def cut(self, dies: int | None, how: str) -> None:
        made = self.work(lambda s: cut(forest.document_of(self.tree(s).member("root"))[0]), dies, how)
        self.asked = self.asked and made is None
        self.record(self.documents()["root"][1])

    @rule()
    def sync_all(self) -> None:
        outcomes = self.work(self.sync)
        if any(outcome.error for outcome in outcomes) and not self.robbed:
            self.resync_all()
            outcomes = self.work(self.sync)
            assert not any(outcome.error for outcome in outcomes)
        if any(outcome.error for outcome in outcomes):
            return
        before = {site: dict(s.places[PLACE].documents) for site, s in self.storages.items()}
        again = self.work(self.sync)
        assert [o.steps for o in again] == [[]] * len(outcomes)
        assert {site: dict(s.places[PLACE].documents) for site, s in self.storages.items()} == before
        newest = self.documents()["root"][1].newest_position
        if self.robbed:
            return
        if not self.asked:
            assert {d.newest_position for _, d in self.documents().values()} == {newest}
            for _, document in self.documents().values():
                assert document.kind is Kind.CLONE or not newest or document.newest.portion == document.portion
        if newest:
            self.work(self.verified)

    def verified(self, sites: Any) -> None:
        tree = self.tree(sites)
        root = tree.member("root")
        for member in tree.members.values():
            if member is not root:
                verdict = verify(sites, tree, member, root, None, Silent())
                # Who was given another portion meanwhile may have an older generation, which has left the root.
                nothing = self.asked and isinstance(verdict.error, errors.NotFound)
                assert verdict.equal or nothing, verdict

    @rule(node=seeds, dies=rarely, how=ways)
    def sync_one(self, node: int, dies: int | None, how: str) -> None:
        document = self.picked(node, lambda d: d.kind is not Kind.ROOT)
        if document:
            self.work(lambda s: self.sync(s, document.name), dies, how)

    @rule(dies=effects, how=ways)
    def sync_all_and_die(self, dies: int, how: str) -> None:
        self.work(self.sync, dies, how)

    @rule(after=st.integers(0, 12))
    def sync_and_interrupt(self, after: int) -> None:
        """Ctrl-C while something is copied: the worker leaves in good order."""
        self.interrupt(after)

    def interrupt(self, after: int, only: str | None = None) -> None:
        def interrupted(sites: Any) -> None:
            reporter = StopsAfter(after)
            run = sync.Sync(sites, reporter, only=self.path_to(only) if only else None)
            reporter.stop = run.stop
            for outcome in run.run(self.tree(sites)):
                fine = outcome.error is None or isinstance(outcome.error, errors.Interrupted)
                assert fine or self.excused(outcome.error), repr(outcome.error)

        with ThreadPoolExecutor(1) as late:
            self.work(interrupted, late=late)

    @rule(node=seeds, dies=rarely, how=ways)
    def sync_one_through(self, node: int, dies: int | None, how: str) -> None:
        """As a manager does: what the parent is still receiving is taken from it meanwhile."""
        document = self.picked(node, lambda d: d.kind is Kind.MIRROR)
        if document:
            self.work(lambda s: self.through(s, document.name), dies, how)

    def through(self, sites: Any, name: str) -> edge.Outcome:
        node, document = forest.document_of(self.tree(sites).member(name))
        stop = threading.Event()
        run = edge.EdgeRun(sites, Silent(), stop, relay=True)
        outcome = run.run(node, document.kind, desk.Desk(1, Silent(), stop, copying.Window(1 << 20)))
        assert outcome.error is None or self.excused(outcome.error), repr(outcome.error)
        return outcome

    @rule(
        node=seeds,
        keep=st.sampled_from(["all", "last 1", "last 2", "last 1, daily 2"]),
        limits=st.sampled_from([(), (), ("max_pinned_age",), ("max_pinned_bytes",)]),
        dies=rarely,
        how=ways,
    )
    def retain(self, node: int, keep: str, limits: tuple[str, ...], dies: int | None, how: str) -> None:
        document = self.picked(node, lambda d: not d.phase)
        if document:
            self.retain_at(
                document.name, {"keep": keep, **dict.fromkeys(limits, "1d" if "age" in str(limits) else "1")}, dies, how
            )

    def retain_at(
        self, name: str, wanted: dict[str, str], dies: int | None = None, how: str = "before", ahead: float = 0.0
    ) -> Any:
        """``ahead``: by so much is the clock of the worker's host."""
        self.let_go = self.let_go or len(wanted) > 1

        def set_policy(sites: Any) -> None:
            found, _ = forest.document_of(self.tree(sites).member(name))
            policy.change(
                found, wanted, [k for k in ("max_pinned_age", "max_pinned_bytes") if k not in wanted], tree=False
            )

        def run(sites: Any) -> Any:
            found, _ = forest.document_of(self.tree(sites).member(name))
            with Claim(found, "retain", wait=True) as claim:
                try:
                    return retain.retain(sites, found, claim, self.now + ahead)
                except errors.Diverged:
                    assert self.robbed
                    return None

        self.work(set_policy)
        planned = self.work(
            lambda s: retain.retain(s, forest.document_of(self.tree(s).member(name))[0], None, self.now)
        )
        found = self.work(run, dies, how)
        document = self.documents()[name][1]
        if found and not found.nothing:
            going = [v.position for v in found.verdicts if v.goes]
            if not ahead:
                assert going == [v.position for v in planned.verdicts if v.goes]
            assert not {g.position for g in document.generations} & set(going)
            volume = self.volume(document.ref.site, document.image_id)
            known = {snapshot_name(document.tree_id, g.position) for g in document.generations}
            if document.intent:
                known.add(snapshot_name(document.tree_id, document.intent.target))
            ours = {s.entry.name for s in volume.snapshots if parse_snapshot_name(s.entry.name)}
            assert ours <= known, "a snapshot of an earlier retention is left"
        return found

    @rule(node=seeds, number=seeds, ends=st.booleans())
    def hold(self, node: int, number: int, ends: bool) -> None:
        """A person keeps a generation, or lets go of it."""
        document = self.picked(node, lambda d: d.kind is not Kind.CLONE and not d.phase and bool(d.generations))
        if document is None:
            return
        mine = [h for h in document.holds if h.owner.startswith(USER)]
        generation = document.generations[number % len(document.generations)]

        def work(sites: Any) -> None:
            found, _ = forest.document_of(self.tree(sites).member(document.name))
            if mine and ends:
                holds.remove(found, mine[0].owner.removeprefix(USER), mine[0].position)
            elif not ends:
                holds.add(found, f"h{number}", generation.position, "of the test")

        self.work(work)

    def let_go_of(self, name: str) -> None:
        """Nobody leaves while a person holds something there."""

        def work(sites: Any) -> None:
            found, _ = forest.document_of(self.tree(sites).member(name))
            found.update(lambda d: replace(d, holds=tuple(h for h in d.holds if not h.owner.startswith(USER))))

        self.work(work)

    @rule(node=seeds, dies=rarely, how=ways)
    def resync_one(self, node: int, dies: int | None, how: str) -> None:
        document = self.picked(node, lambda d: d.kind is Kind.MIRROR and not d.phase)
        if document:
            self.work(lambda s: self.resync(s, document.name), dies, how)

    def resync_all(self) -> None:
        """Parents first: a node that is brought on may not need one any more."""
        documents = self.documents()
        for _, document in sorted(documents.values(), key=lambda found: depth(found[1], documents)):
            if document.kind is Kind.MIRROR:
                self.work(lambda s, name=document.name: self.resync(s, name))

    def resync(self, sites: Any, name: str) -> edge.Outcome | None:
        node, _ = forest.document_of(self.tree(sites).member(name))
        try:
            outcome = resync.resync(sites, node, Silent(), threading.Event())
        except errors.Diverged:
            if self.robbed:
                return None
            raise
        assert outcome is None or outcome.error is None or self.excused(outcome.error), repr(outcome and outcome.error)
        return outcome

    @rule(node=seeds, number=seeds)
    def retire(self, node: int, number: int) -> None:
        """As retention does: a generation that is neither held nor the newest goes, the document first."""
        document = self.picked(node, lambda d: d.kind is not Kind.CLONE and not d.phase and d.intent is None)
        if document is None:
            return
        held = {hold.position for hold in document.holds}
        robbed = {name for node_name, name in self.robbed if node_name == document.name}
        free = [g for g in document.generations[:-1] if g.position not in held]
        free = [g for g in free if snapshot_name(document.tree_id, g.position) not in robbed]
        if not free:
            return
        gone = free[number % len(free)]

        def retire(sites: Any) -> None:
            found, _ = forest.document_of(self.tree(sites).member(document.name))
            left = tuple(g for g in document.generations if g.position != gone.position)
            found.update(lambda d: replace(d, generations=left))
            image = found.pool.open(document.image_id, read_only=False)
            image.remove_snapshot(snapshot_name(document.tree_id, gone.position))
            image.close()

        self.work(retire)

    @rule(node=seeds, number=seeds, chance=st.integers(0, 3))
    def rob(self, node: int, number: int, chance: int) -> None:
        """Somebody removes a snapshot of ours by hand."""
        document = self.picked(node, lambda d: d.kind is not Kind.CLONE and bool(d.image_id))
        if document is None or chance:
            return
        site = document.ref.site
        volume = self.volume(site, document.image_id)
        ours = [s.entry for s in volume.snapshots if parse_snapshot_name(s.entry.name)]
        if ours:
            entry = ours[number % len(ours)]
            image = memory.Sites(self.storages).cluster(site).pool("p").open(document.image_id, read_only=False)
            image.remove_snapshot(entry.name)
            image.close()
            self.robbed.add((document.name, entry.name))

    @rule(node=seeds, keep=st.booleans(), dies=rarely)
    def leave(self, node: int, keep: bool, dies: int | None) -> None:
        documents = self.documents()
        above = {d.parent.name for _, d in documents.values() if d.parent}
        document = self.picked(node, lambda d: d.kind is not Kind.ROOT and d.name not in above)
        if document is None:
            return
        torn = document.kind is Kind.MIRROR and document.intent is not None
        if keep and torn:
            return
        self.let_go_of(document.name)

        def part(sites: Any) -> Any:
            tree = self.tree(sites)
            return leave.leave(sites, tree, tree.member(document.name), keep=keep, expiry_seconds=0)

        self.work(part, dies)
        if document.name not in self.documents():
            # Whatever happens next in the tree takes along what is left of it.
            self.work(lambda s: registry.sweep_everywhere(s, document))
        else:
            assert dies, "it did not leave"
            self.work(part)
        self.left_nothing(document, torn)

    def left_nothing(self, document: NodeDocument, torn: bool) -> None:
        found, _ = marks.list_marks(memory.Sites(self.storages))
        names = {d.name for _, d in self.documents().values()}
        assert document.name not in names
        for mark in found:
            assert mark.node in names or (torn and mark.kind == "snapshot") or mark.node == "", mark
            assert document.ref.node_id not in mark.detail + mark.where, mark

    # -- what must hold after every rule

    @invariant()
    def snapshots_hold_what_the_root_held(self) -> None:
        documents = self.documents()
        for site, document in documents.values():
            volume = self.volume(site, document.image_id)
            if volume is None or document.kind is Kind.CLONE:
                continue
            for snapshot in volume.snapshots:
                name = snapshot.entry.name
                if parse_snapshot_name(name):
                    held = self.held(document, volume, snapshot.entry)
                    wanted = masked(self.recorded[name][1], held)
                    assert self.content(site, volume, name) == wanted, f"{document.name}@{name} {held}"

    def held(self, document: NodeDocument, volume: Any, snapshot: Any) -> Portion:
        """What this node says, or said last, to hold of a generation."""
        known = (volume.image_id, snapshot.snapshot_id)
        named = parse_snapshot_name(snapshot.name)
        generation, intent = document.generation(named[1]) if named else None, document.intent
        if generation and generation.snapshot_id == snapshot.snapshot_id:
            assert self.portions.get(known, generation.portion) == generation.portion
            self.portions[known] = generation.portion
        elif intent and named and intent.target == named[1] and intent.since != intent.target:
            self.portions.setdefault(known, intent.portion)
        return self.portions.get(known, WHOLE)

    @invariant()
    def nobody_holds_what_its_parent_has_not(self) -> None:
        documents = {d.ref.node_id: d for _, d in self.documents().values()}
        for document in documents.values():
            above = document.parent and documents.get(document.parent.node_id)
            above = documents.get(above.replica.node_id) if above else None
            for generation in document.generations if above else ():
                there = above.generation(generation.position) if above else None
                name = snapshot_name(document.tree_id, generation.position)
                if there and above and (above.name, name) not in self.robbed:
                    # A portion may be all that there was at the time. What was robbed is had anew, as is wanted now.
                    held = inside(generation.portion, generation.size_bytes)
                    assert not beyond(there.portion, held), document.name

    def record(self, root: NodeDocument) -> None:
        """What the root holds now is what its new snapshots hold: nothing was written since they were made."""
        volume = self.volume("a", root.image_id)
        for snapshot in volume.snapshots if volume else ():
            entry = snapshot.entry
            if parse_snapshot_name(entry.name) and self.recorded.get(entry.name, (0, b""))[0] != entry.snapshot_id:
                assert len(self.bytes) == entry.size_bytes
                self.recorded[entry.name] = (entry.snapshot_id, bytes(self.bytes))

    @invariant()
    def recorded_and_held_generations_are_there(self) -> None:
        for site, document in self.documents().values():
            if document.kind is Kind.CLONE or document.phase:
                continue
            volume = self.volume(site, document.image_id)
            there = {(s.entry.name, s.entry.snapshot_id) for s in volume.snapshots} if volume else set()
            for generation in document.generations:
                name = snapshot_name(document.tree_id, generation.position)
                assert (name, generation.snapshot_id) in there or (document.name, name) in self.robbed, name
            for hold in document.holds:
                assert document.generation(hold.position), (
                    f"{document.name} lost {hold.position}, held by {hold.reason}"
                )

    @invariant()
    def a_clone_shows_one_generation(self) -> None:
        sealed = (g.portion for _, d in self.documents().values() for g in d.generations)
        held = {*self.portions.values(), *sealed, WHOLE}
        whole = [masked(content, one) for _, content in self.recorded.values() for one in held]
        for site, document in self.documents().values():
            volume = self.storages[site].places[PLACE].images.get(document.ref.image)
            if document.kind is Kind.CLONE and volume:
                assert self.content(site, volume) in whole, document.name

    @invariant()
    def holds_belong_to_edges(self) -> None:
        documents = self.documents()
        edges = {d.edge for _, d in documents.values() if d.edge}
        for _, document in documents.values():
            owners = {hold.owner for hold in document.holds if not hold.owner.startswith(USER)}
            assert owners <= edges, document.name
            assert {resync.edge for resync in document.resyncs} <= edges, document.name

    def check(self) -> None:
        """All invariants, for those who walk by themselves."""
        self.snapshots_hold_what_the_root_held()
        self.recorded_and_held_generations_are_there()
        self.a_clone_shows_one_generation()
        self.holds_belong_to_edges()

    def teardown(self) -> None:
        """Everybody leaves, the leaves first; nothing of ours stays."""
        for _ in range(20):
            documents = self.documents()
            parents = {d.parent.name for _, d in documents.values() if d.parent}
            leaf = next((d for _, d in documents.values() if d.name not in parents), None)
            if leaf is None:
                break
            keep = leaf.kind is Kind.ROOT
            self.let_go_of(leaf.name)
            self.work(lambda s, leaf=leaf, keep=keep: self._last_leave(s, leaf.name, keep))
        found, _ = marks.list_marks(memory.Sites(self.storages))
        # Half-written images went to the trash with the snapshots that make them worth something.
        trashed = {n for s in self.storages.values() for n, _ in s.places[PLACE].trash.values()}
        kept = {m for m in found if m.kind == "snapshot" and m.where.partition("/")[2].partition("@")[0] in trashed}
        assert [m for m in found if m not in kept] == []

    def _last_leave(self, sites: Any, name: str, keep: bool) -> Any:
        tree = self.tree(sites)
        return leave.leave(sites, tree, tree.member(name), keep=keep, expiry_seconds=0)


def masked(content: bytes, held: Portion) -> bytes:
    """Zeroes wherever a node with this portion holds nothing."""
    found = bytearray(len(content))
    for offset, length in clip(held, Extents.of([(0, len(content))])):
        found[offset : offset + length] = content[offset : offset + length]
    return bytes(found)


def depth(document: NodeDocument, documents: dict[str, tuple[str, NodeDocument]]) -> int:
    found = 0
    while document.parent:
        document = documents[document.parent.name][1]
        found += 1
    return found
