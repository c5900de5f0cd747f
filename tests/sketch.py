"""A picture language for plans: an edge in a line, a plan in a line.

    mirror("1 2* 3 | 1 2 x4 2>3 ~")     upstream has 1, 2 and 3, 2 is held; downstream has 1 and 2, 4 was lost (its
                                         snapshot is gone); on its way from 2 to 3; the head was changed by somebody

    *   held by this edge          >3    on its way from nothing to 3        ~   head changed
    x   snapshot gone              2>2   rolling back to 2 (0: to nothing)   !   head resized
    -   the base was let go        %     everything is compared

    clone("1 2* 3 | 2 2>3 ~")            stands over 2; ~ somebody wrote into it, ! somebody has it open

    plan("hold 3; intend 2>3; copy 2>3; seal 3; settle 3; release 2")

All of it happens in epoch 1; ``show`` is the way back. ``Edge`` carries steps out on such a picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from rbdtree.model.extent import Extents
from rbdtree.model.position import Position
from rbdtree.plan import step as steps
from rbdtree.plan.conflict import Conflict
from rbdtree.plan.edge import CloneState, MirrorState, Pending, plan_clone, plan_mirror

TORN = Position(9, 9)
"""What a half-written head holds."""
SIZE = 4096


def at(number: str | int) -> Position:
    return Position(1, int(number))


def _upstream(text: str) -> tuple[tuple[Position, ...], frozenset[Position]]:
    words = text.split()
    return tuple(at(w.rstrip("*")) for w in words), frozenset(at(w[:-1]) for w in words if w.endswith("*"))


def _pending(words: list[str]) -> Pending | None:
    found = next((word for word in words if ">" in word), None)
    if found is None:
        return None
    since, _, target = found.partition(">")
    return Pending(at(since) if since else None, at(target))


def mirror(text: str, *, history: bool = False) -> MirrorState:
    upstream, held = _upstream(text.partition("|")[0])
    words = text.partition("|")[2].split()
    have = tuple(at(w) for w in words if w.isdecimal())
    return MirrorState(
        node="t/m",
        image="b:rbd/m",
        upstream=upstream,
        downstream=have,
        lost=tuple(at(w[1:]) for w in words if w[0] == "x"),
        pending=_pending(words),
        held=held,
        changed=Extents.of([(0, 512)]) if "~" in words else Extents(),
        head_bytes=(SIZE if have else 0) + (1 if "!" in words else 0),
        expected_bytes=SIZE if have else 0,
        history=history,
        lapsed="a limit" if "-" in words else "",
        distrusted="%" in words,
    )


def clone(text: str) -> CloneState:
    upstream, held = _upstream(text.partition("|")[0])
    words = text.partition("|")[2].split()
    over = next((at(w) for w in words if w.isdecimal()), None)
    return CloneState(
        node="t/c",
        image="a:rbd/c",
        upstream=upstream,
        over=over,
        recorded=over,
        pending=_pending(words),
        held=held,
        foreign="holds data of its own: somebody wrote to it" if "~" in words else "",
        used_by=("127.0.0.1:0/7",) if "!" in words else (),
    )


_ONE = {
    "hold": steps.Hold,
    "release": steps.Release,
    "rollback": steps.RollBack,
    "seal": steps.Seal,
    "settle": steps.Settle,
    "forget": steps.Forget,
    "clone": steps.Clone,
    "swap": steps.Swap,
}


def plan(text: str) -> steps.Plan:
    return tuple(_step(line.split()) for line in text.split(";") if line.strip())


def _step(words: list[str]) -> steps.Step:
    verb = words[0]
    if verb == "abandon":
        return steps.Abandon()
    if verb == "recover":
        return steps.Recover()
    if verb in _ONE:
        return _ONE[verb](at(words[1]))
    since, _, target = words[1].partition(">")
    two = {"intend": steps.Intend, "copy": steps.Copy, "relay": steps.Relay}[verb]
    return two(at(since) if since else None, at(target))


def show(done: steps.Plan) -> str:
    """A plan as ``plan`` reads it."""
    return "; ".join(_show(step) for step in done)


def _show(step: steps.Step) -> str:
    if isinstance(step, steps.Abandon | steps.Recover):
        return type(step).__name__.lower()
    if isinstance(step, steps.Intend | steps.Copy | steps.Relay):
        since = step.since.sequence if step.since else ""
        return f"{type(step).__name__.lower()} {since}>{step.target.sequence}"
    position = step.target if isinstance(step, steps.RollBack) else step.position
    return f"{type(step).__name__.lower()} {position.sequence}"


@dataclass(frozen=True)
class Edge:
    """A state with what cannot be seen in it: what the head holds, and every sealed snapshot.

    ``then`` carries one step out and insists on what makes it safe.
    """

    state: MirrorState | CloneState
    head: Position | None = None
    sealed: tuple[tuple[Position, Position | None], ...] = ()
    made: Position | None = None
    """The clone beside."""

    @classmethod
    def of(cls, state: MirrorState | CloneState) -> Edge:
        """The head of a mirror holds its newest generation, or is torn when one is on its way."""
        if isinstance(state, CloneState):
            return cls(state)
        head = TORN if state.pending else max((*state.downstream, *state.lost), default=None)
        return cls(state, head, tuple((p, p) for p in state.downstream))

    def plan(self, goal: Position | None = None) -> steps.Plan | Conflict:
        if isinstance(self.state, MirrorState):
            return plan_mirror(self.state, goal)
        return plan_clone(self.state, goal)

    def then(self, step: steps.Step, *, torn: bool = False) -> Edge:
        """The edge after the step; ``torn``: it died in the middle of it."""
        if isinstance(self.state, MirrorState):
            return self._mirror(self.state, step, torn)
        return self._clone(self.state, step)

    def _mirror(self, state: MirrorState, step: steps.Step, torn: bool) -> Edge:
        edge = self
        match step:
            case steps.Hold(position):
                assert position in state.upstream, f"{step}: it is not there"
                state = replace(state, held=state.held | {position})
            case steps.Release(position):
                newest = max(state.downstream, default=None)
                assert newest is None or position != newest or state.pending is None, f"{step}: it is the base"
                assert not state.pending or position not in (state.pending.since, state.pending.target), step
                state = replace(state, held=state.held - {position})
            case steps.Intend(since, target):
                base = max(state.downstream, default=None)
                back = state.pending and state.pending.rollback and since == state.pending.target
                assert back or since in (base, target), f"{step}: the newest generation is {base}"
                undone = state.pending and not state.pending.rollback
                assert not undone or since == target or state.distrusted, f"{step}: {state.pending} is not finished"
                assert since in (target, self.head) or state.distrusted, f"{step}: the head holds {self.head}"
                state = replace(state, pending=Pending(since, target))
            case steps.Copy(since, target):
                assert state.pending == Pending(since, target), f"{step}: never intended"
                assert target in state.held, f"{step}: {target} is not held"
                assert since is None or since in state.held or state.distrusted, f"{step}: {since} is not held"
                assert self.head in (since, target, TORN) or state.distrusted, f"{step}: the head holds {self.head}"
                edge = replace(edge, head=TORN if torn else target)
            case steps.RollBack(target):
                assert state.pending == Pending(target, target), f"{step}: never intended"
                assert not target.sequence or target in state.downstream, f"{step}: there is no such snapshot"
                edge = replace(edge, head=TORN if torn else (target if target.sequence else None))
            case steps.Seal(position):
                assert state.pending and state.pending.target == position, f"{step}: never intended"  # noqa: PT018
                have = tuple(sorted({*state.downstream, position}))
                edge = replace(edge, sealed=(*edge.sealed, (position, self.head)))
                state = replace(state, downstream=have)
            case steps.Settle(position):
                assert position in state.downstream, f"{step}: not sealed"
                assert state.pending, f"{step}: never intended"
                assert state.pending.target == position
                state = replace(state, pending=None, distrusted=False)
                edge = replace(edge, head=position)
            case steps.Abandon():
                assert self.head != TORN, f"{step}: the head is torn"
                state = replace(state, pending=None)
            case steps.Recover():
                assert max(state.downstream) in state.held, f"{step}: the newest is not held"
                state = replace(state, lapsed="")
            case steps.Forget(position):
                state = replace(state, lost=tuple(p for p in state.lost if p != position))
            case _:
                raise AssertionError(f"{step} is not a mirror's")
        return replace(edge, state=edge._looked_at(state, edge.head))

    def _looked_at(self, state: MirrorState, head: Position | None) -> MirrorState:
        """With what an observer finds: the head against the newest generation."""
        newest = max(state.downstream, default=None)
        changed = state.pending is None and head != newest and not (state.lost and head == max(state.lost))
        size = SIZE if newest else 0
        return replace(
            state,
            changed=Extents.of([(0, 512)]) if changed else Extents(),
            head_bytes=size,
            expected_bytes=size,
        )

    def _clone(self, state: CloneState, step: steps.Step) -> Edge:
        match step:
            case steps.Hold(position):
                assert position in state.upstream, f"{step}: it is not there"
                return replace(self, state=replace(state, held=state.held | {position}))
            case steps.Release(position):
                assert position != state.over, f"{step}: the clone stands on it"
                return replace(self, state=replace(state, held=state.held - {position}))
            case steps.Intend(since, target):
                assert since == state.over
                assert state.pending is None, f"{step}: {state.pending} is not finished"
                return replace(self, state=replace(state, pending=Pending(since, target)))
            case steps.Clone(position):
                assert state.pending, f"{step}: never intended"
                assert position in state.held, f"{step}: not held"
                return replace(self, made=position)
            case steps.Swap(position):
                assert self.made == position, f"{step}: there is no clone"
                assert not state.used_by, f"{step}: in use"
                assert not state.foreign, f"{step}: it holds data"
                return replace(self, state=replace(state, over=position))
            case steps.Settle(position):
                assert state.over == position, f"{step}: the clone stands over {state.over}"
                return replace(self, state=replace(state, pending=None, recorded=position), made=None)
            case steps.Abandon():
                return replace(self, state=replace(state, pending=None), made=None)
        raise AssertionError(f"{step} is not a clone's")

    @property
    def whole(self) -> bool:
        """Every snapshot holds what its name says."""
        return all(name == content for name, content in self.sealed)


def walk(edge: Edge, done: steps.Plan) -> Edge:
    for step in done:
        edge = edge.then(step)
        assert edge.whole, f"{step}: {edge.sealed}"
    return edge


def finish(edge: Edge) -> Edge:
    """Plans and walks until nothing is planned, as the engine does."""
    for _ in range(10):
        planned = edge.plan()
        assert isinstance(planned, tuple), planned.error()
        if not planned:
            return edge
        edge = walk(edge, planned)
    raise AssertionError(f"planning does not come to an end: {edge.state}")


def assert_plan(state: MirrorState | CloneState, expected: str) -> None:
    """The plan is the expected one; and whoever dies before, in or after any of its steps finishes it."""
    edge = Edge.of(state)
    planned = edge.plan()
    assert isinstance(planned, tuple), planned
    assert show(planned) == show(plan(expected))
    assert_interruptible(edge, planned)


def assert_interruptible(edge: Edge, planned: steps.Plan) -> None:
    """Planning again after any prefix yields the rest, or steps to the same end."""
    end = finish(walk(edge, planned))
    assert end.state.pending is None
    here = edge
    for number, step in enumerate(planned):
        for now in (here, here.then(step, torn=True)):
            again = now.plan()
            assert isinstance(again, tuple), f"after {show(planned[:number])!r}: {again}"
            if again != planned[number:]:
                assert finish(now).state == end.state, f"after {show(planned[:number])!r}: {show(again)}"
        here = here.then(step)
