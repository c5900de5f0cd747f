"""Extents against the most naive of oracles: a set of bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree.model.extent import Extents

SPAN = 48
pairs = st.lists(st.tuples(st.integers(0, SPAN), st.integers(0, 12)), max_size=8)
bounds = st.tuples(st.integers(0, SPAN + 12), st.integers(0, SPAN + 12)).map(sorted)


def picture(text: str) -> Extents:
    """``"  xx  x"``: the bytes marked x."""
    return Extents.of((at, 1) for at, mark in enumerate(text) if mark == "x")


def members(extents: Extents) -> set[int]:
    return {at for offset, length in extents for at in range(offset, offset + length)}


def check_form(extents: Extents) -> None:
    """Sorted, disjoint, coalesced, no empty ones."""
    end = -1
    for offset, length in extents:
        assert length > 0
        assert offset > end
        end = offset + length


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: picture("xx  xx").union(picture(" xxx  ")), "xxxxxx"),
        (lambda: picture("xxxxxx").intersect(picture(" xx  x")), " xx  x"),
        (lambda: picture("xxxxxx").subtract(picture(" xx  x")), "x  xx "),
        (lambda: picture("  xx  ").complement(0, 6), "xx  xx"),
        (lambda: picture("xxxxxx").clip(2, 4), "  xx  "),
        (lambda: Extents.of([(4, 2), (0, 2), (1, 1), (2, 1), (9, 0)]), "xxx xx"),
    ],
    ids=[
        "a union closes gaps",
        "an intersection has what is in both",
        "a subtraction splits",
        "a complement is what is missing",
        "a clip cuts at both ends",
        "any pairs are sorted, joined and freed of empty ones",
    ],
)
def test_pictures(call: object, expected: str) -> None:
    assert callable(call)
    assert call() == picture(expected)


@given(pairs)
def test_of_any_pairs(raw: list[tuple[int, int]]) -> None:
    found = Extents.of(raw)
    check_form(found)
    truth = {at for offset, length in raw for at in range(offset, offset + length)}
    assert members(found) == truth
    assert found.total == len(truth)
    assert bool(found) == bool(truth)
    assert len(found) == len(found.pairs) == len(list(found))


@given(pairs, pairs, bounds)
def test_algebra(one: list[tuple[int, int]], two: list[tuple[int, int]], within: list[int]) -> None:
    a, b = Extents.of(one), Extents.of(two)
    start, end = within
    inside = set(range(start, end))
    for found, truth in (
        (a.union(b), members(a) | members(b)),
        (a.intersect(b), members(a) & members(b)),
        (a.subtract(b), members(a) - members(b)),
        (a.clip(start, end), members(a) & inside),
        (a.complement(start, end), inside - members(a)),
    ):
        check_form(found)
        assert members(found) == truth


@given(pairs, bounds)
def test_overlaps(raw: list[tuple[int, int]], within: list[int]) -> None:
    start, end = within
    found = Extents.of(raw)
    assert found.overlaps(start, end) == bool(members(found) & set(range(start, end)))


@given(pairs)
def test_equal_sets_are_equal_values(raw: list[tuple[int, int]]) -> None:
    found = Extents.of(raw)
    assert Extents.of(reversed(raw)) == found == Extents.of(found)
    assert hash(found) == hash(Extents.of(raw))


@given(pairs, st.integers(1, 5))
def test_few_are_all_of_them_and_the_narrowest_gaps(raw: list[tuple[int, int]], count: int) -> None:
    whole = Extents.of(raw)
    found = whole.few(count)
    check_form(found)
    assert len(found) == min(count, len(whole))
    assert members(whole) <= members(found)
    added = found.subtract(whole)
    left = Extents.of(found).complement(*(found.pairs[0][0], found.pairs[-1][0] + 1)) if found else found
    assert not added or not left or max(n for _, n in added) <= min(n for _, n in left)
