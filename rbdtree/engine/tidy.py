"""What pushes leave behind at a node: staged clones that served, entries that everybody has read."""

from collections.abc import Callable
from dataclasses import replace

from rbdtree.engine import marks
from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind, NodeDocument, Push, PushState

_REMEMBERED = 32


def served(document: NodeDocument, push: Push) -> bool:
    """Whether nobody needs the bytes of this push here any more."""
    if push.state is PushState.CONFLICT:
        return push.owner != document.ref.node_id
    if push.state is not PushState.PUBLISHED or push.position is None:
        return False
    return document.kind is Kind.ROOT or document.position >= push.position


def tidy(node: Node, claim: Claim) -> None:
    """Removes staged images that served; forgets old verdicts."""
    document = node.read()
    for push in document.pushes:
        if push.staging and push.image_id and served(document, push):
            forget_image(node, push, claim)
    node.update(_forget, claim.cookie)


def forget_image(node: Node, push: Push, claim: Claim) -> None:
    """A staged push that served: its image goes, its entry stays."""
    drop_image(node, push.image_id, push.staging)
    node.update(_without_image(push), claim.cookie)


def drop_image(node: Node, image_id: str, name: str) -> None:
    """Trash and purge of a staged clone; its snapshots go first."""
    pool = node.pool
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


def _without_image(push: Push) -> Callable[[NodeDocument], NodeDocument]:
    def change(document: NodeDocument) -> NodeDocument:
        known = document.push(push.push_id)
        return document.with_push(replace(known, image_id="", staging="")) if known else document

    return change


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
        if p.owner != mine and not p.image_id and p.state in (PushState.PUBLISHED, PushState.CONFLICT)
    ]
    done |= set(verdicts[:-_REMEMBERED])
    return replace(document, pushes=tuple(p for p in document.pushes if p.push_id not in done))
