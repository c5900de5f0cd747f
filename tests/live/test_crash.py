"""``kill -9`` wherever a command may die. Nothing sealed is ever wrong, and the command run again finishes at once.

The killed process kills itself: ``driver.py`` counts the calls that change something on a cluster.
"""

import errno
import itertools
import signal
import struct
from collections.abc import Callable

import pytest
import rados

from rbdtree.engine.clone import beside
from rbdtree.model.position import snapshot_name

from .world import MIB, TREE, World, noise, until

pytestmark = [pytest.mark.ceph, pytest.mark.faults]

LIMIT = 80
SOON = 12.0
"""A dead claim of this machine is recognised and the dead client fenced: RBD would have waited 30 s for its lock."""


def _die_everywhere(
    world: World, before: Callable[[int], tuple[object, ...]], after: Callable[[int, str], None], **orders: object
) -> int:
    """Runs the command that ``before`` returns again and again, killed one call later each time.

    ``after`` is called after each; returns how often it took."""
    for number in itertools.count():
        assert number < LIMIT
        words = before(number)
        where = {"kill_after": number} if number else {"kill_before": 1}
        done = world.driven(*words, **where, **orders)
        if done.returncode != -signal.SIGKILL:
            assert done.returncode == 0, f"{number}: {done.returncode} {done.stdout} {done.stderr}"
            after(number, "not killed")
            return number
        after(number, f"killed after call {number}")
    raise AssertionError


def _finish(world: World, *words: object) -> None:
    done = world.cli(*(words or ("sync", TREE)))
    assert done.seconds < SOON, f"waited {done.seconds:.1f} s: {done}"


def _settled(world: World) -> None:
    world.check(current=True)
    world.check_settled()


def _seeded(world: World, size: int = 8 * MIB) -> None:
    world.init(size=size)
    world.write("root", {0: noise(3 * MIB)})


def _sync_killed_everywhere(world: World, after_kill: Callable[[], None] = lambda: None) -> int:
    def before(number: int) -> tuple[object, ...]:
        world.write("root", {(number % 7) * MIB + 4096: noise(4096, number), 5 * MIB: noise(8192, number)})
        world.quick_cut()
        return ("sync", TREE)

    def after(number: int, said: str) -> None:
        try:
            world.check()
            after_kill()
            _finish(world)
            _settled(world)
        except AssertionError as error:
            raise AssertionError(f"{said}: {error}") from error

    return _die_everywhere(world, before, after)


@pytest.mark.release
def test_a_mirror_killed_at_every_call(world: World) -> None:
    _seeded(world)
    world.add("m1", "root", "mirror", "b")
    # hold, intend, two writes, seal, settle, release, goodbye, claim, unclaim, summary at the least
    assert _sync_killed_everywhere(world) >= 9


def _halve(world: World, name: str) -> bool:
    """As if the maker of the node's unfinished generation had died over its snapshot: librbd enters it into the header,
    and makes its object map after that."""
    document = world.document(name)
    if document.intent is None:
        return False
    made = snapshot_name(document.tree_id, document.intent.target)
    with world.image(name, read_only=True) as image:
        if any(snapshot["name"] == made for snapshot in image.list_snaps()):
            return False
    with world.ioctx(document.ref.site) as ioctx:
        number = ioctx.create_self_managed_snap()
        told = struct.pack("<I", len(made)) + made.encode() + struct.pack("<Q", number)
        ioctx.execute(f"rbd_header.{document.image_id}", "rbd", "snapshot_add", told)
    return True


def test_a_snapshot_made_by_half_is_made_again(world: World) -> None:
    _seeded(world)
    world.add("m1", "root", "mirror", "b")
    halves: list[bool] = []
    _sync_killed_everywhere(world, lambda: halves.append(_halve(world, "m1")))
    assert any(halves)


def test_a_cut_made_by_half_is_made_again(world: World) -> None:
    _seeded(world)
    world.add("m1", "root", "mirror", "b")
    world.step()
    halves: list[bool] = []

    def before(number: int) -> tuple[object, ...]:
        world.write("root", {4096 * number: noise(4096, number)})
        return ("cut", TREE)

    def after(number: int, said: str) -> None:
        halves.append(_halve(world, "root"))
        _finish(world, "sync", TREE, "--cut")
        _settled(world)

    _die_everywhere(world, before, after)
    assert any(halves)


