"""The loss window of a journal uplink: what would be lost with the branch now, told again and again."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import marks
from rbdtree.engine.lag import Lag, lag
from rbdtree.engine.node import Node
from rbdtree.engine.tail import JournalGap
from rbdtree.engine.way import Way
from rbdtree.model.document import PushState
from rbdtree.model.position import Position

_SHOW_SECONDS = 1.0
_PATIENCE = 2.0


@dataclass(frozen=True, slots=True)
class Window:
    """What would be lost with the branch now: records that are not upstream, their bytes, the oldest's age in seconds.

    ``published`` is the newest generation made of this branch; ``shut`` says why nothing goes up.
    """

    records: int
    bytes: int
    seconds: float
    published: Position | None
    shut: str = ""


class Teller:
    """Tells ``show`` of the window. ``begun``: from when on there is something to tell; ``based``: number and bytes of
    a push that holds what the journal does not tell."""

    def __init__(self, node: Node, way: Way, show: Callable[[Window], None] | None) -> None:
        self.begun = False
        self.based: tuple[int, int] = (0, 0)
        self._node = node
        self._way = way
        self._show = show
        self._seen = Lag()
        """As it was known last."""

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Each second: also while the rest of the run waits for a cluster that does not answer."""
        if self._show is None:
            yield
            return
        over = threading.Event()

        def tell() -> None:
            while not over.wait(_SHOW_SECONDS):
                self._tell()

        teller = threading.Thread(target=tell, name="loss-window", daemon=True)
        teller.start()
        try:
            yield
        finally:
            over.set()
            teller.join(_PATIENCE)
            if not teller.is_alive():
                self._tell()

    def _tell(self) -> None:
        """What cannot be asked now is as it was last, and grows older."""
        if self._show is None or not self.begun:
            return
        now = time.time()
        records, size, since = self._seen.records, self._seen.bytes, self._seen.since
        # A node of its own: they are not made for two threads.
        node = Node(self._node.pool, self._node.node_id, self._node.name)
        with suppress(errors.Error):
            document = node.read()
            journal = node.pool.journal(branches.require(document).image_id)
            try:
                self._seen = lag(journal, marks.journal_client(node.node_id))
            except JournalGap:
                # Something is lost to the journal, and in no push yet.
                self._seen = replace(self._seen, records=max(1, records), since=since or now, exact=False)
            finally:
                journal.close()
            records, size, since = self._seen.records, self._seen.bytes, self._seen.since
            for push in branches.own_pushes(document):
                if push.state in (PushState.TAKING, PushState.STAGED) and not push.staging:
                    # Taken by a snapshot: no record of the journal tells of it.
                    records += 1
                    size += self.based[1] if self.based[0] == push.number else 0
                    since = min(since or push.created, push.created)
        newest = self._way.published[-1] if self._way.published else None
        self._show(Window(records, size, max(0.0, now - since) if since else 0.0, newest, self._way.shut))
