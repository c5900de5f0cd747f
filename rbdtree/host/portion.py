"""One range of a volume, handed out as a device that begins at 0."""

from rbdtree import errors
from rbdtree.model.name import parse_size

SECTOR = 512


def parse(text: str) -> tuple[int, int]:
    """(offset, length) of ``A..B``."""
    start, dots, end = text.partition("..")
    if not dots or "," in text:
        raise errors.UsageError(f"{text!r} is not one range", "Write for example 0..1G: the device shows it from 0 on.")
    low, high = parse_size(start or "0"), parse_size(end)
    if low >= high:
        raise errors.UsageError(f"{text!r} is empty", "Write for example 0..1G.")
    return low, high - low


def check(portion: tuple[int, int], size_bytes: int) -> None:
    """``UsageError``, with the nearest range that can be had, when a device cannot be made of it."""
    offset, length = portion
    end = offset + length
    if end > size_bytes:
        said = f"the range {offset}..{end} ends beyond the volume ({size_bytes} bytes)"
        if offset < size_bytes:
            raise errors.UsageError(said, f"The nearest range is {_down(offset)}..{_down(size_bytes)}.")
        raise errors.UsageError(said, f"The volume has 0..{_down(size_bytes)}.")
    if offset % SECTOR or length % SECTOR:
        low, high = _down(offset), min(_down(end + SECTOR - 1), _down(size_bytes))
        raise errors.UsageError(
            f"the range {offset}..{end} is not made of whole sectors ({SECTOR} bytes)",
            f"The nearest range around it is {low}..{high}.",
        )


def _down(value: int) -> int:
    return value - value % SECTOR
