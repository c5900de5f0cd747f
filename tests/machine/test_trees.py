"""Random trees, as ``trees`` has them."""

import itertools

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from rbdtree.engine.clone import beside
from rbdtree.model.document import Kind

from .trees import PLACE, UNIT, Trees


def test_trees() -> None:
    chosen = settings(max_examples=80, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck))
    run_state_machine_as_test(Trees, settings=chosen)


def test_nothing_is_held_that_was_removed_by_hand() -> None:
    """n2 has moved on, n4 below it has not, and what n4 stands on goes: then n4 has nothing in common with n2."""
    trees = Trees()
    trees.begin(4)
    trees.join(Kind.MIRROR, trees.documents()["n2"][1], False, None)
    trees.sync_all()
    trees.cut(None, "before")
    trees.work(lambda sites: trees.sync(sites, "n2"))
    trees.rob(0, 0, 0)
    assert [name for name, _ in trees.robbed] == ["n2"]
    trees.sync_all()
    trees.check()


@pytest.mark.parametrize("again", [False, True])
def test_a_clone_that_was_made_by_half_leaves_nothing(again: bool) -> None:
    """Whoever makes it dies, and whoever clears that away: a clone has its parent's metadata until it gets its own."""
    met = 0
    for dies, then in itertools.product(range(5, 18), range(1, 16)):
        trees = Trees()
        trees.begin(2)
        trees.write(0, UNIT, 7)
        trees.cut(None, "before")
        trees.work(lambda s, trees=trees: trees.sync(s, "n2"))
        trees.work(lambda s, trees=trees: trees.sync(s, "n3"), dies)
        site, document = trees.documents()["n3"]
        met += beside(document) in trees.storages[site].places[PLACE].images
        if again:
            trees.work(lambda s, trees=trees: trees.sync(s, "n3"), then)
        names = sorted(trees.documents())
        trees.leave(names.index("n3"), False, None if again else then)
        trash = trees.storages[site].places[PLACE].trash
        assert beside(document) not in {name for name, _ in trash.values()}
        trees.teardown()
    assert met > 20