def test_a_mirror_killed_at_every_report(world: World) -> None:
    _seeded(world)
    world.add("m1", "root", "mirror", "b")
    for number in range(1, LIMIT, 2):
        world.scatter(("event", number))
        world.quick_cut()
        done = world.driven("sync", TREE, kill_event=number)
        world.check()
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
        _finish(world)
        _settled(world)
    assert number > 6


def test_a_clone_killed_at_every_call(world: World) -> None:
    _seeded(world)
    world.add("k1", "root", "clone", "a")
    assert _sync_killed_everywhere(world) >= 9


@pytest.mark.parametrize("state", ["in the trash", "half in it, named", "half in it"])
@pytest.mark.parametrize("words", [("sync", TREE), ("remove", f"{TREE}/k")])
def test_a_clone_whose_remover_died(world: World, state: str, words: tuple[str, ...]) -> None:
    """A new clone was made ahead of a swap, and removed: librbd notes it in the trash before it takes its name."""
    world.init(size=8 * MIB)
    world.add("k", "root", "clone", "a")
    world.write("root", {0: noise(MIB)})
    world.step()
    world.write("root", {MIB: noise(MIB, "more")})
    world.cut()
    document, root = world.document("k"), world.document("root")
    pool, name = world.sites.cluster("a").pool(world.pools.name), beside(document)
    assert root.newest
    made = pool.clone(root.image_id, snapshot_name(root.tree_id, root.newest.position), pool, name)
    pool.trash(made, name, 0)

    def put(into: int) -> None:
        key = f"id_{made}"
        with world.ioctx("a") as ioctx, rados.ReadOpCtx() as read, rados.WriteOpCtx() as write:
            found, _ = ioctx.get_omap_vals_by_keys(read, (key,))
            ioctx.operate_read_op(read, "rbd_trash")
            ((_, spec),) = found
            # cls_rbd's TrashImageSpec ends with the state: 0 is normal, 1 moving.
            ioctx.set_omap(write, (key,), (spec[:-1] + bytes([into]),))
            ioctx.operate_write_op(write, "rbd_trash")

    if state != "in the trash":
        put(1)
    if state == "half in it, named":
        told = struct.pack("<I", len(made)) + made.encode()
        called = struct.pack("<I", len(name)) + name.encode()
        with world.ioctx("a") as ioctx:
            ioctx.write_full(f"rbd_id.{name}", told)
            ioctx.execute("rbd_directory", "rbd", "dir_add_image", called + told)
    _finish(world, *words)
    if state == "half in it":
        # Nothing can be done about it: RBD neither purges nor restores it.
        assert [entry.image_id for entry in pool.trashed() if entry.name == name] == [made]
        put(0)
        pool.purge(made)
    assert name not in {entry.name for entry in pool.trashed()}
    if words[0] == "sync":
        _settled(world)


def test_a_chain_with_a_clone_killed_at_every_call(world: World) -> None:
    _seeded(world)
    world.add("m1", "root", "mirror", "b")
    world.add("k1", "m1", "clone", "b")
    assert _sync_killed_everywhere(world) >= 18


def test_seeding_killed_at_every_call(world: World) -> None:
    """The first copy into an empty image: a new node each time."""
    _seeded(world)
    world.quick_cut()

    def before(number: int) -> tuple[object, ...]:
        world.add(f"m{number}", "root", "mirror", "b")
        return ("sync", f"{TREE}/m{number}")

    def after(number: int, said: str) -> None:
        world.check()
        _finish(world, "sync", f"{TREE}/m{number}")
        world.check(current=True)
        world.cli("remove", f"{TREE}/m{number}", "--expiry", "1s")

    assert _die_everywhere(world, before, after) >= 6


def test_cut_killed_at_every_call(world: World) -> None:
    _seeded(world)
    world.add("m1", "root", "mirror", "b")

    def before(number: int) -> tuple[object, ...]:
        world.scatter(("cut", number))
        return ("cut", TREE)

    def after(number: int, said: str) -> None:
        world.check()
        _finish(world, "cut", TREE)
        _finish(world)
        _settled(world)

    assert _die_everywhere(world, before, after) >= 4
    # Numbers rise and none is used for two contents.
    sequences = [g.position.sequence for g in world.document("root").generations]
    assert sequences == sorted(set(sequences))


