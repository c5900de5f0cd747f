"""Fixtures of the push tests: ``volume``, a tree with branches to be built in fresh pools; ``points``, where to die."""

import itertools
import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from .volume import Volume

SEED = int(os.environ.get("RBDTREE_TEST_SEED", "1"))
Points = Callable[[int], Iterator[dict[str, int]]]


@pytest.fixture
def volume(pools: Any) -> Iterator[Volume]:
    """An empty place for a tree ``vol`` at sites a, b and c, and a model of its bytes."""
    made = Volume(pools)
    yield made
    made.close()


@pytest.fixture(params=["sample", pytest.param("all", marks=[pytest.mark.sweep, pytest.mark.timeout(3600)])])
def points(request: pytest.FixtureRequest) -> Points:
    """``points(9)``: orders to the driver, to kill a command at a call, further on each time.

    A sample of about every ninth, chosen by RBDTREE_TEST_SEED and the test's name; all of them with ``-m sweep``."""

    def chosen(every: int) -> Iterator[dict[str, int]]:
        if request.param == "all":
            # Before a call is after the one before it.
            yield {"kill_before": 1}
            for number in itertools.count(1):
                yield {"kill_after": number}
        dice = random.Random(f"{SEED} {request.node.name}")
        number = dice.randint(1, every)
        while True:
            order = {dice.choice(("kill_before", "kill_after")): number}
            print(f"RBDTREE_TEST_SEED={SEED}: {order}")
            yield order
            number += dice.randint(1, 2 * every - 1)

    return chosen
