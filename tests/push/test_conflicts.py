"""Two writers: who is published, who is refused, and how each conflict ends."""

from dataclasses import replace
from typing import Any

import pytest
from live.world import TREE, noise

from rbdtree.engine.push import hear
from rbdtree.model.document import PushState

from .volume import KIB, MIB, MISUSED, REFUSED, Volume

pytestmark = pytest.mark.ceph
AT = 5 * MIB + 8192


@pytest.fixture
def rivals(volume: Volume) -> Volume:
    """root a, mirror m on b, clone k on a; both with a branch."""
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("k", "root", "clone", "a")
    volume.root_write({4 * MIB: noise(4 * MIB, "base")})
    volume.step()
    volume.branch("m")
    volume.branch("k")
    return volume


def meet(volume: Volume, mine: dict[int, bytes], theirs: dict[int, bytes]) -> Any:
    """k publishes ``theirs``, then m's push of ``mine`` is refused; the evidence."""
    volume.put("m", mine, expect=False)
    volume.put("k", theirs)
    volume.push("k")
    before = volume.newest()
    volume.push("m", code=REFUSED)
    assert volume.newest() == before
    volume.check_model()
    return volume.conflict("m")["evidence"]


@pytest.mark.release
def test_disjoint_writers_512_bytes_apart(rivals: Volume) -> None:
    rivals.put("m", {AT: noise(512, "m")})
    rivals.put("k", {AT + 512: noise(512, "k"), AT - 512: noise(512, "k2")})
    before = rivals.newest()
    rivals.push("m", "--wait")
    rivals.push("k", "--wait")
    assert rivals.newest() == before + 2
    rivals.sync()
    rivals.sync()
    rivals.settled()


def resolve(volume: Volume, how: str, mine: dict[int, bytes], held: bytes) -> None:
    """One of the three ways, and what the branch's bytes became."""
    import rbd

    if how == "ours":
        volume.cli("resolve", f"{TREE}/m", "--take", "ours")
        volume.expect(mine)
        before = volume.newest()
        volume.push("m", "--wait")
        assert volume.newest() == before + 1
        return
    if how == "theirs":
        asked = volume.cli("resolve", f"{TREE}/m", "--take", "theirs", code=None)
        assert asked.code == MISUSED, asked
        assert volume.branch_bytes("m") == held
        volume.cli("resolve", f"{TREE}/m", "--take", "theirs", "--yes")
        assert volume.document("m").branch is None
        with volume.ioctx("b") as ioctx:
            (entry,) = rbd.RBD().trash_list(ioctx)
            rbd.RBD().trash_restore(ioctx, entry["id"], "parked")
    else:
        volume.cli("resolve", f"{TREE}/m", "--park", "parked")
    with volume.at("b", "parked") as image:
        assert image.read(0, image.size()) == held
        assert not list(image.list_snaps())
        assert not list(image.metadata_list())
    with volume.ioctx("b") as ioctx:
        rbd.RBD().remove(ioctx, "parked")


def test_a_forced_push_of_a_journal_takes_back_nothing(rivals: Volume) -> None:
    """Its records do not tell what is in the rest of a sector: what the branch's earlier pushes put there stays."""
    rivals.cli("discard", f"{TREE}/m", "--yes")
    rivals.branch("m", "--uplink", "journal")
    with rivals.on_branch("m") as image:
        image.write(b"early" * 20, AT)
        image.flush()
        rivals.cli("uplink", f"{TREE}/m", "--once")
        rivals.expect({AT: b"early" * 20})
        rivals.sync()
        rivals.put("k", {AT + 300: b"others"})
        rivals.push("k")
        image.write(b"later", AT + 200)
        image.flush()
        rivals.cli("uplink", f"{TREE}/m", "--once", code=REFUSED)
        rivals.cli("resolve", f"{TREE}/m", "--take", "ours")
        rivals.cli("uplink", f"{TREE}/m", "--once")
        rivals.expect({AT: image.read(AT, 512)})
    rivals.check_model()