def test_a_dead_cut_holds_up_nobody_who_writes(world: World) -> None:
    """A host that goes on writing after a cut died with RBD's lock in its hand."""
    _seeded(world)
    done = world.driven("cut", TREE, kill_after=1, only=["create_snapshot"])
    assert done.returncode == -signal.SIGKILL
    _finish(world, "cut", TREE)
    world.write("root", {MIB: b"x" * 4096})
    _finish(world, "cut", TREE)


@pytest.mark.parametrize("adopted", [False, True], ids=["made", "adopted"])
def test_init_killed_at_every_call(world: World, adopted: bool) -> None:
    def before(number: int) -> tuple[object, ...]:
        if adopted:
            world.create("a", f"i{number}", 8 * MIB)
            with world.at("a", f"i{number}") as image:
                image.write(noise(4096, number), MIB)
        return words(number)

    def after(number: int, said: str) -> None:
        world.cli("status")
        if said != "not killed":
            again = world.cli(*words(number), code=None)
            assert again.code in (0, errno.EEXIST), again
            assert again.seconds < SOON, again
        world.cli("cut", f"t{number}")
        world.check_strays()
        if adopted:
            with world.at("a", f"i{number}", read_only=True) as image:
                assert image.read(MIB, 4096) == noise(4096, number)

    def words(number: int) -> tuple[object, ...]:
        spec = world.pools.spec("a", f"i{number}")
        return ("init", f"t{number}", "--node", "root", "--image", spec, *([] if adopted else ["--size", "8M"]))

    assert _die_everywhere(world, before, after) >= 4


@pytest.mark.parametrize("kind", ["mirror", "clone"])
def test_add_killed_at_every_call(world: World, kind: str) -> None:
    _seeded(world)
    world.quick_cut()
    site = "b" if kind == "mirror" else "a"

    def words(number: int) -> tuple[object, ...]:
        spec = world.pools.spec(site, f"i{number}")
        return ("add", f"{TREE}/n{number}", "--parent", "root", "--kind", kind, "--image", spec)

    def after(number: int, said: str) -> None:
        world.cli("status", TREE)
        # A node on its way in is nobody's failure.
        world.sync("", code=None)
        if said != "not killed":
            again = world.cli(*words(number), code=None)
            # Killed before anything was said, the last word may have been the last step.
            assert again.code in (0, errno.EEXIST), again
            assert again.seconds < SOON, again
        _finish(world, "sync", TREE)
        _settled(world)
        world.cli("remove", f"{TREE}/n{number}", "--expiry", "1s")
        _empty_trash(world, site)

    assert _die_everywhere(world, words, after) >= 4


def _empty_trash(world: World, site: str) -> None:
    """As 'rbd trash purge' does: images with snapshots too."""
    import rbd

    with world.ioctx(site) as ioctx:
        for entry in rbd.RBD().trash_list(ioctx):
            with rbd.Image(ioctx, image_id=entry["id"]) as image:
                for snapshot in image.list_snaps():
                    image.remove_snap(snapshot["name"])
            rbd.RBD().trash_remove(ioctx, entry["id"], True)


@pytest.mark.parametrize(("kind", "verb"), [("mirror", "remove"), ("mirror", "detach"), ("clone", "remove")])
def test_leaving_killed_at_every_call(world: World, kind: str, verb: str) -> None:
    _seeded(world)
    world.add("stays", "root", "mirror", "c")
    world.step()
    site = "b" if kind == "mirror" else "a"
    kept = {}

    def before(number: int) -> tuple[object, ...]:
        world.add(f"n{number}", "root", kind, site)
        world.sync()
        kept[number] = world.head(f"n{number}")
        return (verb, f"{TREE}/n{number}")

    def after(number: int, said: str) -> None:
        world.cli("status", TREE)
        if said != "not killed":
            again = world.cli(verb, f"{TREE}/n{number}", code=None)
            # Killed before anything was said, the last word may have been the last step.
            assert again.code in (0, 2), again
            assert again.seconds < SOON, again
        assert f"n{number}" not in world.documents()
        if verb == "detach":
            with world.at(site, f"{TREE}-n{number}", read_only=True) as image:
                assert world.digest(image) == kept[number]
                assert not list(image.list_snaps())
                assert not list(image.metadata_list())
            _remove_image(world, site, f"{TREE}-n{number}")
        else:
            with pytest.raises(Exception, match="not"), world.at(site, f"{TREE}-n{number}"):
                pass
            _empty_trash(world, site)
        world.check(current=True)
        world.check_settled()

    assert _die_everywhere(world, before, after) >= 5


