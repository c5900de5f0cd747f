"""Fixture of the push tests: ``volume``, a tree with branches to be built in fresh pools."""

from collections.abc import Iterator
from typing import Any

import pytest

from .volume import Volume


@pytest.fixture
def volume(pools: Any) -> Iterator[Volume]:
    """An empty place for a tree ``vol`` at sites a, b and c, and a model of its bytes."""
    made = Volume(pools)
    yield made
    made.close()
