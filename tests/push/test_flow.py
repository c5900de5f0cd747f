"""A write at a node becomes the volume's: any kind of node, any depth, exactly its bytes."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from live.world import TREE, bytes_read, noise

from rbdtree.engine import branch as branching
from rbdtree.engine import ends, landing, parcel, scrub
from rbdtree.manager.glance import settled
from rbdtree.model.document import Branch
from rbdtree.model.position import push_snapshot_name
from rbdtree.ports import Silent

from .volume import BUSY, DIVERGED, KIB, MIB, REFUSED, UNSUPPORTED, Volume

pytestmark = pytest.mark.ceph


def chain(volume: Volume, size: int = 16 * MIB) -> None:
    """root a - m b - leaf c, one generation everywhere."""
    volume.init(size=size)
    volume.add("m", "root", "mirror", "b")
    volume.add("leaf", "m", "mirror", "c")
    volume.root_write({MIB: noise(2 * MIB, "first")})
    volume.step()


@pytest.mark.release
def test_a_write_at_a_grandchild_arrives_everywhere(volume: Volume, tmp_path: Path) -> None:
    chain(volume)
    first = volume.branch("leaf")
    assert volume.branch("leaf") == first
    told = volume.get("branch", f"{TREE}/leaf")
    assert told["image"] == volume.pools.spec("c", first)
    base, before = told["base"], volume.newest()
    volume.put("leaf", {MIB + 4096: noise(8192, 1), 9 * MIB + 1: noise(777, 2)})
    assert volume.status()["leaf"]["branch"]["base"] == base
    done = volume.pushed("leaf", "--wait")
    assert done["published"] == [f"1.{before + 1}"]
    assert volume.newest() == before + 1
    assert volume.document("root").newest.author == "leaf"
    volume.sync()
    volume.settled()
    assert volume.exported(tmp_path) == {bytes(volume.model)}
    again = volume.get("branch", f"{TREE}/leaf")
    assert again["base"] == f"1.{before + 1}"
    assert again["image"] == told["image"]
    assert volume.branch_bytes("leaf") == bytes(volume.model)
    # And nothing happens without a write.
    assert volume.pushed("leaf")["published"] == []
    assert volume.newest() == before + 1


def test_what_a_clones_branch_holds_is_no_difference(volume: Volume) -> None:
    """A clone's branch is its image. What is written to it and not pushed yet is no fault that a scrub may find."""
    volume.init(size=16 * MIB)
    volume.add("k", "root", "clone", "a")
    volume.root_write({MIB: noise(2 * MIB, "first")})
    volume.step()
    volume.branch("k")
    volume.put("k", {MIB: noise(8192, 1), 9 * MIB: noise(4096, 2)}, expect=False)
    (found,) = volume.get("verify", TREE)["nodes"]
    assert found["equal"]
    piece = scrub.scrub(volume.sites, volume.node("k"), 16 * MIB, Silent())
    assert piece
    assert (piece.found, piece.finished) == (0, True)
    assert not volume.document("k").distrust


@pytest.mark.release
def test_every_kind_of_node(volume: Volume) -> None:
    """The root's own branch, a mirror, a clone, a clone below a mirror, a mirror below a clone."""
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("k", "root", "clone", "a")
    volume.add("km", "m", "clone", "b")
    volume.add("mk", "k", "mirror", "c")
    volume.add("kmm", "km", "mirror", "a")
    volume.root_write({0: noise(MIB, "first")})
    volume.step()
    names = ("root", "m", "k", "km", "mk", "kmm")
    for name in names:
        volume.branch(name)
    for number, name in enumerate(names):
        before = volume.newest()
        volume.put(name, {number * 2 * MIB + 5000: noise(3000 + number, name)})
        volume.push(name, "--wait")
        assert volume.newest() == before + 1, name
        volume.check_model()
        assert volume.document("root").newest.author == name
    volume.sync()
    volume.sync()
    volume.settled()
    for name in names:
        assert volume.branch_bytes(name) == bytes(volume.model), name
    assert all(not node["differences"] for node in volume.get("verify", TREE)["nodes"])


