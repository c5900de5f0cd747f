"""Zero runs and differences, against a loop over bytes.

One letter is one grain: ``"A0-_"`` is data, zeroes, and a grain that is zero but for its last, or its first, byte.
"""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree.engine.zeroes import GRAIN, differing, runs

KINDS = {"0": bytes(GRAIN), "-": bytes(GRAIN - 1) + b"x", "_": b"x" + bytes(GRAIN - 1)}


def data(text: str) -> bytes:
    return b"".join(KINDS.get(letter, letter.encode() * GRAIN) for letter in text)


def shown(found: list[tuple[int, int, bool]]) -> str:
    """``"x" * grains`` of data and ``"0" * grains`` of zeroes, runs divided by a bar."""
    return "|".join(("0" if zero else "x") * ((end - start) // GRAIN) for start, end, zero in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("A", "x"),
        ("0", "0"),
        ("A0", "x|0"),
        ("00AA00", "00|xx|00"),
        ("-_0", "xx|0"),
        ("0" * 40, "0" * 40),
        ("A" + "0" * 31 + "B", "x|" + "0" * 31 + "|x"),
        ("0" * 16 + "A" + "0" * 15 + "0" * 16, "0" * 16 + "|x|" + "0" * 31),
    ],
)
def test_runs(text: str, expected: str) -> None:
    assert shown(list(runs(data(text), 0, len(data(text))))) == expected


letters = st.text("A0-_", max_size=48)


@given(letters, st.integers(0, 3 * GRAIN), st.integers(0, 3 * GRAIN))
def test_runs_cover_and_tell_the_truth(text: str, before: int, after: int) -> None:
    raw = data(text)
    start, end = min(before, len(raw)), max(min(before, len(raw)), len(raw) - after)
    at, last = start, None
    for low, high, zero in runs(raw, start, end):
        assert low == at < high
        assert zero != last
        assert not zero or not any(raw[low:high])
        at, last = high, zero
    assert at == end
    # No whole grain of zeroes is left among the data.
    for low, high, zero in runs(raw, start, end):
        for grain in range(-(-low // GRAIN) * GRAIN, high - GRAIN + 1, GRAIN):
            assert zero or any(raw[grain : grain + GRAIN])


@given(letters, letters, st.integers(0, 100))
def test_differing_covers_just_the_grains_that_differ(one: str, two: str, odd: int) -> None:
    size = min(len(one), len(two)) * GRAIN
    mine, theirs = data(one)[:size] + b"a" * odd, data(two)[:size] + b"a" * (odd - 1) + b"b" * min(odd, 1)
    truth = {at // GRAIN for at in range(0, len(mine), GRAIN) if mine[at : at + GRAIN] != theirs[at : at + GRAIN]}
    found = list(differing(mine, theirs))
    assert {n for low, high in found for n in range(low // GRAIN, -(-high // GRAIN))} == truth
    assert all(high <= len(mine) for _, high in found)
    assert all(a[1] < b[0] for a, b in pairwise(found))
