"""Workers that die: a wrapper around ``rbdtree.memory`` that ends a client at its k-th effect.

    before   the call was never made
    after    it was carried out, and nobody heard of it
    torn     half of a write was carried out; any other call as with ``before``

A dead worker does nothing any more, whichever of its threads asks.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from typing import Any

from rbdtree import memory

EFFECTS = frozenset(
    {
        *("submit_write", "submit_zero", "resize", "create_snapshot", "remove_snapshot", "break_lock"),
        *("set_metadata", "remove_metadata", "create_image", "clone", "rename", "trash", "purge"),
        *("create_document", "swap_document", "remove_document", "add_entry", "remove_entry"),
        *("claim", "unclaim", "break_claim", "fence"),
    }
)
_PARTS = (memory.Image, memory.Pool, memory.Cluster, memory.Sites)


class Crash(BaseException):
    """The worker died. No ``Exception``: nothing may catch it and go on."""


class Worker:
    """A process with a client of its own. ``late``: reads and writes end on a thread of the backend, as librbd's do."""

    def __init__(
        self,
        storages: dict[str, memory.Storage],
        dies_at: int | None = None,
        how: str = "before",
        late: Executor | None = None,
    ) -> None:
        self.sites: Any = Part(memory.Sites(storages), self)
        self.effects: list[str] = []
        self.dead = False
        self._dies_at = dies_at
        self._how = how
        self._late = late
        self._guard = threading.RLock()

    def call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        name = function.__name__
        if self._late and name.startswith("submit_"):
            self._late.submit(function, *arguments)
            return None
        bare = [a.inner if isinstance(a, Part) else a for a in arguments]
        with self._guard:
            if self.dead:
                raise Crash(f"{name} of a dead worker")
            if name in EFFECTS:
                self.effects.append(name)
                if len(self.effects) == self._dies_at:
                    self.dead = True
                    self._last(function, bare, options)
                    raise Crash(f"died at {name}, effect {self._dies_at}, {self._how}")
            found = function(*bare, **options)
        return Part(found, self) if isinstance(found, _PARTS) else found

    def _last(self, function: Callable[..., Any], arguments: list[Any], options: dict[str, Any]) -> None:
        if self._how == "after":
            if function.__name__.startswith("submit_"):
                arguments[-1] = lambda _: None
            function(*arguments, **options)
        elif self._how == "torn" and function.__name__ == "submit_write":
            offset, data, _ = arguments
            function(offset, data[: len(data) // 2], lambda _: None)


class Part:
    """Something of a worker's: sites, a cluster, a pool, an image."""

    def __init__(self, inner: Any, worker: Worker) -> None:
        self.inner = inner
        self._worker = worker

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return partial(self._worker.call, found) if callable(found) else found


def bury(storages: dict[str, memory.Storage], worker: Worker) -> None:
    """What time does to a dead client: its watches run out (its lock and its claims stay)."""
    for site, storage in storages.items():
        address = worker.sites.inner.cluster(site).address()
        for place in storage.places.values():
            for volume in (*place.images.values(), *(volume for _, volume in place.trash.values())):
                volume.watchers.pop(address, None)
