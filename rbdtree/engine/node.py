"""A node's document as something to read and to change."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from rbdtree import errors
from rbdtree.model.codec import decode, encode
from rbdtree.model.document import NodeDocument, NodeRef, object_name
from rbdtree.ports import Cluster, Pool, Sites

_ATTEMPTS = 30
_TURN_SECONDS = 1.0


def cluster_of(sites: Sites, ref: NodeRef) -> Cluster:
    """The cluster a document means: the site of that name if it is that cluster, else the one that is."""
    if ref.site in sites.names():
        cluster = sites.cluster(ref.site)
        if cluster.fsid == ref.fsid:
            return cluster
    for name in sites.names():
        try:
            cluster = sites.cluster(name)
        except errors.Error:
            continue
        if cluster.fsid == ref.fsid:
            return cluster
    raise errors.NotFound(
        f"no configured site is the cluster {ref.fsid} on which {ref.name} lives (it was called {ref.site!r})",
        "Add that site to the configuration.",
    )


def pool_of(sites: Sites, ref: NodeRef) -> Pool:
    """The pool beside whose images the node's document lies."""
    return cluster_of(sites, ref).pool(ref.pool, ref.namespace)


def _attempt(change: Callable[[NodeDocument], NodeDocument], document: NodeDocument) -> NodeDocument | None:
    """The changed document; None when it is the same, or refused: that is for a fresh one to say."""
    try:
        changed = change(document)
    except errors.Error:
        return None
    return changed if changed != document else None


_turns: dict[tuple[str, str, str, str], threading.Lock] = {}


@contextmanager
def _in_turn(pool: Pool, name: str) -> Iterator[None]:
    """Threads of this process change a document one after the other: a hundred at once would outrun each other until
    some give up. Only for a while: one that waits for a silent cluster keeps nobody."""
    turn = _turns.setdefault((pool.fsid, pool.name, pool.namespace, name), threading.Lock())
    taken = turn.acquire(timeout=_TURN_SECONDS)
    try:
        yield
    finally:
        if taken:
            turn.release()


class Node:
    """One node: where its document is. Holds no copy of it."""

    def __init__(self, pool: Pool, node_id: str, name: str = "") -> None:
        self.pool = pool
        self.node_id = node_id
        self.name = name or node_id
        self.object = object_name(node_id)
        self._seen: tuple[int, NodeDocument] | None = None

    @classmethod
    def at(cls, sites: Sites, ref: NodeRef) -> "Node":
        return cls(pool_of(sites, ref), ref.node_id, ref.name)

    def read(self) -> NodeDocument:
        """Raises ``NotFound`` when there is no such node."""
        return self._read()[1]

    def _read(self) -> tuple[int, NodeDocument]:
        found = self.pool.read_document(self.object)
        if found is None:
            raise errors.NotFound(
                f"node {self.name}: its document {self.pool.site}:{self.pool.name}/{self.object} is gone",
                "List what is left with 'rbdtree marks'.",
            )
        revision, text = found
        if self._seen and self._seen[0] == revision:
            return self._seen
        self._seen = revision, decode(text, f"{self.pool.site}:{self.pool.name}/{self.object}")
        return self._seen

    def create(self, document: NodeDocument) -> None:
        """``Exists`` when the node is there already."""
        self.pool.create_document(self.object, encode(document))

    def update(self, change: Callable[[NodeDocument], NodeDocument], claim: str | None = None) -> NodeDocument:
        """Compare-and-swap until it holds. ``change`` may be called several times and returns what it was given when
        there is nothing to change; ``claim`` is the cookie without which nothing is written (``Fenced``)."""
        # One for each call: a decorated function's is shared by its threads, who tear its statistics (tenacity 9.2).
        again = Retrying(
            retry=retry_if_exception_type(errors.Changed),
            stop=stop_after_attempt(_ATTEMPTS),
            wait=wait_random_exponential(multiplier=0.005, max=0.2),
            reraise=True,
        )
        return again(self._try_update, change, claim)

    def _try_update(self, change: Callable[[NodeDocument], NodeDocument], claim: str | None) -> NodeDocument:
        with _in_turn(self.pool, self.object):
            return self._update(change, claim)

    def _update(self, change: Callable[[NodeDocument], NodeDocument], claim: str | None) -> NodeDocument:
        # What was seen last is good enough to try: the swap compares. On a long link that saves a round trip.
        seen, self._seen = self._seen, None
        if seen and (changed := _attempt(change, seen[1])):
            revision = seen[0]
        else:
            revision, document = self._read()
            changed = change(document)
            if changed == document:
                return changed
        self.pool.swap_document(self.object, revision, encode(changed), claim)
        self._seen = revision + 1, changed
        # Managers, and whoever looks on, need not wait for their next poll.
        self.pool.notify(self.object)
        return changed

    def remove(self) -> None:
        """The document, whatever its revision; nothing when it is gone."""
        found = self.pool.read_document(self.object)
        if found is not None:
            self.pool.remove_document(self.object, found[0])
