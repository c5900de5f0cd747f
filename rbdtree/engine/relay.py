"""Cut-through: a delta passes on to the grandchild while it arrives in the child.

    parent  |=======>------|      done_bytes: everything before it is the target's, whatever is written behind it
    child   |====>---------|      takes what is before it, round by round, from the parent's head

A parent that sealed the delta goes on to the next one and overwrites its head. So of each round the extents count only
if the parent was still receiving the same delta after they were asked for, and the bytes only if it still was after
they were read. What was written before such a doubt lies in the delta's own extents, and is copied again from the
snapshot.
"""

import time
from collections.abc import Callable

from rbdtree import errors
from rbdtree.engine import delta
from rbdtree.engine.copy import Copied, Copy, Tally, Target
from rbdtree.engine.node import Node
from rbdtree.engine.pace import Pace
from rbdtree.model.document import Intent, Kind, NodeDocument
from rbdtree.model.extent import Extents
from rbdtree.model.portion import Portion, clip
from rbdtree.plan.edge import Pending
from rbdtree.ports import Image, Reporter

STALL_SECONDS = 5.0
"""Without progress upstream for this long, others get their turn; the parent's next step wakes the edge again."""
_GLANCE_SECONDS = 0.2


def arriving(above: NodeDocument) -> Pending | None:
    """The delta that this (upstream) node is receiving; none while it rolls back or looks for what it distrusts.

    A root receives nothing: what it intends is a cut or a push of its own."""
    intent = above.intent
    if (
        intent is None
        or above.kind is not Kind.MIRROR
        or above.distrust
        or intent.since == intent.target
        or intent.since != above.newest_position
    ):
        return None
    return Pending(intent.since, intent.target)


def counts(intent: Intent, above: NodeDocument) -> bool:
    """Whether what a child took before the seal is what was sealed: the copy it was taken from was not begun anew."""
    return not intent.relayed or (above.newest_position == intent.target and above.begun == intent.relayed)


class Relay:
    """One run, until the parent has sealed the delta, gave it up, or does not get on."""

    def __init__(
        self,
        upstream: Node,
        opened: Callable[[], Image],
        head: Image,
        since: str | None,
        check: Callable[[], None],
        portion: Portion,
        tally: Tally,
    ) -> None:
        self._upstream = upstream
        self._opened = opened
        self._source: Image | None = None
        self._head = head
        self._since = since
        self._check = check
        self._portion = portion
        self._tally = tally

    def run(
        self,
        intent: Intent,
        record: Callable[[int, float, int], Intent],
        reporter: Reporter,
        name: str,
        pace: Pace | None,
    ) -> str:
        """Why it ended before the seal, in words; empty when the parent is done, one way or the other."""
        try:
            return self._run(intent, record, reporter, name, pace)
        finally:
            if self._source:
                self._source.close()

    def _run(
        self,
        intent: Intent,
        record: Callable[[int, float, int], Intent],
        reporter: Reporter,
        name: str,
        pace: Pace | None,
    ) -> str:
        moved = time.monotonic()
        while True:
            self._check()
            coming = self._coming(intent)
            if coming is None:
                return ""
            if coming.started != intent.relayed or coming.done_bytes < intent.done_bytes:
                # Another attempt: nothing of the one before counts.
                intent = record(0, coming.started, coming.size_bytes)
            if coming.done_bytes <= intent.done_bytes:
                if time.monotonic() - moved > STALL_SECONDS:
                    return f"{self._upstream.name} is still receiving {intent.target}"
                time.sleep(_GLANCE_SECONDS)
                continue
            if not self._round(intent, coming, reporter, name, pace):
                return ""
            intent = record(coming.done_bytes, coming.started, coming.size_bytes)
            moved = time.monotonic()

    def _coming(self, intent: Intent) -> Intent | None:
        """The parent's intent while it is receiving the same delta."""
        above = self._upstream.read()
        found = arriving(above)
        return above.intent if found == Pending(intent.since, intent.target) else None

    def _still(self, intent: Intent, coming: Intent) -> bool:
        now = self._coming(intent)
        return now is not None and now.started == coming.started and now.done_bytes >= coming.done_bytes

    def _round(self, intent: Intent, coming: Intent, reporter: Reporter, name: str, pace: Pace | None) -> bool:
        """What came since the last one; False when it may be of the next delta already."""
        source = self._sized(coming.size_bytes)
        if source is None:
            return False
        if self._head.size() != coming.size_bytes:
            self._head.resize(coming.size_bytes)
        low, high = intent.done_bytes, min(coming.done_bytes, coming.size_bytes)
        wanted = self._extents(source, low, high) if low < high else []
        wanted = list(clip(self._portion, Extents.of(wanted))) if self._portion else wanted
        if not self._still(intent, coming):
            return False
        target = Target(name, self._head, delta.coarse(self._head, None, None))

        def progress(copied: Copied) -> None:
            reporter.copying(name, low + copied.passed_bytes, None)

        try:
            copied = Copy(source, [target], [wanted], check=self._check, progress=progress, pace=pace).run()
            if target.failed:
                raise target.failed
        except BaseException:
            self._tally.count_failed(target)
            raise
        self._tally.count(copied, target)
        return self._still(intent, coming)

    def _sized(self, size: int) -> Image | None:
        """The parent's head, which had its size before the first byte came; a handle that only reads is not told."""
        if self._source is None or self._source.size() != size:
            if self._source:
                self._source.close()
            self._source = self._opened()
        return self._source if self._source.size() == size else None

    def _extents(self, source: Image, low: int, high: int) -> list[tuple[int, int]]:
        if self._since is None:
            return list(delta.coarse(source, None, None).clip(low, high))
        within = Extents.of([(low, high - low)])
        try:
            if source.fast_diff():
                within = within.intersect(delta.coarse(source, self._since, None))
            found = [pair for batch in delta.exact(source, self._since, within) for pair in batch]
        except errors.NotFound as error:
            raise errors.Changed(f"the generation before left {self._upstream.name}") from error
        return list(Extents.of(found).clip(low, high))
