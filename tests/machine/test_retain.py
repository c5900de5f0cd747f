"""Retention, holds and resyncs over ``rbdtree.memory``: deaths at every effect, and who comes at the last moment."""

import time
from dataclasses import replace
from typing import Any

import pytest

from rbdtree import errors, memory
from rbdtree.engine import forest, leave, policy, retain
from rbdtree.engine import hold as holds
from rbdtree.engine.claim import Claim
from rbdtree.engine.mirror import MirrorEdge
from rbdtree.host.holds import Keeper, prefix
from rbdtree.host.source import GENERATION, Source
from rbdtree.model.document import MAP, Kind, NodeDocument
from rbdtree.model.position import Position, snapshot_name

from .relays import a_chain, more
from .trees import UNIT, Trees


def lagging(trees: Trees) -> str:
    """root -> n2 -> far, and a clone of n2; the root is four generations ahead of all of them."""
    far = a_chain(trees)
    for number in range(4):
        trees.write(number * UNIT, UNIT, 20 + number)
        trees.cut(None, "before")
    return far


def positions(trees: Trees, name: str) -> list[int]:
    return [g.position.sequence for g in trees.documents()[name][1].generations]


def retention_dies(effect: int, how: str) -> bool:
    """Whether it had that many effects."""
    trees = Trees()
    far = lagging(trees)
    survived = trees.retain_at("root", {"keep": "last 2"}, effect, how)
    trees.check()
    trees.work(lambda s: trees.through(s, far))
    trees.retain_at("root", {"keep": "last 2"})
    # n2 stands on the first one.
    assert positions(trees, "root") == [1, 4, 5]
    trees.check()
    trees.sync_all()
    trees.retain_at("root", {"keep": "last 2"})
    assert positions(trees, "root") == [4, 5]
    trees.check()
    trees.teardown()
    return survived is None


@pytest.mark.parametrize("how", ["before", "after"])
def test_a_retention_may_die_at_any_effect(how: str) -> None:
    assert 5 < next(effect for effect in range(1, 60) if not retention_dies(effect, how)) < 59


def resync_dies(effect: int, how: str) -> bool:
    trees = Trees()
    far = lagging(trees)
    found = trees.retain_at("root", {"keep": "last 2", "max_pinned_age": "1d"})
    assert found.resyncs == ["t/n2"]
    assert positions(trees, "root") == [4, 5]
    trees.check()
    (outcome,) = trees.work(lambda s: trees.sync(s, "n2"))
    assert "needs a resync" in str(outcome.error)
    assert positions(trees, "n2") == [1]
    survived = trees.work(lambda s: trees.resync(s, "n2"), effect, how)
    trees.check()
    trees.work(lambda s: trees.resync(s, "n2"))
    trees.check()
    root, child = trees.documents()["root"][1], trees.documents()["n2"][1]
    assert (child.newest_position, child.distrust, child.intent) == (root.newest_position, "", None)
    assert not root.resyncs
    # Who is further down goes on by a delta.
    outcome = trees.work(lambda s: trees.through(s, far))
    assert "copy 1.1 -> 1.5" in outcome.steps
    trees.sync_all()
    trees.check()
    trees.teardown()
    return survived is None


@pytest.mark.parametrize("how", ["before", "after", "torn"])
def test_a_slow_child_is_let_go_and_its_resync_may_die_at_any_effect(how: str) -> None:
    assert 10 < next(effect for effect in range(1, 100) if not resync_dies(effect, how)) < 99


@pytest.mark.parametrize(("ahead", "way"), [(10 * 86400.0, "10.0 d ahead of"), (-7200.0, "2.0 h behind"), (30.0, "")])
def test_a_clock_that_jumped_makes_no_child_slow(ahead: float, way: str) -> None:
    """n2 has been behind for ten days; nobody knows that for certain whose clock is not the cluster's."""
    trees = Trees()
    lagging(trees)
    found = trees.retain_at("root", {"keep": "last 2", "max_pinned_age": "1d"}, ahead=ahead)
    said = f"the clock of this host is {way} the cluster's: no limit of age ends anything"
    assert found.skewed == (said if way else "")
    assert found.resyncs == ([] if way else ["t/n2"])
    assert positions(trees, "root") == ([1, 4, 5] if way else [4, 5])
    trees.check()


