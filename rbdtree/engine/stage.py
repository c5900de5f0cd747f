"""Pushes of a branch with a journal: of what its records say, and, where they do not tell all, of a snapshot."""

import time
import uuid
from collections.abc import Callable
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import extents, parcel, pieces, pushed, tidy
from rbdtree.engine import push as pushes
from rbdtree.engine.claim import Claim
from rbdtree.engine.coalesce import Piece
from rbdtree.engine.node import Node
from rbdtree.engine.parcel import Parcel
from rbdtree.engine.session import Session
from rbdtree.model.document import Branch, NodeDocument, Push, PushState
from rbdtree.model.extent import Extents
from rbdtree.model.position import Position, push_snapshot_name, snapshot_name


def stage(session: Session, changed: list[Piece], change: Callable[[Branch], Branch]) -> None:
    """Stages the pieces, and in the same step ``change`` of the branch."""
    with session.claim() as claim:
        document = session.node.read()
        session.mine(document)
        push = _staged(session, document, changed)
        claim.check()

        def staged(d: NodeDocument) -> NodeDocument:
            moved = change(session.mine(d))
            return replace(d.with_push(push), push_number=push.number, branch=moved)

        session.taken = branches.require(session.node.update(staged, claim.cookie)).taken


def _push(document: NodeDocument, number: int) -> Push:
    branch = branches.require(document)
    return Push(
        owner=document.ref.node_id,
        owner_name=document.name,
        number=number,
        base=branch.base,
        state=PushState.STAGED,
        created=time.time(),
        snapshot=push_snapshot_name(document.tree_id, number),
        after=branches.top(document),
    )


def _staged(session: Session, document: NodeDocument, changed: list[Piece]) -> Push:
    """Packed beside the branch. Its number is used again if we die here."""
    push = _push(document, document.push_number + 1)
    wanted = Extents.of((piece.offset, piece.length) for piece in changed)
    around = extents.whole_sectors(wanted, session.size_bytes).subtract(wanted)
    known = [*changed, *(_as_base(session, document, push.base, around) if around else ())]
    packed = Parcel(session.size_bytes, known, wanted)
    name = parcel.stem(push.owner, push.number, uuid.uuid4().hex[:8])
    return replace(push, staging=parcel.store(session.node.pool, name, session.node.node_id, packed))


def _as_base(session: Session, document: NodeDocument, base: Position, where: Extents) -> list[Piece]:
    """What the generation holds there that the branch stands on."""
    node = Node.at(session.sites, document.replica)
    above = node.read()
    try:
        return pieces.read(node.pool, above.image_id, snapshot_name(document.tree_id, base), where)
    except errors.NotFound:
        # Removed by hand: the push will be refused for that.
        return pieces.read(node.pool, above.image_id, snapshot_name(document.tree_id, above.position), where)


def base(session: Session, claim: Claim) -> tuple[int, int]:
    """What the journal does not tell: a snapshot, and a push of what changed until then; its number and bytes. Later
    records count."""
    node, pool = session.node, session.node.pool
    document = node.read()
    tidy.drop_unfinished(node, document)
    branch, report = branches.require(document), branches.look(node, document)
    refused = next((p for p in report.pushes if p.state is PushState.CONFLICT), None)
    if refused:
        raise pushes.conflict(document, refused)
    number = document.push_number + 1
    push = replace(_push(document, number), image_id=branch.image_id, since=branch.since)
    # The number is used up first: a snapshot of a run that died here is of an earlier time.
    node.update(lambda d: replace(d, push_number=number), claim.cookie)
    image = pool.open(branch.image_id, read_only=False)
    try:
        image.create_snapshot(push.snapshot)
    finally:
        image.close()
    newer = pool.open(branch.image_id, push.snapshot)
    try:
        changed = pushed.changed(pool, push, newer)
    finally:
        newer.close()

    def based(d: NodeDocument) -> NodeDocument:
        moved = replace(branches.require(d), since=push.snapshot, skip_to=push.snapshot, taken=(), doubt=())
        return replace(d.with_push(push) if changed else d, branch=moved)

    node.update(based, claim.cookie)
    return number, changed.total
