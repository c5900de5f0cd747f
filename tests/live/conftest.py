"""Fixtures of the scenario tests.

world      a place for one tree, in fresh pools of the clusters that all tests share
fragile    the same on clusters whose daemons may be hurt: they are whole again after each test
"""

from collections.abc import Iterator
from typing import Any

import pytest

from .world import World


@pytest.fixture
def world(pools: Any) -> Iterator[World]:
    """An empty place for a tree ``vol`` at sites a, b and c."""
    made = World(pools)
    yield made
    made.close()


@pytest.fixture
def fragile(mortal_pools: Any) -> Iterator[World]:
    """``world`` on clusters whose daemons this test may stop."""
    made = World(mortal_pools)
    yield made
    mortal_pools.clusters.mend()
    made.close()
