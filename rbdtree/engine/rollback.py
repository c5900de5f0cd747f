"""Give up what somebody wrote into a replica, keeping it: a snapshot first, then back to the newest generation."""

import itertools
import threading
import time
from contextlib import closing, nullcontext, suppress
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import copy as copying
from rbdtree.engine import delta, ends, landing, marks, pushed, trash
from rbdtree.engine.claim import Claim
from rbdtree.engine.clone import CloneEdge
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import plan_of
from rbdtree.engine.mirror import MirrorEdge
from rbdtree.engine.node import Node
from rbdtree.model.document import Evidence, Intent, Kind, NodeDocument, Push, PushState
from rbdtree.model.name import format_duration
from rbdtree.model.position import START, snapshot_name
from rbdtree.plan.conflict import InUse, NeedsResync, NoCommonGeneration
from rbdtree.plan.step import Abandon, Intend, RollBack
from rbdtree.ports import Image, Reporter, Silent, Sites


def roll_back(sites: Sites, node: Node, reporter: Reporter, expiry_seconds: float, *, dry_run: bool = False) -> str:
    """Returns in a sentence what was kept and where."""
    document = node.read()
    if document.kind is Kind.ROOT and not (document.intent and document.intent.push):
        raise errors.UsageError(
            f"{document.full_name} is the root: what is written there is the volume",
            "Use 'rbd snap rollback' if that is what you want, then 'rbdtree cut'.",
        )
    with nullcontext() if dry_run else Claim(node, "rollback") as claim:
        if document.kind is Kind.ROOT:
            return _take_back(node, claim, reporter)
        if document.kind is Kind.CLONE:
            return _renew_clone(sites, node, claim, expiry_seconds)
        edge = MirrorEdge(sites, node, claim, reporter)
        try:
            state = edge.observe()
            if state.gone:
                raise state.gone.error()
            plan = plan_of(state)
            settled = state.pending is None and not edge.document.distrust
            if settled and isinstance(plan, tuple | NoCommonGeneration | NeedsResync):
                return f"{edge.name} has not diverged: there is nothing to roll back"
            target = max(state.downstream, default=START)
            if claim is None:
                return f"{edge.name} would return to {target}; what it holds now would be kept in a snapshot"
            image = node.pool.open(edge.document.image_id, read_only=False)
            try:
                kept = _keep(image, _kept_name())
            finally:
                image.close()
            desk = Desk(1, reporter, threading.Event(), copying.Window(copying.WINDOW))
            for step in (Intend(target, target), RollBack(target), Abandon()):
                request = edge.apply(step)
                if request:
                    desk.copy(request, claim.check, edge.record)
            return f"{edge.name} is back at {target}; what it held before is in its snapshot {kept}"
        finally:
            edge.close()


def _take_back(node: Node, claim: Claim | None, reporter: Reporter) -> str:
    """The root without a push that was being applied when its bytes got lost."""
    document = node.read()
    intent = document.intent
    push = document.push(intent.push) if intent else None
    image = node.pool.open(document.image_id, read_only=claim is None)
    try:
        if intent is None or intent.since is None or _publishable(node, document, intent, push, image):
            return (
                f"{document.full_name} has nothing to roll back: 'rbdtree cut' finishes what is being published there"
            )
        if claim is None:
            return f"{document.full_name} would return to {intent.since}; what it holds now would be kept in a snapshot"
        # Whoever died over the push may seem to have it open still.
        claim.free(image)
        users = image.watchers()
        if users:
            raise errors.Busy(
                f"the root's image {document.ref.image_spec} is open for writing at {', '.join(users)}",
                "Unmap it there.",
            )
        kept = _keep(image, _kept_name())
        since = snapshot_name(document.tree_id, intent.since)
        with closing(node.pool.open(document.image_id, since)) as base:
            changed = delta.collect(image, since, None).clip(0, base.size())
            landing.apply(node, base, image, reporter, lambda _: claim.check(), changed)
    finally:
        image.close()

    def given(d: NodeDocument) -> NodeDocument:
        lost = (Evidence("lost", push.owner_name, None, 0, ()),) if push else ()
        return replace(d.with_push(replace(push, state=PushState.CONFLICT, evidence=lost)) if push else d, intent=None)

    node.update(given, claim.cookie)
    return f"{document.full_name} is back at {intent.since}; what it held before is in its snapshot {kept}"


def _publishable(node: Node, document: NodeDocument, intent: Intent, push: Push | None, image: Image) -> bool:
    if ends.whole(node.pool, image, snapshot_name(document.tree_id, intent.target)):
        return True
    if push is None:
        return False
    with suppress(errors.NotFound), closing(pushed.opened(node.pool, push)) as source:
        pushed.changed(node.pool, push, source)
        return True
    return False


def _kept_name() -> str:
    return f"rbdtree-diverged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"


def _keep(image: Image, name: str) -> str:
    """A snapshot of this name, or of the next one that is free: two rollbacks may fall into one second."""
    for number in itertools.count(1):
        tried = name if number == 1 else f"{name}-{number}"
        with suppress(errors.Exists):
            image.create_snapshot(tried)
            return tried
    raise errors.Bug("numbers ended")


def _renew_clone(sites: Sites, node: Node, claim: Claim | None, expiry_seconds: float) -> str:
    """The changed clone goes to the trash; the next sync makes a new one."""
    document = node.read()
    plan = plan_of(CloneEdge(sites, node, None, Silent()).observe())
    if isinstance(plan, InUse):
        raise plan.error()
    if isinstance(plan, tuple) and document.generations and not document.intent:
        return f"{document.full_name} has not diverged: there is nothing to roll back"
    if not document.image_id or node.pool.image_id(document.ref.image) != document.image_id:
        return f"{document.full_name} has no image to roll back; 'rbdtree sync' makes one"
    if claim is None:
        return f"{document.ref.image_spec} would go to the trash; the next sync would make a new clone"
    marks.unmark_image(node.pool, document.image_id)
    node.pool.trash(document.image_id, document.ref.image, expiry_seconds)
    node.update(lambda d: replace(d, image_id="", generations=(), intent=None), claim.cookie)
    return (
        f"{document.ref.image_spec} is in the trash for {format_duration(expiry_seconds)} ('rbd trash restore "
        f"{trash.spec(node.pool, document.image_id)}' brings it back); the next sync makes a new clone"
    )
