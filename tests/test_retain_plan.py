"""Which generations stay, as tables.

    stock("1 2 3 4", "last 2", "1:a 2:far(b) 3:!")

Generations are cut an hour apart from 2026-03-01 00:00 UTC on; ``1:a`` is a child that stands on 1, ``2:far(b)`` a node
further down that was last seen there, ``3:!`` something that no limit ends.
"""

import calendar
import datetime
import time
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree.model.policy import Keep
from rbdtree.model.position import Generation, Position
from rbdtree.plan.retain import Need, Stock, kept_by_rules, month, plan_retain, struck, writer

HOUR, DAY = 3600.0, 86400.0
BEGIN = float(calendar.timegm((2026, 3, 1, 0, 0, 0)))


def at(number: int) -> Position:
    return Position(1, number)


def cut(number: int, created: float) -> Generation:
    return Generation(at(number), number, 4096, created)


def need(word: str) -> Need:
    number, _, who = word.partition(":")
    position = at(int(number))
    if who == "!":
        return Need(position, "somebody's hold")
    name = who.removeprefix("far(").removesuffix(")")
    held = name == who
    return Need(position, f"{'base of' if held else 'last seen:'} {name}", name, f"edge-{name}", held)


def stock(numbers: str, keep: str, needs: str = "", **limits: object) -> Stock:
    generations = tuple(cut(int(n), BEGIN + int(n) * HOUR) for n in numbers.split())
    return Stock(generations, Keep.parse(keep), tuple(need(word) for word in needs.split()), **limits)  # type: ignore[arg-type]


def goes(found: Stock, now: float = BEGIN + 100 * HOUR) -> str:
    return " ".join(str(v.position.sequence) for v in plan_retain(found, now) if v.goes)


def lapses(found: Stock, now: float = BEGIN + 100 * HOUR) -> str:
    pairs = ((v, need) for v in plan_retain(found, now) for need, _ in v.lapsed)
    return " ".join(f"{v.position.sequence}:{need.name}" for v, need in pairs if need.held)


@pytest.mark.parametrize(
    ("numbers", "keep", "needs", "expected"),
    [
        pytest.param("1 2 3", "all", "", "", id="without a rule all stay"),
        pytest.param("1 2 3", "last 2", "", "1", id="the newest ones stay"),
        pytest.param("1 2 3", "daily 1", "", "1 2", id="the newest of its day"),
        pytest.param("", "last 1", "", "", id="nothing is there"),
        pytest.param("7", "monthly 1", "", "", id="the newest is never gone"),
        pytest.param("1 2 3 4", "last 1", "2:!", "1 3", id="what somebody holds stays"),
        pytest.param("1 2 3 4", "last 1", "2:a", "1 3", id="what a child stands on stays"),
        pytest.param("1 2 3 4", "last 1", "2:far(a)", "1 3", id="what a node further down stands on stays"),
        pytest.param("1 2 3 4", "last 1", "9:a", "1 2 3", id="a need for what is not here keeps nothing"),
        pytest.param("20 23 24 25 47 48", "last 1, daily 2", "", "20 23 24 25", id="days are UTC's"),
        pytest.param("1 2 30 31", "hourly 3", "", "1", id="hours without a generation do not count"),
    ],
)
def test_what_goes(numbers: str, keep: str, needs: str, expected: str) -> None:
    assert goes(stock(numbers, keep, needs)) == expected


def test_the_rules_of_the_page() -> None:
    """Half a year of generations, one every three hours."""
    line = tuple(cut(n, BEGIN + n * 3 * HOUR) for n in range(1, 1461))
    kept = kept_by_rules(line, Keep.parse("last 5, hourly 24, daily 7, weekly 4, monthly 12"))
    by_rule: dict[str, set[int]] = {}
    for position, rule in kept:
        by_rule.setdefault(rule, set()).add(position.sequence)
    assert {rule: len(found) for rule, found in by_rule.items()} == {
        "last 5": 5,
        "newest of its hour": 24,
        "newest of its day": 7,
        "newest of its week": 4,
        "newest of its month": 6,
    }
    months = [
        datetime.datetime.fromtimestamp(BEGIN + n * 3 * HOUR, datetime.UTC).month
        for n in by_rule["newest of its month"]
    ]
    assert sorted(months) == [3, 4, 5, 6, 7, 8]
    assert len({position for position, _ in kept}) < 40


