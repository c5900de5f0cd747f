"""An edge to a clone node at work: a new clone beside the old one, then the names are swapped. No byte is copied.

The clone stands on the nearest replica above it, whatever lies between, so its depth in RBD stays 1.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import ends, marks, tidy, trash
from rbdtree.engine.claim import Claim, worker_name
from rbdtree.engine.node import Node, cluster_of
from rbdtree.model.document import Hold, Intent, NodeDocument
from rbdtree.model.position import Position, parse_snapshot_name, push_snapshot_name, snapshot_name
from rbdtree.plan import step as steps
from rbdtree.plan.conflict import ImageGone
from rbdtree.plan.edge import CloneState, Pending
from rbdtree.ports import NO_CLONE, Image, Pool, Reporter, Sites


def beside(document: NodeDocument) -> str:
    """Name of the next clone while it is being made."""
    return f"{document.ref.image}.rbdtree-{document.edge[:8]}"


def drop_beside(pool: Pool, document: NodeDocument) -> bool:
    """Removes the clone made ahead of a swap that never came. False when what is there is not ours to remove.

    Under the node's claim."""
    name = beside(document)
    _purge_dropped(pool, document)
    tidy.clear_half_made(pool, name)
    made = pool.image_id(name)
    if made is None:
        return True
    image = pool.open(made)
    try:
        ours = _bare(image, document) and (image.ancestor() is not None or tidy.abandoned(pool, image, document))
    finally:
        image.close()
    if ours:
        # The metadata may be the parent's still, as clones inherit it: in the trash nobody would look for it.
        marks.unmark_image(pool, made)
        pool.trash(made, name, 0)
        trash.finish(pool, made, document.tree_id, purge=True)
        pool.remove_entry(marks.image_entry(made))
    return ours


def _bare(image: Image, document: NodeDocument) -> bool:
    """Whether nobody made anything of a clone: no data and no snapshots of its own, but for our seal."""
    sealed = push_snapshot_name(document.tree_id, 0)
    return not image.own_data() and all(snapshot.name == sealed for snapshot in image.snapshots())


def _purge_dropped(pool: Pool, document: NodeDocument) -> None:
    """What ``drop_beside`` put into the trash, and died: there it would keep the parent's snapshot.

    An entry may also be of an image that has its name still, or is the node's by now: of a move into the trash that was
    interrupted. One of a move that had come further cannot be purged, nor restored (EUCLEAN); it stays."""
    name = beside(document)
    found = [entry.image_id for entry in pool.trashed() if entry.name == name]
    if not found:
        return
    live = {document.image_id, pool.image_id(document.ref.image), pool.image_id(name)}
    for image_id in found:
        if image_id not in live:
            with suppress(errors.Error):
                _purge_bare(pool, image_id, document)


def _purge_bare(pool: Pool, image_id: str, document: NodeDocument) -> None:
    try:
        image = pool.open(image_id)
    except errors.NotFound:
        # Removed by half.
        pass
    else:
        try:
            if image.watchers() or not _bare(image, document):
                return
        finally:
            image.close()
    trash.finish(pool, image_id, document.tree_id, purge=True)
    pool.remove_entry(marks.image_entry(image_id))


