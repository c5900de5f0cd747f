"""Which parts of a buffer are zero.

Comparing slices of ``bytes`` with a prepared zero buffer runs at memory speed (20 GiB/s measured; memoryviews compare
forty times slower), and most blocks of data are told from zero by their first byte.
"""

from collections.abc import Iterator

GRAIN = 4096
"""Smallest run of zeroes worth a hole: bluestore's allocation unit."""
_LARGE = 64 << 10
_ZERO_GRAIN = bytes(GRAIN)
_ZERO_LARGE = bytes(_LARGE)

Run = tuple[int, int, bool]


def runs(data: bytes, start: int, end: int) -> Iterator[Run]:
    """(start, end, is zero) over data[start:end], alternating; zero runs begin and end on GRAIN or at the edges."""
    run_start, zero = start, False
    at = start
    while at < end:
        if data[at] == 0 and at % _LARGE == 0 and at + _LARGE <= end and data[at : at + _LARGE] == _ZERO_LARGE:
            stop, is_zero = at + _LARGE, True
        else:
            stop = min(end, at - at % GRAIN + GRAIN)
            is_zero = data[at] == 0 and data[at:stop] == _ZERO_GRAIN[: stop - at]
        if is_zero != zero:
            if at > run_start:
                yield run_start, at, zero
            run_start, zero = at, is_zero
        at = stop
    if end > run_start:
        yield run_start, end, zero


def differing(mine: bytes, theirs: bytes, grain: int = GRAIN) -> Iterator[tuple[int, int]]:
    """(start, end) of the blocks of ``grain`` bytes in which two buffers of equal length differ, joined."""
    start = -1
    for at in range(0, len(mine), grain):
        # What differs mostly does so in its first byte: no need to cut it out.
        if mine[at] != theirs[at] or mine[at : at + grain] != theirs[at : at + grain]:
            start = at if start < 0 else start
        elif start >= 0:
            yield start, at
            start = -1
    if start >= 0:
        yield start, len(mine)
