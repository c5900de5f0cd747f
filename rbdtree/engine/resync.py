"""Resync: a node whose parent let go of its base is brought to the newest generation by comparing everything.

Only what differs is written, and only what somebody ordered: without a generation in common no delta can tell what
should be at the node.
"""

import threading
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import copy as copying
from rbdtree.engine.claim import Claim
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import EdgeRun, Outcome, plan_of, summarise
from rbdtree.engine.mirror import MirrorEdge
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind
from rbdtree.plan.conflict import NeedsResync, NoCommonGeneration
from rbdtree.plan.step import Recover
from rbdtree.ports import Reporter, Silent, Sites

_WHY = "a resync was ordered"


def resync(
    sites: Sites, node: Node, reporter: Reporter, stop: threading.Event, *, dry_run: bool = False
) -> Outcome | None:
    """None when the node needs none. Killed, it goes on with the next resync or sync."""
    document = node.read()
    if document.kind is not Kind.MIRROR:
        raise errors.UsageError(
            f"{document.full_name} is a {document.kind}: it holds no copy that could have lost its base",
            f"Run 'rbdtree sync {document.full_name if document.kind is Kind.CLONE else document.tree}'.",
        )
    if dry_run:
        return _planned(sites, node)
    with Claim(node, "resync", wait=True) as claim:
        edge = MirrorEdge(sites, node, claim, Silent())
        try:
            found = plan_of(edge.observe())
        finally:
            edge.close()
        if not isinstance(found, tuple | NeedsResync | NoCommonGeneration):
            raise found.error()
        document = node.read()
        if isinstance(found, tuple) and document.distrust != _WHY and Recover() not in found:
            return None
        if not isinstance(found, tuple):
            # From here on any sync does it: the copy compares everything.
            node.update(lambda d: d if d.distrust else replace(d, distrust=_WHY), claim.cookie)
    run = EdgeRun(sites, reporter, stop)
    outcome = run.run(node, Kind.MIRROR, Desk(1, reporter, stop, copying.Window(copying.WINDOW)))
    if outcome.error is None:
        summarise(sites, node.read())
    return outcome


def _planned(sites: Sites, node: Node) -> Outcome | None:
    edge = MirrorEdge(sites, node, None, Silent())
    try:
        state = edge.observe()
    finally:
        edge.close()
    found = plan_of(state)
    if isinstance(found, tuple) and Recover() not in found:
        return None
    if isinstance(found, NeedsResync | NoCommonGeneration):
        found = plan_of(replace(state, distrusted=True))
    if not isinstance(found, tuple):
        raise found.error()
    return Outcome(edge.name, steps=[str(step) for step in found])
