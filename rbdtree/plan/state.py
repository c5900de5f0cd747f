"""The state of a replica, from its document and what its tree has."""

from rbdtree.model.document import Kind, NodeDocument, State, Summary
from rbdtree.model.position import Position


def replica_state(document: NodeDocument, newest: Position | None) -> State:
    """``newest`` is the newest generation of the tree, as far as known."""
    if document.kind is Kind.ROOT:
        return State.UP_TO_DATE
    if document.distrust:
        return State.DIVERGED
    if document.intent and not document.generations:
        return State.SEEDING
    if document.intent and document.kind is Kind.MIRROR:
        return State.INCONSISTENT
    if not document.generations:
        return State.ABSENT
    if newest and document.position < newest:
        return State.OUTDATED
    return State.UP_TO_DATE


def summary_of(document: NodeDocument, newest: Position | None) -> Summary:
    """What a parent should know of this child."""
    found = document.newest
    return Summary(
        state=replica_state(document, newest),
        position=found.position if found else None,
        size_bytes=found.size_bytes if found else 0,
        children=document.children,
        trouble=document.trouble.message if document.trouble else "",
        portion=document.portion,
    )
