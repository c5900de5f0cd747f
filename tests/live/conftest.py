"""Fixtures of the scenario tests: ``world``, a tree to be built in fresh pools; ``fragile``, a cluster to be hurt."""

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