def _remove_image(world: World, site: str, name: str) -> None:
    import rbd

    def gone() -> bool:
        with world.ioctx(site) as ioctx:
            try:
                rbd.RBD().remove(ioctx, name)
            except rbd.ImageBusy:
                return False
            return True

    # The killed process' watch on the image lasts up to 30 s where nobody had to fence it.
    until(gone, f"{name} removed", 40)


def test_ending_a_tree_killed_at_every_call(world: World) -> None:
    """``detach`` of the root: the volume is left as it was."""

    def before(number: int) -> tuple[object, ...]:
        spec = world.pools.spec("a", f"i{number}")
        world.cli("init", f"t{number}", "--node", "root", "--image", spec, "--size", "8M")
        with world.at("a", f"i{number}") as image:
            image.write(noise(4096, number), MIB)
        world.cli("cut", f"t{number}")
        return ("detach", f"t{number}/root")

    def after(number: int, said: str) -> None:
        if said != "not killed":
            again = world.cli("detach", f"t{number}/root", code=None)
            assert again.code in (0, 2), again
            assert again.seconds < SOON, again
        with world.at("a", f"i{number}", read_only=True) as image:
            assert image.read(MIB, 4096) == noise(4096, number)
            assert not list(image.list_snaps())
            assert not list(image.metadata_list())
        world.check_strays()

    assert _die_everywhere(world, before, after) >= 4


def test_rollback_killed_at_every_call(world: World) -> None:
    _seeded(world)
    world.add("m1", "root", "mirror", "b")
    world.step()

    def before(number: int) -> tuple[object, ...]:
        world.write("m1", {(number % 6) * MIB: noise(5000, ("foreign", number))})
        return ("rollback", f"{TREE}/m1")

    def after(number: int, said: str) -> None:
        if said != "not killed":
            _finish(world, "rollback", f"{TREE}/m1")
        kept = [s for s in world.snapshots("m1") if s.startswith("rbdtree-diverged-")]
        found = []
        with world.image("m1", kept[0], read_only=True) as image:
            found.append(image.read((number % 6) * MIB, 5000) == noise(5000, ("foreign", number)))
        assert any(found), kept
        with world.image("m1") as image:
            for name in kept:
                image.remove_snap(name)
        _finish(world)
        _settled(world)

    assert _die_everywhere(world, before, after) >= 6


@pytest.mark.parametrize("seeding", [True, False], ids=["seeding", "delta"])
def test_half_a_delta_is_not_copied_twice(world: World, seeding: bool) -> None:
    total = 48 * MIB
    world.init(size=64 * MIB)
    world.add("m1", "root", "mirror", "b")
    if not seeding:
        world.cut()
        world.sync()
    world.write("root", {4 * MIB: noise(total)})
    world.cut()
    half = 4 * MIB + total // 2
    done = world.driven("sync", TREE, kill_recorded=half, record_seconds=0.02, write_seconds=0.03)
    assert done.returncode == -signal.SIGKILL, done.stderr
    node = world.status()["m1"]
    assert node["state"] == ("seeding" if seeding else "inconsistent")
    assert node["intent_done_bytes"] >= half
    moved = world.get("sync", TREE)["nodes"][0]["written_bytes"]
    assert moved <= total // 2, moved
    _settled(world)


@pytest.mark.parametrize(
    "layout",
    [("--object-size", "1M", "--stripe-unit", "64K", "--stripe-count", "8"), ("--object-size", "64K")],
    ids=["striped", "small"],
)
def test_resuming_into_another_layout(world: World, layout: tuple[str, ...]) -> None:
    """A half-written head of another layout is recognised as our own work."""
    world.init(size=64 * MIB)
    world.add("m1", "root", "mirror", "b", *layout)
    world.write("root", {0: noise(24 * MIB)})
    world.step()
    world.write("root", {at * MIB + 1000: noise(300_000, at) for at in range(0, 64, 5)})
    world.cut()
    done = world.driven("sync", TREE, kill_copied=0.5, record_seconds=0.01, write_seconds=0.05)
    assert done.returncode == -signal.SIGKILL, done.stderr
    world.check()
    _finish(world)
    _settled(world)
