"""A death, or a person who stops it, at every effect of a sync."""

from collections.abc import Callable
from typing import NamedTuple

from rbdtree.model.portion import WHOLE

from .trees import UNIT, Trees


class Story(NamedTuple):
    """A sync dies between ``before`` and ``after``; then everything must come right."""

    before: Callable[[Trees], None]
    after: Callable[[Trees], None] = lambda _: None


def a_write(trees: Trees) -> None:
    trees.write(UNIT + 4096, 3 * UNIT, 2)


def a_zero(trees: Trees) -> None:
    trees.zero(UNIT, UNIT)
    trees.write(3 * UNIT + 4096, 4096, 0)


def a_shrink_and_a_growth(trees: Trees) -> None:
    trees.resize(UNIT + 512)
    trees.snapshot_of_the_host()
    trees.resize(6 * UNIT)


def a_birth(trees: Trees) -> None:
    trees.resize(7 * UNIT)
    trees.write(6 * UNIT, UNIT, 3)


def its_death(trees: Trees) -> None:
    trees.zero(6 * UNIT, UNIT)
    trees.cut(None, "before")


def retention(trees: Trees) -> None:
    trees.cut(None, "before")
    for _ in range(9):
        trees.retire(-1, 0)


def a_narrowing(trees: Trees) -> None:
    trees.zero(2 * UNIT, UNIT)
    trees.write(0, 2 * UNIT, 5)
    assert trees.give("n2", ((UNIT, 2 * UNIT), (5 * UNIT, UNIT)))


def a_widening(trees: Trees) -> None:
    a_narrowing(trees)
    trees.cut(None, "before")
    trees.sync_all()
    trees.write(3 * UNIT + 512, 512, 6)
    assert trees.give("n2", ((0, 4 * UNIT),))


def to_the_whole(trees: Trees) -> None:
    a_narrowing(trees)
    trees.cut(None, "before")
    trees.sync_all()
    assert trees.give("n2", WHOLE)


def again_another(trees: Trees) -> None:
    """While the delta that brings the one is half applied."""
    assert trees.give("n2", ((4 * UNIT, 2 * UNIT),))


STORIES = {
    "a narrower portion": Story(a_narrowing),
    "a wider portion": Story(a_widening),
    "the whole again": Story(to_the_whole),
    "another portion meanwhile": Story(a_narrowing, again_another),
    "a wider portion, and its generation is gone": Story(a_widening, its_death),
    "a write": Story(a_write),
    "zeroes": Story(a_zero),
    "a shrink, a snapshot, a growth": Story(a_shrink_and_a_growth),
    "an object that is gone in the next generation": Story(a_birth, its_death),
    "retention takes what is not held": Story(a_write, retention),
}


def die_everywhere(story: Story, how: str) -> int:
    """The number of effects a sync of the whole tree has; it died at each of them, in a tree of its own."""
    for effect in range(1, 200):
        trees = Trees()
        trees.begin(6)
        story.before(trees)
        trees.cut(None, "before")
        survived = trees.work(trees.sync, effect, how)
        trees.check()
        story.after(trees)
        trees.check()
        trees.sync_all()
        trees.check()
        trees.teardown()
        if survived is not None:
            return effect
    raise AssertionError("the sync does not come to an end")


def interrupted_everywhere() -> None:
    for after in range(16):
        trees = Trees()
        trees.begin(6)
        a_write(trees)
        trees.cut(None, "before")
        trees.sync_and_interrupt(after)
        trees.check()
        trees.sync_all()
        trees.check()
        trees.teardown()
