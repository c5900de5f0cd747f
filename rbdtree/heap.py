"""The C library's memory, bounded: Ceph's libraries run a hundred threads, each of which would keep what it freed."""

import ctypes
import os
from contextlib import suppress

_ARENAS = 4
_M_ARENA_MAX = -8
"""In malloc.h."""


def bound() -> None:
    """As few arenas as suffice; before threads begin. The C library would make eight for each core, and none of them
    gives back what another could use. Nothing where it is not glibc, or where MALLOC_ARENA_MAX says something else."""
    if "MALLOC_ARENA_MAX" not in os.environ:
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)


def trim() -> None:
    """What is free goes back to the system (malloc_trim(3)); takes some ten milliseconds."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
