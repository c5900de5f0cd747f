"""One edge: from what is at both ends to the steps that bring the child on, or to the conflict that forbids it.

    upstream    1.3  1.4  1.5          downstream  1.2  1.3         path  1.4  1.5

Per generation of the path: hold, intend, copy, seal, settle, release the one before. An interrupted target is
finished, or rolled back when it is gone; never skipped to a newer one from a half-applied head. Planning again after
any prefix of a plan yields what was left of it.
"""

from dataclasses import dataclass, field

from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import Position
from rbdtree.plan.conflict import (
    CloneChanged,
    Conflict,
    HeadChanged,
    HeadResized,
    ImageGone,
    InUse,
    NoCommonGeneration,
)
from rbdtree.plan.step import (
    Abandon,
    Clone,
    Copy,
    Forget,
    Hold,
    Intend,
    Plan,
    Release,
    RollBack,
    Seal,
    Settle,
    Step,
    Swap,
)


@dataclass(frozen=True, slots=True)
class Pending:
    """An intent found in the child's document."""

    since: Position | None
    target: Position

    @property
    def rollback(self) -> bool:
        return self.since == self.target


@dataclass(frozen=True, slots=True)
class MirrorState:
    """An edge to a mirror, as seen. Positions ascend.

    ``upstream``/``downstream``: generations recorded there whose snapshot is really there. ``lost``: recorded
    downstream, but the snapshot is gone. ``held``: what this edge holds upstream. ``changed``: the head against the
    newest downstream generation (or against emptiness), when no intent is pending. ``needed``: what branches at or
    below the child stand on.
    """

    node: str
    image: str
    upstream: tuple[Position, ...]
    downstream: tuple[Position, ...] = ()
    lost: tuple[Position, ...] = ()
    pending: Pending | None = None
    held: frozenset[Position] = field(default_factory=frozenset)
    changed: Extents = NOTHING
    head_bytes: int = 0
    expected_bytes: int = 0
    history: bool = False
    needed: frozenset[Position] = field(default_factory=frozenset)
    gone: ImageGone | None = None


def plan_mirror(state: MirrorState, goal: Position | None = None) -> Plan | Conflict:
    """Steps to ``goal`` (None: the newest generation upstream)."""
    if state.gone:
        return state.gone
    start = _mend(state)
    if not isinstance(start, _Start):
        return start
    steps: list[Step] = [*(Forget(position) for position in state.lost), *start.steps]
    base, held = start.base, set(state.held) | start.held
    path = _path(state, base, max({*state.downstream, *start.sealed}, default=None), goal)
    if path and base and base not in state.upstream:
        # What the head has was removed upstream: go back to what both ends still have.
        common = max((p for p in state.downstream if p in state.upstream), default=None)
        if common is None:
            return NoCommonGeneration(state.node, max(state.upstream, default=None), base)
        steps += _rolling_back(common)
        base = common
    for target in path:
        if target not in held:
            steps.append(Hold(target))
            held.add(target)
        steps += [Intend(base, target), Copy(base, target), Seal(target), Settle(target)]
        stale = sorted(held - {target} - state.needed)
        steps += [Release(position) for position in stale]
        held -= set(stale)
        base = target
    wanted = ({base} if base else set()) | state.needed
    steps += _hold(held, *sorted(p for p in wanted if p in state.upstream))
    steps += [Release(position) for position in sorted(held - wanted)]
    return tuple(steps)


def _hold(held: set[Position], *positions: Position | None) -> list[Step]:
    """Holds for those that are not held yet; ``held`` knows them from now on."""
    missing = [p for p in positions if p and p not in held]
    held.update(missing)
    return [Hold(position) for position in missing]


@dataclass(frozen=True, slots=True)
class _Start:
    """Steps that make the head a whole generation again (``base``; None: empty), and what they seal and hold."""

    steps: tuple[Step, ...]
    base: Position | None
    sealed: frozenset[Position] = frozenset()
    held: frozenset[Position] = frozenset()


