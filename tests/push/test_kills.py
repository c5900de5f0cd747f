"""``kill -9`` wherever a push, a resolve, a discard, a branch or a move may die: done again, each is done once."""

import signal
from collections.abc import Callable

import pytest
from live.world import TREE, noise

from .conftest import Points
from .volume import MIB, REFUSED, Volume

pytestmark = pytest.mark.ceph

EVERY = 9
RBD_WAITS = 30.0
"""Seconds, for the lock of a client that died."""


def killed(
    points: Points,
    volume: Volume,
    before: Callable[[int], tuple[object, ...]],
    after: Callable[[int], None],
    every: int = EVERY,
) -> int:
    """Runs the command of ``before`` again and again, killed further on each time, then ``after``; how far it came."""
    reached = 0
    for turn, order in enumerate(points(every)):
        words = before(turn)
        done = volume.driven(*words, **order)
        try:
            after(turn)
        except AssertionError as error:
            raise AssertionError(f"{words} {order}, ended with {done.returncode}: {error}") from error
        if done.returncode != -signal.SIGKILL:
            reached = max(reached, *order.values())
            points.ended()
    return reached


def chain(volume: Volume) -> None:
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("leaf", "m", "mirror", "c")
    volume.root_write({MIB: noise(MIB, "first")})
    volume.step()
    volume.branch("leaf")


def piece(turn: int) -> dict[int, bytes]:
    return {(turn * 37 % 120) * 128 * 1024 + 700: noise(900, turn), 2 * MIB: noise(512, turn)}


@pytest.mark.release
def test_a_push_at_every_call(points: Points, volume: Volume) -> None:
    """Three hops: staged, copied to the parent, copied to the root, landed, heard."""
    chain(volume)
    newest = 0

    def before(turn: int) -> tuple[object, ...]:
        nonlocal newest
        newest = volume.newest()
        volume.put("leaf", piece(turn))
        return ("push", f"{TREE}/leaf")

    def after(_: int) -> None:
        volume.check()
        assert volume.push("leaf", "--wait").seconds < RBD_WAITS
        assert volume.newest() == newest + 1
        volume.sync()
        volume.settled()

    assert killed(points, volume, before, after) > 15


def test_a_clones_push_and_move_at_every_call(points: Points, volume: Volume) -> None:
    """``--wait``: the clone that is the branch is swapped for a newer one."""
    volume.init(size=16 * MIB)
    volume.add("k", "root", "clone", "a")
    volume.root_write({MIB: noise(MIB, "first")})
    volume.step()
    volume.branch("k")
    newest = 0

    def before(turn: int) -> tuple[object, ...]:
        nonlocal newest
        newest = volume.newest()
        volume.put("k", piece(turn))
        return ("push", f"{TREE}/k", "--wait")

    def after(_: int) -> None:
        volume.check()
        volume.push("k", "--wait")
        assert volume.newest() == newest + 1
        volume.sync()
        volume.settled(died=True)
        assert volume.document("k").branch
        assert volume.branch_bytes("k") == bytes(volume.model)

    assert killed(points, volume, before, after) > 15


def test_a_mirrors_move_at_every_call(points: Points, volume: Volume) -> None:
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.step()
    volume.branch("m")

    def before(turn: int) -> tuple[object, ...]:
        volume.put("m", piece(turn))
        volume.push("m")
        return ("sync", TREE)

    def after(_: int) -> None:
        volume.check()
        volume.sync()
        volume.sync()
        volume.settled(died=True)
        assert volume.branch_bytes("m") == bytes(volume.model)

    assert killed(points, volume, before, after) > 10


@pytest.mark.parametrize("when", ["kill_before", "kill_after"])
def test_killed_while_landing_and_cut_by_another(volume: Volume, when: str) -> None:
    """The cut finishes what it finds; what the root's host wrote in between is not lost, and comes down too."""
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.root_write({MIB: noise(4 * MIB, "first")})
    volume.step()
    volume.put("m", {2 * MIB: noise(4096, "m"), 9 * MIB: noise(4096, "m")})
    newest = volume.newest()
    # Two writes go to the root.
    done = volume.driven("push", f"{TREE}/m", **{when: 1}, only=["submit_write"])
    assert done.returncode == -signal.SIGKILL, done
    assert volume.newest() == newest
    assert volume.document("root").intent
    # The dead client holds RBD's lock of the image and is told of every change: the host would wait for half a minute.
    image = volume.node("root").pool.open(volume.document("root").image_id)
    for address in image.watchers():
        volume.sites.cluster("a").fence(address)
    image.close()
    volume.root_write({3 * MIB: noise(4096, "root"), 2 * MIB + 512: noise(512, "root"), 12 * MIB: noise(512, "root")})
    volume.cut()
    assert volume.newest() == newest + 2
    volume.check_model()
    volume.sync()
    volume.push("m", "--wait")
    assert volume.newest() == newest + 2
    volume.sync()
    volume.settled()


