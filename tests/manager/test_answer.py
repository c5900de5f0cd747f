"""What a manager does about each error."""

from dataclasses import replace

import pytest

from rbdtree import errors
from rbdtree.manager.answer import LOOK_AGAIN_SECONDS, Answer, answer, kind_of, trouble, wait_seconds

NOW = 1_800_000_000.0


def test_every_class_has_an_answer() -> None:
    from rbdtree.manager import answer as module

    assert set(module._ANSWERS) == set(errors.all_classes())


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.Unreachable("x"), Answer.RETRY),
        (errors.NoSpace("x"), Answer.RETRY),
        (errors.Diverged("x"), Answer.PERSON),
        (errors.Conflict("x"), Answer.PERSON),
        (errors.CephError("x"), Answer.GIVE_UP),
        (errors.Bug("x"), Answer.GIVE_UP),
        (errors.Fenced("x"), Answer.STOP),
    ],
)
def test_answers(error: errors.Error, expected: Answer) -> None:
    assert answer(error) is expected


def test_waits_grow_to_a_limit() -> None:
    for kind, low, high in ((Answer.RETRY, 1, 61), (Answer.GIVE_UP, 30, 3610)):
        waits = [wait_seconds(kind, count) for count in range(1, 30)]
        assert low <= waits[0] <= low * 2
        assert waits[3] > waits[0] * 3
        assert max(waits) <= high
    assert wait_seconds(Answer.PERSON, 5) == LOOK_AGAIN_SECONDS


def test_the_same_trouble_is_counted_and_another_begins_anew() -> None:
    first = trouble(None, errors.Unreachable("one"), NOW, "m")
    second = trouble(first, errors.Unreachable("two"), NOW + 5, "m")
    assert (second.count, second.since, second.seen) == (2, NOW, NOW + 5)
    assert second.next_try > NOW + 5
    other = trouble(second, errors.Diverged("three", "do this"), NOW + 9, "m")
    assert (other.count, other.since, other.next_try, other.hint) == (1, NOW + 9, 0.0, "do this")
    assert kind_of(other) is Answer.PERSON


def test_what_is_said_of_the_next_try() -> None:
    once = trouble(None, errors.Unreachable("one"), NOW, "m")
    assert once.again(NOW) in ("it is tried again in 1 s", "it is tried again in 2 s")
    thrice = replace(once, count=3, next_try=NOW + 30)
    assert thrice.again(NOW + 10) == "3 times; it is tried again in 20 s"
    # By a manager that is gone.
    assert thrice.again(NOW + 90) == "3 times; it was to be tried again 60 s ago"
    assert trouble(None, errors.Diverged("x"), NOW, "m").again(NOW) == "somebody has to see to it"
