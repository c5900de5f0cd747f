"""Images of the names we give to branches, next clones and large pushes, whose maker or remover died within librbd."""

import errno
import signal
from contextlib import ExitStack

import pytest
from live.world import TREE, halve, noise

from rbdtree.engine import marks, parcel, tidy
from rbdtree.engine.clone import beside

from .volume import MIB, Volume

pytestmark = pytest.mark.ceph

NAMED = pytest.mark.parametrize("named", [False, True], ids=["removed", "made"])


def halved(tree: Volume, site: str, node: str, name: str, named: bool) -> None:
    """With the node's mark on it."""
    with tree.ioctx(site) as ioctx:
        left = halve(ioctx, name, named=named)
    tree.node(node).pool.add_entry(marks.image_entry(left), tree.document(node).ref.node_id)


def create(tree: Volume, site: str, name: str) -> str:
    """As librbd's clone begins: an image without a parent."""
    import rbd

    with tree.ioctx(site) as ioctx:
        rbd.RBD().create(ioctx, name, 16 * MIB)
        with rbd.Image(ioctx, name, read_only=True) as image:
            return str(image.id())


def trashed(tree: Volume, site: str) -> list[tuple[str, str]]:
    import rbd

    with tree.ioctx(site) as ioctx:
        return [(entry["name"], entry["id"]) for entry in rbd.RBD().trash_list(ioctx)]


def newer(tree: Volume) -> None:
    tree.root_write({5 * MIB: noise(4096, "second")})
    tree.cut()


@NAMED
def test_a_branch_by_half(tree: Volume, named: bool) -> None:
    halved(tree, "b", "m", "vol-m-branch", named)
    assert tree.branch("m") == "vol-m-branch"
    assert tree.branch_bytes("m") == bytes(tree.model)
    tree.settled()


@NAMED
def test_the_next_clone_by_half(tree: Volume, named: bool) -> None:
    newer(tree)
    halved(tree, "a", "k", beside(tree.document("k")), named)
    tree.sync()
    tree.settled()


@NAMED
def test_the_next_clone_by_half_at_a_node_that_leaves(tree: Volume, named: bool) -> None:
    halved(tree, "a", "k", beside(tree.document("k")), named)
    tree.cli("remove", f"{TREE}/k", "--expiry", "1s")
    tree.at_rest(trash=True)


@NAMED
def test_a_large_push_by_half(tree: Volume, named: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "LIMIT", 0)
    tree.put("m", {MIB: noise(4096, "m")})
    document = tree.document("m")
    name = tidy.staging_name(tree.document("root"), document.ref.node_id, document.push_number + 1)
    halved(tree, "a", "root", name, named)
    tree.push("m", "--wait")
    tree.sync()
    tree.settled()


@NAMED
def test_what_was_staged_by_half_at_a_node_that_leaves(tree: Volume, named: bool) -> None:
    document = tree.document("m")
    halved(tree, "b", "m", tidy.staging_name(document, document.ref.node_id, document.push_number + 1), named)
    tree.cli("remove", f"{TREE}/m", "--expiry", "1s")
    tree.at_rest(trash=True)


def test_a_branch_without_its_parent(tree: Volume) -> None:
    left = create(tree, "b", "vol-m-branch")
    tree.branch("m")
    assert tree.branch_bytes("m") == bytes(tree.model)
    assert trashed(tree, "b") == [("vol-m-branch", left)]
    tree.check_model()
    tree.at_rest(trash=True)


@pytest.mark.parametrize("last", ["clone", "create_snapshot", "set_metadata"])
def test_a_branch_of_an_older_generation(tree: Volume, last: str) -> None:
    """Its making died, and it was given up before anybody went on with it."""
    done = tree.driven("branch", f"{TREE}/m", kill_after=1, only=[last])
    assert done.returncode == -signal.SIGKILL, done
    tree.cli("discard", f"{TREE}/m", "--yes")
    newer(tree)
    tree.sync()
    tree.branch("m")
    assert tree.branch_bytes("m") == bytes(tree.model)
    ((name, left),) = trashed(tree, "b")
    assert name == "vol-m-branch"
    image = tree.node("m").pool.open(left)
    assert not image.snapshots()
    image.close()
    tree.check_model()
    tree.at_rest(trash=True)


@pytest.mark.parametrize("name", ["m", "k"])
@pytest.mark.parametrize("how", ["remove", "detach"])
def test_a_node_that_leaves_takes_every_mark_with_it(tree: Volume, name: str, how: str) -> None:
    """Also that of an image which somebody removed beside its worker."""
    node = tree.node(name)
    node.pool.add_entry(marks.image_entry("gone"), node.node_id)
    node.pool.add_entry(marks.image_entry("another's"), "another")
    for below in (n for n, d in tree.documents().items() if d.parent and d.parent.node_id == node.node_id):
        tree.cli("remove", f"{TREE}/{below}")
    tree.cli(how, f"{TREE}/{name}")
    assert marks.image_entry("gone") not in node.pool.entries()
    assert node.pool.entries()[marks.image_entry("another's")] == "another"


def test_the_next_clone_without_its_parent(tree: Volume) -> None:
    newer(tree)
    create(tree, "a", beside(tree.document("k")))
    tree.sync()
    tree.settled()


@pytest.mark.parametrize("use", ["written", "snapshot", "open", "marked"])
@pytest.mark.parametrize("name", ["m", "k"])
def test_an_image_with_anything_in_it_stays(tree: Volume, name: str, use: str) -> None:
    newer(tree)
    site, image_name = ("b", "vol-m-branch") if name == "m" else ("a", beside(tree.document("k")))
    made = create(tree, site, image_name)
    with ExitStack() as opened:
        if use == "marked":
            tree.node(name).pool.add_entry(marks.image_entry(made), "another")
        else:
            image = opened.enter_context(tree.at(site, image_name))
            if use == "written":
                image.write(b"x", 0)
            elif use == "snapshot":
                image.create_snap("mine")
            if use != "open":
                opened.close()
        done = tree.cli(*(("branch", f"{TREE}/m") if name == "m" else ("sync", f"{TREE}/k")), code=errno.EEXIST)
    assert f"{image_name} is in the way" in done.err
    assert tree.node(name).pool.image_id(image_name) == made
    assert not trashed(tree, site)
