"""Which documents a manager listens to. Notifications only say when to look; polling is the truth."""

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.model.document import NodeRef, object_name
from rbdtree.ports import Sites, Watch


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


class Watches:
    """``told`` is called with what was notified, on a thread of the backend's: it must only take note."""

    def __init__(self, sites: Sites, told: Callable[[Listened], None]) -> None:
        self._sites = sites
        self._told = told
        self._guard = threading.Lock()
        self._watches: dict[Listened, Watch] = {}
        self.lost = 0
        """How many had to be registered anew."""

    def listen(self, wanted: set[Listened]) -> list[Listened]:
        """Listens to exactly these. Those that were not listened to before, or lost, are returned: to be looked at, for
        something may have been missed. Blocks while a cluster does not answer."""
        with self._guard:
            for gone in set(self._watches) - wanted:
                self._drop(gone)
            anew = []
            for one in wanted:
                known = self._watches.get(one)
                if known and known.alive():
                    continue
                if known:
                    self.lost += 1
                    self._drop(one)
                with suppress(errors.Error):
                    pool = self._sites.cluster(one.site).pool(one.pool, one.namespace)
                    self._watches[one] = pool.watch(one.object, lambda one=one: self._told(one))  # type: ignore[misc]
                    anew.append(one)
            return anew

    def _drop(self, one: Listened) -> None:
        with suppress(errors.Error):
            self._watches.pop(one).close()

    def close(self) -> None:
        self.listen(set())
