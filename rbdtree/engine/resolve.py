"""How a conflict ends. Nothing is thrown away without being named."""

import uuid
from contextlib import closing
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import extents, marks, parcel, pushed, recall, tidy, trash
from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.engine.parcel import Parcel
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
        first = refused(document)[0]
        # Those written on top of it are refused with it, wherever they are.
        ours = [p for p in branches.own_pushes(document) if p.number >= first.number]
        if any(e.reason == "portion" for p in ours for e in p.evidence):
            raise errors.UsageError(
                f"{document.full_name} cannot take its own bytes: some are outside the portion that it holds",
                f"Run 'rbdtree resolve {document.full_name}' with --take theirs, or with --park IMAGE to keep them.",
            )
        number, after = document.push_number, first.after
        renewed = []
        for push in ours:
            number += 1
            state = PushState.TAKING if push.state is PushState.TAKING else PushState.STAGED
            # Neither a lease nor an earlier push says that others changed a byte: that is for the root to find out.
            met = any(e.reason not in ("leased", "earlier", "lost") for e in push.evidence)
            forced = push.force or met
            taken = _as_branch(node, document, push, number) if forced and push.packed else push
            renewed.append(replace(taken, number=number, after=after, force=forced, state=state, evidence=()))
            after = number
        old = {p.push_id for p in ours}

        def change(d: NodeDocument) -> NodeDocument:
            kept = tuple(p for p in d.pushes if p.push_id not in old)
            return replace(d, pushes=(*kept, *renewed), push_number=number)

        node.update(change, claim.cookie)
        tidy.drop_unfinished(node, node.read())
    return (
        f"{document.full_name} takes its own bytes; 'rbdtree push {document.full_name}' publishes them over the others'"
    )


def _as_branch(node: Node, document: NodeDocument, push: Push, number: int) -> Push:
    """Sectors are taken whole, over the others': the rest of them as the branch has it, with what its earlier pushes
    changed there, and not as its base had it."""
    packed = pushed.opened(node.pool, push)
    if not isinstance(packed, Parcel):
        return push
    sectors = extents.whole_sectors(packed.pushed, packed.size())
    around = sectors.subtract(packed.pushed)
    if not around:
        return push
    with closing(node.pool.open(branches.require(document).image_id)) as image:
        rest = parcel.of_source(image, around, around)
    known = [*parcel.of_source(packed, packed.pushed, packed.pushed).known, *rest.known]
    whole = Parcel(packed.size(), known, packed.pushed)
    name = parcel.stem(push.owner, number, uuid.uuid4().hex[:8])
    return replace(push, staging=parcel.store(node.pool, name, node.node_id, whole))


def take_theirs(sites: Sites, node: Node, expiry_seconds: float) -> str:
    """Gives the branch up, with everything on it that is not published."""
    refused(node.read())
    said = branches.discard(sites, node, expiry_seconds)
    return f"the others' bytes stand; {said}"


def park(sites: Sites, node: Node, spec: ImageSpec) -> str:
    """The branch becomes an ordinary image of another name; the node is free for a new branch."""
    with recall.claimed(node, "resolve") as claim:
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
        taken = pool.image_id(spec.image)
        if taken not in (None, branch.image_id):
            raise errors.Exists(f"image {spec} exists", "Choose another name.")
        if taken is None:
            pool.rename(branch.image, spec.image)
        said = recall.recall(sites, document)
        # The document last: whoever dies here finds all of it again.
        trash.remove_snapshots(pool, branch.image_id, document.tree_id)
        branches.unfollow(node, branch.image_id)
        marks.unmark_image(pool, branch.image_id)

        def change(d: NodeDocument) -> NodeDocument:
            given = branches.give_up(d)
            return replace(given, discarding=tuple(i for i in given.discarding if i[0] != branch.image_id))

        branches.release_hold(sites, document)
        branches.clear(sites, node, node.update(change, claim.cookie), claim)
        branches.pin(sites, node)
    kind = "its clone" if document.kind is Kind.CLONE else "the branch"
    text = f"{kind} of {document.full_name} is {spec} now, an ordinary image with all its writes"
    return f"{text}; {said}" if said else text