class CloneEdge:
    """An edge to a clone node, under the child's claim; without a claim it only observes."""

    def __init__(
        self,
        sites: Sites,
        child: Node,
        claim: Claim | None,
        reporter: Reporter,
        expiry_seconds: float = 0,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.child = child
        self._sites = sites
        self._claim = claim
        self._reporter = reporter
        self._expiry_seconds = expiry_seconds
        self.stays = ""
        self._above: NodeDocument | None = None
        self._now = now
        self.document = child.read()
        self.name = self.document.full_name
        self.upstream = ends.source_node(sites, self.document)
        self._cluster = cluster_of(sites, self.document.ref)

    def close(self) -> None:
        """Nothing stays open."""

    def observe(self) -> CloneState:
        """The replica's generations, and where the clone stands."""
        self.document = document = ends.read_settled(self.child)
        self._above = above = self.upstream.read()
        replica = self.upstream.pool.open(above.image_id)
        try:
            upstream = tuple(g.position for g in ends.present(above, replica))
        finally:
            replica.close()
        state = CloneState(
            node=self.name,
            image=document.ref.image_spec,
            upstream=upstream,
            recorded=document.newest_position,
            pending=Pending(document.intent.since, document.intent.target) if document.intent else None,
            held=ends.held_by(above, document.edge),
            needed=ends.needed_by(document),
            gone=ends.find_forgotten(self._sites, document, above),
        )
        made = document.intent.image_id if document.intent else ""
        current = self.child.pool.image_id(document.ref.image)
        if current is None and (made or not document.image_id):
            return state
        if current not in (document.image_id, made):
            gone = ImageGone(self.name, document.ref.image_spec, document.image_id, current)
            return replace(state, gone=gone)
        image = self.child.pool.open(current or document.image_id)
        try:
            over, foreign = self._stands_on(image, above)
            state = replace(state, over=over, foreign=foreign, used_by=tuple(image.watchers()))
            if document.branch and not foreign and image.image_id == document.branch.image_id:
                newest = max(upstream, default=None)
                stays = self._branch_stays(newest, state.used_by)
                self.stays = stays if newest and over and newest > over else ""
                state = replace(state, stays=stays, used_by=())
            return state
        finally:
            image.close()

    def follow_policy(self) -> None:
        """The tree's settings, as the replica above has them."""
        above = self._above
        if self._claim and above and above.tree_policy != self.document.tree_policy:
            self._update(lambda d: replace(d, tree_policy=above.tree_policy))

    def _stands_on(self, image: Image, above: NodeDocument) -> tuple[Position | None, str]:
        ancestor = image.ancestor()
        if ancestor is None:
            return (
                self.document.newest_position,
                "was flattened: it stands on no snapshot",
            )
        named = parse_snapshot_name(ancestor.snapshot)
        if named is None and ancestor.image_id == above.image_id:
            # The snapshot was removed by hand; RBD keeps it below the clone, without its name.
            intent, recorded = self.document.intent, self.document.newest_position
            known = intent.target if intent and intent.image_id == image.image_id else recorded
            named = (self.document.tree_id, known) if known else None
        if named is None or ancestor.image_id != above.image_id:
            return (
                None,
                f"is a clone of {ancestor.pool}/{ancestor.image_id}@{ancestor.snapshot}, not of the replica",
            )
        branch = self.document.branch
        if branch and (branch.image_id or any(s.name == branch.since for s in image.snapshots())):
            return named[1], ""
        if image.own_data():
            return named[1], "holds data of its own: somebody wrote to it"
        if image.snapshots():
            return named[1], "has snapshots of its own"
        if image.size() != ancestor.overlap_bytes:
            return named[1], "was resized"
        return named[1], ""

    def _branch_stays(self, newest: Position | None, used_by: tuple[str, ...]) -> str:
        """Why the branch, which is the node's image, cannot be swapped for a newer clone; empty when it can."""
        base = self.document.branch and self.document.branch.base
        try:
            report = branches.look(self.child, self.document)
        except errors.Unsupported as error:
            return f"stays over {base}: {error}"
        if not report.clean or branches.awaited(self.document, newest):
            return f"stays over {report.base}: it holds writes that are not published, or not here yet"
        if used_by:
            return f"stays over {report.base}: it is in use by {', '.join(used_by)}"
        gone = branches.lacking(self._sites, self.document, newest) if newest and newest > report.base else ""
        return f"stays over {report.base}: {gone} does not have generation {newest} any more" if gone else ""

    def apply(self, step: steps.Step) -> None:
        """Carries out one step."""
        if self._claim is None:
            raise errors.Bug(f"{self.name}: a step without a claim")
        self._claim.check()
        self._reporter.step(self.name, str(step))
        match step:
            case steps.Hold(position):
                self.upstream.update(ends.hold(self.document, position))
            case steps.Intend(since, target):
                self._intend(since, target)
            case steps.Clone(position):
                self._clone(position)
            case steps.Swap():
                self._swap()
            case steps.Settle(position):
                self._settle(position)
            case steps.Abandon():
                self._abandon()
            case steps.Release(position):
                self.upstream.update(ends.release(self.document, position))
            case _:
                raise errors.Bug(f"{step} is not a step of a clone")

    def _update(self, change: Callable[[NodeDocument], NodeDocument]) -> None:
        self.document = self.child.update(change, self._claim.cookie if self._claim else None)

    @property
    def _beside(self) -> str:
        return beside(self.document)

    def _intend(self, since: Position | None, target: Position) -> None:
        if self.document.branch and (gone := branches.reserve(self._sites, self.child, target)):
            raise errors.Changed(f"generation {target} left {gone} before a branch could stand on it")
        generation = self.upstream.read().generation(target)
        if generation and not generation.size_bytes:
            raise errors.Unsupported(f"{self.name} cannot have generation {target}: {NO_CLONE[0]}", NO_CLONE[1])
        intent = Intent(
            target=target,
            since=since,
            size_bytes=generation.size_bytes if generation else 0,
            started=self._now(),
            worker=worker_name(),
            client=self._cluster.address(),
        )
        self._update(lambda d: replace(d, intent=intent))

    def _clone(self, position: Position) -> None:
        pool, above = self.child.pool, self.upstream.read()
        snapshot = snapshot_name(self.document.tree_id, position)
        intent = self.document.intent
        if intent is None:
            raise errors.Bug(f"{self.name}: a clone without an intent")
        if intent.image_id and pool.image_id(self.document.ref.image) == intent.image_id:
            return
        _purge_dropped(pool, self.document)
        tidy.clear_half_made(pool, self._beside)
        made = pool.image_id(self._beside)
        if made is not None:
            image = pool.open(made)
            ancestor = image.ancestor()
            if self._claim:
                self._claim.free(image)
            image.close()
            leaving = any(entry.image_id == made for entry in pool.trashed())
            if leaving or ancestor is None or (ancestor.image_id, ancestor.snapshot) != (above.image_id, snapshot):
                # Of an earlier target, which is gone; of a maker who died before it had its parent; or of a remover who
                # died when it was half in the trash.
                if not drop_beside(pool, self.document):
                    raise errors.Exists(
                        f"{self.name}: an image {self._beside} is in the way", "Move it away and sync again."
                    )
                made = None
        if made is None:
            made = self.upstream.pool.clone(above.image_id, snapshot, pool, self._beside)
        try:
            marks.mark_image(pool, made, self.document)
            if self.document.branch:
                sealed = push_snapshot_name(self.document.tree_id, 0)
                branches.seal_base(pool, made, sealed, self.document.branch.uplink)
        except errors.NotFound:
            # What a predecessor had asked for, to remove it, was done only now.
            pool.remove_entry(marks.image_entry(made))
            raise
        self._update(lambda d: replace(d, intent=d.intent and replace(d.intent, image_id=made)))

    def _swap(self) -> None:
        pool, name = self.child.pool, self.document.ref.image
        intent = self.document.intent
        if intent is None or not intent.image_id:
            raise errors.Bug(f"{self.name}: a swap without a clone")
        current, old = pool.image_id(name), self.document.image_id
        if current != intent.image_id:
            if current is not None:
                self._discard(current, name)
            branch = self.document.branch
            if old and trash.wanted_back(pool, old, branch.since if branch else None):
                self._put_back(old, name)
            pool.rename(self._beside, name)
        if old and old != intent.image_id:
            self._purge(old)

    def _discard(self, image_id: str, name: str) -> None:
        """The old clone goes to the trash; ``_purge`` takes it out when it is closed and has nothing of its own."""
        pool = self.child.pool
        if image_id != self.document.image_id:
            raise errors.Exists(f"{self.name}: another image is called {name} now", "Move it away and sync again.")
        marks.unmark_image(pool, image_id)
        pool.trash(image_id, name, self._expiry_seconds)

    def _put_back(self, image_id: str, name: str) -> None:
        """Somebody opened the old clone, or wrote to it, after we had looked: it stays."""
        trash.put_back(self.child.pool, image_id, name)
        marks.mark_image(self.child.pool, image_id, self.document)
        self._abandon()
        raise errors.Changed(
            f"{self.name}: somebody came for {self.document.ref.image_spec} while it was moved to a newer generation",
            f"It is as it was. Run 'rbdtree sync {self.name}' again.",
        )

    def _purge(self, image_id: str) -> None:
        """Out of the trash at once when nobody has it open and it holds nothing that is not published."""
        pool = self.child.pool
        if all(entry.image_id != image_id for entry in pool.trashed()):
            return
        clean = trash.unwritten(pool, image_id)
        trash.finish(pool, image_id, self.document.tree_id, purge=False)
        if clean:
            with suppress(errors.Error):
                pool.purge(image_id)

    def _settle(self, position: Position) -> None:
        above = self.upstream.read()
        generation = above.generation(position)
        if generation is None:
            raise errors.Changed(f"generation {position} left {self.upstream.name}")
        intent, old = self.document.intent, self.document.image_id
        made = intent.image_id if intent else old
        leases = above.leases
        owner = f"branch:{self.document.ref.node_id}"
        hold = Hold(owner, position, f"branch of {self.name}", True)
        branch = self.document.branch
        moved = branch and replace(
            branch, image_id=made, base=position, since=push_snapshot_name(self.document.tree_id, 0)
        )
        if moved:
            self.upstream.update(lambda d: d.without_holds(owner).with_hold(hold))

        def change(d: NodeDocument) -> NodeDocument:
            held = d.without_holds(owner).with_hold(hold) if moved else d
            return replace(
                held,
                generations=(generation,),
                image_id=made,
                intent=None,
                distrust="",
                epoch=position.epoch,
                branch=moved,
                leases=leases,
            )

        if old and old != made:
            self._purge(old)
            self.child.pool.remove_entry(marks.image_entry(old))
        self._update(change)

    def _abandon(self) -> None:
        drop_beside(self.child.pool, self.document)
        branch, owner = self.document.branch, f"branch:{self.document.ref.node_id}"
        stands = frozenset({branch.base} if branch else ())
        held = {h.position for h in self.document.holds if h.owner == owner} - stands

        def change(d: NodeDocument) -> NodeDocument:
            for position in held:
                d = d.without_holds(owner, position)
            return replace(d, intent=None)

        self._update(change)
