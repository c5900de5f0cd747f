"""Fixtures of the push tests: ``volume``, a tree with branches to be built in fresh pools; ``tree``, a small
one that is built; ``points``, where to die."""

import itertools
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest
from live.world import noise

from .volume import MIB, Volume

SEED = int(os.environ.get("RBDTREE_TEST_SEED", "1"))
_STRIDE = 16
_SHARE = pytest.StashKey[float]()
"""Seconds of a test that sweeps."""


class Points:
    """Where to kill a command: ``for order in points(9)``, orders to the driver, further on each time.

    ``points.ended`` is told when a command came to its end. A sample goes once through a command, killing it at about
    every ninth call. A sweep goes through it again and again, each time at other calls, until it had all of them or its
    time is up; the first time it always comes to the end."""

    def __init__(self, name: str, seconds: float | None) -> None:
        self._dice = random.Random(f"{SEED} {name}")
        self._seconds = seconds
        self._end = 0.0
        self._over = False

    def ended(self) -> None:
        """There was nothing to kill any more."""
        self._over = True

    def __call__(self, every: int) -> Iterator[dict[str, int]]:
        if self._seconds is None:
            return self._sample(every)
        # A test that goes through two commands has no more time than others.
        self._end = self._end or time.monotonic() + self._seconds
        return self._sweep()

    def _sample(self, every: int) -> Iterator[dict[str, int]]:
        self._over = False
        number = self._dice.randint(1, every)
        while not self._over:
            order = {self._dice.choice(("kill_before", "kill_after")): number}
            print(f"RBDTREE_TEST_SEED={SEED}: {order}")
            yield order
            number += self._dice.randint(1, 2 * every - 1)

    def _sweep(self) -> Iterator[dict[str, int]]:
        # Before a call is after the one before it.
        begins = list(range(_STRIDE))
        self._dice.shuffle(begins)
        for turn, begin in enumerate(begins):
            self._over = False
            for number in itertools.count(begin, _STRIDE):
                if turn and time.monotonic() > self._end:
                    print(f"RBDTREE_TEST_SEED={SEED}: {turn} of {_STRIDE} calls, then the time was up")
                    return
                yield {"kill_after": number} if number else {"kill_before": 1}
                if self._over:
                    break


@pytest.fixture
def volume(pools: Any) -> Iterator[Volume]:
    """An empty place for a tree ``vol`` at sites a, b and c, and a model of its bytes."""
    made = Volume(pools)
    yield made
    made.close()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """The time of the sweep is shared by its tests."""
    sweeps = [item for item in items if item.get_closest_marker("sweep")]
    minutes = config.getoption("--sweep-minutes", 30.0)
    config.stash[_SHARE] = 60 * minutes / max(1, len(sweeps)) if minutes else float("inf")


@pytest.fixture(params=["sample", pytest.param("all", marks=[pytest.mark.sweep, pytest.mark.timeout(0)])])
def points(request: pytest.FixtureRequest) -> Points:
    """A sample of about every ninth call, chosen by RBDTREE_TEST_SEED and the test's name; with ``-m sweep`` all of
    them, or as many as there is time for."""
    return Points(request.node.name, request.config.stash[_SHARE] if request.param == "all" else None)


@pytest.fixture
def tree(volume: Volume) -> Volume:
    """A root, a mirror and a clone of one generation."""
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("k", "root", "clone", "a")
    volume.root_write({MIB: noise(MIB, "first")})
    volume.step()
    return volume
