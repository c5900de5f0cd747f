"""What is left behind at a node: staged clones that served, entries that everybody has read, images made by half."""

from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import marks, parcel
from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.model.document import Branch, Kind, NodeDocument, Push, PushState
from rbdtree.model.position import push_snapshot_name, tree_of_snapshot
from rbdtree.ports import Image, Pool

_REMEMBERED = 32


def served(document: NodeDocument, push: Push) -> bool:
    """Whether nobody needs the bytes of this push here any more."""
    if push.state is PushState.CONFLICT:
        return push.owner != document.ref.node_id
    if push.state is not PushState.PUBLISHED or push.position is None:
        return False
    if document.kind is Kind.CLONE and push.owner != document.ref.node_id:
        # It has no bytes of its own that a push could save it from copying.
        return True
    return document.kind is Kind.ROOT or document.position >= push.position


def spent(document: NodeDocument, branch: Branch) -> tuple[Push, ...]:
    """Published pushes of this very branch that nobody needs any more. Of a clone's and the root's the newest stays: by
    it is known what has to come back."""
    done = [
        p
        for p in document.pushes
        if p.owner == document.ref.node_id and p.image_id == branch.image_id and p.state is PushState.PUBLISHED
    ]
    done.sort(key=lambda p: p.number)
    return tuple(p for p in done[:-1] if document.kind is not Kind.MIRROR or served(document, p))


def tidy(node: Node, claim: Claim) -> None:
    """Removes staged images that served; forgets old verdicts."""
    document = node.read()
    gone = [p for p in document.pushes if p.staged_apart and served(document, p)]
    for push in gone:
        drop(node, push)
    document = node.update(lambda d: _forget(without_bytes(d, gone)), claim.cookie)
    if document.branch and document.branch.image_id and document.branch.uplink == "snapshot":
        _forget_spent(node, document, document.branch, claim)


def _forget_spent(node: Node, document: NodeDocument, branch: Branch, claim: Claim) -> None:
    """A branch that stays in use does not collect a snapshot for every push."""
    gone = {p.push_id for p in spent(document, branch)}
    if not gone:
        return
    kept = [p for p in document.pushes if p.push_id not in gone]
    needed = {branch.since, branch.skip_to, *(p.since for p in kept), *(p.snapshot for p in kept)}
    try:
        image = node.pool.open(branch.image_id, read_only=False)
    except errors.NotFound:
        return
    try:
        for snapshot in image.snapshots():
            if tree_of_snapshot(snapshot.name) and snapshot.name not in needed:
                image.remove_snapshot(snapshot.name)
    finally:
        image.close()
    node.update(lambda d: replace(d, pushes=tuple(p for p in d.pushes if p.push_id not in gone)), claim.cookie)


def drop(node: Node, push: Push) -> None:
    """The bytes of a staged push."""
    if push.packed:
        parcel.drop(node.pool, push.staging)
    else:
        drop_image(node, push.image_id, push.staging)


def staging_name(above: NodeDocument, owner: str, number: int) -> str:
    """Of the image that a large push is copied into at a node."""
    return f"{above.ref.image}.push-{owner[:8]}-{number}"


def drop_unfinished(node: Node, document: NodeDocument) -> None:
    """What was staged for a push that died before it was entered: its number is used again, its bytes may be others'.

    Under the node's claim. Who lost that, and writes a parcel all the same, leaves an object nobody looks for."""
    for name in parcel.lost(node.pool, node.node_id, (p.staging for p in document.pushes)):
        parcel.drop(node.pool, name)
    name = staging_name(document, node.node_id, document.push_number + 1)
    found = node.pool.image_id(name)
    if found:
        drop_image(node, found, name)


def clear_half_made(pool: Pool, name: str) -> None:
    """What is left of an image of one of our names that was made, or removed, by half; under the node's claim."""
    gone = pool.clear_half_made(name)
    if gone:
        pool.remove_entry(marks.image_entry(gone))


def abandoned(pool: Pool, image: Image, document: NodeDocument) -> bool:
    """Whether an image of one of the node's names holds nothing, and is nobody's: as its maker leaves it who dies.

    librbd makes a clone as an image without a parent first. The directory says whose it is: clones inherit metadata.
    """
    owner = pool.entries().get(marks.image_entry(image.image_id), document.ref.node_id)
    sealed = push_snapshot_name(document.tree_id, 0)
    return (
        owner == document.ref.node_id
        and all(snapshot.name == sealed for snapshot in image.snapshots())
        and not image.own_data()
        and not image.watchers()
    )


def drop_image(node: Node, image_id: str, name: str) -> None:
    """Trash and purge of a staged clone; its snapshots go first."""
    pool = node.pool
    clear_half_made(pool, name)
    if pool.image_id(name) == image_id:
        image = pool.open(image_id, read_only=False)
        try:
            for snapshot in image.snapshots():
                image.remove_snapshot(snapshot.name)
        finally:
            image.close()
        pool.trash(image_id, name, 0)
    pool.purge(image_id)
    pool.remove_entry(marks.image_entry(image_id))


def without_bytes(document: NodeDocument, gone: list[Push]) -> NodeDocument:
    """Staged pushes whose bytes were dropped keep their entries."""
    for push in gone:
        known = document.push(push.push_id)
        if known:
            document = document.with_push(replace(known, image_id="", staging="", extents=()))
    return document


def _forget(document: NodeDocument) -> NodeDocument:
    """Own published pushes whose generation is here are done; of others' the newest verdicts are kept to be heard."""
    mine = document.ref.node_id
    done = {
        p.push_id
        for p in document.pushes
        if p.owner == mine
        and p.state is PushState.PUBLISHED
        and served(document, p)
        and (document.branch is None or document.branch.image_id != p.image_id)
    }
    verdicts = [
        p.push_id
        for p in document.pushes
        if p.owner != mine and not p.here and p.state in (PushState.PUBLISHED, PushState.CONFLICT)
    ]
    done |= set(verdicts[:-_REMEMBERED])
    return replace(document, pushes=tuple(p for p in document.pushes if p.push_id not in done))
