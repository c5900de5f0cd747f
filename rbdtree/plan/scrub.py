"""How fast a node is compared with its parent: its next piece, and when the one after that begins.

What is left of the volume is spread over what is left of the time, anew with every piece. So time that was lost, while
deltas were half applied or no manager ran, is made up; but not all at once, as it is the disks' time.
"""

from rbdtree.model.document import Scrub

_AHEAD = 0.9
"""Of the time that is wanted: what is lost at the end of a pass cannot be made up."""
_HASTE = 10
"""How many times as fast as it would always do, at most, where no rate is set."""
_SLICE_SECONDS = 60.0
_SLICE_BYTES = 256 << 20
_LEAST_BYTES = 4 << 20


def plan_scrub(done: Scrub, size: int, wanted: float, rate: int | None, now: float) -> tuple[int, float]:
    """(bytes to compare next, seconds from then until the piece after it). ``wanted``: seconds that a pass may take;
    ``rate``: bytes a second at most, also of a pass that is late."""
    size = max(1, size)
    left = max(1, size - done.cursor_bytes)
    length = min(left, _SLICE_BYTES, max(_LEAST_BYTES, int(size * _SLICE_SECONDS / wanted)))
    begun = done.started if done.cursor_bytes else now
    # A clock that was set back makes no pass longer.
    seconds = min(max(0.0, begun + _AHEAD * wanted - now), _AHEAD * wanted)
    pause = max(seconds / left, wanted / size / _HASTE) * length
    return length, max(pause, length / rate) if rate else pause
