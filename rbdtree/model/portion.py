"""Portions: the ranges of the volume that a node holds. No range at all means all of it, whatever its size becomes.

0..1G,4G..5G      ((0, 1 << 30), (4 << 30, 1 << 30))
"""

from collections.abc import Iterable
from itertools import pairwise

from rbdtree import errors
from rbdtree.model.extent import Extents, Pair
from rbdtree.model.name import parse_size

Portion = tuple[Pair, ...]
WHOLE: Portion = ()

_UNITS = (("T", 1 << 40), ("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10))


def parse(text: str) -> Portion:
    """From ``A..B[,C..D]`` (an omitted A is 0) or ``whole``; ``UsageError`` for what is neither, or overlaps."""
    if text.strip() == "whole":
        return WHOLE
    pairs = sorted(_range(part.strip()) for part in text.split(","))
    for (offset, length), (following, size) in pairwise(pairs):
        if following < offset + length:
            end = max(offset + length, following + size)
            raise errors.UsageError(
                f"ranges {_text((offset, length))} and {_text((following, size))} overlap",
                f"Write them as one: {_text((offset, end - offset))}.",
            )
    return Extents.of(pairs).pairs


def _range(part: str) -> Pair:
    low, dots, high = part.partition("..")
    if not dots or not high:
        raise errors.UsageError(f"{part!r} is not a range", "Write A..B, for example 0..1G.")
    start, end = parse_size(low or "0"), parse_size(high)
    if end <= start:
        raise errors.UsageError(f"range {part!r} ends before it begins", "Write A..B, for example 0..1G.")
    return start, end - start


def text(portion: Portion) -> str:
    """As ``parse`` reads it."""
    return ",".join(_text(pair) for pair in portion) if portion else "whole"


def _text(pair: Pair) -> str:
    return f"{_size(pair[0])}..{_size(pair[0] + pair[1])}"


def _size(count: int) -> str:
    unit, length = next(((u, n) for u, n in _UNITS if count and count % n == 0), ("", 1))
    return f"{count // length}{unit}"


def clip(portion: Portion, extents: Extents) -> Extents:
    """What of these extents lies inside."""
    return extents.intersect(Extents(portion)) if portion else extents


def inside(portion: Portion, size: int) -> Extents:
    """What of a volume of this size lies inside."""
    return clip(portion, Extents.of([(0, size)]))


def beyond(portion: Portion, extents: Extents) -> Extents:
    """What of these extents lies outside."""
    return extents.subtract(Extents(portion)) if portion else Extents()


def contains(outer: Portion, inner: Portion) -> bool:
    """Whether all of ``inner`` is in ``outer``; the whole is in the whole alone, as the volume may grow."""
    return not outer or (bool(inner) and not beyond(outer, Extents(inner)))


def common(*portions: Portion) -> Portion | None:
    """What is in all of them; None for nothing."""
    found: Portion = WHOLE
    for portion in portions:
        if found and portion:
            found = Extents(found).intersect(Extents(portion)).pairs
            if not found:
                return None
        else:
            found = found or portion
    return found


def choose(wanted: Portion, standing: Portion | None, offered: Portion) -> Portion | None:
    """What a child holds of a generation of which its parent has ``offered``.

    What it wants, once all of that is there; until then what it holds by now (``standing``, None: nothing yet), so far
    as that is there. None: this generation is not for it. What the parent lacks reads as zeroes there, and is no data.
    """
    if contains(offered, wanted):
        return wanted
    return None if standing is None else common(standing, offered)


def check(wanted: Portion, size: int, unit: int) -> None:
    """``UsageError`` for a portion that a volume of ``size`` bytes, in objects of ``unit``, cannot have; it names the
    nearest one that it can. A range may end where the volume does."""
    nearest = _nearest(wanted, size, unit)
    hint = f"The nearest allowed is {text(nearest)}." if nearest else "Write 'whole' for all of it."
    for offset, length in wanted:
        if offset + length > size:
            raise errors.UsageError(
                f"range {_text((offset, length))} ends beyond the volume, which is {_size(size)} long", hint
            )
        if offset % unit or ((offset + length) % unit and offset + length != size):
            raise errors.UsageError(
                f"range {_text((offset, length))} is not aligned to the image's objects of {_size(unit)}", hint
            )


def _nearest(wanted: Iterable[Pair], size: int, unit: int) -> Portion:
    """At least what is wanted, as far as the volume goes."""
    found = ((at - at % unit, min(size, -(-(at + length) // unit) * unit)) for at, length in wanted if at < size)
    return Extents.of((start, end - start) for start, end in found).pairs
