"""Many small steps, so that there are many places to die at."""

import pytest

from rbdtree.engine import copy as copying
from rbdtree.engine import desk, relay

from .relays import MeddledCopy
from .trees import UNIT


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads of one object, progress recorded after each: a volume of 128 KiB is copied in many steps."""
    monkeypatch.setattr(copying.chunks, "__defaults__", (UNIT, 4096))
    monkeypatch.setattr(desk, "_RECORD_SECONDS", 0.0)
    monkeypatch.setattr(desk, "_PATIENCE", 0.05)
    monkeypatch.setattr(relay, "STALL_SECONDS", 0.0)
    monkeypatch.setattr(relay, "Copy", MeddledCopy)
    monkeypatch.setattr(relay, "_GLANCE_SECONDS", 0.0)
