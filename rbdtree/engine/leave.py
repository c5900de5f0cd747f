"""Leaving a tree. A command that died goes on when it is run again: the document's phase says so."""

from contextlib import suppress
from dataclasses import replace
from functools import partial

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import clone, ends, marks, registry, tidy, trash
from rbdtree.engine.claim import Claim
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.engine.hold import name_of
from rbdtree.engine.node import Node
from rbdtree.model.document import MAP, USER, Kind, NodeDocument, NodeRef
from rbdtree.model.name import format_duration
from rbdtree.model.portion import WHOLE, text
from rbdtree.model.position import parse_snapshot_name
from rbdtree.ports import Pool, Sites

REMOVING = "removing"
DETACHING = "detaching"


def leave(sites: Sites, tree: Tree, member: Member, *, keep: bool, expiry_seconds: float, dry_run: bool = False) -> str:
    """Takes a node out of its tree; returns in a sentence what became of its image.

    ``keep``: the image stays as an ordinary one; otherwise it goes to the RBD trash for ``expiry_seconds``.
    """
    node, document = document_of(member)
    if document.kind is Kind.ROOT and not keep:
        raise errors.UsageError(
            f"{document.full_name} is the root: its image is not ours to throw away",
            f"End the tree with 'rbdtree detach {document.full_name}'; the image stays.",
        )
    children = sorted({c.ref.name for c in document.children} | {c.ref.name for c in tree.children(node.node_id)})
    if children:
        raise errors.NotEmpty(
            f"{document.full_name} still has children: {', '.join(children)}", "Remove or detach them first."
        )
    theirs = [hold for hold in document.holds if hold.owner.startswith(USER)]
    if theirs:
        names = ", ".join(f"{hold.owner.removeprefix(USER)} ({hold.position})" for hold in theirs)
        raise errors.NotEmpty(
            f"{document.full_name} has generations that somebody holds: {names}",
            f"See 'rbdtree hold ls {document.full_name}'; 'rbdtree hold rm' ends a hold.",
        )
    _check_unmapped(document)
    if dry_run:
        _check_published(node, document, keep=keep)
        fate = "stay as an ordinary image" if keep else f"go to the trash for {format_duration(expiry_seconds)}"
        return f"{document.full_name} would leave; {document.ref.image_spec} would {fate}"
    with Claim(node, "detach" if keep else "remove") as claim:
        document = node.read()
        if keep and not document.phase and document.intent and document.kind is Kind.MIRROR:
            raise errors.Busy(
                f"{document.full_name} is in the middle of generation {document.intent.target}",
                f"Finish with 'rbdtree sync {document.full_name}' or go back with 'rbdtree rollback "
                f"{document.full_name}' first.",
            )
        document = node.update(partial(_parting, keep=keep), claim.cookie)
        document = _without_branch(sites, node, document, claim, expiry_seconds)
        said = _part_from_image(node, document, keep=document.phase != REMOVING, expiry_seconds=expiry_seconds)
        if document.parent is not None:
            forget_upstream(sites, document.parent, document.replica, document.edge, node.node_id)
        registry.unregister(node)
    registry.sweep_everywhere(sites, document)
    return said


def _parting(document: NodeDocument, *, keep: bool) -> NodeDocument:
    """From here on no host can map a generation any more; ``Busy`` when one did until then."""
    if document.phase:
        return document
    _check_unmapped(document)
    return replace(document, phase=DETACHING if keep else REMOVING)


def _check_unmapped(document: NodeDocument) -> None:
    """``Busy`` while a host has a generation mapped, whose snapshot would go."""
    mapped = [hold for hold in document.holds if hold.owner.startswith(MAP)]
    if mapped:
        which = ", ".join(f"{hold.position} ({hold.reason})" for hold in mapped)
        raise errors.Busy(
            f"{document.full_name} has generations that hosts use: {which}",
            f"Run 'rbdtree unmap {document.full_name} --at {mapped[0].position}' there; for a host that is no more "
            f"'rbdtree hold rm {document.full_name} {name_of(mapped[0])} --force'.",
        )


