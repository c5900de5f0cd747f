"""Documents, the directory, and claims on documents."""

import pytest
from conformance.conftest import World, wait_until

from rbdtree import errors
from rbdtree.ports import EDGE

LONG = 60.0


def test_a_document_has_a_revision_that_rises(world: World) -> None:
    name = world.name()
    assert world.pool.read_document(name) is None
    world.pool.create_document(name, "one")
    assert world.other.read_document(name) == (1, "one")
    world.other.swap_document(name, 1, "twö")
    assert world.pool.read_document(name) == (2, "twö")
    world.pool.swap_document(name, 2, "")
    assert world.pool.read_document(name) == (3, "")


def test_a_document_is_made_once(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    with pytest.raises(errors.Exists):
        world.other.create_document(name, "two")
    assert world.pool.read_document(name) == (1, "one")


def test_a_long_document_comes_back_whole(world: World) -> None:
    name, text = world.name(), "generation " * 100_000
    world.pool.create_document(name, text)
    assert world.other.read_document(name) == (1, text)


def test_a_swap_with_an_old_revision_changes_nothing(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.swap_document(name, 1, "two")
    for revision in (0, 1, 3):
        with pytest.raises(errors.Changed):
            world.other.swap_document(name, revision, "three")
        with pytest.raises(errors.Changed):
            world.other.remove_document(name, revision)
    assert world.pool.read_document(name) == (2, "two")


def test_a_removed_document_stays_removed(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.claim(name, "cookie", "me", LONG)
    world.pool.remove_document(name, 1)
    with pytest.raises(errors.NotFound):
        world.pool.swap_document(name, 1, "two")
    with pytest.raises(errors.NotFound):
        world.pool.swap_document(name, 1, "two", "cookie")
    with pytest.raises(errors.NotFound):
        world.pool.remove_document(name, 1)
    with pytest.raises(errors.NotFound):
        world.pool.claim(name, "cookie", "me", LONG)
    world.pool.unclaim(name, "cookie")
    assert world.pool.claimed(name) is None
    assert world.pool.read_document(name) is None
    # Nothing of it was made again, not even an empty object.
    world.pool.create_document(name, "anew")
    assert world.pool.claimed(name) is None


def test_documents_of_a_namespace_are_apart(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    assert world.aside.read_document(name) is None
    world.aside.create_document(name, "two")
    assert world.pool.read_document(name) == (1, "one")


def test_objects_are_written_whole(world: World) -> None:
    name = world.name()
    with pytest.raises(errors.NotFound):
        world.other.read_object(name)
    for data in (b"x" * (9 << 20), b"one", b""):
        world.pool.write_object(name, data)
        assert world.other.read_object(name) == data
    with pytest.raises(errors.NotFound):
        world.aside.read_object(name)
    world.other.remove_object(name)
    world.pool.remove_object(name)
    with pytest.raises(errors.NotFound):
        world.pool.read_object(name)


def test_directory_entries(world: World) -> None:
    assert world.pool.entries() == {}
    world.pool.add_entry("node.1", "one")
    world.other.add_entry("node.2", "twö")
    world.other.add_entry("node.1", "one")
    with pytest.raises(errors.Exists):
        world.other.add_entry("node.1", "uno")
    assert world.pool.entries() == {"node.1": "one", "node.2": "twö"}
    assert world.aside.entries() == {}
    world.pool.remove_entry("node.1")
    world.pool.remove_entry("node.1")
    assert world.other.entries() == {"node.2": "twö"}
    world.pool.add_entry("node.1", "uno")
    assert world.other.entries()["node.1"] == "uno"


def test_removing_from_a_directory_that_is_not_there(world: World) -> None:
    world.pool.remove_entry("nobody")
    assert world.pool.entries() == {}


def test_a_directory_of_many_pages(world: World) -> None:
    wanted = {f"image.{number:05}": str(number) for number in range(1100)}
    for key, value in wanted.items():
        world.pool.add_entry(key, value)
    assert world.other.entries() == wanted


def test_a_claim_is_one_holders_only(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    assert world.pool.claimed(name) is None
    world.pool.claim(name, "mine", "mé", LONG)
    with pytest.raises(errors.Busy):
        world.other.claim(name, "theirs", "they", LONG)
    with pytest.raises(errors.Busy):
        world.pool.claim(name, "another", "me", LONG)
    with pytest.raises(errors.Busy):
        world.other.claim(name, "mine", "a cookie of the same name", LONG)
    found = world.other.claimed(name)
    assert found is not None
    assert (found.cookie, found.owner) == ("mine", "mé")


def test_renewing_a_claim_moves_its_expiry(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.claim(name, "mine", "me", LONG)
    before = world.other.claimed(name)
    assert before == world.other.claimed(name)
    world.pass_time(0.01)
    world.pool.claim(name, "mine", "me", LONG)
    after = world.other.claimed(name)
    assert before is not None
    assert after is not None
    assert after.expires > before.expires
    assert after.expires - before.expires < LONG
    assert (after.cookie, after.owner, after.holder) == (before.cookie, before.owner, before.holder)


def test_only_the_holder_gives_a_claim_back(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.unclaim(name, "mine")
    world.pool.claim(name, "mine", "me", LONG)
    world.pool.unclaim(name, "theirs")
    world.other.unclaim(name, "mine")
    assert world.pool.claimed(name) is not None
    world.pool.unclaim(name, "mine")
    assert world.pool.claimed(name) is None
    world.other.claim(name, "theirs", "they", LONG)


def test_a_claim_expires_when_it_said(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.claim(name, "mine", "me", 1.5)
    world.pass_time(1.2)
    assert world.other.claimed(name) is not None
    world.pass_time(0.4)
    assert world.other.claimed(name) is None
    with pytest.raises(errors.Fenced):
        world.pool.swap_document(name, 1, "two", "mine")
    world.other.claim(name, "theirs", "they", LONG)
    with pytest.raises(errors.Busy):
        world.pool.claim(name, "mine", "me", LONG)


def test_a_claim_tells_the_clusters_time(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    for seconds in (LONG, 2 * LONG):
        world.pool.claim(name, "mine", "me", seconds)
        found = world.pool.claimed(name)
        assert found
        assert abs(found.expires - seconds - world.time()) < 5


def test_only_the_holder_swaps_with_a_claim(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    with pytest.raises(errors.Fenced):
        world.pool.swap_document(name, 1, "two", "mine")
    world.other.claim(name, "theirs", "they", LONG)
    with pytest.raises(errors.Fenced):
        world.pool.swap_document(name, 1, "two", "mine")
    with pytest.raises(errors.Fenced):
        world.pool.swap_document(name, 1, "two", "theirs")
    world.other.swap_document(name, 1, "two", "theirs")
    assert world.pool.read_document(name) == (2, "two")
    with pytest.raises(errors.Changed):
        world.other.swap_document(name, 1, "three", "theirs")
    # Without a claim the revision alone decides: parents are told by children that hold nothing there.
    world.pool.swap_document(name, 2, "three")


def test_a_broken_claim_is_lost(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.claim(name, "mine", "me", LONG)
    found = world.other.claimed(name)
    assert found is not None
    world.other.break_claim(name, found)
    world.other.break_claim(name, found)
    assert world.other.claimed(name) is None
    with pytest.raises(errors.Fenced):
        world.pool.swap_document(name, 1, "two", "mine")


def test_breaking_an_old_claim_leaves_a_new_one(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.claim(name, "mine", "me", LONG)
    old = world.other.claimed(name)
    assert old is not None
    world.pool.unclaim(name, "mine")
    world.other.claim(name, "theirs", "they", LONG)
    world.pool.break_claim(name, old)
    found = wait_until(lambda: world.pool.claimed(name))
    assert found.cookie == "theirs"


def test_claims_for_other_purposes_do_not_meet(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    world.pool.claim(name, "mine", "me", LONG)
    world.other.claim(name, "theirs", "they", LONG, EDGE)
    with pytest.raises(errors.Busy):
        world.pool.claim(name, "mine", "me", LONG, EDGE)
    with pytest.raises(errors.Fenced):
        # The claim of a manager is none to write under.
        world.other.swap_document(name, 1, "two", "theirs")
    world.other.unclaim(name, "theirs", EDGE)
    assert world.other.claimed(name, EDGE) is None
    found = world.other.claimed(name)
    assert found is not None
    assert found.cookie == "mine"


def test_everybody_who_enlists_is_listed(world: World) -> None:
    world.pool.add_entry("node.1", "one")
    assert world.pool.enlisted() == []
    world.pool.enlist("mine", "me", LONG)
    world.other.enlist("theirs", "they", LONG)
    assert {(info.cookie, info.owner) for info in world.pool.enlisted()} == {("mine", "me"), ("theirs", "they")}
    world.pool.enlist("mine", "me again", LONG)
    assert {(info.cookie, info.owner) for info in world.other.enlisted()} == {("mine", "me again"), ("theirs", "they")}
    world.pool.delist("mine")
    world.pool.delist("mine")
    assert [info.cookie for info in world.other.enlisted()] == ["theirs"]


def test_who_does_not_renew_leaves_the_list(world: World) -> None:
    world.pool.add_entry("node.1", "one")
    world.pool.enlist("mine", "me", 1.5)
    world.other.enlist("theirs", "they", LONG)
    world.pass_time(1.7)
    assert [info.cookie for info in world.other.enlisted()] == ["theirs"]


def test_a_watcher_is_told(world: World) -> None:
    name = world.name()
    with pytest.raises(errors.NotFound):
        world.pool.watch(name, lambda: None)
    world.pool.notify(name)
    world.pool.create_document(name, "one")
    told: list[int] = []
    watch = world.pool.watch(name, lambda: told.append(1))
    assert watch.alive()
    world.other.notify(name)
    wait_until(lambda: told)
    watch.close()
    before = len(told)
    world.other.notify(name)
    again: list[int] = []
    second = world.other.watch(name, lambda: again.append(1))
    world.pool.notify(name)
    wait_until(lambda: again)
    second.close()
    assert len(told) == before


def test_a_watcher_hears_that_its_object_is_gone(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    told: list[int] = []
    watch = world.pool.watch(name, lambda: told.append(1))
    world.other.remove_document(name, 1)
    wait_until(lambda: told)
    wait_until(lambda: not watch.alive())
    watch.close()


def test_an_exception_of_a_watcher_is_its_own(world: World) -> None:
    name = world.name()
    world.pool.create_document(name, "one")
    told: list[int] = []

    def broken() -> None:
        told.append(1)
        raise RuntimeError("of the test")

    watch = world.pool.watch(name, broken)
    world.other.notify(name)
    wait_until(lambda: told)
    world.other.notify(name)
    wait_until(lambda: len(told) >= 2)
    watch.close()