def _mend(state: MirrorState) -> _Start | Conflict:
    """Where the path can begin: finish or undo what is pending, refuse what somebody else did to the head."""
    base = max(state.downstream, default=None)
    if state.pending:
        return _finish(state, state.pending, base)
    if state.lost and (base is None or max(state.lost) > base):
        # The head should equal a generation whose snapshot is gone: nothing is left to compare it with.
        common = _rollback_target(state)
        if common is None or not common.sequence:
            return NoCommonGeneration(state.node, max(state.upstream, default=None), max(state.lost))
        return _Start(_rolling_back(common), common)
    if state.changed:
        return HeadChanged(state.node, state.image, base, state.changed)
    if base and state.head_bytes != state.expected_bytes:
        return HeadResized(state.node, state.image, base, state.head_bytes, state.expected_bytes)
    return _Start((), base)


def _finish(state: MirrorState, pending: Pending, base: Position | None) -> _Start | Conflict:
    target = pending.target
    if not pending.rollback and target in state.downstream:
        # Died between seal and settle: the copy is complete.
        return _Start((Settle(target),), target)
    if not pending.rollback and target in state.upstream and _can_diff(pending, state):
        hold: Plan = () if target in state.held else (Hold(target),)
        ending = (Copy(pending.since, target), Seal(target), Settle(target))
        return _Start((*hold, *ending), target, frozenset({target}), frozenset({target}))
    back = target if pending.rollback else _rollback_target(state)
    if back is None:
        return NoCommonGeneration(state.node, max(state.upstream, default=None), base)
    steps = _rolling_back(back)
    return _Start(steps[1:] if pending.rollback else steps, back if back.sequence else None)


def _rolling_back(target: Position) -> Plan:
    return (Intend(target, target), RollBack(target), Abandon())


def _can_diff(pending: Pending, state: MirrorState) -> bool:
    return pending.since is None or pending.since in state.upstream


def _rollback_target(state: MirrorState) -> Position | None:
    """Where a head of unknown content can go back to: the newest common generation, or to nothing if it had none."""
    common = max((p for p in state.downstream if p in state.upstream), default=None)
    if common is None and not state.downstream and not state.lost:
        return Position(1, 0)
    return common


def _path(state: MirrorState, base: Position | None, newest: Position | None, goal: Position | None) -> list[Position]:
    floor = max((p for p in (base, newest) if p), default=None)
    ahead = [p for p in state.upstream if (floor is None or p > floor) and (goal is None or p <= goal)]
    if floor is None and not state.history:
        return ahead[-1:]
    return ahead


@dataclass(frozen=True, slots=True)
class CloneState:
    """An edge to a clone node, as seen.

    ``over`` is the generation the image stands on now, None when there is no image yet; ``foreign`` says in words why
    the image is not a clean clone of ours; ``used_by`` are the clients that have it open. ``stays``: why a node whose
    image is its branch does not move.
    """

    node: str
    image: str
    upstream: tuple[Position, ...]
    over: Position | None = None
    recorded: Position | None = None
    pending: Pending | None = None
    held: frozenset[Position] = field(default_factory=frozenset)
    needed: frozenset[Position] = field(default_factory=frozenset)
    foreign: str = ""
    stays: str = ""
    used_by: tuple[str, ...] = ()
    gone: ImageGone | None = None


def plan_clone(state: CloneState, goal: Position | None = None) -> Plan | Conflict:
    """Steps to ``goal`` (None: the newest generation of the replica): clone beside, swap; no byte is copied."""
    if state.gone:
        return state.gone
    steps: list[Step] = []
    held = set(state.held)
    over = state.over
    pending = state.pending
    if pending and pending.target == over:
        steps.append(Settle(pending.target))
        pending = None
    elif pending and pending.target not in state.upstream:
        steps.append(Abandon())
        pending = None
    target = max((p for p in state.upstream if goal is None or p <= goal), default=None)
    if pending:
        target = pending.target
    moves = target is not None and (over is None or target > over) and not state.stays
    if moves and target is not None:
        if state.foreign:
            return CloneChanged(state.node, state.image, state.foreign)
        if state.used_by:
            return InUse(state.node, state.image, over, state.used_by)
        if target not in held:
            steps.append(Hold(target))
            held.add(target)
        if not pending:
            steps.append(Intend(over, target))
        steps += [Clone(target), Swap(target), Settle(target)]
        over = target
    elif over and over in state.upstream and over not in held:
        steps.append(Hold(over))
        held.add(over)
    steps += [Release(position) for position in sorted(held - {over} - state.needed)]
    return tuple(steps)
