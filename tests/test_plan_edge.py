"""Plans for one edge: tables of pictures, every prefix of every plan, and random states."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sketch import Edge, assert_interruptible, assert_plan, at, clone, finish, mirror, plan, show, walk

from rbdtree.model.extent import Extents
from rbdtree.plan import step as steps
from rbdtree.plan.conflict import (
    CloneChanged,
    Forgotten,
    HeadChanged,
    HeadResized,
    ImageGone,
    InUse,
    NeedsResync,
    NoCommonGeneration,
)
from rbdtree.plan.edge import CloneState, MirrorState, Pending, plan_clone, plan_mirror

MIRRORS = [
    ("a settled mirror plans nothing", "1 2* | 1 2", ""),
    (
        "a resync: onto the newest generation by comparing",
        "3 4 | 1 - %",
        "hold 4; intend 1>4; copy 1>4; seal 4; settle 4; recover",
    ),
    ("a resync that died in the copy", "3 4* | 1 1>4 - %", "copy 1>4; seal 4; settle 4; recover"),
    ("a resync that died before it said that it is over", "3 4* | 1 4 -", "recover"),
    (
        "a resync whose target is no longer the newest ends there first",
        "3* 4 | 1 1>3 - %",
        "copy 1>3; seal 3; settle 3; recover",
    ),
    (
        "a resync whose target is gone compares with the next one",
        "4 | 1 1>3 - %",
        "hold 4; intend 1>4; copy 1>4; seal 4; settle 4; recover",
    ),
    (
        "the base was let go in the middle of a delta: everything is compared, too",
        "4 | 1 2 2>3 - %",
        "hold 4; intend 2>4; copy 2>4; seal 4; settle 4; recover",
    ),
    (
        "let go, but something else kept it: the delta goes on, and nothing is said any more",
        "1 3 | 1 -",
        "hold 1; hold 3; intend 1>3; copy 1>3; seal 3; settle 3; release 1; recover",
    ),
    (
        "let go, but an older generation is there at both ends: back to it, and on",
        "1 3 | 1 2 -",
        "hold 1; intend 1>1; rollback 1; hold 3; intend 1>3; copy 1>3; seal 3; settle 3; release 1; recover",
    ),
    ("nothing upstream, nothing to do", " | ", ""),
    (
        "a new mirror copies the newest generation only",
        "1 2 3 | ",
        "hold 3; intend >3; copy >3; seal 3; settle 3",
    ),
    (
        "one generation behind: one delta, then the old base is released",
        "1 2* 3 | 1 2",
        "hold 3; intend 2>3; copy 2>3; seal 3; settle 3; release 2",
    ),
    (
        "two behind: both deltas, in order",
        "1* 2 3 | 1",
        "hold 2; intend 1>2; copy 1>2; seal 2; settle 2; release 1;"
        "hold 3; intend 2>3; copy 2>3; seal 3; settle 3; release 2",
    ),
    (
        "generations that were removed upstream in between are skipped",
        "1* 4 | 1",
        "hold 4; intend 1>4; copy 1>4; seal 4; settle 4; release 1",
    ),
    (
        "a base that is not held is held before anything is copied from it",
        "2 3 | 2",
        "hold 2; hold 3; intend 2>3; copy 2>3; seal 3; settle 3; release 2",
    ),
    ("died before the intent", "1* 2* | 1", "intend 1>2; copy 1>2; seal 2; settle 2; release 1"),
    ("died in the copy", "1* 2* | 1 1>2", "copy 1>2; seal 2; settle 2; release 1"),
    (
        "died in the copy, and there is a newer generation by now: the target first",
        "1* 2* 3 | 1 1>2",
        "copy 1>2; seal 2; settle 2; hold 3; intend 2>3; copy 2>3; seal 3; settle 3; release 1; release 2",
    ),
    (
        "died in the first copy",
        "2* 3 | >2",
        "copy >2; seal 2; settle 2; hold 3; intend 2>3; copy 2>3; seal 3;settle 3; release 2",
    ),
    ("died between seal and settle", "1* 2* | 1 2 1>2", "settle 2; release 1"),
    ("died between settle and release", "1* 2* | 1 2", "release 1"),
    ("holds of its past are released", "1* 2* 3* | 1 2 3", "release 1; release 2"),
    (
        "the target is gone upstream: back to the common generation, then on",
        "1* 3 | 1 1>2",
        "intend 1>1; rollback 1; hold 3; intend 1>3; copy 1>3; seal 3; settle 3; release 1",
    ),
    (
        "the base of the target is gone upstream: back to an older common one",
        "1 3* | 1 2 2>3",
        "hold 1; intend 1>1; rollback 1; intend 1>3; copy 1>3; seal 3; settle 3; release 1",
    ),
    (
        "the target of a first copy is gone: back to nothing, then on",
        "3 | >2",
        "intend 0>0; rollback 0; hold 3; intend >3; copy >3; seal 3; settle 3",
    ),
    (
        "died in a rollback",
        "1* 2 | 1 1>1",
        "rollback 1; hold 2; intend 1>2; copy 1>2; seal 2; settle 2; release 1",
    ),
    ("died in a rollback to nothing", "2 | 0>0", "rollback 0; hold 2; intend >2; copy >2; seal 2; settle 2"),
    (
        "the newest generation's snapshot was removed by hand: forgotten under an intent",
        "1 2* 3 | 1 x2",
        "hold 1; intend 1>1; forget 2; rollback 1; intend 1>2; copy 1>2; seal 2; settle 2; release 1;"
        "hold 3; intend 2>3; copy 2>3; seal 3; settle 3; release 2",
    ),
    ("an older snapshot was removed by hand: only forgotten", "1 2* | x1 2", "forget 1"),
    (
        "the base was removed upstream: back to the common generation",
        "1 3 | 1 2",
        "hold 1; intend 1>1; rollback 1; hold 3; intend 1>3; copy 1>3; seal 3; settle 3; release 1",
    ),
    ("the base was removed upstream and nothing is newer", "1 | 1 2", ""),
    (
        "the newest snapshot was removed by hand at both ends: back to the one before",
        "1* | 1 x2",
        "intend 1>1; forget 2; rollback 1; abandon",
    ),
    (
        "died in a copy whose target is gone, and nothing is newer: back to its own newest",
        "1* | 1 2 2>3",
        "intend 2>2; rollback 2; abandon; release 1",
    ),
    (
        "back to an older common generation, and the newest of its own is never shown as a change",
        "1 3 | 1 2 1>1",
        "hold 1; rollback 1; hold 3; intend 1>3; copy 1>3; seal 3; settle 3; release 1",
    ),
    ("a replica ahead of a parent that lost its newest waits", "1* | 1 2", "release 1"),
]


@pytest.mark.parametrize(("picture", "expected"), [row[1:] for row in MIRRORS], ids=[row[0] for row in MIRRORS])
def test_mirror(picture: str, expected: str) -> None:
    assert_plan(mirror(picture), expected)


RELAYS = [
    ("level with a parent that is receiving: takes it meanwhile", "1* | 1", (1, 2), "intend 1>2; relay 1>2"),
    ("the base is held first", "1 | 1", (1, 2), "hold 1; intend 1>2; relay 1>2"),
    ("a new mirror below one that is seeding", " | ", (None, 2), "intend >2; relay >2"),
    (
        "behind: what is sealed comes first, and the relay in the next plan",
        "1* 2 | 1",
        (2, 3),
        "hold 2; intend 1>2; copy 1>2; seal 2; settle 2; release 1",
    ),
    ("died in a relay, and it still arrives", "1* | 1 1>2", (1, 2), "relay 1>2"),
    (
        "sealed upstream meanwhile: the rest is copied from the generation",
        "1* 2 | 1 1>2",
        None,
        "hold 2; copy 1>2; seal 2; settle 2; release 1",
    ),
    ("given up upstream: back to its own newest", "1* | 1 1>2", None, "intend 1>1; rollback 1; abandon"),
    ("another delta arrives than the one begun", "1* | 1 1>2", (1, 3), "intend 1>1; rollback 1; abandon"),
    ("what arrives does not follow on what is here", "1* 3 | 1 1>2", (3, 4), None),
]


@pytest.mark.parametrize(("picture", "arriving", "expected"), [row[1:] for row in RELAYS], ids=[r[0] for r in RELAYS])
def test_relay(picture: str, arriving: tuple[int | None, int] | None, expected: str | None) -> None:
    coming = Pending(at(arriving[0]) if arriving[0] else None, at(arriving[1])) if arriving else None
    found = plan_mirror(replace(mirror(picture), arriving=coming))
    if expected is None:
        assert isinstance(found, tuple)
        assert not any(isinstance(step, steps.Relay) for step in found)
    else:
        assert found == plan(expected)


def test_a_changed_head_takes_nothing_in() -> None:
    changed = replace(mirror("1* | 1"), arriving=Pending(at(1), at(2)), changed=Extents.of([(0, 512)]))
    assert isinstance(plan_mirror(changed), HeadChanged)


def test_a_mirror_with_history_copies_every_generation() -> None:
    expected = "hold 1; intend >1; copy >1; seal 1; settle 1; hold 2; intend 1>2; copy 1>2; seal 2; settle 2; release 1"
    assert_plan(mirror("1 2 | ", history=True), expected)


def test_a_goal_is_not_overshot() -> None:
    found = plan_mirror(mirror("1* 2 3 | 1"), at(2))
    assert found == plan("hold 2; intend 1>2; copy 1>2; seal 2; settle 2; release 1")
    assert plan_mirror(mirror("1 2* 3 | 2"), at(1)) == ()
    assert plan_clone(clone("1* 2 3 | 1"), at(2)) == plan("hold 2; intend 1>2; clone 2; swap 2; settle 2; release 1")


CLONES = [
    ("a settled clone plans nothing", "1 2* | 2", ""),
    ("nothing upstream, nothing to do", " | ", ""),
    ("a new clone stands over the newest generation", "1 2 | ", "hold 2; intend >2; clone 2; swap 2; settle 2"),
    ("it moves straight to the newest", "1* 2 3 | 1", "hold 3; intend 1>3; clone 3; swap 3; settle 3; release 1"),
    ("died before the clone", "1* 2* | 1 1>2", "clone 2; swap 2; settle 2; release 1"),
    (
        "died before the clone, and there is a newer one by now",
        "1* 2* 3 | 1 1>2",
        "clone 2; swap 2; settle 2; release 1",
    ),
    ("died between the swap's two halves", "1* 2* | 1>2", "clone 2; swap 2; settle 2; release 1"),
    ("died between swap and settle", "1* 2* | 2 1>2", "settle 2; release 1"),
    (
        "the target is gone upstream: another",
        "1* 3 | 1 1>2",
        "abandon; hold 3; intend 1>3; clone 3; swap 3; settle 3; release 1",
    ),
    ("a generation it stands on is held", "2 | 2", "hold 2"),
    ("what it does not stand on is released", "1* 2* | 2", "release 1"),
    ("one in use has nothing to move to", "2* | 2 !", ""),
]


@pytest.mark.parametrize(("picture", "expected"), [row[1:] for row in CLONES], ids=[row[0] for row in CLONES])
def test_clone(picture: str, expected: str) -> None:
    assert_plan(clone(picture), expected)


def test_somebody_wrote_into_a_mirror() -> None:
    found = plan_mirror(mirror("1 2* 3 | 2 ~"))
    assert isinstance(found, HeadChanged)
    assert (found.node, found.since, found.extents.total) == ("t/m", at(2), 512)
    assert "differs from its generation 1.2 in 512 bytes in 1 extents (0+512)" in str(found.error())
    empty = plan_mirror(mirror("1 | ~"))
    assert isinstance(empty, HeadChanged)
    assert "differs from an empty image" in str(empty.error())


def test_somebody_resized_a_mirror() -> None:
    found = plan_mirror(mirror("1 2* | 2 !"))
    assert isinstance(found, HeadResized)
    assert (found.size_bytes, found.expected_bytes) == (4097, 4096)


@pytest.mark.parametrize(
    ("picture", "upstream", "downstream"),
    [("4 | 1 2", 4, 2), ("4 | x2", 4, 2), ("4 | 1 x2", 4, 2), ("4 | 1 1>2", 4, 1), ("| x2", None, 2)],
    ids=[
        "every common generation was removed upstream",
        "the only generation was removed by hand",
        "the newest was removed by hand and the others upstream",
        "the target and its base are gone",
        "nothing is left at either end",
    ],
)
def test_nothing_in_common(picture: str, upstream: int | None, downstream: int) -> None:
    found = plan_mirror(mirror(picture))
    assert isinstance(found, NoCommonGeneration)
    assert found.upstream == (at(upstream) if upstream else None)
    assert found.downstream == at(downstream)
    assert "rbdtree resync t/m" in (found.error().hint or "")


@pytest.mark.parametrize(
    ("gone", "said"),
    [(ImageGone("t/m", "b:rbd/m", "12ab", "34cd"), "34cd"), (Forgotten("t/m", "t/root"), "no child of t/root")],
    ids=["the image is gone", "the node was forgotten"],
)
def test_what_stops_everything(gone: ImageGone | Forgotten, said: str) -> None:
    assert plan_mirror(MirrorState("t/m", "b:rbd/m", (at(1),), gone=gone)) is gone
    assert plan_clone(CloneState("t/c", "b:rbd/m", (at(1),), gone=gone)) is gone
    assert said in str(gone.error())


def test_a_clone_that_is_open_stays_and_says_who_has_it() -> None:
    found = plan_clone(clone("1* 2 | 1 !"))
    assert isinstance(found, InUse)
    assert (found.position, found.by) == (at(1), ("127.0.0.1:0/7",))
    assert "127.0.0.1:0/7" in str(found.error())


def test_a_clone_that_was_written_to_stays() -> None:
    found = plan_clone(clone("1* 2 | 1 ~"))
    assert isinstance(found, CloneChanged)
    assert "somebody wrote to it" in str(found.error())


# -- random states

numbers = st.integers(1, 6)
some = st.frozensets(numbers, max_size=5)


@st.composite
def mirrors(draw: st.DrawFn) -> MirrorState:
    """Whatever two ends and a crash may leave: holds are of what is there, one generation at most is under way."""
    upstream, downstream = sorted(draw(some)), sorted(draw(some))
    lost = sorted(draw(some) - set(downstream)) if draw(st.booleans()) else []
    held = draw(st.frozensets(st.sampled_from(upstream))) if upstream else frozenset()
    pending = None
    newest = max((*downstream, *lost), default=None)
    ahead = [n for n in range(1, 8) if newest is None or n > newest]
    match draw(st.sampled_from(["none", "copy", "rollback", "empty"])):
        case "copy" if ahead:
            pending = Pending(at(newest) if newest else None, at(draw(st.sampled_from(ahead))))
        case "rollback" if downstream:
            pending = Pending(*[at(draw(st.sampled_from(downstream)))] * 2)
        case "empty" if newest is None:
            pending = Pending(at(0), at(0))
        case "copy" | "rollback" | "empty":
            pending = None
    sealed = pending and pending.since != pending.target and draw(st.booleans())
    if sealed and pending:
        downstream.append(pending.target.sequence)
    size = 4096 if downstream else 0
    return MirrorState(
        node="t/m",
        image="b:rbd/m",
        upstream=tuple(map(at, upstream)),
        downstream=tuple(map(at, downstream)),
        lost=tuple(map(at, lost)),
        pending=pending,
        held=frozenset(map(at, held)),
        head_bytes=size,
        expected_bytes=size,
        history=draw(st.booleans()),
    )


@st.composite
def clones(draw: st.DrawFn) -> CloneState:
    upstream = sorted(draw(some))
    over = draw(st.none() | numbers)
    held = draw(st.frozensets(st.sampled_from(upstream))) if upstream else frozenset()
    ahead = [n for n in range(1, 8) if over is None or n > over]
    pending = None
    if draw(st.booleans()):
        target = at(draw(st.sampled_from(ahead)))
        pending = Pending(at(over) if over else None, target)
        if draw(st.booleans()):
            over = target.sequence
    return CloneState(
        node="t/c",
        image="a:rbd/c",
        upstream=tuple(map(at, upstream)),
        over=at(over) if over else None,
        held=frozenset(map(at, held)),
        pending=pending,
    )


def check_order(found: steps.Plan, held: frozenset[object], pending: Pending | None) -> None:
    """What must come before what, whatever the state."""
    now, intended = set(held), (pending.since, pending.target) if pending else None
    settled: list[object] = []
    for step in found:
        match step:
            case steps.Hold(position):
                assert position not in now
                now.add(position)
            case steps.Intend(since, target):
                intended = (since, target)
            case steps.Copy(since, target):
                assert intended == (since, target)
                assert target in now
                assert since is None or since in now
            case steps.Clone(position):
                assert intended
                assert position in now
            case steps.Settle(position):
                settled.append(position)
            case steps.Release(position):
                assert position in now
                now.remove(position)


@settings(max_examples=600)
@given(state=st.one_of(mirrors(), clones()))
def test_any_plan_can_be_interrupted_anywhere(state: MirrorState | CloneState) -> None:
    edge = Edge.of(state)
    found = edge.plan()
    if not isinstance(found, tuple):
        return
    check_order(found, state.held, state.pending)
    end = finish(edge)
    assert end.plan() == ()
    assert end.state.pending is None
    assert end.whole
    assert_interruptible(edge, found)


@settings(max_examples=300)
@given(state=st.one_of(mirrors(), clones()))
def test_the_end_is_the_newest_and_holds_just_that(state: MirrorState | CloneState) -> None:
    edge = Edge.of(state)
    if not isinstance(edge.plan(), tuple):
        return
    end = finish(edge).state
    newest = max(end.upstream, default=None)
    have = max(end.downstream, default=None) if isinstance(end, MirrorState) else end.over
    assert newest is None or (have is not None and have >= newest)
    assert end.held == ({have} if have in end.upstream else set())


@settings(max_examples=300)
@given(state=mirrors())
def test_nothing_is_released_before_a_newer_generation_is_settled(state: MirrorState) -> None:
    found = plan_mirror(state)
    if not isinstance(found, tuple):
        return
    have = max(state.downstream, default=None) if state.pending is None else None
    for number, step in enumerate(found):
        if isinstance(step, steps.Release) and state.lost == () and step.position == have:
            newer = [s.position for s in found[:number] if isinstance(s, steps.Settle)]
            assert any(position > step.position for position in newer) or have not in state.upstream, show(found)


def test_the_walk_itself_refuses_nonsense() -> None:
    """The assertions of ``sketch.Edge`` bite: seeded bugs in a plan are found."""
    edge = Edge.of(mirror("1* 2 | 1"))
    for wrong in (
        "intend 1>2; copy 1>2; seal 2; settle 2; release 1",
        "hold 2; copy 1>2; seal 2; settle 2; release 1",
        "hold 2; intend 1>2; seal 2; copy 1>2; settle 2; release 1",
        "hold 2; intend 1>2; release 1; copy 1>2; seal 2; settle 2",
        "hold 2; intend 1>2; copy 1>2; settle 2; release 1",
    ):
        with pytest.raises(AssertionError):
            walk(edge, plan(wrong))


@pytest.mark.parametrize("picture", ["3 4 | 1 -", "3 4* | 1 1>3 -", "4 | 1 2 2>3 -"])
def test_without_its_base_a_node_needs_a_resync_and_nothing_is_done_without_one(picture: str) -> None:
    found = Edge.of(mirror(picture)).plan()
    assert isinstance(found, NeedsResync)
    error = found.error()
    assert "needs a resync" in str(error)
    assert "a limit" in str(error)
    assert "rbdtree resync t/m" in str(error.hint)


def test_a_resync_does_not_write_over_what_somebody_wrote() -> None:
    assert isinstance(Edge.of(mirror("3 4 | 1 - % ~")).plan(), HeadChanged)