def test_a_clock_that_jumped_ends_no_limit_of_bytes() -> None:
    trees = Trees()
    lagging(trees)
    wanted = {"keep": "last 2", "max_pinned_age": "1d", "max_pinned_bytes": "1"}
    found = trees.retain_at("root", wanted, ahead=86400.0)
    assert found.skewed
    assert found.resyncs == ["t/n2"]
    assert "max_pinned_bytes is 1" in trees.documents()["root"][1].resyncs[0].reason
    trees.check()


def test_what_a_slow_child_pins_is_counted() -> None:
    """n2 stands on 1; since then 4 of 6 objects were overwritten."""
    trees = Trees()
    lagging(trees)

    def cost(sites: Any) -> Any:
        node, _ = forest.document_of(trees.tree(sites).member("root"))
        return {(h.kind, h.position.sequence, h.reason): h.pinned_bytes for h in holds.listed(node)}

    trees.retain_at("root", {"keep": "last 1"})
    assert positions(trees, "root") == [1, 5]
    assert trees.work(cost) == {
        ("base", 1, "base of t/n2"): 4 * UNIT,
        ("need", 1, "t/n4 was last seen there"): 4 * UNIT,
    }
    found = trees.retain_at("root", {"keep": "last 1", "max_pinned_bytes": str(4 * UNIT)})
    assert not found.resyncs
    found = trees.retain_at("root", {"keep": "last 1", "max_pinned_bytes": str(4 * UNIT - 1)})
    assert found.resyncs == ["t/n2"]
    assert positions(trees, "root") == [5]
    trees.check()


def test_a_hold_that_comes_at_the_last_moment_keeps_its_generation() -> None:
    """Between the verdicts and the update of the document somebody takes a hold."""
    trees = Trees()
    lagging(trees)

    def run(sites: Any) -> retain.Retained:
        node, document = forest.document_of(trees.tree(sites).member("root"))
        update = node.update

        def late(change: Any, claim: Any = None) -> Any:
            other, _ = forest.document_of(trees.tree(memory.Sites(trees.storages)).member("root"))
            holds.add(other, "late", document.generations[2].position, "at the last moment")
            return update(change, claim)

        with Claim(node, "retain") as claim:
            node.update = late  # type: ignore[method-assign]
            return retain.retain(sites, node, claim, time.time())

    trees.retain_at("root", {"keep": "last 5"})
    trees.work(
        lambda s: policy.change(forest.document_of(trees.tree(s).member("root"))[0], {"keep": "last 1"}, tree=False)
    )
    found = trees.work(run)
    assert [v.position.sequence for v in found.verdicts if v.goes] == [2, 4]
    assert positions(trees, "root") == [1, 3, 5]
    assert "late" in "".join(found.verdicts[2].why)
    trees.check()


def test_a_base_that_is_let_go_while_it_is_copied_from_is_not_sealed() -> None:
    """The parent drops the hold between the child's copy and its seal."""
    trees = Trees()
    trees.begin(6)
    trees.write(UNIT, UNIT, 5)
    trees.cut(None, "before")
    trees.write(2 * UNIT, UNIT, 6)
    trees.cut(None, "before")
    right = MirrorEdge._seal
    fired: list[object] = []

    def seal(self: MirrorEdge, position: Any) -> None:
        if not fired:
            fired.append(trees.retain_at("root", {"keep": "last 1", "max_pinned_age": "1d"}))
        right(self, position)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MirrorEdge, "_seal", seal)
        outcomes = trees.work(trees.sync)
    (failed,) = [o for o in outcomes if o.error]
    assert failed.node == "t/n2"
    assert "needs a resync" in str(failed.error)
    assert positions(trees, "n2") == [1]
    trees.check()
    trees.resync_all()
    trees.sync_all()
    trees.check()


def test_a_snapshot_that_somebody_protected_stays() -> None:
    trees = Trees()
    lagging(trees)
    document = trees.documents()["root"][1]
    name = snapshot_name(document.tree_id, document.generations[1].position)
    memory.protect(trees.storages["a"], document.image_id, name)
    found = trees.retain_at("root", {"keep": "last 1"})
    assert positions(trees, "root") == [1, 2, 5]
    assert "protected" in found.verdicts[1].why[0]


