"""Whether a node's documents alone say that there is nothing to do. Pure, and cheap: most cycles end here.

What only images tell (a head that somebody wrote into, a snapshot removed by hand) is found by the whole look that a
manager takes now and then.
"""

from dataclasses import replace

from rbdtree.engine import ends, relay
from rbdtree.model.document import Kind, NodeDocument, Push, PushState
from rbdtree.plan.state import summary_of


def settled(document: NodeDocument, above: NodeDocument, parent: NodeDocument, *, relays: bool) -> bool:
    """Whether the edge to this node rests. ``above``: of the replica it is fed from; ``parent``: of its parent."""
    if document.intent or document.distrust or document.discarding or document.phase:
        return False
    if (document.branch and not document.branch.image_id) or above.resync(document.edge):
        return False
    if document.newest_position != above.newest_position:
        return False
    if relays and document.kind is Kind.MIRROR and not document.pushes and relay.arriving(above):
        return False
    if any(p.state is not PushState.CONFLICT for p in document.pushes):
        return False
    newest = document.newest_position
    held = ends.held_by(above, document.edge)
    if newest and newest not in held:
        return False
    needed = ends.needed_by(document)
    if held - needed - {newest} or any(above.generation(p) for p in needed - ends.pinned_by(above, document.edge)):
        return False
    return document.tree_policy == parent.tree_policy and told(document, parent)


def told(document: NodeDocument, parent: NodeDocument) -> bool:
    """Whether the parent's summary of this node says what is."""
    known = parent.child(document.edge)
    if known is None:
        # The cycle says so.
        return False
    newest = parent.position if parent.kind is not Kind.CLONE else None
    return known.summary is not None and replace(known.summary, told=0.0) == summary_of(document, newest)


def staged(document: NodeDocument) -> tuple[Push, ...]:
    """Pushes that wait here to be carried on, or published."""
    return tuple(p for p in document.pushes if p.state is PushState.STAGED)
