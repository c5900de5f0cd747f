"""Taking back pushes that are on their way: who discards a branch does not want to see it published."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import cut, tidy
from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.model.document import Evidence, Kind, NodeDocument, PushState
from rbdtree.ports import Sites

_OPEN = (PushState.STAGED, PushState.SENT)


def recall(sites: Sites, document: NodeDocument) -> str:
    """Refuses this node's pushes wherever they wait above, as far as this host reaches; its claim must be held.

    What was published already, or may still be because it is out of reach, in words."""
    owner = document.ref.node_id
    away = {p.push_id for p in document.pushes if p.owner == owner and p.state in _OPEN}
    sent = any(p.owner == owner and p.state is PushState.SENT for p in document.pushes)
    published = 0
    while away and (parent := document.parent) is not None:
        try:
            above = Node.at(sites, parent)
            with claimed(above) as claim:
                known = {p.push_id: p.state for p in above.read().pushes if p.push_id in away}
                document = above.update(lambda d: _refused(d, owner), claim.cookie)
                tidy.tidy(above, claim)
        except (errors.Unreachable, errors.NotFound, errors.Denied):
            return f"what was sent to {parent.name} may still be published" if sent else ""
        published += sum(state is PushState.PUBLISHED for state in known.values())
        away -= {push_id for push_id, state in known.items() if state is not PushState.SENT}
    return f"{published} of its pushes had been published already" if published else ""


@contextmanager
def claimed(node: Node, purpose: str = "discard") -> Iterator[Claim]:
    """At the root what is being published is published first: half of it would stay behind."""
    if node.read().kind is Kind.ROOT:
        with cut.opened(node, purpose) as root:
            yield root.claim
    else:
        with Claim(node, purpose, wait=True) as claim:
            yield claim


def _refused(document: NodeDocument, owner: str) -> NodeDocument:
    for push in document.pushes:
        if push.owner == owner and push.state is PushState.STAGED:
            evidence = Evidence("discarded", push.owner_name, None, 0, ())
            document = document.with_push(replace(push, state=PushState.CONFLICT, evidence=(evidence,)))
    return document
