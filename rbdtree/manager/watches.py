"""Which documents a manager listens to. Notifications only say when to look; polling is the truth."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.model.document import NodeRef, object_name
from rbdtree.ports import Cluster, Sites, Watch


@dataclass(frozen=True, slots=True)
class Listened:
    """An object somewhere: a node's document, or a directory."""

    site: str
    pool: str
    namespace: str
    object: str

    @classmethod
    def node(cls, ref: NodeRef) -> "Listened":
        return cls(ref.site, ref.pool, ref.namespace, object_name(ref.node_id))


@dataclass(frozen=True, slots=True)
class _Known:
    cluster: Cluster
    watch: Watch


class Watches:
    """``told`` is called with what was notified, on a thread of the backend's: it must only take note."""

    def __init__(self, sites: Sites, told: Callable[[Listened], None]) -> None:
        self._sites = sites
        self._told = told
        self._guard = threading.Lock()
        self._watches: dict[Listened, _Known] = {}
        self.lost = 0
        """How many had to be registered anew."""

    def listen(self, wanted: set[Listened], silent: frozenset[str] = frozenset()) -> list[Listened]:
        """Listens to exactly these. Those that were not listened to before, or lost, are returned: to be looked at, for
        something may have been missed. What was registered by a connection that was replaced is lost: that will be shut
        down. Those at ``silent`` sites stay as they are: each would wait for an answer. So would the others of a site
        that falls silent meanwhile."""
        with self._guard:
            for gone in set(self._watches) - wanted:
                if gone.site not in silent:
                    self._drop(gone)
            anew: list[Listened] = []
            dead = set(silent)
            for one in wanted:
                known = self._watches.get(one)
                if one.site in dead:
                    continue
                try:
                    cluster = self._sites.cluster(one.site)
                    if known and known.cluster is cluster and known.watch.alive():
                        continue
                    fresh = self._watch(cluster, one)
                except errors.Unreachable:
                    dead.add(one.site)
                    continue
                except errors.Error:
                    continue
                if known:
                    self.lost += 1
                    self._drop(one)
                self._watches[one] = _Known(cluster, fresh)
                anew.append(one)
            return anew

    def gone(self, one: Listened) -> bool:
        """Whether this has ended: nothing is heard there until the next ``listen``."""
        known = self._watches.get(one)
        return known is not None and not known.watch.alive()

    def _watch(self, cluster: Cluster, one: Listened) -> Watch:
        pool = cluster.pool(one.pool, one.namespace)
        return pool.watch(one.object, lambda: self._told(one))

    def _drop(self, one: Listened) -> None:
        with suppress(errors.Error):
            self._watches.pop(one).watch.close()

    def close(self) -> None:
        self.listen(set())
