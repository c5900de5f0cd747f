"""Marks of an uplink: snapshots of the branch, which its journal comes to as well.

When it has, all that the branch held is in pushes; what was in doubt is compared with the mark, and put right.
"""

import time
from dataclasses import replace
from functools import partial

from rbdtree.engine import pieces, tidy
from rbdtree.engine.batch import Batch
from rbdtree.engine.doubt import Doubt
from rbdtree.engine.session import Session, positions
from rbdtree.engine.stage import stage
from rbdtree.engine.way import Way
from rbdtree.model.document import Branch, NodeDocument
from rbdtree.model.extent import Extents
from rbdtree.model.position import push_snapshot_name, push_snapshot_prefix
from rbdtree.model.record import OpFinish, SnapCreate
from rbdtree.ports import Journal

_END_SECONDS = 5.0
"""How long to wait for the end of a mark's making to be journaled."""
_IDLE_SECONDS = 3.0
_SECONDS = 60.0
"""Between two marks while there is no rest: what a snapshot push would have to send again."""
_DOUBT_SECONDS = 5.0


def number_of(name: str) -> int:
    """Of a mark, or of a push's snapshot."""
    return int(name.rpartition(".")[2])


class Milestones:
    """``asked``: number of the newest mark that this run made, -1 without one; ``image_id``: of the branch it is of.
    ``due``: whether something was published since the last."""

    def __init__(self, session: Session, way: Way) -> None:
        self.asked = -1
        self.image_id = ""
        self.due = False
        self.doubt = Doubt()
        self._session = session
        self._way = way
        self._marked_at = time.monotonic()
        self._creating: tuple[SnapCreate, Batch, float] | None = None

    def begin(self, document: NodeDocument, branch: Branch) -> None:
        """The journal is opened anew."""
        self._creating = None
        self.due = number_of(branch.since) < document.push_number or bool(branch.doubt)

    def make(self) -> None:
        """A snapshot of the branch, unless nothing happened since this run's last."""
        session = self._session
        with session.claim() as claim:
            document = session.node.read()
            branch = session.branch(document)
            if self.asked == document.push_number or branch.skip_to:
                return
            tidy.drop_unfinished(session.node, document)
            number = document.push_number + 1
            session.node.update(lambda d: replace(d, push_number=number), claim.cookie)
            image = session.node.pool.open(branch.image_id, read_only=False)
            try:
                image.create_snapshot(push_snapshot_name(document.tree_id, number))
            finally:
                image.close()
        self.asked, self.image_id = number, branch.image_id
        self._marked_at = time.monotonic()

    def wanted(self, idle: float) -> bool:
        """Whether it is time for one; ``idle``: seconds since something came."""
        since = time.monotonic() - self._marked_at
        much = self.doubt.bytes() > pieces.IN_FLIGHT and since > _DOUBT_SECONDS
        return self.due and (idle > _IDLE_SECONDS or since > _SECONDS or much)

    def creating(self, event: SnapCreate, batch: Batch) -> None:
        """The journal comes to the making of one; whether it succeeded, it tells later."""
        self._creating = event, batch, time.monotonic()

    def created(self, event: OpFinish, branch: Branch) -> str | None:
        """Whether this ends the making of a mark: its name, or nothing where it failed or is old; None: of something
        else."""
        if self._creating is None or event.op_tid != self._creating[0].op_tid:
            return None
        name, self._creating = self._creating[0].name, None
        return name if event.result == 0 and number_of(name) > number_of(branch.since) else ""

    def reached(self, journal: Journal, branch: Branch, batch: Batch, name: str) -> None:
        """The journal is read up to a mark: what was in doubt is compared with it, and put right."""
        session = self._session
        wrong = self._wrong(branch, name)
        moved = partial(replace, since=name, taken=positions(batch), doubt=())
        if wrong:
            stage(session, pieces.read(session.node.pool, branch.image_id, name, wrong), moved)
        else:
            session.move(moved)
        self.doubt.clear()
        document = session.node.read()
        self.due = number_of(name) < document.push_number and not wrong
        self._way.carry()
        self._way.settle(journal)
        self._clean(document, name)

    def overdue(self, journal: Journal) -> None:
        """A mark that is there, whose end nobody journaled: its creator let go of the image first."""
        if self._creating is None or time.monotonic() - self._creating[2] <= _END_SECONDS:
            return
        session = self._session
        (event, batch, _), self._creating = self._creating, None
        branch = session.mine(session.node.read())
        image = session.node.pool.open(branch.image_id)
        try:
            there = any(s.name == event.name for s in image.snapshots())
        finally:
            image.close()
        if there and number_of(event.name) > number_of(branch.since):
            self.reached(journal, branch, batch, event.name)

    def _wrong(self, branch: Branch, name: str) -> Extents:
        """Bytes in doubt that the branch has otherwise than they were published."""
        doubt = Extents.of(branch.doubt)
        if not doubt:
            return doubt
        image = self._session.node.pool.open(branch.image_id, name)
        try:
            return self.doubt.wrong(image, doubt)
        finally:
            image.close()

    def _clean(self, document: NodeDocument, name: str) -> None:
        """Older marks go; not the first snapshot, and none that a push is made of."""
        image_id = self._session.image_id
        needed = {s for p in document.pushes if p.image_id == image_id for s in (p.since, p.snapshot)}
        image = self._session.node.pool.open(image_id, read_only=False)
        try:
            for snapshot in image.snapshots():
                ours = snapshot.name.startswith(push_snapshot_prefix(document.tree_id)) and snapshot.name not in needed
                if ours and 0 < number_of(snapshot.name) < number_of(name):
                    image.remove_snapshot(snapshot.name)
        finally:
            image.close()

    def passed(self) -> bool:
        """Whether everything before the newest mark of this run is in pushes, whoever made them."""
        return 0 <= self.asked <= number_of(self._session.branch(self._session.node.read()).since)
