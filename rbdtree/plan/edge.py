"""One edge: from what is at both ends to the steps that bring the child on, or to the conflict that forbids it.

    upstream    1.3  1.4  1.5          downstream  1.2  1.3         path  1.4  1.5

Per generation of the path: hold, intend, copy, seal, settle, release the one before. An interrupted target is
finished, or rolled back when it is gone; never skipped to a newer one from a half-applied head. Planning again after
any prefix of a plan yields what was left of it.
"""

from dataclasses import dataclass, field

from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import START, Position
from rbdtree.plan.conflict import (
    CloneChanged,
    Conflict,
    Forgotten,
    HeadChanged,
    HeadResized,
    ImageGone,
    InUse,
    NeedsResync,
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
    Recover,
    Relay,
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
    below the child stand on. ``arriving``: the delta that the parent is receiving itself, where it may be taken from it
    meanwhile. ``lapsed``: why the parent let go of the child's base, if it did. ``distrusted``: the copy compares
    everything, so it needs no generation in common.
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
    gone: ImageGone | Forgotten | None = None
    arriving: Pending | None = None
    lapsed: str = ""
    distrusted: bool = False


def plan_mirror(state: MirrorState, goal: Position | None = None) -> Plan | Conflict:
    """Steps to ``goal`` (None: the newest generation upstream)."""
    if state.gone:
        return state.gone
    held = set(state.held)
    start = _mend(state, held)
    if not isinstance(start, _Start):
        return start
    steps, base = [*start.steps], start.base
    if start.relays:
        return tuple(steps)
    path = _path(state, base, goal)
    arriving = state.arriving
    if arriving and not start.torn and not path and not state.pending and _follows(state, base, arriving):
        # Sealed, settled and released when the parent has sealed it: another plan.
        steps += _hold(held, base)
        return (*steps, Intend(base, arriving.target), Relay(base, arriving.target))
    if start.torn or (path and base and base not in state.upstream):
        # Onto a generation that both ends have when there is more to come, onto the newest of its own when not.
        back = _way_back(state, bool(path))
        if back is None and state.distrusted and path:
            return (*steps, *_compare(state, start, held, path[-1]))
        if back is None:
            newest = max((*state.downstream, *state.lost))
            if state.lapsed:
                return NeedsResync(state.node, newest, state.lapsed)
            return NoCommonGeneration(state.node, max(state.upstream, default=None), newest)
        steps += _hold(held, back if back in state.upstream else None)
        if state.pending != Pending(back, back):
            steps.append(Intend(back, back))
        steps += [*start.forget, RollBack(back)]
        base = back if back.sequence else None
        if not path:
            steps.append(Abandon())
        # Otherwise the next intent replaces this one: without any, a head older than the newest generation of its own
        # would look changed by somebody.
    for target in path:
        steps += _hold(held, base, target)
        steps += [Intend(base, target), Copy(base, target), Seal(target), Settle(target)]
        stale = sorted(p for p in held - state.needed if p < target)
        steps += [Release(position) for position in stale]
        held -= set(stale)
        base = target
    return (*steps, *_let_go(state, held, base))


def _let_go(state: MirrorState, held: set[Position], base: Position | None) -> Plan:
    """At the end the edge holds what the child stands on, and nothing else."""
    wanted = ({base} if base else set()) | state.needed
    steps: list[Step] = _hold(held, *sorted(p for p in wanted if p in state.upstream))
    steps += [Release(position) for position in sorted(held - wanted)]
    return (*steps, Recover()) if state.lapsed else tuple(steps)


def _compare(state: MirrorState, start: "_Start", held: set[Position], target: Position) -> Plan:
    """Onto the newest generation by comparing everything: none is in common, and what the head holds is no matter.

    An interrupted one goes on; when its target is gone, what it wrote is compared with the next target."""
    pending = state.pending
    if pending and not pending.rollback and pending.target in state.upstream:
        target = pending.target
    since = pending.since if pending and pending.target == target else start.base
    steps = _hold(held, target)
    if pending != Pending(since, target):
        steps.append(Intend(since, target))
    steps += [*start.forget, Copy(since, target), Seal(target), Settle(target)]
    return (*steps, *_let_go(state, held, target))


def _hold(held: set[Position], *positions: Position | None) -> list[Step]:
    """Holds for those that are not held yet; ``held`` knows them from now on."""
    missing = [p for p in positions if p and p not in held]
    held.update(missing)
    return [Hold(position) for position in missing]


@dataclass(frozen=True, slots=True)
class _Start:
    """Where a path can begin: after ``steps`` the head is ``base`` (None: empty), unless it is ``torn``.

    ``forget``: generations to strike only under an intent, as without one the head would look changed by somebody.
    ``relays``: the steps end with a relay, and the parent decides how it goes on.
    """

    steps: Plan
    base: Position | None
    torn: bool = False
    forget: Plan = ()
    relays: bool = False


def _mend(state: MirrorState, held: set[Position]) -> _Start | Conflict:
    """Finish what is pending if that can be, refuse what somebody else did to the head."""
    base = max(state.downstream, default=None)
    pending = state.pending
    forget = tuple(Forget(position) for position in state.lost)
    if pending and not pending.rollback and pending.target in state.downstream:
        # Died between seal and settle: the copy is complete.
        return _Start((*forget, Settle(pending.target)), pending.target)
    if pending and not pending.rollback and _can_copy(pending, state):
        ending = (Copy(pending.since, pending.target), Seal(pending.target), Settle(pending.target))
        return _Start((*forget, *_hold(held, pending.since, pending.target), *ending), pending.target)
    if pending and pending == state.arriving and _follows(state, base, pending):
        return _Start((*forget, *_hold(held, base), Relay(pending.since, pending.target)), base, relays=True)
    if pending:
        return _Start((), base, torn=True, forget=forget)
    if state.lost and (base is None or max(state.lost) > base):
        # The head should equal a generation whose snapshot is gone: nothing is left to compare it with.
        return _Start((), base, torn=True, forget=forget)
    if state.changed:
        return HeadChanged(state.node, state.image, base, state.changed)
    if base and state.head_bytes != state.expected_bytes:
        return HeadResized(state.node, state.image, base, state.head_bytes, state.expected_bytes)
    return _Start(forget, base)


def _follows(state: MirrorState, base: Position | None, arriving: Pending) -> bool:
    """Whether what arrives upstream is the very next thing here: from the generation that is the newest at both."""
    return arriving.since == base == max(state.upstream, default=None) and arriving.since != arriving.target


def _can_copy(pending: Pending, state: MirrorState) -> bool:
    return pending.target in state.upstream and (pending.since is None or pending.since in state.upstream)


def _way_back(state: MirrorState, more: bool) -> Position | None:
    """What a head of unknown content can become again (START: nothing, when it had no generation), None for nothing."""
    if not state.downstream and not state.lost:
        return START
    return max((p for p in state.downstream if not more or p in state.upstream), default=None)


def _path(state: MirrorState, base: Position | None, goal: Position | None) -> list[Position]:
    ahead = [p for p in state.upstream if (base is None or p > base) and (goal is None or p <= goal)]
    if base is None and not state.history:
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
    gone: ImageGone | Forgotten | None = None


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
    if state.foreign:
        return CloneChanged(state.node, state.image, state.foreign)
    if target is not None and (over is None or target > over) and not state.stays:
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
