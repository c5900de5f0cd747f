"""A node's writable branch: a clone over one generation, made, looked at, moved on and thrown away.

The branch of a clone node is its image; root and mirror nodes get one called IMAGE-branch. A snapshot is taken before
anything is written: then librbd knows exactly what a write changed, also where it copied a whole object up.
"""

from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import islice

from rbdtree import errors
from rbdtree.engine import delta, ends, extents, marks, parcel, recall, tidy, trash
from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.model import policy
from rbdtree.model.document import PARCEL, Branch, Hold, Kind, NodeDocument, Push, PushState
from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import Position, push_snapshot_name, snapshot_name
from rbdtree.ports import Image, Pool, Sites

SNAPSHOT = "snapshot"
JOURNAL = "journal"
MAX_UNPUSHED = 1 << 30
_SET_BYTES = 64 << 20
"""Of an object set of a journal as librbd makes it."""
KEPT = 86400.0
"""Seconds for which the trash keeps a discarded branch when another command finishes the discard."""
_equal: dict[tuple[str, str], tuple[str, Extents]] = {}
"""Of branches, by cluster and image: objects that look as if they were written to late, and that ``look`` found to hold
nothing. Only for who looks again and again whether there is something to push."""
OPEN_STATES = (PushState.TAKING, PushState.STAGED, PushState.SENT, PushState.CONFLICT)


@dataclass(frozen=True, slots=True)
class BranchReport:
    """What a branch holds that nobody else has: ``changed`` is in no push yet, ``pushes`` are not published yet."""

    image: str
    base: Position
    uplink: str
    changed: Extents
    used_by: tuple[str, ...]
    pushes: tuple[Push, ...]

    @property
    def clean(self) -> bool:
        return not self.changed and not self.pushes


def spec(document: NodeDocument, branch: Branch) -> str:
    """``SITE:POOL/[NAMESPACE/]IMAGE``"""
    return replace(document.ref, image=branch.image).image_spec


def own_pushes(document: NodeDocument) -> tuple[Push, ...]:
    """Pushes of this node's own branch that are not published yet."""
    return tuple(p for p in document.pushes if p.owner == document.ref.node_id and p.state in OPEN_STATES)


def top(document: NodeDocument) -> int:
    """Number of the newest push of this branch that is not published, as far as is known here; 0 without one."""
    return max((p.number for p in own_pushes(document)), default=0)


def unfollow(node: Node, image_id: str) -> None:
    """Nobody publishes this image's journal any more: it need not be kept."""
    try:
        journal = node.pool.journal(image_id)
    except errors.NotFound:
        return
    try:
        with suppress(errors.NotFound):
            journal.unregister(marks.journal_client(node.node_id))
    finally:
        journal.close()
    with suppress(errors.NotFound):
        image = node.pool.open(image_id, read_only=False)
        try:
            image.remove_metadata(marks.JOURNAL_LIMIT)
        finally:
            image.close()


def awaited(document: NodeDocument, newest: Position | None) -> bool:
    """Whether something of the branch is published that ``newest`` does not hold yet."""
    mine = [p for p in document.pushes if p.owner == document.ref.node_id and p.position]
    return any(p.position and (newest is None or p.position > newest) for p in mine)


def require(document: NodeDocument) -> Branch:
    """The branch; ``NotFound`` without one."""
    if document.branch is None or not document.branch.image_id:
        raise errors.NotFound(
            f"{document.full_name} has no branch", f"Make one with 'rbdtree branch {document.full_name}'."
        )
    return document.branch


def ensure(sites: Sites, node: Node, uplink: str | None, at: Position | None) -> tuple[NodeDocument, Branch]:
    """The branch to write to, made when there is none. The same one until it is discarded or moves on."""
    with Claim(node, "branch", wait=True) as claim:
        document = clear(sites, node, ends.read_settled(node), claim)
        found = document.branch
        if found and found.image_id:
            if at is not None and at != found.base:
                raise errors.Exists(
                    f"{document.full_name} has a branch over {found.base} already",
                    f"Push and move it on, or 'rbdtree discard {document.full_name}' first.",
                )
            if uplink and uplink != found.uplink:
                document = _switch(node, found, uplink, claim)
            _check_there(node, document, require(document))
            return document, require(document)
        made = make(sites, node, document, claim, uplink, at)
        pin(sites, node)
        return made


