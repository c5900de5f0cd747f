"""What every sync and every relay must live through."""

import pytest

from .relays import relayed_everywhere
from .stories import STORIES, die_everywhere, interrupted_everywhere


@pytest.mark.parametrize(
    ("story", "how"), [*((story, how) for story in STORIES for how in ("before", "after")), ("a write", "torn")]
)
def test_a_sync_may_die_at_any_effect(story: str, how: str) -> None:
    assert die_everywhere(STORIES[story], how) > 20


def test_a_sync_may_be_interrupted_anywhere() -> None:
    interrupted_everywhere()


def test_a_delta_passes_on_while_it_arrives() -> None:
    assert relayed_everywhere() > 10