def test_what_was_spared_is_spared_by_the_next_run() -> None:
    """Nobody who applies a rule every hour loses what the rule is to keep in the end."""
    keep = Keep.parse("last 2, daily 3, weekly 2")
    line: tuple[Generation, ...] = ()
    for number in range(1, 24 * 40):
        line = (*line, cut(number, BEGIN + number * HOUR))
        verdicts = plan_retain(Stock(line, keep), BEGIN + number * HOUR)
        line = tuple(v.generation for v in verdicts if not v.goes)
    whole = tuple(cut(n, BEGIN + n * HOUR) for n in range(1, 24 * 40))
    assert {g.position for g in line} == {position for position, _ in kept_by_rules(whole, keep)}


@pytest.mark.parametrize(
    ("age", "needs", "gone", "lapsed"),
    [
        pytest.param(97, "2:a", "1 3", "", id="within the limit"),
        pytest.param(96, "2:a", "1 2 3", "2:a", id="over the limit: it goes, and the child is told"),
        pytest.param(96, "2:a 2:far(b)", "1 2 3", "2:a", id="who is further down has its own parent"),
        pytest.param(96, "2:far(b)", "1 2 3", "", id="nobody needs a resync for that"),
        pytest.param(96, "2:a 2:!", "1 3", "", id="no limit ends a person's hold"),
        pytest.param(96, "4:a", "1 2 3", "", id="the newest pins nothing"),
        pytest.param(96, "2:a 3:b", "1 2", "2:a", id="each by its own age"),
        pytest.param(1, "2:a 3:b", "1 2 3", "2:a 3:b", id="all of them"),
    ],
)
def test_a_slow_child_pins_no_longer_than_it_may(age: int, needs: str, gone: str, lapsed: str) -> None:
    """2 was followed by 3 at three o'clock, 97 hours before now."""
    found = stock("1 2 3 4", "last 1", needs, max_pinned_age=age * HOUR)
    assert goes(found) == gone
    assert lapses(found) == lapsed


def test_a_generation_is_pinned_since_it_was_followed_not_since_it_was_cut() -> None:
    """A quiet volume: the base is a month old, the next generation one minute."""
    line = (cut(1, BEGIN), cut(2, BEGIN + 30 * DAY))
    found = Stock(line, Keep(last=1), (need("1:a"),), max_pinned_age=DAY)
    assert goes(found, BEGIN + 30 * DAY + 60) == ""
    assert goes(found, BEGIN + 31 * DAY + 60) == "1"


def test_a_mirror_counts_from_when_it_had_the_next_one_itself() -> None:
    line = (cut(1, BEGIN), Generation(at(2), 2, 4096, BEGIN + HOUR, arrived=BEGIN + 10 * DAY))
    found = Stock(line, Keep(last=1), (need("1:a"),), max_pinned_age=DAY)
    assert goes(found, BEGIN + 10 * DAY + 60) == ""
    assert goes(found, BEGIN + 12 * DAY) == "1"


def test_when_it_was_followed_is_remembered_when_the_next_ones_go() -> None:
    line = tuple(cut(n, BEGIN + n * HOUR) for n in range(1, 6))
    left = struck(line, frozenset({at(2), at(3), at(4)}))
    assert [(g.position.sequence, g.followed) for g in left] == [(1, BEGIN + 2 * HOUR), (5, 0.0)]
    kept = Generation(at(1), 1, 4096, BEGIN + HOUR, followed=BEGIN + 2 * HOUR)
    found = Stock((kept, line[-1]), Keep(last=1), (need("1:a"),), max_pinned_age=2 * HOUR)
    assert goes(found, BEGIN + 4.5 * HOUR) == "1"


@pytest.mark.parametrize(
    ("limit", "gone", "lapsed"),
    [
        pytest.param(35, "", "", id="all of it is within the limit"),
        pytest.param(34, "1", "1:a", id="the oldest goes first"),
        pytest.param(25, "1", "1:a", id="and no more than has to"),
        pytest.param(24, "1 2", "1:a 2:b", id="then the next one"),
        pytest.param(1, "1 2 3", "1:a 2:b 3:c", id="or all"),
    ],
)
def test_slow_children_pin_no_more_than_they_may(limit: int, gone: str, lapsed: str) -> None:
    pinned = {at(1): 10, at(2): 20, at(3): 5}
    found = stock("1 2 3 4", "last 1", "1:a 2:b 3:c", max_pinned_bytes=limit, pinned_bytes=pinned)
    assert goes(found) == gone
    assert lapses(found) == lapsed


def test_what_a_rule_keeps_pins_nothing() -> None:
    found = stock("1 2 3 4", "last 4", "1:a", max_pinned_age=1.0, max_pinned_bytes=1, pinned_bytes={at(1): 10})
    assert goes(found) == ""