def test_branches_over_the_same_generation_in_one_round(volume: Volume) -> None:
    """Six disjoint writers, each pushing before it saw the others."""
    chain(volume)
    volume.add("k", "m", "clone", "b")
    volume.add("k2", "root", "clone", "a")
    volume.sync()
    names = ("root", "m", "leaf", "k", "k2")
    for number, name in enumerate(names):
        volume.put(name, {8 * MIB + number * 512: noise(512, name)})
    before = volume.newest()
    for name in names:
        volume.push(name)
    assert volume.newest() == before + len(names)
    volume.sync()
    volume.sync()
    volume.settled()


def test_a_mapped_branch_stays_and_says_so(volume: Volume) -> None:
    chain(volume)
    volume.add("k", "root", "clone", "a")
    volume.sync()
    for name, offset in (("leaf", 4 * MIB), ("k", 6 * MIB)):
        volume.branch(name)
        base = volume.status()[name]["branch"]["base"]
        with volume.on_branch(name) as image:
            for number in range(3):
                image.write(noise(4096, number), offset)
                image.flush()
                volume.expect({offset: noise(4096, number)})
                done = volume.push(name, "--wait")
                volume.check_model()
            assert "stays over" in done.err or "stays over" in done.out, done
            assert volume.status()[name]["branch"]["base"] == base
            said = volume.sync()
            assert "in use" in said.err + said.out, said
            assert volume.document(name).ref
        volume.sync()
        volume.sync()
        assert volume.branch_bytes(name) == bytes(volume.model)
    volume.settled()


def test_many_pushes_of_a_mapped_branch_leave_few_snapshots(volume: Volume) -> None:
    volume.init(size=8 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.step()
    volume.branch("m")
    with volume.on_branch("m") as image:
        for number in range(6):
            image.write(noise(4096, number), number * 4096)
            image.flush()
            volume.expect({number * 4096: noise(4096, number)})
            volume.push("m", "--wait")
        assert len(list(image.list_snaps())) <= 3
    assert len(volume.document("m").pushes) <= 2
    volume.sync()
    volume.settled()


def test_a_dirty_clone_is_no_divergence(volume: Volume) -> None:
    volume.init(size=8 * MIB)
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(MIB)})
    volume.step()
    volume.put("k", {MIB: noise(100, "k")}, expect=False)
    volume.root_write({4 * MIB: noise(4096)})
    volume.cut()
    said = volume.sync()
    assert "stays over" in said.out + said.err
    assert volume.status()["k"]["state"] == "outdated"
    assert volume.get("status", TREE)
    volume.expect({MIB: noise(100, "k")})
    volume.push("k", "--wait")
    volume.sync()
    volume.settled()


@pytest.mark.parametrize("name", ["k", "m"])
def test_exactly_the_bytes(volume: Volume, name: str) -> None:
    """The whole object is copied up into the clone, and still only what was written is sent."""
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(12 * MIB)})
    volume.step()
    for offset, length in ((4 * MIB + 13, 1), (5 * MIB + 100, 511), (6 * MIB + 4096, 4096), (9 * MIB - 2, 4)):
        data = bytes(b ^ 0xFF for b in volume.model[offset : offset + length])
        volume.put(name, {offset: data})
        found = volume.diff(name)
        assert sum(n for _, n in found) <= length + 2 * 511
        assert min(at for at, _ in found) >= offset - 511
        told = volume.pushed(name, "--wait")
        assert told["sent_bytes"] <= length + 2 * 511, told
        assert volume.document("root").newest.delta_bytes <= length + 2 * 511, offset
        volume.check_model()
    volume.sync()
    volume.settled()


def test_zeroes_and_discards_travel(volume: Volume) -> None:
    chain(volume)
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(16 * MIB)})
    volume.step()
    for name in ("leaf", "k"):
        volume.root_write({0: noise(16 * MIB, name)})
        volume.step()
        with volume.on_branch(name) as image:
            image.discard(4 * MIB, 4 * MIB)
            image.write_zeroes(MIB + 512, 1024)
            image.write(bytes(8192), 9 * MIB)
            image.discard(12 * MIB, 64 * KIB)
            image.flush()
            volume.model[:] = image.read(0, image.size())
        volume.push(name, "--wait")
        volume.check_model()
        volume.sync()
        volume.sync()
        volume.settled()
        # Thin again where a whole object went.
        assert volume.used("root") <= 12 * MIB
        assert volume.used("m") <= 12 * MIB


