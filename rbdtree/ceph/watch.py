"""``ports.Watch``: RADOS watch/notify on one object."""

from collections.abc import Callable
from contextlib import suppress

import rados

from rbdtree import errors
from rbdtree.ceph.translate import translated

_SILENCE = 30.0
"""Seconds after which a watch counts as lost: an OSD forgets it then (osd_client_watch_timeout)."""


_UNENDED: list[rados.Watch] = []
"""Kept for good: librados frees a watch also where it fails to end it, of a silent OSD for one; the binding would end
it once more when it is collected, in memory that is not its own any more (16: the process dies)."""


class Watch:
    """Survives restarts of OSDs; ends when the object goes or this client is fenced, or after a long silence."""

    def __init__(self, ioctx: rados.Ioctx, name: str, told: Callable[[], None], path: str) -> None:
        self._lost = False

        def heard(_notify: int, _notifier: int, _watch: int, _data: bytes) -> bytes:
            with suppress(Exception):
                # Without an answer the notifier waits for its time-out.
                told()
            return b""

        def lost(_watch: int, _error: int) -> None:
            self._lost = True
            with suppress(Exception):
                told()

        with translated(f"watch {path}/{name}"):
            self._watch = ioctx.watch(name, heard, lost)

    def alive(self) -> bool:
        if self._lost:
            return False
        try:
            with translated("check a watch"):
                # Time since the last answer, in milliseconds or as a timedelta, by release.
                age = self._watch.check()
        except errors.Error:
            return False
        seconds = age.total_seconds() if hasattr(age, "total_seconds") else float(age) / 1000
        return seconds < _SILENCE

    def close(self) -> None:
        try:
            with translated("end a watch"):
                self._watch.close()
        except errors.Error:
            _UNENDED.append(self._watch)