def test_a_clone_pins_without_a_limit_as_its_snapshot_would_stay_anyway() -> None:
    trees = Trees()
    trees.begin(6)
    trees.join(Kind.CLONE, trees.documents()["root"][1], False, None)
    trees.sync_all()
    more(trees)
    trees.work(lambda s: trees.sync(s, "n2"))
    found = trees.retain_at("root", {"keep": "last 1", "max_pinned_age": "1d"})
    assert not found.resyncs
    assert positions(trees, "root") == [1, 2]
    trees.check()


def part(trees: Trees, sites: Any, name: str) -> Any:
    tree = trees.tree(sites)
    return leave.leave(sites, tree, tree.member(name), keep=False, expiry_seconds=0)


def test_a_node_with_a_persons_hold_does_not_leave() -> None:
    trees = Trees()
    trees.begin(2)
    (clone,) = [d.name for _, d in trees.documents().values() if d.kind is Kind.CLONE]

    trees.work(lambda s: holds.add(forest.document_of(trees.tree(s).member("n2"))[0], "audit", None, "for the audit"))
    trees.work(lambda s: part(trees, s, clone))
    with pytest.raises(errors.NotEmpty, match="audit"):
        trees.work(lambda s: part(trees, s, "n2"))
    trees.work(lambda s: holds.remove(forest.document_of(trees.tree(s).member("n2"))[0], "audit", None))
    trees.work(lambda s: part(trees, s, "n2"))
    assert "n2" not in trees.documents()


def mapped(document: NodeDocument, position: Position) -> tuple[Source, str]:
    """A generation as a host maps it, and the key that this has there."""
    ref = document.ref
    found = Source(
        **{
            **dict.fromkeys(("conf", "client", "keyring", "fsid", "snapshot"), ""),
            **{"tree": document.tree, "tree_id": document.tree_id, "node": ref.name, "node_id": ref.node_id},
            **{"what": GENERATION, "position": str(position), "site": ref.site, "pool": ref.pool},
            **{"namespace": ref.namespace, "image": ref.image, "image_id": document.image_id},
            **{"size_bytes": UNIT, "journaled": False, "holder": ref.node_id},
        }
    )
    return found, found.key


