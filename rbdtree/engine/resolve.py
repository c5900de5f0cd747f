"""How a conflict ends. Nothing is thrown away without being named."""

from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import marks
from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind, NodeDocument, Push, PushState
from rbdtree.model.name import ImageSpec
from rbdtree.ports import Sites


def refused(document: NodeDocument) -> tuple[Push, ...]:
    """The node's own pushes that met a conflict; ``NotFound`` without one."""
    found = tuple(p for p in document.pushes if p.owner == document.ref.node_id and p.state is PushState.CONFLICT)
    if not found:
        raise errors.NotFound(f"{document.full_name} has no conflict to resolve", "See 'rbdtree status'.")
    return found


def take_ours(node: Node) -> str:
    """Pushes the refused bytes again, over what others changed. The next push carries it out."""
    with Claim(node, "resolve", wait=True) as claim:
        document = node.read()
        ours = refused(document)
        number = document.push_number
        renewed = []
        for push in ours:
            number += 1
            renewed.append(replace(push, number=number, force=True, state=PushState.STAGED, evidence=()))
        old = {p.push_id for p in ours}

        def change(d: NodeDocument) -> NodeDocument:
            kept = tuple(p for p in d.pushes if p.push_id not in old)
            return replace(d, pushes=(*kept, *renewed), push_number=number)

        node.update(change, claim.cookie)
    return (
        f"{document.full_name} takes its own bytes; 'rbdtree push {document.full_name}' publishes them over the others'"
    )


def take_theirs(sites: Sites, node: Node, expiry_seconds: float) -> str:
    """Gives the branch up, with everything on it that is not published."""
    refused(node.read())
    said = branches.discard(sites, node, expiry_seconds)
    return f"the others' bytes stand; {said}"


def park(sites: Sites, node: Node, spec: ImageSpec) -> str:
    """The branch becomes an ordinary image of another name; the node is free for a new branch."""
    with Claim(node, "resolve", wait=True) as claim:
        document = node.read()
        refused(document)
        branch = branches.require(document)
        here = (document.ref.fsid, document.ref.pool, document.ref.namespace)
        pool = sites.cluster(spec.site).pool(spec.pool, spec.namespace)
        if (pool.fsid, pool.name, pool.namespace) != here:
            raise errors.UsageError(
                f"{spec} is not beside the branch {branches.spec(document, branch)}",
                "An image is parked by renaming it: name one in the same pool and namespace.",
            )
        if pool.image_id(spec.image) is not None:
            raise errors.Exists(f"image {spec} exists", "Choose another name.")
        if pool.image_id(branch.image) == branch.image_id:
            pool.rename(branch.image, spec.image)

        def change(d: NodeDocument) -> NodeDocument:
            return replace(branches.give_up(d), discarding=d.discarding)

        node.update(change, claim.cookie)
        marks.unmark_image(pool, branch.image_id)
        branches.release_hold(sites, document)
    kind = "its clone" if document.kind is Kind.CLONE else "the branch"
    return f"{kind} of {document.full_name} is {spec} now, an ordinary image with all its writes"