def test_a_forced_push_is_whole_sectors(rivals: Volume) -> None:
    """Ours taken, nothing of the others' stays in a sector of ours; nor is an earlier write of our own taken back."""
    with rivals.on_branch("m") as image:
        image.write(b"early", AT + 300)
        image.flush()
        rivals.push("m")
        rivals.sync()
        rivals.put("k", {AT + 200: b"others", AT + 600: b"others"})
        rivals.push("k")
        image.write(b"late", AT + 10)
        image.flush()
        rivals.push("m", code=REFUSED)
        rivals.cli("resolve", f"{TREE}/m", "--take", "ours")
        rivals.push("m")
        rivals.expect({AT: image.read(AT, 512)})
    rivals.check_model()
    rivals.sync()
    rivals.sync()
    rivals.settled()


def test_two_writers_of_one_sector_meet(rivals: Volume) -> None:
    """Other bytes of it: nothing is ever merged inside a sector, at either end of a longer write too."""
    for offset, other in ((AT + 10, AT + 500), (9 * MIB - 100, 9 * MIB - 512)):
        length = 5 if offset == AT + 10 else 612
        rivals.put("k", {other: noise(5, "k")})
        rivals.push("k")
        rivals.put("m", {offset: noise(length, "m")}, expect=False)
        rivals.push("m", code=REFUSED)
        rivals.check_model()
        rivals.cli("resolve", f"{TREE}/m", "--take", "theirs", "--yes")
        rivals.sync()


@pytest.mark.release
@pytest.mark.parametrize("how", ["ours", "theirs", "park"])
def test_overlapping_writers(rivals: Volume, how: str) -> None:
    mine, theirs = {AT: noise(1024, "m"), 9 * MIB: noise(700, "only m")}, {AT + 100: noise(2000, "k")}
    evidence = meet(rivals, mine, theirs)
    assert [(e["reason"], e["node"], e["generation"]) for e in evidence] == [("changed", "k", "1.2")]
    (extent,) = evidence[0]["extents"]
    assert AT - 512 < extent["offset_bytes"] <= AT + 100
    assert AT + 1024 <= extent["offset_bytes"] + extent["length_bytes"] <= AT + 1024 + 512
    done = rivals.push("m", code=REFUSED)
    for told in ("k", "1.2", "resolve", str(extent["offset_bytes"])):
        assert told in done.err, done.err
    said = rivals.cli("status", TREE).out
    assert "refused" in said, said
    # The branch is there, readable, writable; syncing does not hurt it.
    rivals.sync()
    held = rivals.branch_bytes("m")
    assert held[AT : AT + 1024] == noise(1024, "m")
    assert held[9 * MIB : 9 * MIB + 700] == noise(700, "only m")
    assert rivals.branch("m") == "vol-m-branch"
    resolve(rivals, how, mine, held)
    rivals.cli("resolve", f"{TREE}/m", "--take", "ours", code=2)
    rivals.sync()
    rivals.sync()
    rivals.settled()
    rivals.put("m", {0: noise(512, "after")})
    rivals.push("m", "--wait")
    rivals.sync()
    rivals.settled()


def test_equal_bytes_are_no_conflict(rivals: Volume) -> None:
    same = noise(4096, "same")
    rivals.put("m", {AT: same, 9 * MIB: noise(512, "m")})
    rivals.put("k", {AT: same})
    rivals.push("k")
    rivals.push("m", "--wait")
    rivals.sync()
    rivals.sync()
    rivals.settled()


def test_a_rewrite_of_the_same_bytes_is_no_change(rivals: Volume) -> None:
    rivals.put("m", {AT: bytes(rivals.model[AT : AT + 8192])})
    assert rivals.diff("m") == []
    assert rivals.pushed("m")["published"] == []
    rivals.settled()


@pytest.mark.parametrize("apart", [0, 512])
def test_against_the_roots_own_writes(rivals: Volume, apart: int) -> None:
    """Its writes are in no generation yet when the push comes."""
    rivals.root_write({AT: noise(512, "root")})
    rivals.put("m", {AT + apart: noise(512, "m")}, expect=bool(apart))
    rivals.push("m", code=REFUSED if not apart else 0)
    rivals.check_model()
    if not apart:
        (evidence,) = rivals.conflict("m")["evidence"]
        assert (evidence["node"], evidence["generation"]) == ("root", "1.2")
        rivals.cli("resolve", f"{TREE}/m", "--take", "theirs", "--yes")
        rivals.sync()
        rivals.at_rest(trash=True)


