"""Reads a journal in order, as a registered client.

    entry    0     1     2     3     4     5  ...       of one tag: dealt out to the splay slots in turn
    slot     0     1     2     3     0     1
    object   0     1     2     3     0     1  ...       until the set is full; then 4, 5, 6, 7

A slot holds the chunk it hands out and one that it reads ahead, however long the journal is. The end of an object is
final only where the header said so *before* it was read: a set below the active one is closed, a tag below the newest
is over. The first entry that is missing from a tag that is over ends it, as in librbd's own replay; what lies behind
is dropped.

There is no wake-up: librbd notifies nobody of an append. ``wait`` polls, less often the longer nothing comes.
"""

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import NamedTuple

from rbdtree import errors
from rbdtree.model.journal import Entry, Raw, decode, next_entry, only_padding
from rbdtree.model.journal_client import Commit, Header
from rbdtree.ports import Journal

CHUNK = 1 << 20
"""Bytes of one read. A slot holds two of them, and what has come of an entry that is larger."""
_SLACK = 64 << 10
"""By how much an entry may exceed an object: one is closed before the entry that does not fit, unless it is empty."""
_SHORTEST_WAIT = 0.002
_LONGEST_WAIT = 0.25
_PATIENCE = 120.0


class JournalGap(errors.NotFound):
    """Push by snapshot: the journal no longer holds all that was written since our commit position."""

    def __init__(self, journal: Journal, seen: str) -> None:
        super().__init__(
            f"journal gap: needs a snapshot push ({seen}; image {journal.image_id})",
            "What was written since the last push is in the branch; push it by snapshot.",
        )