def test_a_node_that_a_host_has_mapped_does_not_leave() -> None:
    """Nor when it is mapped at the last moment; once it leaves, nothing of it is mapped any more."""
    trees = Trees()
    trees.begin(2)
    (clone,) = [d.name for _, d in trees.documents().values() if d.kind is Kind.CLONE]
    trees.work(lambda s: part(trees, s, clone))
    document = trees.documents()["n2"][1]
    source, key = mapped(document, document.generations[0].position)
    trees.work(lambda s: Keeper(s).hold(source, key))
    with pytest.raises(errors.Busy, match=r"1\.1 \(t/n2 mapped at") as refused:
        trees.work(lambda s: part(trees, s, "n2"))
    assert "rbdtree unmap t/n2 --at 1.1" in str(refused.value.hint)
    trees.work(lambda s: Keeper(s).release(source, key))

    right = leave.Claim

    def late(*words: Any, **more: Any) -> Any:
        trees.work(lambda s: Keeper(s).hold(source, key))
        return right(*words, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(leave, "Claim", late)
        with pytest.raises(errors.Busy, match="mapped at"):
            trees.work(lambda s: part(trees, s, "n2"))
    assert not trees.documents()["n2"][1].phase
    trees.work(lambda s: Keeper(s).release(source, key))

    def begin(sites: Any) -> None:
        found, _ = forest.document_of(trees.tree(sites).member("n2"))
        found.update(lambda d: replace(d, phase=leave.REMOVING))

    trees.work(begin)
    with pytest.raises(errors.Busy, match="removing"):
        trees.work(lambda s: Keeper(s).hold(source, key))
    trees.work(lambda s: part(trees, s, "n2"))
    assert "n2" not in trees.documents()


def test_what_a_host_that_is_no_more_holds_ends_by_its_name() -> None:
    trees = Trees()
    trees.begin(2)
    document = trees.documents()["n2"][1]
    position = document.generations[0].position
    source, key = mapped(document, position)
    trees.work(lambda s: Keeper(s).hold(source, key))

    def node(sites: Any) -> Any:
        return forest.document_of(trees.tree(sites).member("n2"))[0]

    (name,) = [h.name for h in trees.work(lambda s: holds.listed(node(s), sizes=False)) if h.kind == "map"]
    assert name == prefix().removesuffix(":")
    with pytest.raises(errors.Busy, match="may be in use"):
        trees.work(lambda s: holds.remove(node(s), name, None))
    with pytest.raises(errors.NotFound):
        trees.work(lambda s: holds.remove(node(s), "", None, force=True))
    assert trees.work(lambda s: holds.remove(node(s), name, position, force=True)) == (position,)
    assert not [h for h in trees.documents()["n2"][1].holds if h.owner.startswith(MAP)]


def test_a_generation_that_was_struck_meanwhile_is_not_mapped() -> None:
    trees = Trees()
    lagging(trees)
    document = trees.documents()["root"][1]
    source, key = mapped(document, document.generations[2].position)
    trees.retain_at("root", {"keep": "last 1"})
    with pytest.raises(errors.NotFound, match=r"does not have generation 1\.3"):
        trees.work(lambda s: Keeper(s).hold(source, key))
    trees.check()


def test_a_trees_settings_flow_down_with_the_syncs() -> None:
    trees = Trees()
    far = a_chain(trees)
    trees.work(lambda s: policy.change(forest.document_of(trees.tree(s).member("root"))[0], {"rpo": "15m"}, tree=True))
    trees.work(lambda s: trees.sync(s, "n2"))
    told = {name for name, (_, d) in trees.documents().items() if d.tree_policy == (("rpo", "15m"),)}
    assert told == {"root", "n2"}
    trees.work(lambda s: trees.through(s, far))
    trees.sync_all()
    assert {d.tree_policy for _, d in trees.documents().values()} == {(("rpo", "15m"),)}
    trees.join(Kind.MIRROR, trees.documents()[far][1], False, None)
    assert {d.tree_policy for _, d in trees.documents().values()} == {(("rpo", "15m"),)}
    trees.check()


@pytest.mark.parametrize("effect", range(4, 9))
def test_a_snapshot_that_a_dead_retention_left_is_taken_for_no_seal(effect: int) -> None:
    """n2 struck 2 and died; then somebody removes its 3, so it goes back to 1 and copies 2 anew, and dies in that."""
    trees = Trees()
    trees.init(6)
    trees.write(0, 6 * UNIT, 1)
    trees.count = 1
    trees.join(Kind.MIRROR, trees.documents()["root"][1], False, None)
    for at in range(3):
        trees.write(2 * at * UNIT, UNIT, 11 + at)
        trees.write((2 * at + 1) * UNIT, 4096, 11 + at)
        trees.cut(None, "before")
        trees.sync_all()
    site, document = trees.documents()["n2"]
    trees.work(
        lambda s: holds.add(
            forest.document_of(trees.tree(s).member("n2"))[0], "h", document.generations[0].position, ""
        )
    )
    name = snapshot_name(document.tree_id, document.generations[1].position)
    for dies in range(1, 20):
        trees.retain_at("n2", {"keep": "last 1"}, dies, "before")
        if positions(trees, "n2") == [1, 3]:
            break
    volume = trees.volume(site, document.image_id)
    assert name in [s.entry.name for s in volume.snapshots]
    newest = snapshot_name(document.tree_id, document.generations[2].position)
    image = memory.Sites(trees.storages).cluster(site).pool("p").open(document.image_id, read_only=False)
    image.remove_snapshot(newest)
    image.close()
    trees.robbed.add(("n2", newest))
    trees.work(lambda s: trees.sync(s, "n2"), 2 * effect, "after")
    trees.check()
    (outcome,) = trees.work(trees.sync)
    assert outcome.error is None
    trees.robbed.clear()
    trees.sync_all()
    assert positions(trees, "n2") == [1, 2, 3]
    trees.check()
