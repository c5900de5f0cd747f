"""When to cut, and what bandwidth there is when."""

import pytest

from rbdtree import errors
from rbdtree.model.schedule import Bandwidth, Schedule

HOUR, DAY = 3600, 86400
MONDAY = 4 * DAY
"""1970-01-05, at midnight UTC."""
MIB = 1 << 20


@pytest.mark.parametrize(
    ("text", "now", "last", "following"),
    [
        ("5m", MONDAY + 61, MONDAY, MONDAY + 300),
        ("5m", MONDAY + 300, MONDAY + 300, MONDAY + 600),
        ("1h 00:20", MONDAY + 10, MONDAY - 40 * 60, MONDAY + 20 * 60),
        ("1h 14:20", MONDAY + 10, MONDAY - 40 * 60, MONDAY + 20 * 60),
        ("1d 03:30", MONDAY + 4 * HOUR, MONDAY + 3.5 * HOUR, MONDAY + 27.5 * HOUR),
        ("1d 03:30Z", MONDAY + 3 * HOUR, MONDAY - 20.5 * HOUR, MONDAY + 3.5 * HOUR),
        ("24h 14:00:00-05:00", MONDAY + 20 * HOUR, MONDAY + 19 * HOUR, MONDAY + 43 * HOUR),
        ("1d 01:30+02:00", MONDAY + DAY, MONDAY + 23.5 * HOUR, MONDAY + 47.5 * HOUR),
        ("1d 01:30+0530", MONDAY + DAY, MONDAY + 20 * HOUR, MONDAY + 44 * HOUR),
        ("1d 1:30-02", MONDAY + 4 * HOUR, MONDAY + 3.5 * HOUR, MONDAY + 27.5 * HOUR),
        ("10s", MONDAY + 19, MONDAY + 10, MONDAY + 20),
    ],
)
def test_a_schedule_knows_the_last_and_the_next_time(text: str, now: float, last: float, following: float) -> None:
    schedule = Schedule.parse(text)
    assert (schedule.last(now), schedule.next(now)) == (last, following)


@pytest.mark.parametrize(
    "text", ["5", "soon", "1h 25:00", "1h 00:20 utc", "500ms", "0m", "1h 14:00-25:00", "1h 14:00-"]
)
def test_what_is_no_schedule(text: str) -> None:
    with pytest.raises(errors.UsageError):
        Schedule.parse(text)


def at(day: int, hour: float) -> float:
    """``day`` 0: Monday."""
    return MONDAY + day * DAY + hour * HOUR


@pytest.mark.parametrize(
    ("text", "now", "limit"),
    [
        ("", at(0, 12), None),
        ("20M", at(0, 0), 20 * MIB),
        ("20M/s", at(3, 5), 20 * MIB),
        ("off", at(3, 5), None),
        ("08:00 20M; 18:00 off", at(0, 8), 20 * MIB),
        ("08:00 20M; 18:00 off", at(0, 17.99), 20 * MIB),
        ("08:00 20M; 18:00 off", at(0, 18), None),
        ("08:00 20M; 18:00 off", at(1, 7.99), None),
        ("18:00 off; 08:00 20M", at(1, 7.99), None),
        ("mon-fri 08:00 20M; 18:00 off", at(4, 9), 20 * MIB),
        ("mon-fri 08:00 20M; 18:00 off", at(5, 9), None),
        ("mon-fri 08:00 20M", at(6, 12), 20 * MIB),
        ("sat,sun 00:00 off; mon 06:00 5M", at(5, 1), None),
        ("sat,sun 00:00 off; mon 06:00 5M", at(0, 5), None),
        ("sat,sun 00:00 off; mon 06:00 5M", at(0, 6), 5 * MIB),
        ("sat-mon 00:00 1M; tue 00:00 2M", at(0, 1), MIB),
        ("08:00 1M; 08:00 2M", at(0, 9), 2 * MIB),
    ],
)
def test_the_limit_that_was_set_last_counts(text: str, now: float, limit: int | None) -> None:
    assert Bandwidth.parse(text).at(now) == limit


@pytest.mark.parametrize(
    ("text", "limited"),
    [("", False), ("off", False), ("sat 08:00 off", False), ("20M", True), ("18:00 off; 08:00 1M", True)],
)
def test_whether_there_is_a_limit_at_any_time(text: str, limited: bool) -> None:
    assert Bandwidth.parse(text).limited == limited


def test_windows_are_in_local_time() -> None:
    bandwidth = Bandwidth.parse("08:00 20M; 18:00 off")
    assert bandwidth.at(at(0, 7), utc_offset=HOUR) == 20 * MIB
    assert bandwidth.at(at(0, 7), utc_offset=-HOUR) is None


@pytest.mark.parametrize("text", ["fast", "8:00 20M", "08:00", "xyz 08:00 20M", "08:00 mon 20M", "0", "mon 08:00 1M x"])
def test_what_is_no_bandwidth(text: str) -> None:
    with pytest.raises(errors.UsageError):
        Bandwidth.parse(text)
