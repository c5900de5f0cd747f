"""Repair: a mirror that was found unlike its parent is compared whole by its next copy, which writes what differs.

What is sealed stays as it is: RBD's snapshots cannot be written to, so it is a new generation that is right.
"""

import time

from rbdtree.engine.claim import Claim
from rbdtree.engine.node import Node
from rbdtree.engine.verify import Verdict
from rbdtree.model.document import Kind, NodeDocument


def possible(document: NodeDocument) -> bool:
    """A clone has no copy of its own."""
    return document.kind is Kind.MIRROR


def distrust(node: Node, verdict: Verdict) -> None:
    """Its parent is taken for right, whatever it was compared with. Waits for whoever is at work on the node."""
    number = len(verdict.differences)
    seen = f"{number} object{'s' if number > 1 else ''} unlike {verdict.against} at {verdict.position}"
    with Claim(node, "repair", wait=True) as claim:
        node.update(lambda d: d.with_distrust(seen, round(time.time(), 3)), claim.cookie)
