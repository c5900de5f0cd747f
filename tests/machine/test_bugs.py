"""Bugs on purpose: each must be found."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from rbdtree.engine import copy as copying
from rbdtree.engine import delta, edge, mirror, relay, zeroing
from rbdtree.engine.copy import Target
from rbdtree.engine.mirror import MirrorEdge
from rbdtree.model.document import NodeDocument
from rbdtree.model.extent import Extents
from rbdtree.plan import step as steps
from rbdtree.plan.edge import MirrorState

from .relays import relayed_everywhere
from .stories import STORIES, die_everywhere, interrupted_everywhere


def replanned(monkeypatch: pytest.MonkeyPatch, change: Callable[[MirrorState, steps.Plan], steps.Plan]) -> None:
    right = edge.plan_mirror

    def wrong(state: MirrorState) -> Any:
        found = right(state)
        return change(state, found) if isinstance(found, tuple) else found

    monkeypatch.setattr(edge, "plan_mirror", wrong)


def seal_before_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_: MirrorState, plan: steps.Plan) -> steps.Plan:
        found = list(plan)
        for n, (one, two) in enumerate(pairwise(plan)):
            if isinstance(one, steps.Copy) and isinstance(two, steps.Seal):
                found[n], found[n + 1] = two, one
        return tuple(found)

    replanned(monkeypatch, change)


def no_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    replanned(monkeypatch, lambda _, plan: tuple(s for s in plan if not isinstance(s, steps.Hold | steps.Release)))


def skip_to_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a crash the target is not finished: the newest is taken from the half-written head."""

    def change(state: MirrorState, plan: steps.Plan) -> steps.Plan:
        pending, newest = state.pending, max(state.upstream, default=None)
        if not pending or pending.rollback or newest is None or newest <= pending.target:
            return plan
        if pending.target in state.downstream or pending.since not in (None, *state.upstream):
            return plan
        since = pending.since
        return (
            steps.Hold(newest),
            steps.Intend(since, newest),
            steps.Copy(since, newest),
            steps.Seal(newest),
            steps.Settle(newest),
        )

    replanned(monkeypatch, change)


def no_intent(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intent is kept in memory only."""
    right = MirrorEdge._intend

    def wrong(self: MirrorEdge, since: Any, target: Any) -> None:
        update, self._update = self._update, self._remember  # type: ignore[method-assign]
        right(self, since, target)
        self._update = update  # type: ignore[method-assign]

    def remember(self: MirrorEdge, change: Callable[[NodeDocument], NodeDocument]) -> None:
        self.document = change(self.document)

    monkeypatch.setattr(MirrorEdge, "_remember", remember, raising=False)
    monkeypatch.setattr(MirrorEdge, "_intend", wrong)
    monkeypatch.setattr(MirrorEdge, "record", lambda *_: None)


def release_before_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    def change(_: MirrorState, plan: steps.Plan) -> steps.Plan:
        releases = [s for s in plan if isinstance(s, steps.Release)]
        others = [s for s in plan if not isinstance(s, steps.Release)]
        at = next((n for n, s in enumerate(others) if isinstance(s, steps.Copy)), len(others))
        return (*others[:at], *releases, *others[at:])

    replanned(monkeypatch, change)


def elide_all_zeroes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        mirror,
        "Target",
        lambda name, image, existing: Target(name, image, Extents()),
    )


def forget_the_shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delta, "_between", lambda *_: [])


def test_a_round_that_trusts_a_parent_that_moved_on_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay.Relay, "_still", lambda *_: True)
    with pytest.raises(AssertionError):
        # Not each order in which threads run meets it.
        relayed_everywhere(10)


def test_progress_that_counts_what_was_dropped_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def advance(self: copying.Copy) -> None:
        while self._open and self._open[0].pending == 0:
            self.copied.done_bytes = self._open.popleft().end
        self._progress(self.copied)

    monkeypatch.setattr(copying.Copy, "_advance", advance)
    with pytest.raises(AssertionError):
        interrupted_everywhere()


def leave_what_it_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeroing, "zero", lambda *_: 0)


def only_the_delta(monkeypatch: pytest.MonkeyPatch) -> None:
    right = MirrorEdge._shift
    monkeypatch.setattr(MirrorEdge, "_shift", lambda *given: (Extents(), right(*given)[1]))


def follow_the_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sealed is what is wanted by then, not what was copied."""
    right = MirrorEdge._intent

    def wrong(self: MirrorEdge) -> Any:
        return replace(right(self), portion=self.document.portion)

    monkeypatch.setattr(MirrorEdge, "_intent", wrong)


SEEDED = [
    (leave_what_it_held, "a narrower portion"),
    (only_the_delta, "a wider portion"),
    (follow_the_wish, "another portion meanwhile"),
    (seal_before_copy, "a write"),
    (no_hold, "retention takes what is not held"),
    (skip_to_the_newest, "an object that is gone in the next generation"),
    (no_intent, "a write"),
    (release_before_seal, "retention takes what is not held"),
    (elide_all_zeroes, "zeroes"),
    (forget_the_shrink, "a shrink, a snapshot, a growth"),
]


@pytest.mark.parametrize(("bug", "story"), SEEDED, ids=[bug.__name__.replace("_", " ") for bug, _ in SEEDED])
def test_a_seeded_bug_is_found(
    bug: Callable[[pytest.MonkeyPatch], None], story: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)
    with pytest.raises(AssertionError) as caught:
        die_everywhere(STORIES[story], "before")
    print(bug.__name__, "|", story, "|", str(caught.value).splitlines()[0][:300])
