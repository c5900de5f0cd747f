"""A publication that died in the middle at the root, and what may be done meanwhile: half a push is no generation."""

from collections.abc import Callable
from typing import Any

import pytest
import rbd
from live.world import TREE, noise

from rbdtree.engine import landing, parcel
from rbdtree.model.extent import Extents

from .volume import DIVERGED, KIB, MIB, REFUSED, Volume

pytestmark = pytest.mark.ceph
INTERRUPTED = 130
PIECES = {3 * MIB: noise(64 * KIB, "one"), 9 * MIB: noise(64 * KIB, "two")}


@pytest.fixture(params=[parcel.LIMIT, 0], ids=["packed", "copied"])
def half(volume: Volume, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """``half(name)`` pushes from a node and ends when the first piece was written into the root's image."""
    apply = landing.apply

    def die(*words: Any) -> Any:
        *before, wanted = words
        apply(*before, Extents(wanted.pairs[:1]))
        raise KeyboardInterrupt

    def push(name: str) -> None:
        volume.put(name, PIECES, expect=False)
        with monkeypatch.context() as patch:
            patch.setattr(parcel, "LIMIT", request.param)
            patch.setattr(landing, "apply", die)
            volume.push(name, code=INTERRUPTED)
        intent = volume.document("root").intent
        assert intent
        assert intent.push

    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.root_write({0: noise(MIB)})
    volume.step()
    return push


def test_the_roots_branch_is_discarded(volume: Volume, half: Callable[[str], None]) -> None:
    """What was being published is published."""
    half("root")
    volume.cli("discard", f"{TREE}/root", "--yes")
    volume.expect(PIECES)
    volume.sync("", "--cut")
    volume.sync()
    volume.check_model()
    volume.check(current=True)
    volume.at_rest(trash=True)


def test_the_roots_branch_is_parked_and_the_mirrors_discarded(volume: Volume, half: Callable[[str], None]) -> None:
    half("m")
    volume.cli("discard", f"{TREE}/m", "--yes")
    volume.expect(PIECES)
    volume.sync()
    volume.check_model()
    volume.check(current=True)


def test_its_bytes_are_lost(volume: Volume, half: Callable[[str], None]) -> None:
    """The root is taken back on demand; what it held is kept; the push is refused, and can be sent again."""
    half("m")
    before = volume.newest()
    (push,) = volume.document("root").pushes
    with volume.ioctx("a") as ioctx:
        if push.packed:
            for entry in list(ioctx.list_objects()):
                if entry.key.startswith(push.staging):
                    ioctx.remove_object(entry.key)
        else:
            with volume.at("a", push.staging) as image:
                for snapshot in image.list_snaps():
                    image.remove_snap(snapshot["name"])
            rbd.RBD().remove(ioctx, push.staging)
    for words in (("cut", TREE), ("sync", TREE, "--cut"), ("push", f"{TREE}/m")):
        done = volume.cli(*words, code=DIVERGED)
        assert f"rbdtree rollback {TREE}/root" in done.err, done
    with volume.image("root", read_only=True) as image:
        torn = image.read(0, image.size())
    assert torn != bytes(volume.model)
    volume.cli("rollback", f"{TREE}/root", "--dry-run")
    assert volume.document("root").intent
    with volume.image("root") as image:
        assert "Unmap it there" in volume.cli("rollback", f"{TREE}/root", code=16).err
        image.write(b"", 0)
    volume.cli("rollback", f"{TREE}/root")
    with volume.image("root", read_only=True) as image:
        assert image.read(0, image.size()) == bytes(volume.model)
        (kept,) = (s["name"] for s in image.list_snaps() if s["name"].startswith("rbdtree-diverged"))
    with volume.image("root", kept, read_only=True) as image:
        assert image.read(0, image.size()) == torn
    volume.cut()
    assert volume.newest() == before + 1
    volume.push("m", code=REFUSED)
    volume.cli("resolve", f"{TREE}/m", "--take", "ours")
    volume.push("m", "--wait")
    volume.expect(PIECES)
    volume.sync()
    volume.check_model()
    volume.check(current=True)


def test_nothing_is_torn(volume: Volume, half: Callable[[str], None]) -> None:
    """A rollback does not take away what can be published."""
    half("m")
    assert "nothing to roll back" in volume.cli("rollback", f"{TREE}/root").out
    volume.push("m", "--wait")
    volume.expect(PIECES)
    volume.settled()
    assert "is the root" in volume.cli("rollback", f"{TREE}/root", code=22).err