def check_gap(journal: Journal, client_id: str, header: Header) -> None:
    """Raises ``JournalGap`` where entries behind the client's commit position may be gone."""
    client = header.client
    if client is None:
        raise JournalGap(journal, f"journal client {client_id} is not registered")
    if client.disconnected:
        raise JournalGap(journal, f"journal client {client_id} lagged and was disconnected")
    first = min((position.object_number // journal.splay_width for position in client.positions), default=None)
    if first is not None and header.minimum_set > first:
        raise JournalGap(journal, f"the journal begins at set {header.minimum_set}, this client stands in set {first}")


class _Look(NamedTuple):
    """A look at the header; ``number`` rises with each."""

    number: int
    header: Header


class _Slot:
    """One splay slot: the object it has come to, and the bytes of it that were read and not handed out."""

    def __init__(self, journal: Journal, number: int, chunk: int) -> None:
        self.number = number
        self._journal = journal
        self._chunk = chunk
        self._reading: tuple[Future[bytes], _Look] | None = None
        self._begin(number)

    def _begin(self, number: int) -> None:
        self.number = number
        self.ended = -1
        """The newest look after which there was nothing more to read."""
        self._buffer = b""
        self._at = 0
        self._base = 0
        self._closed = False
        self._head: Raw | None = None

    def head(self) -> Raw | None:
        """The next entry, None when more must be read first."""
        if self._head is None:
            largest = self._journal.object_bytes + _SLACK
            self._head, self._at = next_entry(self._buffer, self._at, self._base, self.number, largest)
        return self._head

    def drop(self) -> None:
        """The head was handed out."""
        self._head = None

    def ahead(self, look: _Look) -> None:
        """Begins to read what comes next, unless that is known or under way."""
        if self._reading is not None or self._closed or self.ended == look.number:
            return
        read: Future[bytes] = Future()
        self._journal.submit_read(
            self.number,
            self._base + len(self._buffer),
            self._chunk,
            lambda result: read.set_result(result) if isinstance(result, bytes) else read.set_exception(result),
        )
        self._reading = (read, look)

    def fill(self, look: _Look) -> bool:
        """One step on: a chunk more, the end seen, or the next object begun. False: a closed object is not there."""
        if self._closed:
            self._next(look)
            return True
        self.ahead(look)
        if self._reading is None:
            raise errors.Bug(f"journal object {self.number} has nothing more to read")
        (read, since), self._reading = self._reading, None
        missing = False
        try:
            data = read.result(_PATIENCE)
        except errors.NotFound:
            data, missing = b"", True
        except TimeoutError as error:
            raise errors.Unreachable(f"journal object {self.number} was not read within {_PATIENCE:g} s") from error
        self._buffer = self._buffer[self._at :] + data
        self._base += self._at
        self._at = 0
        if len(data) == self._chunk:
            self.ahead(look)
            return True
        self._closed = self.number // self._journal.splay_width < since.header.active_set
        self.ended = since.number
        return not (missing and self._closed)

    def _next(self, look: _Look) -> None:
        if not only_padding(self._buffer, self._at):
            raise errors.Integrity(
                f"journal object {self.number} at offset {self._base + self._at}: closed in the middle of an entry"
            )
        width = self._journal.splay_width
        self._begin(max(self.number + width, look.header.minimum_set * width + self.number % width))

    @property
    def at_end(self) -> int:
        """Number of the look at which the end was seen, -1 while there may be more."""
        return -1 if self._closed else self.ended


class Tail:
    """Entries of a journal from the commit position of ``client_id`` on. One thread uses it."""

    def __init__(self, journal: Journal, client_id: str, *, chunk: int = CHUNK) -> None:
        self._journal = journal
        self._client_id = client_id
        self._looks = 0
        self._idle = 0
        look = self._look()
        width = journal.splay_width
        self.committed = look.header.client.positions if look.header.client else ()
        """As of the beginning: newest first."""
        self._tag_tid, self._entry_tid = 0, 0
        if self.committed:
            self._tag_tid, self._entry_tid = self.committed[0].tag_tid, self.committed[0].entry_tid + 1
        begin = {slot: look.header.minimum_set * width + slot for slot in range(width)}
        for position in self.committed:
            slot = position.object_number % width
            begin[slot] = max(begin[slot], position.object_number)
        self._slots = [_Slot(journal, begin[slot], chunk) for slot in range(width)]

    def _look(self) -> _Look:
        self._looks += 1
        try:
            header = self._journal.header(self._client_id)
        except errors.NotFound as error:
            raise JournalGap(self._journal, "the image has no journal any more") from error
        check_gap(self._journal, self._client_id, header)
        return _Look(self._looks, header)

    @property
    def following(self) -> tuple[int, int]:
        """(tag, entry) of the entry to come."""
        return self._tag_tid, self._entry_tid

    def poll(self) -> Iterator[Entry]:
        """What there is now, in order; raises what comes after it when it is its turn.

        Ends at the newest entry, or earlier where another set was begun meanwhile: poll until nothing comes.
        """
        look = self._look()
        width = len(self._slots)
        for slot in self._slots:
            slot.ahead(look)
        while True:
            slot = self._slots[self._entry_tid % width]
            raw = slot.head()
            if raw is not None:
                order = raw.place[:2]
                if order <= (self._tag_tid, self._entry_tid):
                    # An entry that cannot be decoded stays where it is, and stops every poll.
                    entry = decode(raw) if order == (self._tag_tid, self._entry_tid) else None
                    slot.drop()
                    if entry is not None:
                        self._entry_tid += 1
                        self._idle = 0
                        yield entry
                    continue
            elif slot.at_end != look.number:
                if not slot.fill(look):
                    # A closed object nobody wrote to, or one that was trimmed: the header knows.
                    self._look()
                continue
            # It is not there: what comes lies behind it, or this is the end of all that was written before the look.
            if look.header.next_tag_tid - 1 <= self._tag_tid:
                return
            self._tag_tid, self._entry_tid = self._tag_tid + 1, 0

    def wait(self, stop: threading.Event) -> bool:
        """Until it is time to poll again, 2 to 250 ms; True when ``stop`` is set."""
        seconds = min(_LONGEST_WAIT, _SHORTEST_WAIT * 2 ** min(self._idle, 10))
        self._idle += 1
        return stop.wait(seconds)

    def commit(self, positions: Iterable[Commit]) -> None:
        """All up to these is durable elsewhere, and may be trimmed."""
        self._journal.commit(self._client_id, positions)