def test_own_earlier_pushes_are_no_conflict(rivals: Volume) -> None:
    """From a branch that does not move: the same bytes again, and again after they were forced over another's."""
    with rivals.on_branch("m") as image:
        for number in range(3):
            image.write(noise(600, number), AT)
            image.flush()
            rivals.expect({AT: noise(600, number)})
            rivals.push("m")
            rivals.check_model()
        rivals.sync()
        rivals.put("k", {AT + 2048: noise(512, "k")})
        rivals.push("k")
        image.write(noise(512, "m"), AT + 2048)
        rivals.push("m", code=REFUSED)
        rivals.cli("resolve", f"{TREE}/m", "--take", "ours")
        rivals.push("m")
        image.write(noise(512, "m2"), AT + 2048)
        rivals.push("m")
        rivals.expect({AT + 2048: noise(512, "m2")})
        rivals.check_model()
    rivals.sync()
    rivals.sync()
    rivals.settled()


def test_a_push_behind_a_refused_one_waits_for_it(rivals: Volume) -> None:
    """Written one after the other, staged apart, refused together: a later write never comes without the earlier."""
    from rbdtree.engine import push as pushing

    rivals.put("k", {AT: noise(512, "k")})
    rivals.push("k")
    node = rivals.node("m")
    rivals.put("m", {AT: noise(512, "m1"), 9 * MIB: noise(512, "m1")}, expect=False)
    pushing.stage(rivals.sites, node)
    rivals.put("m", {9 * MIB: noise(512, "m2")}, expect=False)
    before = rivals.newest()
    rivals.push("m", code=REFUSED)
    assert rivals.newest() == before, "the later push was published without the earlier one"
    rivals.check_model()
    rivals.cli("resolve", f"{TREE}/m", "--take", "ours")
    rivals.push("m", "--wait")
    rivals.expect({AT: noise(512, "m1"), 9 * MIB: noise(512, "m2")})
    rivals.sync()
    rivals.sync()
    rivals.settled()


def test_take_ours_meets_what_came_later_too(rivals: Volume) -> None:
    """Ours are the writes of the refused push; what was written to the branch since is judged on its own."""
    meet(rivals, {AT: noise(512, "m")}, {AT: noise(512, "k"), AT + 1024: noise(512, "k")})
    rivals.put("m", {AT + 1024: noise(512, "later")}, expect=False)
    rivals.cli("resolve", f"{TREE}/m", "--take", "ours")
    rivals.push("m", code=REFUSED)
    rivals.expect({AT: noise(512, "m")})
    rivals.check_model()
    rivals.cli("resolve", f"{TREE}/m", "--take", "ours")
    rivals.push("m", "--wait")
    rivals.expect({AT + 1024: noise(512, "later")})
    rivals.sync()
    rivals.sync()
    rivals.settled()


def test_discard(rivals: Volume) -> None:
    held = {}
    for name, site in (("m", "b"), ("k", "a")):
        rivals.put(name, {AT: noise(512, name)}, expect=False)
        held[name] = rivals.branch_bytes(name)
        assert rivals.cli("discard", f"{TREE}/{name}", code=None).code == 22
        assert rivals.branch_bytes(name) == held[name]
        assert rivals.cli("discard", f"{TREE}/{name}", "--dry-run").code == 0
        rivals.cli("discard", f"{TREE}/{name}", "--yes")
        import rbd

        with rivals.ioctx(site) as ioctx:
            (entry,) = rbd.RBD().trash_list(ioctx)
            rbd.RBD().trash_restore(ioctx, entry["id"], "kept")
        with rivals.at(site, "kept") as image:
            assert image.read(0, image.size()) == held[name]
        with rivals.ioctx(site) as ioctx:
            rbd.RBD().remove(ioctx, "kept")
        rivals.cli("discard", f"{TREE}/{name}", "--yes")
    rivals.sync()
    rivals.settled()
    for number, name in enumerate(("m", "k")):
        rivals.put(name, {6 * MIB + number * KIB: noise(512, name)})
        rivals.push(name, "--wait")
    rivals.sync()
    rivals.sync()


def test_a_refused_clone_keeps_its_writes_over_syncs(rivals: Volume) -> None:
    rivals.put("m", {AT: noise(512, "m")})
    rivals.put("k", {AT: noise(512, "k"), 0: noise(100, "k")}, expect=False)
    rivals.push("m", "--wait")
    rivals.push("k", code=REFUSED)
    held = rivals.branch_bytes("k")
    for number in range(2):
        rivals.root_write({12 * MIB: noise(512, number)})
        rivals.cut()
        rivals.sync()
        assert rivals.branch_bytes("k") == held
    rivals.cli("resolve", f"{TREE}/k", "--take", "theirs", "--yes")
    rivals.sync()
    rivals.check(current=True)
    rivals.at_rest(trash=True)


