"""Memory that the C library keeps for threads of Ceph's that freed it, given back to the system."""

import ctypes
from contextlib import suppress


def trim() -> None:
    """Of all arenas (malloc_trim(3)); takes some ten milliseconds. Nothing where the C library has no such function.

    Every thread of librados and librbd has an arena that keeps what was freed in it, so that a process may take several
    times what it uses."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
