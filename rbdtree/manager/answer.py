"""What a manager does about an error: when it tries again, or whom it waits for. Pure.

retry     it passes by itself: soon, then less often
give up   nobody foresaw it, and trying again changes little: rarely
person    somebody has to decide or to mend: when a document changes, and every few minutes, for images change too
stop      the edge is another's now: nothing more is written
"""

from enum import StrEnum

from tenacity import RetryCallState, Retrying, wait_exponential, wait_random

from rbdtree import errors
from rbdtree.model.document import Trouble


class Answer(StrEnum):
    """How an error is met."""

    RETRY = "retry"
    GIVE_UP = "give up"
    PERSON = "person"
    STOP = "stop"


_ANSWERS: dict[type[errors.Error], Answer] = {
    errors.Unreachable: Answer.RETRY,
    errors.Changed: Answer.RETRY,
    errors.Busy: Answer.RETRY,
    errors.NoSpace: Answer.RETRY,
    # The edge distrusts its source now: the next run compares.
    errors.Integrity: Answer.RETRY,
    errors.CephError: Answer.GIVE_UP,
    # No manager maps anything.
    errors.HostFailed: Answer.GIVE_UP,
    errors.Bug: Answer.GIVE_UP,
    errors.UsageError: Answer.PERSON,
    errors.NotFound: Answer.PERSON,
    errors.Exists: Answer.PERSON,
    errors.NotEmpty: Answer.PERSON,
    errors.Denied: Answer.PERSON,
    errors.Unsupported: Answer.PERSON,
    errors.Diverged: Answer.PERSON,
    errors.Conflict: Answer.PERSON,
    errors.Fenced: Answer.STOP,
    errors.Interrupted: Answer.STOP,
}
LOOK_AGAIN_SECONDS = 300.0
"""How often what waits for a person is looked at."""
_WAITS = {
    Answer.RETRY: wait_exponential(multiplier=1, max=60) + wait_random(0, 1),
    Answer.GIVE_UP: wait_exponential(multiplier=30, max=3600) + wait_random(0, 10),
}


def answer(error: errors.Error) -> Answer:
    """By the error's class."""
    return _ANSWERS.get(type(error), Answer.GIVE_UP)


_BY_NAME = {kind.__name__: found for kind, found in _ANSWERS.items()}


def kind_of(found: Trouble) -> Answer:
    """How the error behind it is met."""
    return _BY_NAME.get(found.kind, Answer.GIVE_UP)


def wait_seconds(kind: Answer, count: int) -> float:
    """Until the next try, after ``count`` failures in a row."""
    waits = _WAITS.get(kind)
    if waits is None:
        return LOOK_AGAIN_SECONDS
    state = RetryCallState(Retrying(), None, (), {})
    state.attempt_number = min(count, 60)
    return float(waits(state))


def trouble(before: Trouble | None, error: errors.Error, now: float, manager: str) -> Trouble:
    """The error as it is kept with its edge; counted on when it is still the same one."""
    same = before is not None and before.kind == type(error).__name__
    count = before.count + 1 if before and same else 1
    kind = answer(error)
    return Trouble(
        kind=type(error).__name__,
        message=str(error),
        hint=error.hint or "",
        count=count,
        since=before.since if before and same else round(now, 3),
        seen=round(now, 3),
        next_try=0.0 if kind is Answer.PERSON else round(now + wait_seconds(kind, count), 3),
        manager=manager,
    )
