"""How fast a scrub goes: within its time, whatever it loses, and never faster than it may."""

import pytest

from rbdtree.model.document import Scrub
from rbdtree.plan.scrub import plan_scrub

DAY = 86400.0
MIB, GIB = 1 << 20, 1 << 30
NOW = 1e9


@pytest.mark.parametrize(
    ("done", "size", "wanted", "rate", "length", "pause"),
    [
        # A minute's part, of nine tenths of the time.
        (Scrub(), 168 * GIB, 7 * DAY, None, 168 * GIB * 60 // int(7 * DAY), 54),
        # No more than 256 MiB, no less than 4.
        (Scrub(), 10 << 40, DAY, None, 256 * MIB, 0.9 * DAY / 40960),
        (Scrub(), GIB, 7 * DAY, None, 4 * MIB, 0.9 * 7 * DAY / 256),
        (Scrub(), 4 * MIB, DAY, None, 4 * MIB, 0.9 * DAY),
        (Scrub(), MIB, DAY, None, MIB, 0.9 * DAY),
        # Half is done after half of the time; after a fifth of it; after almost all of it; too late.
        (Scrub(512 * MIB, NOW - 0.45 * DAY), GIB, DAY, None, 4 * MIB, 0.9 * DAY / 256),
        (Scrub(512 * MIB, NOW - 0.18 * DAY), GIB, DAY, None, 4 * MIB, 0.72 * DAY / 128),
        (Scrub(512 * MIB, NOW - 0.89 * DAY), GIB, DAY, None, 4 * MIB, DAY / 256 / 10),
        (Scrub(512 * MIB, NOW - 3 * DAY), GIB, DAY, None, 4 * MIB, DAY / 256 / 10),
        # The last piece.
        (Scrub(GIB - MIB, NOW - 0.8 * DAY), GIB, DAY, None, MIB, 0.1 * DAY),
        # The volume shrank.
        (Scrub(GIB, NOW - 0.8 * DAY), MIB, DAY, None, 1, 0.1 * DAY),
        # The clock was set back.
        (Scrub(512 * MIB, NOW + 9 * DAY), GIB, DAY, None, 4 * MIB, 0.9 * DAY / 128),
        # A limit, of one that is in time and of one that is not.
        (Scrub(), GIB, DAY, MIB, 4 * MIB, 0.9 * DAY / 256),
        (Scrub(), GIB, DAY, 4096, 4 * MIB, 1024),
        (Scrub(512 * MIB, NOW - 3 * DAY), GIB, DAY, 1 << 16, 4 * MIB, 64),
        # A pass that is over tells nothing of the next one.
        (Scrub(0, NOW - 3 * DAY, NOW - DAY), GIB, DAY, None, 4 * MIB, 0.9 * DAY / 256),
    ],
)
def test_the_next_piece(done: Scrub, size: int, wanted: float, rate: int | None, length: int, pause: float) -> None:
    assert plan_scrub(done, size, wanted, rate, NOW) == (length, pytest.approx(pause, abs=0.01))


def passes(size: int, wanted: float, rate: int | None, took: float, lost: dict[int, float]) -> list[float]:
    """Seconds that three passes took; ``took`` by each piece, ``lost`` before those of these numbers."""
    now, done, number, found = NOW, Scrub(), 0, []
    while len(found) < 3:
        now += lost.get(number, 0.0)
        length, pause = plan_scrub(done, size, wanted, rate, now)
        began, now, number = now, now + took, number + 1
        started = done.started if done.cursor_bytes else began
        end = done.cursor_bytes + length
        if end >= size:
            found.append(now - started)
            end = 0
        done = Scrub(end, started)
        now = max(now, began + pause)
    return found


@pytest.mark.parametrize("size", [MIB, 8 * MIB, 100 * MIB + 1, 10 * GIB])
@pytest.mark.parametrize("lost", [{}, {1: 0.4 * DAY}, dict.fromkeys(range(0, 6000, 20), 500.0)])
def test_a_pass_ends_in_time(size: int, lost: dict[int, float]) -> None:
    taken = passes(size, DAY, None, 1.0, lost)
    assert max(taken) < DAY


def test_a_pass_that_cannot_make_it_goes_as_fast_as_it_may() -> None:
    assert passes(10 * GIB, DAY, GIB // 3600, 1.0, {3: 2 * DAY})[1:] == pytest.approx([DAY * 0.9, DAY * 0.9], rel=0.02)
    assert passes(48 * GIB, DAY, GIB // 3600, 1.0, {}) == pytest.approx([2 * DAY] * 3, rel=0.02)