@pytest.mark.parametrize("name", ["leaf", "k"])
def test_a_resized_branch_is_refused(volume: Volume, name: str) -> None:
    chain(volume)
    volume.add("k", "root", "clone", "a")
    volume.sync()
    volume.put(name, {0: noise(4096)})
    with volume.on_branch(name) as image:
        image.resize(24 * MIB)
        image.write(noise(4096, "beyond"), 20 * MIB)
    done = volume.push(name, code=UNSUPPORTED)
    assert "resized" in done.err
    volume.root_write({8 * MIB: noise(4096)})
    volume.cut()
    said = volume.sync()
    assert "resized" in said.out + said.err
    assert volume.status()["m"]["state"] == "up-to-date"
    with volume.on_branch(name) as image:
        image.resize(16 * MIB)
    volume.push(name, "--wait")
    volume.sync()
    volume.sync()
    volume.settled()


def test_own_bytes_do_not_come_down_again(volume: Volume) -> None:
    chain(volume, 64 * MIB)
    volume.put("leaf", {8 * MIB: noise(24 * MIB, "leaf")})
    told = volume.pushed("leaf")
    assert 24 * MIB <= told["sent_bytes"] <= 2 * 25 * MIB
    clusters = volume.pools.clusters
    before = {site: bytes_read(clusters, site) for site in "abc"}
    from rbdtree.engine.forest import look
    from rbdtree.engine.sync import Sync

    outcomes = {o.node: o for o in Sync(volume.sites).run(look(volume.sites, TREE).tree(TREE))}
    for name in ("m", "leaf"):
        outcome = outcomes[f"{TREE}/{name}"]
        assert not outcome.error
        assert outcome.local_bytes == 24 * MIB, outcome
    # m and leaf read their own cluster; what leaves a parent's OSD is a sample and documents.
    assert bytes_read(clusters, "a") - before["a"] < 3 * MIB
    assert bytes_read(clusters, "b") - before["b"] < 28 * MIB
    volume.settled()


def test_revert_by_the_next_push_of_the_same_branch(volume: Volume) -> None:
    """A write, pushed, and taken back, pushed, from a branch that did not move: few and many extents."""
    chain(volume)
    volume.branch("leaf")
    few = [(2 * MIB, 4096)]
    many = [(MIB + number * 1024, 512) for number in range(1100)]
    with volume.on_branch("leaf") as image:
        for extents in (few, many):
            low, high = extents[0][0], sum(extents[-1])
            old = bytes(volume.model[low:high])
            new = bytearray(old)
            for offset, length in extents:
                at = offset - low
                new[at : at + length] = bytes(byte ^ 0x55 for byte in old[at : at + length])
            for written in (bytes(new), old):
                image.write(written, low)
                image.flush()
                volume.expect({low: written})
                volume.push("leaf")
                volume.check_model()
    volume.sync()
    volume.sync()
    volume.settled()


def test_dry_runs_and_refusals(volume: Volume) -> None:
    chain(volume)
    volume.push("leaf", code=2)
    assert volume.get("branch", f"{TREE}/leaf", "--dry-run")["dry_run"]
    assert volume.document("leaf").branch is None
    volume.put("leaf", {0: noise(600)})
    assert volume.get("push", f"{TREE}/leaf", "--dry-run")["total_bytes"] >= 600
    for more in (("--dry-run",), ()):
        done = volume.cli("remove", f"{TREE}/leaf", *more, code=None)
        assert done.code == 39, done
        assert "push" in done.err
    assert not volume.document("leaf").phase
    volume.add("k", "root", "clone", "a")
    volume.sync()
    volume.put("k", {MIB: noise(600)})
    done = volume.cli("remove", f"{TREE}/k", code=None)
    assert done.code == 39, done
    volume.push("k", "--wait")
    volume.push("leaf", "--wait")
    volume.sync()
    volume.settled()
    volume.cli("remove", f"{TREE}/k", "--expiry", "1s")
    volume.cli("remove", f"{TREE}/leaf", "--expiry", "1s")
    volume.at_rest(trash=True)


