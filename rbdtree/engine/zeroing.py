"""Zeroes over ranges of an image that hold data no longer wanted. They take no space."""

import threading
from collections.abc import Callable

from rbdtree import errors
from rbdtree.model.extent import Extents
from rbdtree.ports import Image

_IN_FLIGHT = 16
_PATIENCE = 1.0


def zero(image: Image, extents: Extents, check: Callable[[], None]) -> int:
    """How many bytes were covered, an object at a time; ``check`` is called again and again. Repeatable."""
    unit = image.layout.object_bytes
    moved = threading.Condition()
    flying, failures = 0, list[Exception]()

    def done(error: Exception | None) -> None:
        nonlocal flying
        with moved:
            flying -= 1
            if error is not None:
                failures.append(error)
            moved.notify_all()

    def wait(most: int) -> None:
        while True:
            check()
            with moved:
                if flying <= most or moved.wait_for(lambda: flying <= most, _PATIENCE):
                    return

    for offset, length in extents:
        at, end = offset, offset + length
        while at < end and not failures:
            wait(_IN_FLIGHT - 1)
            stop = min(end, at - at % unit + unit)
            with moved:
                flying += 1
            try:
                image.submit_zero(at, stop - at, done)
            except errors.Error as error:
                done(error)
            at = stop
    wait(0)
    if failures:
        raise failures[0]
    return extents.total
