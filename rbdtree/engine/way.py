"""An uplink's way up: what is staged at the node is carried until the parent has it, however long it is shut."""

import time
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import push as pushes
from rbdtree.engine import tidy
from rbdtree.engine.pace import Paces
from rbdtree.engine.session import SHUT_SECONDS, Session
from rbdtree.model.document import NodeDocument, PushState
from rbdtree.model.journal_client import Commit
from rbdtree.model.position import Position
from rbdtree.ports import Journal

_AHEAD = 16
"""Pushes that may wait above for the rest of the way."""
_KEPT = 8
"""Published pushes whose bytes stay beside the branch, for the node's own sync to take them from."""


class Way:
    """``published`` are the generations that this run made; ``shut`` says why nothing goes up."""

    def __init__(self, session: Session, *, shared: bool, paces: Paces | None = None) -> None:
        self.published: list[Position] = []
        self.shut = ""
        self._session = session
        self._shared = shared
        self._paces = paces
        self._above = True
        """Whether some push may be neither published nor refused."""
        self._carried_at = 0.0

    def _check(self) -> None:
        """While it waits for its turn on a slow edge."""
        if self._session.stop.is_set():
            raise errors.Interrupted(
                "stopped while the edge has no bandwidth left", "What is staged goes up with the next run."
            )

    def carry(self) -> NodeDocument:
        """Until the parent has what is staged here; raises a conflict."""
        node, reporter = self._session.node, self._session.reporter
        said = ""
        while True:
            try:
                outcome = pushes.carry(
                    self._session.sites,
                    node,
                    reporter,
                    shared=self._shared,
                    paces=self._paces,
                    check=self._check,
                )
            except (errors.Unreachable, errors.Busy, errors.NoSpace, errors.Changed) as error:
                if self._session.join:
                    raise
                outcome = pushes.PushOutcome(node.name, stopped=error)
            document = node.read()
            self.published += [position for position in outcome.published if position not in self.published]
            mine = branches.own_pushes(document)
            refused = [p for p in mine if p.state is PushState.CONFLICT]
            if refused:
                raise pushes.conflict(document, refused[0])
            self.shut = str(outcome.stopped) if outcome.stopped else ""
            self._above, self._carried_at = bool(mine), time.monotonic()
            if all(p.state is PushState.SENT for p in mine) and len(mine) <= _AHEAD:
                return document
            if self._session.join and outcome.stopped:
                raise outcome.stopped
            text = f"waits: {self.shut or 'the parent has not taken it'}"
            if text != said:
                reporter.note(node.name, text)
                said = text
            if self._session.stop.wait(SHUT_SECONDS):
                raise errors.Interrupted(
                    f"stopped while the way up was shut: {self.shut}", "What is staged goes up with the next run."
                )

    def again(self) -> None:
        """What waits above is tried again now and then."""
        if self._above and time.monotonic() - self._carried_at > SHUT_SECONDS:
            self.carry()

    def settle(self, journal: Journal) -> None:
        """Commits what the parent has; old staged images go."""
        node = self._session.node
        document = node.read()
        while any(p.state in (PushState.STAGED, PushState.CONFLICT) for p in branches.own_pushes(document)):
            document = self.carry()
        branch = self._session.mine(document)
        if branch.taken:
            journal.commit(self._session.client, [Commit(*position) for position in branch.taken])
        done = [p for p in document.pushes if p.owner == node.node_id and p.state is PushState.PUBLISHED]
        old = done[:-_KEPT]
        if len(old) >= _KEPT:
            with self._session.claim() as claim:
                for push in old:
                    if push.staged_apart:
                        tidy.drop(node, push)
                gone = {p.push_id for p in old if p.image_id != branch.image_id}
                node.update(
                    lambda d: replace(d, pushes=tuple(p for p in d.pushes if p.push_id not in gone)), claim.cookie
                )