def test_a_branch_over_what_the_root_has_still(volume: Volume) -> None:
    """Of a generation that is gone there the root cannot tell what others changed since."""
    volume.init(size=8 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("k", "m", "clone", "b")
    volume.root_write({0: noise(MIB)})
    volume.step()
    stale = volume.document("k").position
    volume.cli("policy", "set", TREE, "keep=last 1")
    for number in range(2):
        volume.root_write({number * MIB: noise(MIB, number)})
        volume.cut()
        volume.sync("m")
    volume.cli("retain", TREE)
    assert volume.document("root").generation(stale) is None
    assert volume.document("m").generation(stale)
    done = volume.cli("branch", f"{TREE}/k", code=2)
    assert f"vol/root does not have generation {stale} any more" in done.err
    assert volume.document("k").branch is None
    assert not [h for d in volume.documents().values() for h in d.holds if h.branch]
    volume.sync()
    volume.put("k", {MIB: noise(512, "k")})
    volume.push("k", "--wait")
    volume.check_model()


def test_what_was_held_for_a_branch_that_never_came_is_let_go(volume: Volume) -> None:
    """Its maker died in between: nobody would ever move on from there."""
    chain(volume)
    node = volume.node("leaf")
    base = volume.document("leaf").position
    assert branching.reserve(volume.sites, node, base) == ""
    edge = volume.document("m").edge
    assert base in ends.pinned_by(volume.document("root"), edge)
    volume.sync()
    volume.sync()
    assert not ends.pinned_by(volume.document("root"), edge)
    volume.settled()


def test_the_base_of_a_branch_is_held_at_the_root(volume: Volume) -> None:
    """Also when the root could not be reached when the branch was made: the syncs above it carry it on."""
    chain(volume)
    volume.branch("leaf")
    base = volume.document("leaf").position
    edge = volume.document("m").edge
    assert base in ends.pinned_by(volume.document("root"), edge)
    volume.node("root").update(lambda d: d.without_holds(edge, base))
    volume.sync()
    assert base in ends.pinned_by(volume.document("root"), edge)
    volume.node("root").update(lambda d: d.without_holds(edge, base))
    assert not settled(*map(volume.document, ("m", "root", "root")), relays=False)
    volume.cli("discard", f"{TREE}/leaf", "--yes")
    volume.sync()
    volume.at_rest(trash=True)


def test_the_roots_image_in_use(volume: Volume) -> None:
    import rados
    import rbd

    chain(volume)
    volume.put("leaf", {0: noise(600)}, expect=False)
    before = volume.newest()
    with ExitStack() as opened:
        client = opened.enter_context(rados.Rados(conffile=str(volume.pools.conf("a")), name="client.admin"))
        ioctx = opened.enter_context(client.open_ioctx(volume.pools.name))
        with rbd.Image(ioctx, "vol") as image:
            image.write(noise(4096, "vm"), 8 * MIB)
            done = volume.push("leaf", code=BUSY)
            address = client.get_addrs().strip("v12:[]").partition("/")[0]
            assert address.partition(":")[0] in done.err, (done.err, address)
            image.write(noise(4096, "vm2"), 8 * MIB + 4096)
            assert volume.newest() == before
            volume.push("leaf", "--shared")
            # Nobody took its lock for good.
            for number in range(5):
                image.write(noise(4096, number), 9 * MIB)
                image.flush()
            volume.put("leaf", {700: noise(100, 2)}, expect=False)
            volume.push("leaf", "--shared")
            image.write(noise(4096, "vm3"), 8 * MIB + 4096)
    volume.expect({0: noise(600), 700: noise(100, 2), 8 * MIB: noise(4096, "vm"), 8 * MIB + 4096: noise(4096, "vm3")})
    volume.expect({9 * MIB: noise(4096, 4)})
    volume.sync("", "--cut")
    volume.sync()
    volume.settled()


@pytest.mark.parametrize("limit", [parcel.LIMIT, 0], ids=["packed", "copied"])
@pytest.mark.parametrize("offset", [6 * MIB, 3 * MIB + 8192], ids=["elsewhere", "in the push"])
def test_the_roots_host_writes_while_a_push_lands(
    volume: Volume, offset: int, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came and went before anybody looked: the writer of the push must get these bytes as well."""
    monkeypatch.setattr(parcel, "LIMIT", limit)
    chain(volume)
    volume.put("leaf", {3 * MIB: noise(64 * KIB, "pushed")})
    apply = landing.apply

    def raced(*words: Any) -> Any:
        done = apply(*words)
        if words[0].node_id == volume.document("root").ref.node_id:
            volume.write("root", {offset: noise(4096, "the root's own")})
        return done

    monkeypatch.setattr(landing, "apply", raced)
    volume.push("leaf", "--wait")
    monkeypatch.undo()
    volume.expect({offset: noise(4096, "the root's own")})
    volume.sync("", "--cut")
    volume.sync()
    volume.forget_hashes()
    volume.check(current=True)
    assert not volume.document("root").generations[-1].exact


@pytest.mark.parametrize("offset", [6 * MIB, 3 * MIB + 8192], ids=["elsewhere", "in the push"])
def test_a_branch_does_not_meet_itself(volume: Volume, offset: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The root's host wrote while a push landed: the next push of the same branch meets these bytes, and no others."""
    chain(volume)
    apply, theirs = landing.apply, noise(4096, "the root's own")

    def raced(*words: Any) -> Any:
        done = apply(*words)
        if words[0].node_id == volume.document("root").ref.node_id:
            volume.write("root", {offset: theirs})
        return done

    with volume.on_branch("leaf") as image:
        # In use, so that it does not move on.
        image.write(noise(64 * KIB, "pushed"), 3 * MIB)
        image.flush()
        monkeypatch.setattr(landing, "apply", raced)
        volume.push("leaf")
        monkeypatch.undo()
        volume.expect({3 * MIB: noise(64 * KIB, "pushed")})
        volume.expect({offset: theirs})
        volume.check_model()
        for turn in range(2):
            image.write(noise(32 * KIB, turn), 3 * MIB + 16 * KIB)
            image.flush()
            volume.expect({3 * MIB + 16 * KIB: noise(32 * KIB, turn)})
            volume.push("leaf")
            volume.check_model()
        image.write(noise(512, "over"), offset)
        image.flush()
        before = volume.newest()
        volume.push("leaf", code=REFUSED)
        (evidence,) = volume.conflict("leaf")["evidence"]
        assert (evidence["node"], evidence["total_bytes"]) == ("root", 512)
        assert volume.newest() == before
    volume.check_model()


def test_a_clone_that_was_written_to_becomes_no_branch(volume: Volume) -> None:
    """And what was written stays: a sync takes no such image away."""
    volume.init(size=8 * MIB)
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(MIB, "first")})
    volume.step()
    foreign = noise(5000, "foreign")
    with volume.image("k") as image:
        image.write(foreign, MIB)
    done = volume.cli("branch", f"{TREE}/k", code=DIVERGED)
    assert "vol/k has diverged" in done.err
    assert volume.document("k").branch is None
    volume.cut()
    assert volume.status()["k"]["state"] == "diverged"
    volume.sync(code=DIVERGED)
    with volume.image("k", read_only=True) as image:
        assert image.read(MIB, 5000) == foreign
    volume.cli("rollback", f"{TREE}/k")
    volume.sync()
    volume.put("k", {MIB: noise(100, 2)})
    volume.push("k", "--wait")
    volume.check_model()
    volume.check(current=True)
    volume.at_rest(trash=True)


