"""Whose an edge is: everybody goes by the same list, and nobody needs to be asked."""

import random

from hypothesis import given
from hypothesis import strategies as st

from rbdtree.engine.claim import identity
from rbdtree.manager.spread import MOMENT_SECONDS, Peer, gives, newest, takes

ALL = frozenset({"a", "b", "c"})


def peer(name: str, load: int = 0, fsids: frozenset[str] = ALL) -> Peer:
    return Peer(name, fsids, load)


def test_it_is_listed_as_it_is_read() -> None:
    mine = peer("m1", 3)
    assert Peer.parse(mine.text(identity("manager", "127.0.0.1:0/1"))) == mine
    assert Peer.parse("nonsense") is None
    assert Peer.parse('{"manager": "x"}') is None


def test_who_cannot_reach_it_never_takes_it() -> None:
    mine = peer("m1", fsids=frozenset("ab"))
    assert takes(mine, [], "edge", frozenset("ab"), 0)
    assert not takes(mine, [], "edge", frozenset("bc"), 1000)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=6), st.integers(0, 1000))
def test_one_takes_at_once_and_the_others_in_turn(loads: list[int], edge: int) -> None:
    everybody = [peer(f"m{number}", load) for number, load in enumerate(loads)]
    for moments in range(len(everybody)):
        takers = [p for p in everybody if takes(p, everybody, f"e{edge}", ALL, moments * MOMENT_SECONDS)]
        assert len(takers) == moments + 1
    first = next(p for p in everybody if takes(p, everybody, f"e{edge}", ALL, 0))
    assert first.load == min(loads)


@given(st.integers(1, 6), st.integers(0, 40), st.randoms())
def test_giving_comes_to_rest_and_is_even(managers: int, edges: int, dice: random.Random) -> None:
    """From any division, handing over one at a time ends with nobody two above another."""
    held = {f"m{number}": set[str]() for number in range(managers)}
    for number in range(edges):
        held[dice.choice(sorted(held))].add(f"e{number}")
    for _ in range(edges * managers + 1):
        everybody = [peer(name, len(mine)) for name, mine in held.items()]
        moved = False
        for me in everybody:
            given_away = gives(me, everybody, dict.fromkeys(held[me.manager], ALL))
            if given_away:
                taker = next(p for p in everybody if takes(p, everybody, given_away, ALL, 0))
                assert taker.load <= me.load - 2
                held[me.manager].discard(given_away)
                held[taker.manager].add(given_away)
                moved = True
                break
        if not moved:
            break
    loads = [len(mine) for mine in held.values()]
    assert max(loads) - min(loads) <= 1


def test_of_several_entries_the_newest_counts() -> None:
    """A manager that is cut off from a cluster leaves an old entry there."""
    old, new = Peer("m1", ALL, 0, told=5.0), Peer("m1", ALL, 3, told=9.0)
    for order in ([old, new], [new, old]):
        assert [p.load for p in newest([*order, peer("m2", 1)])] == [3, 1]


def test_nothing_is_given_to_who_cannot_reach_it() -> None:
    everybody = [peer("m1", 5), peer("m2", 0, frozenset("ab"))]
    assert gives(everybody[0], everybody, {"e1": frozenset("bc")}) is None
    assert gives(everybody[0], everybody, {"e1": frozenset("bc"), "e2": frozenset("ab")}) == "e2"