def test_why_is_said_of_each() -> None:
    found = stock("1 2 3 4", "last 2", "1:a 2:b", max_pinned_age=97 * HOUR)
    why = {v.position.sequence: "; ".join(v.why) for v in plan_retain(found, BEGIN + 100 * HOUR)}
    assert why[4] == "newest; last 2"
    assert why[3] == "last 2"
    assert why[2] == "base of b, for 4.0 d"
    assert why[1] == "base of a no more (pinned for 4.1 d, max_pinned_age is 97 h): a needs a resync then"


@given(st.integers(-200_000, 200_000))
def test_months_are_those_of_the_calendar(day: int) -> None:
    date = datetime.date(1970, 1, 1) + datetime.timedelta(days=day)
    assert month(day) == (date.year, date.month)


@given(
    numbers=st.sets(st.integers(1, 400), min_size=1, max_size=40),
    keep=st.builds(Keep, *[st.integers(0, 4)] * 5),
    needs=st.lists(
        st.tuples(st.integers(1, 400), st.sampled_from(["a", "b", "!", "far(c)"])).map(lambda n: f"{n[0]}:{n[1]}"),
        max_size=6,
    ),
    age=st.none() | st.integers(1, 500),
)
def test_rules_that_always_hold(numbers: set[int], keep: Keep, needs: list[str], age: int | None) -> None:
    line = tuple(cut(n, BEGIN + n * 7 * HOUR) for n in sorted(numbers))
    found = Stock(line, keep, tuple(need(word) for word in needs), max_pinned_age=age and age * HOUR)
    verdicts = plan_retain(found, BEGIN + 3000 * HOUR)
    gone = {v.position for v in verdicts if v.goes}
    assert [v.generation for v in verdicts] == list(line)
    assert all(v.why for v in verdicts)
    assert line[-1].position not in gone
    assert not gone & {position for position, _ in kept_by_rules(line, keep)}
    assert not gone & {n.position for n in found.needs if not n.edge}
    if age is None:
        assert not gone & {n.position for n in found.needs}
    # Once more, on what is left: nothing.
    left = struck(line, frozenset(gone))
    again = plan_retain(Stock(left, keep, found.needs, max_pinned_age=found.max_pinned_age), BEGIN + 3000 * HOUR)
    assert not [v for v in again if v.goes]


def test_a_thousand_generations_are_planned_at_once() -> None:
    line = tuple(cut(n, BEGIN + n * HOUR) for n in range(1, 1001))
    began = time.monotonic()
    plan_retain(Stock(line, Keep.parse("last 5, hourly 24, daily 7"), (need("3:a"),)), BEGIN + 1000 * HOUR)
    assert time.monotonic() - began < 1


def written(number: int, who: str = "", delta: int | None = 1) -> Generation:
    """By a push of ``who`` alone; empty: by somebody, or by several."""
    push = f"{who}:{number}" if who else ""
    return Generation(at(number), number, 4096, BEGIN + number * HOUR, delta, who, push, bool(who))


@pytest.mark.parametrize(
    ("line", "gone", "expected"),
    [
        pytest.param("A A A", "2", "A A", id="pushes of one node remain its pushes"),
        pytest.param("A B A", "2", "A -", id="with somebody's in between they do not"),
        pytest.param("A - A", "2", "A -", id="nor with a write of the root's"),
        pytest.param("- - A", "2", "- -", id="nor behind one"),
        pytest.param("A A -", "2", "A -", id="nor before one"),
        pytest.param("A B B A", "2", "A B A", id="each run by itself"),
        pytest.param("A A", "1", "-", id="nothing is before the first one"),
    ],
)
def test_who_wrote_what_is_left(line: str, gone: str, expected: str) -> None:
    generations = tuple(written(n, "" if who == "-" else who) for n, who in enumerate(line.split(), 1))
    left = struck(generations, frozenset(at(int(n)) for n in gone.split()))
    assert " ".join(writer(g) or "-" for g in left) == expected


def test_what_changed_in_between_is_added_up() -> None:
    line = (written(1), written(2, delta=10), written(3, delta=20), written(4, delta=None), written(5))
    assert [g.delta_bytes for g in struck(line, frozenset({at(2)}))] == [1, 30, None, 1]
    assert [g.delta_bytes for g in struck(line, frozenset({at(4)}))] == [1, 10, 20, None]
    assert [g.delta_bytes for g in struck(line, frozenset({at(1), at(2)}))] == [None, None, 1]


def test_that_one_was_written_to_late_is_remembered() -> None:
    line = (written(1), replace(written(2), late=True), written(3), written(4))
    assert [g.late for g in struck(line, frozenset({at(2)}))] == [False, True, False]
    assert [g.late for g in struck(line, frozenset({at(3)}))] == [False, True, False]