@pytest.mark.parametrize("sealed", [False, True], ids=["before the seal", "after the seal"])
def test_a_clone_that_was_written_to_while_its_branch_was_being_made(volume: Volume, sealed: bool) -> None:
    volume.init(size=8 * MIB)
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(MIB, "first")})
    volume.step()
    document = volume.document("k")
    base, since = document.position, push_snapshot_name(document.tree_id, 0)
    half = Branch(document.ref.image, "", base, "snapshot", since)
    volume.node("k").update(lambda d: replace(d, branch=half))
    with volume.image("k") as image:
        if sealed:
            image.create_snap(since)
        image.write(noise(5000, "mine"), MIB)
    if sealed:
        # Written to a branch: it is finished, and keeps what it holds.
        volume.cut()
        volume.sync()
        assert volume.branch_bytes("k")[MIB : MIB + 5000] == noise(5000, "mine")
        volume.expect({MIB: noise(5000, "mine")})
        volume.push("k", "--wait")
        volume.settled()
        return
    volume.cut()
    volume.sync(code=DIVERGED)
    with volume.image("k", read_only=True) as image:
        assert image.read(MIB, 5000) == noise(5000, "mine")
    volume.cli("rollback", f"{TREE}/k")
    volume.sync()
    assert volume.document("k").position == volume.document("root").position
    volume.put("k", {MIB: noise(100, 2)})
    volume.push("k", "--wait")
    volume.check_model()
    volume.check(current=True)