@pytest.mark.parametrize("packed", [True, False])
def test_a_staged_push_that_was_taken_away(rivals: Volume, monkeypatch: pytest.MonkeyPatch, packed: bool) -> None:
    """Removed by hand at the root while it waits: its owner is told, others are published."""
    import rbd

    from rbdtree.engine import parcel
    from rbdtree.engine import push as pushing
    from rbdtree.ports import Silent

    if not packed:
        monkeypatch.setattr(parcel, "LIMIT", 0)
    rivals.put("m", {0: noise(512, "m")}, expect=False)
    pushing.stage(rivals.sites, rivals.node("m"))
    pushing.forward(rivals.sites, rivals.node("m"), Silent())
    (staged,) = [p for p in rivals.document("root").pushes if p.staging]
    assert staged.packed == packed
    monkeypatch.undo()
    with rivals.ioctx("a") as ioctx:
        if packed:
            ioctx.remove_object(f"{staged.staging}.0")
        else:
            with rivals.at("a", staged.staging) as image:
                for snapshot in image.list_snaps():
                    image.remove_snap(snapshot["name"])
            rbd.RBD().remove(ioctx, staged.staging)
    rivals.put("k", {AT: noise(512, "k")})
    rivals.push("k")
    rivals.check_model()
    rivals.push("m", code=REFUSED)
    rivals.cli("resolve", f"{TREE}/m", "--take", "ours")
    rivals.push("m", "--wait")
    rivals.expect({0: noise(512, "m")})
    rivals.sync()
    rivals.sync()
    rivals.settled()


def test_retention_hides_nobodys_writes(rivals: Volume) -> None:
    """m's branch stays open over 1.1 while both publish and the root keeps only its newest: m's own earlier pushes are
    no conflict, what k wrote in between is one."""
    rivals.cli("policy", "set", TREE, "keep=last 1")
    theirs = AT + 64 * KIB
    with rivals.on_branch("m") as image:
        for number in range(2):
            for at in range(3):
                image.write(noise(600, (number, at)), AT + at * 2048)
                image.flush()
                rivals.expect({AT + at * 2048: noise(600, (number, at))})
                rivals.push("m")
            if number == 0:
                rivals.put("k", {theirs: noise(512, "k")})
                rivals.push("k")
            rivals.root_write({MIB: noise(512, number)})
            rivals.cli("cut", TREE)
            rivals.sync()
            rivals.cli("retain", f"{TREE}/root")
        # The runs: m's, k's, the root's, m's, the root's; and what m stands on.
        assert len(rivals.document("root").generations) <= 6
        image.write(noise(600, "again"), AT)
        image.flush()
        rivals.expect({AT: noise(600, "again")})
        rivals.push("m")
        rivals.check_model()
        image.write(noise(512, "m"), theirs)
        image.flush()
        before = rivals.newest()
        rivals.push("m", code=REFUSED)
        assert rivals.newest() == before
        rivals.check_model()
        (evidence,) = rivals.conflict("m")["evidence"]
        assert evidence["node"] == "k"


def test_a_verdict_is_heard_after_the_generation_is_gone(rivals: Volume) -> None:
    """The root has forgotten the push, and retention has removed what it became."""
    rivals.put("m", {AT: noise(512, "m")})
    document = rivals.document("m")
    rivals.push("m")
    push_id = f"{document.ref.node_id}:1"
    rivals.cli("policy", "set", TREE, "keep=last 1")
    for number in range(2):
        rivals.root_write({MIB: noise(512, number)})
        rivals.cli("cut", TREE)
    # As m was before it heard; it was away.
    sent = rivals.document("m").push(push_id)
    assert sent is not None
    rivals.node("m").update(lambda d: d.with_push(replace(sent, state=PushState.SENT, position=None)))
    rivals.node("root").update(lambda d: replace(d.without_push(push_id), holds=()))
    rivals.cli("retain", f"{TREE}/root")
    assert all(g.push != push_id for g in rivals.document("root").generations)
    hear(rivals.sites, rivals.node("m"))
    heard = rivals.document("m").push(push_id)
    assert heard is not None
    assert heard.state is PushState.PUBLISHED
    assert heard.position == rivals.document("root").position
