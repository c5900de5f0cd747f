"""Random trees, as ``trees`` has them."""

from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from rbdtree.model.document import Kind

from .trees import Trees


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