def test_resolving_at_every_call(points: Points, volume: Volume) -> None:
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("k", "root", "clone", "a")
    volume.step()
    how: tuple[object, ...] = ()

    def before(turn: int) -> tuple[object, ...]:
        nonlocal how
        volume.branch("m")
        volume.branch("k")
        volume.put("m", {MIB: noise(512, turn)})
        volume.put("k", {MIB: noise(512, (turn, "k")), 3 * MIB: noise(100, turn)}, expect=False)
        volume.push("m", "--wait")
        volume.push("k", code=REFUSED)
        how = (("--take", "theirs", "--yes"), ("--take", "ours"), ("--park", f"parked{turn}"))[turn % 3]
        return ("resolve", f"{TREE}/k", *how)

    def after(turn: int) -> None:
        import rbd

        volume.check()
        volume.cli("status", TREE)
        again = volume.cli("resolve", f"{TREE}/k", *how, code=None)
        assert again.code in (0, 2), again
        if how[1] == "ours":
            volume.push("k", "--wait")
            volume.expect({MIB: noise(512, (turn, "k")), 3 * MIB: noise(100, turn)})
        elif how[0] == "--park":
            with volume.at("a", str(how[1])) as image:
                assert image.read(MIB, 512) == noise(512, (turn, "k"))
                assert not list(image.list_snaps())
                assert not list(image.metadata_list())
            with volume.ioctx("a") as ioctx:
                rbd.RBD().remove(ioctx, str(how[1]))
        volume.sync()
        volume.sync()
        with volume.ioctx("a") as ioctx:
            kept = list(rbd.RBD().trash_list(ioctx))
            assert len(kept) == (how[1] == "theirs"), kept
            for entry in kept:
                rbd.RBD().trash_remove(ioctx, entry["id"], True)
        volume.settled()

    assert killed(points, volume, before, after, EVERY // 2) > 4


@pytest.mark.parametrize("name", ["m", "k"])
def test_branching_and_discarding_at_every_call(points: Points, volume: Volume, name: str) -> None:
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("k", "root", "clone", "a")
    volume.root_write({MIB: noise(MIB)})
    volume.step()
    every = EVERY // 2

    def after_branch(_: int) -> None:
        volume.check()
        volume.sync()
        first = volume.branch(name)
        assert volume.branch(name) == first
        assert volume.branch_bytes(name) == bytes(volume.model)
        volume.sync()
        volume.settled()
        volume.cli("discard", f"{TREE}/{name}", "--yes")
        empty_trash(volume, name)
        volume.sync()
        volume.settled()

    def before_discard(turn: int) -> tuple[object, ...]:
        volume.put(name, {MIB: noise(512, turn)}, expect=False)
        return ("discard", f"{TREE}/{name}", "--yes")

    def after_discard(turn: int) -> None:
        volume.check()
        volume.sync(code=None)
        volume.cli("discard", f"{TREE}/{name}", "--yes")
        volume.sync()
        assert empty_trash(volume, name) == [noise(512, turn)]
        volume.settled()

    assert killed(points, volume, lambda _: ("branch", f"{TREE}/{name}"), after_branch, every) > 4
    assert killed(points, volume, before_discard, after_discard, every) > 4


def empty_trash(volume: Volume, name: str) -> list[bytes]:
    """What the discarded branches of the trash have at 1 MiB."""
    import rbd

    found = []
    with volume.ioctx("b" if name == "m" else "a") as ioctx:
        for entry in rbd.RBD().trash_list(ioctx):
            rbd.RBD().trash_restore(ioctx, entry["id"], "kept")
            with rbd.Image(ioctx, "kept", read_only=True) as image:
                assert not list(image.list_snaps())
                found.append(image.read(MIB, 512))
            rbd.RBD().remove(ioctx, "kept")
    return found