def _without_branch(
    sites: Sites, node: Node, document: NodeDocument, claim: Claim, expiry_seconds: float
) -> NodeDocument:
    """Refuses while there are writes that nobody else has; else the branch and whatever was staged here goes.

    A clone that stays as an ordinary image keeps its writes."""
    clone = document.kind is Kind.CLONE
    if document.branch and document.branch.image_id and not (clone and ends.find_gone(node, document)):
        try:
            _check_published(node, document, keep=document.phase == DETACHING)
        except errors.NotEmpty:
            node.update(lambda d: replace(d, phase=""), claim.cookie)
            raise
        if clone:
            trash.remove_snapshots(node.pool, document.image_id, document.tree_id)
        else:
            given_up = node.update(branches.give_up, claim.cookie)
            document = branches.clear(sites, node, given_up, claim, expiry_seconds)
    for push in document.pushes:
        if push.staged_apart:
            tidy.drop(node, push)
    tidy.drop_unfinished(node, document)
    return document


def _check_published(node: Node, document: NodeDocument, *, keep: bool) -> None:
    """``NotEmpty`` when the branch holds writes that would be lost."""
    branch, clone = document.branch, document.kind is Kind.CLONE
    if branch is None or not branch.image_id or (clone and (keep or ends.find_gone(node, document))):
        return
    report = branches.look(node, document)
    if not report.clean:
        raise errors.NotEmpty(
            f"{document.full_name} has writes on its branch {report.image} that were not published",
            f"Run 'rbdtree push {document.full_name}', or 'rbdtree discard {document.full_name}'.",
        )


def forget_upstream(sites: Sites, parent: NodeRef, replica: NodeRef, edge: str, node_id: str = "") -> None:
    """Every mark of an edge off its parent and off the replica above."""

    def change(document: NodeDocument) -> NodeDocument:
        children = tuple(c for c in document.children if c.edge != edge)
        left = document.without_holds(edge).without_resync(edge)
        return replace(left.without_holds(f"branch:{node_id}") if node_id else left, children=children)

    with suppress(errors.NotFound):
        above = Node.at(sites, parent)
        document = above.update(change)
        for ref in {document.replica, replica}:
            if ref.node_id != parent.node_id:
                with suppress(errors.NotFound):
                    Node.at(sites, ref).update(change)


def _part_from_image(node: Node, document: NodeDocument, *, keep: bool, expiry_seconds: float) -> str:
    pool, spec = node.pool, document.ref.image_spec
    if document.kind is Kind.CLONE:
        document = _end_swap(pool, document)
    image_id = document.image_id
    if not image_id:
        return f"{document.full_name} had no image yet"
    gone = ends.find_gone(node, document)
    if gone:
        if any(entry.image_id == image_id for entry in pool.trashed()):
            marks.unmark_image(pool, image_id)
            return f"the image {spec} was in the trash already"
        pool.remove_entry(marks.image_entry(image_id))
        return f"the image {spec} (id {image_id}) was gone; whatever has its name now was left alone"
    # A half-written head is of no use without the generation below it.
    torn = document.intent is not None and document.kind is Kind.MIRROR and not keep
    others = [] if torn else _remove_snapshots(pool, document)
    marks.unmark_image(pool, image_id)
    if keep:
        holds = document.newest.portion if document.newest and document.kind is Kind.MIRROR else WHOLE
        partly = f"; it holds {text(holds)} of the volume and zeroes elsewhere" if holds else ""
        return f"{spec} is an ordinary image now{partly}"
    pool.trash(image_id, document.ref.image, expiry_seconds)
    said = (
        f"{spec} is in the trash for {format_duration(expiry_seconds)} ('rbd trash restore "
        f"{trash.spec(pool, image_id)}' brings it back)"
    )
    return f"{said}; RBD keeps it there for as long as it has the snapshots {', '.join(others)}" if others else said


def _end_swap(pool: Pool, document: NodeDocument) -> NodeDocument:
    """A clone node without the swap that its last sync died in: with the image that has its name by now."""
    clone.drop_beside(pool, document)
    made = document.intent.image_id if document.intent else ""
    if not made or pool.image_id(document.ref.image) != made:
        return document
    if document.image_id:
        marks.unmark_image(pool, document.image_id)
    return replace(document, image_id=made)


def _remove_snapshots(pool: Pool, document: NodeDocument) -> list[str]:
    """The generations' snapshots off the node's image; returns the names of those that are somebody else's."""
    if document.kind is Kind.CLONE:
        return []
    others = []
    image = pool.open(document.image_id, read_only=False)
    try:
        for snapshot in image.snapshots():
            named = parse_snapshot_name(snapshot.name)
            if named and named[0] == document.tree_id[:8]:
                image.remove_snapshot(snapshot.name)
            else:
                others.append(snapshot.name)
        return others
    finally:
        image.close()
