"""Deltas that pass on while they arrive, and what may come between."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rbdtree.engine import copy as copying
from rbdtree.engine import edge, forest
from rbdtree.model.document import Kind

from .trees import UNIT, Trees

MEDDLERS: list[Callable[[], None]] = []
"""Called once each, before a round of a relay reads."""


class MeddledCopy(copying.Copy):
    def run(self) -> copying.Copied:
        if MEDDLERS:
            MEDDLERS.pop()()
        return super().run()


def a_chain(trees: Trees) -> str:
    """root -> n2 -> the mirror that this returns."""
    trees.begin(6)
    trees.join(Kind.MIRROR, trees.documents()["n2"][1], False, None)
    trees.sync_all()
    return f"n{trees.count}"


def more(trees: Trees) -> None:
    """Writes all over the volume, other bytes than before, and a generation of them."""
    trees.write(0, 5 * UNIT, 11 + len(trees.recorded))
    trees.write(5 * UNIT + 4096, 4096, 5)
    trees.cut(None, "before")


def relayed_everywhere(times: int = 1) -> int:
    """The parent stops in the middle, the child takes what is there, somebody else interferes; all come together."""
    twists = ("", "again", "next", "shrink", "diverge")
    cases = [*itertools.product(range(1, 6), twists, (0,)), *((2, "mid-round", then) for then in range(1, 16))]
    return sum(relayed_once(*case) for case in cases * times)


def relayed_once(after: int, twist: str, then: int) -> bool:
    trees = Trees()
    far = a_chain(trees)

    def take() -> edge.Outcome:
        return trees.work(lambda s: trees.through(s, far))  # type: ignore[no-any-return]

    more(trees)
    if twist == "mid-round":
        # The parent seals what it is receiving, and goes on to the next delta, while the child reads from its head.
        more(trees)
        MEDDLERS.append(lambda: trees.interrupt(then, "n2"))
    trees.sync_and_interrupt(after)
    outcome = take()
    MEDDLERS.clear()
    trees.check()
    if twist == "again":
        trees.sync_and_interrupt(2)
        take()
    elif twist == "next":
        more(trees)
        trees.work(lambda s: trees.sync(s, "n2"))
        take()
    elif twist == "shrink":
        trees.resize(3 * UNIT)
        trees.cut(None, "before")
        trees.sync_and_interrupt(3)
        take()
    elif twist == "diverge" and trees.documents()["n2"][1].intent:
        # The parent finds that it is not what it should be, and looks at everything again.
        trees.work(lambda s: distrust(trees, s, "n2"))
        take()
    trees.check()
    trees.sync_all()
    trees.check()
    trees.teardown()
    return any(step.startswith("relay") for step in outcome.steps)


def distrust(trees: Trees, sites: Any, name: str) -> None:
    node, _ = forest.document_of(trees.tree(sites).member(name))
    head = node.pool.open(node.read().image_id, read_only=False)
    # A byte that the delta does not change is wrong, and the copy that is under way knows nothing of it.
    head.submit_write(5 * UNIT, b"wrong", trees.done)
    head.close()
    now = trees.now
    node.update(
        lambda d: (
            (w := d.with_distrust("of the test", now)) and replace(w, intent=w.intent and replace(w.intent, client=""))
        )
    )