def _check_there(node: Node, document: NodeDocument, branch: Branch) -> None:
    if node.pool.image_id(branch.image) != branch.image_id:
        if swapping(document) or (branch.image_id, branch.image) in document.discarding:
            raise errors.Busy(
                f"{document.full_name}: its branch was moving to a newer generation, and that was not finished",
                f"Run 'rbdtree sync {document.full_name}': it goes on where it stopped.",
            )
        raise errors.Diverged(
            f"{document.full_name}: its branch {spec(document, branch)} (id {branch.image_id}) is gone",
            f"Restore it ('rbd trash ls'), or give it up with 'rbdtree discard {document.full_name}'.",
        )


def swapping(document: NodeDocument) -> bool:
    """Whether a clone node is being swapped for one over a newer generation; then it held nothing unpublished."""
    return document.kind is Kind.CLONE and document.intent is not None and bool(document.intent.image_id)


def _switch(node: Node, branch: Branch, uplink: str, claim: Claim) -> NodeDocument:
    if uplink != JOURNAL:
        unfollow(node, branch.image_id)
    image = node.pool.open(branch.image_id, read_only=False)
    try:
        if uplink == JOURNAL:
            image.set_metadata(marks.JOURNAL_LIMIT, str(MAX_UNPUSHED // _SET_BYTES))
        image.set_journaling(uplink == JOURNAL)
    finally:
        image.close()
    # Positions in a journal mean nothing in the next one.
    changed = replace(branch, uplink=uplink, session="", taken=(), skip_to="", doubt=())
    return node.update(lambda d: replace(d, branch=changed), claim.cookie)


def make(
    sites: Sites, node: Node, document: NodeDocument, claim: Claim, uplink: str | None, at: Position | None
) -> tuple[NodeDocument, Branch]:
    """A new branch. Dying in here leaves a branch without an image in the document; the next call goes on from it."""
    clone = document.kind is Kind.CLONE
    replica = Node.at(sites, document.replica)
    above = replica.read() if clone else document
    wanted = _base(sites, document, document.branch) if document.branch else at or document.newest_position
    generation = wanted and above.generation(wanted)
    if wanted is None or generation is None or (clone and wanted != document.newest_position):
        raise errors.NotFound(
            f"{document.full_name} does not have generation {wanted}"
            if wanted
            else f"{document.full_name} has no generation to branch from yet",
            f"See 'rbdtree log {document.full_name}', or run 'rbdtree sync {document.full_name}'.",
        )
    since = push_snapshot_name(document.tree_id, 0)
    if clone:
        _check_unwritten(node, document, since)
    name = document.ref.image if clone else f"{document.ref.image}-branch"
    uplink = uplink or policy.effective(document.policy, document.tree_policy).uplink
    gone = reserve(sites, node, wanted) if document.branch is None else ""
    if gone:
        raise errors.NotFound(
            f"{gone} does not have generation {wanted} any more: what is written over it could not be published",
            f"Run 'rbdtree sync {document.full_name}' first.",
        )
    branch = replace(document.branch, base=wanted) if document.branch else Branch(name, "", wanted, uplink, since)
    hold = Hold(f"branch:{document.ref.node_id}", wanted, f"branch of {document.full_name}", True)
    document = node.update(lambda d: replace(d.without_holds(hold.owner).with_hold(hold), branch=branch), claim.cookie)
    if clone:
        image_id = document.image_id
        replica.update(lambda d: d.with_hold(hold))
    else:
        image_id = _clone(node.pool, document, wanted, name)
    try:
        seal_base(node.pool, image_id, since, branch.uplink)
    except errors.Diverged:
        if clone:
            # Written to in the moment since we looked: a node that has diverged, and no branch.
            replica.update(lambda d: d.without_holds(hold.owner))
            node.update(lambda d: replace(d.without_holds(hold.owner), branch=None), claim.cookie)
        raise
    marks.mark_image(node.pool, image_id, document)
    branch = replace(branch, image_id=image_id)
    return node.update(lambda d: replace(d, branch=branch), claim.cookie), branch


def _base(sites: Sites, document: NodeDocument, branch: Branch) -> Position:
    """What a branch that was not finished stands on: the newest generation if its own has gone above meanwhile, for
    nobody has written to it yet. A clone has no other."""
    base, newest = branch.base, document.newest_position
    if document.kind is Kind.CLONE or newest is None or newest == base or not lacking(sites, document, base):
        return base
    return newest


def _check_unwritten(node: Node, document: NodeDocument, since: str) -> None:
    """A clone node's image becomes the branch: not one that somebody wrote to before."""
    image = node.pool.open(document.image_id)
    try:
        written = image.own_data() and all(s.name != since for s in image.snapshots())
    finally:
        image.close()
    if written:
        raise errors.Diverged(
            f"{document.full_name} has diverged: {document.ref.image_spec} was written to before it became a branch",
            f"Keep it with 'rbdtree detach {document.full_name}', or trash it with 'rbdtree rollback "
            f"{document.full_name}'; then make the branch.",
        )


def half_made(node: Node, document: NodeDocument) -> bool:
    """Whether a clone's image was being made its branch: it may have been written to already, so no sync may swap it.

    One that is gone, or was rolled back, is made anew by the sync itself."""
    branch = document.branch
    return (
        branch is not None
        and not branch.image_id
        and document.kind is Kind.CLONE
        and document.intent is None
        and bool(document.image_id)
        and branch.base == document.newest_position
        and ends.find_gone(node, document) is None
    )


def remake(sites: Sites, node: Node, document: NodeDocument, claim: Claim) -> NodeDocument:
    """Goes on where making a branch, or moving one on, died."""
    branch = document.branch
    if branch is None or branch.image_id:
        return document
    return make(sites, node, document, claim, branch.uplink, branch.base)[0]


def _clone(pool: Pool, document: NodeDocument, base: Position, name: str) -> str:
    """The image of a branch. One whose maker died is used again; over another base (its branch was given up meanwhile),
    or without its parent yet, it goes to the trash."""
    snapshot = snapshot_name(document.tree_id, base)
    tidy.clear_half_made(pool, name)
    found = pool.image_id(name)
    if found is None:
        return pool.clone(document.image_id, snapshot, pool, name)
    image = pool.open(found)
    try:
        ancestor = image.ancestor()
        fresh = ancestor is not None and (ancestor.image_id, ancestor.snapshot) == (document.image_id, snapshot)
        if fresh and not image.own_data():
            return found
        foreign = ancestor is not None and ancestor.image_id != document.image_id
        if foreign or not tidy.abandoned(pool, image, document):
            raise errors.Exists(
                f"{document.full_name}: an image called {name} is in the way", "Rename it, then try again."
            )
    finally:
        image.close()
    # Its snapshot first, with which it could not expire.
    trash.remove_snapshots(pool, found, document.tree_id)
    marks.unmark_image(pool, found)
    pool.trash(found, name, KEPT)
    return pool.clone(document.image_id, snapshot, pool, name)


def seal_base(pool: Pool, image_id: str, since: str, uplink: str) -> None:
    """The snapshot before the first write, and the journal if that is the uplink."""
    image = pool.open(image_id, read_only=False)
    try:
        if not ends.whole(pool, image, since):
            if image.own_data():
                raise errors.Diverged(
                    "the image was written to before it became a branch",
                    "Roll the node back first: 'rbdtree rollback'.",
                )
            ends.seal(pool, image, since)
        if uplink == JOURNAL:
            image.set_metadata(marks.JOURNAL_LIMIT, str(MAX_UNPUSHED // _SET_BYTES))
            image.set_journaling(True)
    finally:
        image.close()


def look(node: Node, document: NodeDocument, *, briefly: bool = False) -> BranchReport:
    """What is on the branch and not published; reads what was written since the last push. ``briefly``: no more of it
    than shows that there is something."""
    branch = require(document)
    _check_there(node, document, branch)
    head = node.pool.open(branch.image_id)
    try:
        rough = delta.coarse(head, branch.since, None)
        changed = NOTHING
        if rough:
            older = node.pool.open(branch.image_id, branch.since)
            known = _equal if briefly else None
            try:
                if head.size() != older.size():
                    raise _resized(document, branch, head)
                with closing(extents.written(node.pool, head, older, branch.since, rough, known)) as found:
                    changed = extents.collect(islice(found, 1) if briefly else found)
            finally:
                older.close()
        elif head.size() != _size_at(head, branch.since):
            raise _resized(document, branch, head)
        used = tuple(head.watchers())
    finally:
        head.close()
    return BranchReport(spec(document, branch), branch.base, branch.uplink, changed, used, own_pushes(document))


def weigh(node: Node, branch: Branch) -> int:
    """Bytes of the objects written since the last push: no fewer than ``look`` would find, and none are read."""
    head = node.pool.open(branch.image_id)
    try:
        return delta.coarse(head, branch.since, None).total
    finally:
        head.close()


def _size_at(image: Image, snapshot: str) -> int:
    return next(s.size_bytes for s in image.snapshots() if s.name == snapshot)


def _resized(document: NodeDocument, branch: Branch, head: Image) -> errors.Error:
    base = _size_at(head, branch.since)
    return errors.Unsupported(
        f"{document.full_name}: its branch was resized to {head.size()} bytes (from {base})",
        f"A volume is resized at its root; 'rbd resize {branch.image}' it back to {base} bytes, then push.",
    )


def clear(sites: Sites, node: Node, document: NodeDocument, claim: Claim, expiry_seconds: float = KEPT) -> NodeDocument:
    """Images that were given up go to the trash; goes on where a discard died.

    One that a branch moved on from goes for good."""
    discarded = document.branch is None
    if document.discarding and discarded:
        release_hold(sites, document)
    for image_id, name in document.discarding:
        if name.startswith(PARCEL):
            # The branch has these bytes too.
            parcel.drop(node.pool, name)
            continue
        if document.branch and image_id == document.branch.image_id:
            # It was to move on, and whoever saw to that died, or somebody came for it: it stays.
            trash.put_back(node.pool, image_id, name)
            continue
        with suppress(errors.NotFound):
            unfollow(node, image_id)
            marks.unmark_image(node.pool, image_id)
        if node.pool.image_id(name) == image_id:
            node.pool.trash(image_id, name, expiry_seconds)
        if discarded:
            trash.finish(node.pool, image_id, document.tree_id, purge=not expiry_seconds)
        else:
            trash.finish(node.pool, image_id, document.tree_id, purge=trash.unwritten(node.pool, image_id))
        node.pool.remove_entry(marks.image_entry(image_id))
    if document.discarding:
        return node.update(lambda d: replace(d, discarding=()), claim.cookie)
    return document


def give_up(document: NodeDocument) -> NodeDocument:
    """The document without its branch and the pushes that never were published; ``clear`` then trashes the image."""
    branch = document.branch
    if branch is None:
        return document
    mine = {p.push_id for p in own_pushes(document)}
    images = [(branch.image_id, branch.image)] if branch.image_id else []
    images += [(p.image_id, p.staging) for p in own_pushes(document) if p.staged_apart]
    changed = replace(
        document,
        branch=None,
        pushes=tuple(p for p in document.pushes if p.push_id not in mine),
        discarding=(*document.discarding, *images),
    )
    if document.kind is Kind.CLONE:
        # The next sync makes the node a new clone.
        changed = replace(changed, image_id="", generations=())
    return changed.without_holds(f"branch:{document.ref.node_id}")


def discard(sites: Sites, node: Node, expiry_seconds: float) -> str:
    """Throws the branch away, into the trash; returns what became of it in a sentence."""
    with recall.claimed(node) as claim:
        document = clear(sites, node, node.read(), claim, expiry_seconds)
        branch = document.branch
        if branch is None:
            return f"{document.full_name} has no branch"
        # First, while it is still known here what is on its way.
        said = recall.recall(sites, document)
        document = node.update(give_up, claim.cookie)
        release_hold(sites, document)
        clear(sites, node, document, claim, expiry_seconds)
        pin(sites, node)
    where = f"its image {branch.image} is in the trash for {expiry_seconds:g} s"
    text = f"the branch of {document.full_name} is gone; {where} ('rbd trash restore {branch.image_id}')"
    return f"{text}; {said}" if said else text


def pin(sites: Sites, node: Node) -> None:
    """Holds, or lets go of, the bases of branches at every replica above, until nothing is left to change or somebody
    cannot be reached: then the next syncs carry it on."""
    document = node.read()
    with suppress(errors.Unreachable, errors.NotFound, errors.Denied):
        while document.parent is not None:
            above = ends.source_node(sites, document)
            before = above.read()
            document = above.update(ends.pin(document))
            if document.holds == before.holds and not ends.needed_by(document):
                return


def lacking(sites: Sites, document: NodeDocument, position: Position) -> str:
    """Who, of the replicas above that can be reached, does not have this generation any more; empty: nobody. The root
    could not tell what others changed since, and would refuse a push over it."""
    with suppress(errors.Unreachable, errors.NotFound, errors.Denied):
        while document.parent is not None:
            document = ends.source_node(sites, document).read()
            if document.generation(position) is None:
                return document.full_name
    return ""


def unreserve(node: Node, document: NodeDocument, claim: Claim) -> NodeDocument:
    """Without the holds of a branch that never came, or never moved there: its maker died."""
    owner = f"branch:{node.node_id}"
    stands = {document.branch.base if document.branch else None, document.intent.target if document.intent else None}
    stale = [h.position for h in document.holds if h.owner == owner and h.position not in stands]
    if not stale:
        return document

    def change(d: NodeDocument) -> NodeDocument:
        for position in stale:
            d = d.without_holds(owner, position)
        return d

    return node.update(change, claim.cookie)


def reserve(sites: Sites, node: Node, position: Position) -> str:
    """Holds a generation for a branch, here and above, before anything stands on it. Who is ``lacking`` it: nothing is
    held then."""
    owner = f"branch:{node.node_id}"
    before = node.read()
    held = Hold(owner, position, f"branch of {before.full_name}", True)
    document = node.update(lambda d: d.with_hold(held))
    pin(sites, node)
    found = lacking(sites, document, position)
    if found and held not in before.holds:
        node.update(lambda d: d.without_holds(owner, position))
        pin(sites, node)
    return found


def release_hold(sites: Sites, document: NodeDocument) -> None:
    """A clone node's branch holds its base in the replica's document."""
    if document.kind is Kind.CLONE:
        Node.at(sites, document.replica).update(lambda d: d.without_holds(f"branch:{document.ref.node_id}"))


def move_on(sites: Sites, node: Node, claim: Claim) -> str:
    """Re-clones a clean, unused branch over the node's newest generation. Returns what was done, or why not."""
    document = node.read()
    branch = document.branch
    newest = document.newest_position
    if document.kind is not Kind.CLONE:
        document = remake(sites, node, document, claim)
        branch = document.branch
    if branch is None or not branch.image_id or newest is None or branch.base >= newest:
        return ""
    if document.kind is Kind.CLONE:
        return ""
    try:
        report = look(node, document)
    except errors.Unsupported as error:
        return f"its branch stays over {branch.base}: {error}"
    if not report.clean or awaited(document, newest):
        return f"its branch stays over {branch.base}: it holds writes that are not published, or not here yet"
    if report.used_by:
        return f"its branch stays over {branch.base}: it is in use by {', '.join(report.used_by)}"
    gone = reserve(sites, node, newest)
    if gone:
        return f"its branch stays over {branch.base}: {gone} does not have generation {newest} any more"

    # Out of everybody's reach first: who opened it since we looked may have written to it, and then it stays. Whoever
    # dies in between leaves it to ``clear``, which puts it back.
    going = (branch.image_id, branch.image)
    document = node.update(lambda d: replace(d, discarding=(*d.discarding, going)), claim.cookie)
    node.pool.trash(*going, KEPT)
    if trash.wanted_back(node.pool, branch.image_id, branch.since):
        clear(sites, node, document, claim)
        return f"its branch stays over {branch.base}: somebody came for it just now"

    def change(d: NodeDocument) -> NodeDocument:
        moved = replace(branch, image_id="", base=newest, since=push_snapshot_name(d.tree_id, 0))
        return replace(d.without_holds(f"branch:{d.ref.node_id}"), branch=moved)

    document = node.update(change, claim.cookie)
    document = clear(sites, node, document, claim)
    make(sites, node, document, claim, branch.uplink, newest)
    return f"its branch moved on to {newest}"
