"""Writes that go into a snapshot after it was made (``engine.delta``): nobody's copy may lack them for long."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import latecomer
from .world import MIB, TREE, World, noise, until

pytestmark = pytest.mark.ceph


class Host:
    """``latecomer.py`` at the root's image, held up while it opens it."""

    def __init__(self, world: World, folder: Path, shim: Path) -> None:
        self._sign, self._go = folder / "sign", folder / "go"
        env = dict(os.environ, LD_PRELOAD=str(shim), LATE_SIGN=str(self._sign), LATE_GO=str(self._go))
        words = [sys.executable, latecomer.__file__, world.pools.conf("a"), world.pools.name, "vol"]
        self.process = subprocess.Popen(
            [str(word) for word in words], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        until(self._sign.exists, "a host that is held up")

    def go_on(self) -> None:
        self._go.touch()
        assert self._answer() == "open"

    def _answer(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def write(self, offset: int, text: str) -> None:
        assert self.process.stdin
        print(offset, text, file=self.process.stdin, flush=True)
        assert self._answer() == "written"


@pytest.fixture
def shim(tmp_path: Path) -> Path:
    made = latecomer.build(tmp_path)
    if made is None:
        pytest.skip("there is no C compiler to hold up librbd with")
    return made


@contextmanager
def host(world: World, folder: Path, shim: Path) -> Iterator[Host]:
    made = Host(world, folder, shim)
    try:
        yield made
        assert made.process.stdin
        made.process.stdin.close()
        assert made.process.wait(30) == 0
    finally:
        made.process.kill()
        made.process.wait()


def tree(world: World) -> None:
    """A root with data in its first five objects, a mirror, and a mirror of that."""
    world.init(size=32 * MIB)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c")
    world.write("root", {0: noise(20 * MIB, 1)})
    world.step()


def heads(world: World) -> set[str]:
    world.forget_hashes()
    assert {node["state"] for node in world.status().values()} == {"up-to-date"}
    assert all(not node["differences"] for node in world.get("verify", TREE)["nodes"])
    return {world.head(name) for name in ("root", "m1", "m2")}


def older(world: World, offset: int, generation: str) -> bytes:
    tree_id = world.document("root").tree_id
    with world.image("root", f"rbdtree.{tree_id[:8]}.{generation}", read_only=True) as image:
        return bytes(image.read(offset, 4))


@pytest.mark.release
def test_a_host_that_did_not_hear_of_the_last_generation(world: World, tmp_path: Path, shim: Path) -> None:
    """It opens the volume while 1.2 is cut, and writes to it until 1.3 is: mirrors had 1.2 before."""
    tree(world)
    with host(world, tmp_path, shim) as late:
        world.write("root", {9 * MIB: noise(4096, 2)})
        world.step()
        late.go_on()
        late.write(5 * MIB, "LATE")
        late.write(9 * MIB + 512, "LATE")
        late.write(25 * MIB, "LATE")
        world.sync("", "--cut")
        assert len(heads(world)) == 1
        # It knows now.
        late.write(6 * MIB, "TIME")
        assert older(world, 6 * MIB, "1.3") != b"TIME"
        world.sync("", "--cut")
    assert len(heads(world)) == 1
    with world.image("m2", read_only=True) as image:
        assert [image.read(at * MIB, 4) for at in (5, 6, 25)] == [b"LATE", b"TIME", b"LATE"]


@pytest.mark.release
def test_a_host_that_is_reminded_writes_into_no_snapshot(world: World, tmp_path: Path, shim: Path) -> None:
    """As 'rbdtree map' does before it hands out the device."""
    tree(world)
    with host(world, tmp_path, shim) as late:
        world.step()
        late.go_on()
        root = world.document("root")
        world.sites.cluster("a").pool(world.pools.name).remind(root.image_id, wait=True)
        late.write(5 * MIB, "TIME")
    world.forget_hashes()
    world.step()
    world.check_settled()


def latecomer_removes(world: World, offset: int) -> None:
    with world.ioctx("a") as ioctx, world.at("a", "vol", read_only=True) as image:
        latecomer.write(ioctx, image, offset, None)


def test_late_writes_into_objects_that_are_there(world: World) -> None:
    """The same without a C compiler: as that librbd leaves the image. One of them is written to in time as well."""
    tree(world)
    world.write_late("a", "vol", 5 * MIB, b"LATE")
    world.write_late("a", "vol", 17 * MIB, b"LATE")
    assert older(world, 5 * MIB, "1.1") == b"LATE"
    latecomer_removes(world, 12 * MIB)
    world.write("root", {17 * MIB + 4096: noise(4096, 2), MIB: noise(4096, 3)})
    world.sync("", "--cut")
    assert len(heads(world)) == 1
    with world.image("m2", read_only=True) as image:
        assert image.read(12 * MIB, 4096) == bytes(4096)


def test_a_portion_gets_what_of_a_late_object_it_holds(world: World) -> None:
    world.init(size=32 * MIB)
    world.write("root", {0: noise(20 * MIB, 1)})
    world.add("p", "root", "mirror", "b", "--portion", "4M..8M")
    world.sync("", "--cut")
    world.write_late("a", "vol", 5 * MIB, b"LATE")
    world.write_late("a", "vol", 9 * MIB, b"LATE")
    world.sync("", "--cut")
    verdict: Any = world.get("verify", f"{TREE}/p")
    assert all(not node["differences"] for node in verdict["nodes"])
    with world.image("p", read_only=True) as image:
        assert image.read(5 * MIB, 4) == b"LATE"
        assert image.read(9 * MIB, 4) == bytes(4)
