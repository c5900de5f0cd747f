"""What more than one of these files stands on."""

from collections.abc import Iterator

import pytest

from rbdtree.model.document import Kind

from .forest import Grove


@pytest.fixture
def grove() -> Iterator[Grove]:
    """A mirror, a mirror of that, and a clone, in memory."""
    made = Grove()
    made.add("m", "root", Kind.MIRROR, "b")
    made.add("leaf", "m", Kind.MIRROR, "c")
    made.add("c", "root", Kind.CLONE, "a")
    yield made
    made.close()
