"""Pushes while the volume is resized, while generations go, and larger than memory."""

import subprocess
import sys

import pytest
from live.world import TREE, noise

from rbdtree.model.position import Position, snapshot_name

from .volume import MIB, REFUSED, Volume

pytestmark = pytest.mark.ceph


@pytest.fixture
def line(volume: Volume) -> Volume:
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("leaf", "m", "mirror", "c")
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(MIB), 12 * MIB: noise(MIB)})
    volume.step()
    return volume


def resize(volume: Volume, *sizes: int) -> None:
    with volume.image("root") as image:
        for size in sizes:
            image.resize(size)
    for size in sizes:
        if size < len(volume.model):
            del volume.model[size:]
        volume.model.extend(bytes(size - len(volume.model)))


def at_peace(volume: Volume) -> None:
    volume.sync()
    volume.sync()
    volume.settled()


@pytest.mark.parametrize("name", ["leaf", "k"])
def test_the_root_grew(line: Volume, name: str) -> None:
    line.put(name, {16 * MIB - 700: noise(700, name)})
    resize(line, 24 * MIB)
    line.root_write({20 * MIB: noise(512)})
    line.push(name, "--wait")
    line.check_model()
    at_peace(line)
    line.put(name, {24 * MIB - 512: noise(512, name)})
    line.push(name, "--wait")
    at_peace(line)


@pytest.mark.parametrize("name", ["leaf", "k"])
def test_the_root_shrank(line: Volume, name: str) -> None:
    line.branch(name)
    line.put(name, {MIB: noise(512, name)}, expect=False)
    line.put(name, {12 * MIB: noise(512, name)}, expect=False)
    resize(line, 8 * MIB)
    line.push(name, code=REFUSED)
    (evidence,) = [e for e in line.conflict(name)["evidence"] if e["reason"] == "volume shrank"]
    assert evidence["total_bytes"] == 512
    line.cli("resolve", f"{TREE}/{name}", "--take", "ours")
    line.push(name, "--wait")
    line.expect({MIB: noise(512, name)})
    line.check_model()
    at_peace(line)


def test_the_root_shrank_and_writes_below_are_published(line: Volume) -> None:
    line.put("leaf", {MIB: noise(512, "leaf")})
    line.put("k", {2 * MIB: noise(512, "k")})
    resize(line, 8 * MIB)
    line.push("leaf", "--wait")
    line.push("k", "--wait")
    at_peace(line)


def test_shrunk_and_grown_again_is_a_change(line: Volume) -> None:
    """What the shrink cut off is zero now: a write there has met somebody."""
    line.put("leaf", {12 * MIB: noise(512, "leaf")}, expect=False)
    resize(line, 8 * MIB)
    line.cut()
    resize(line, 16 * MIB)
    line.cut()
    line.push("leaf", code=REFUSED)
    line.cli("resolve", f"{TREE}/leaf", "--take", "theirs", "--yes")
    line.sync()
    line.check(current=True)
    line.check_model()


@pytest.mark.parametrize("name", ["leaf", "k"])
def test_the_base_is_held_up_to_the_root(line: Volume, name: str) -> None:
    """A branch that stays behind: its base has a hold at every replica above, whatever else goes on."""
    line.put(name, {MIB: noise(512, name)})
    base = line.document(name).branch.base
    for number in range(3):
        line.root_write({4 * MIB: noise(512, number)})
        line.sync("", "--cut")
        above = ("root", "m") if name == "leaf" else ("root",)
        for node in above:
            held = {h.position: h for h in line.document(node).holds if h.branch}
            assert base in held, f"{number}: {node} does not hold {base}"
    assert any(str(base) in mark["detail"] for mark in line.get("marks", TREE)["marks"] if mark["kind"] == "hold")
    line.push(name, "--wait")
    at_peace(line)


@pytest.mark.parametrize("name", ["leaf", "k"])
def test_the_base_was_removed_at_the_root(line: Volume, name: str) -> None:
    line.put(name, {MIB: noise(512, name)})
    base: Position = line.document(name).branch.base
    line.root_write({4 * MIB: noise(512, "root")})
    line.sync("", "--cut")
    with line.image("root") as image:
        image.remove_snap(snapshot_name(line.document("root").tree_id, base))
    before = line.newest()
    done = line.push(name, code=REFUSED)
    assert "is gone" in done.err, done.err
    assert line.newest() == before
    line.cli("resolve", f"{TREE}/{name}", "--take", "ours")
    line.push(name, "--wait")
    line.check_model()
    line.sync()
    assert line.newest() == before + 1


def test_a_push_larger_than_memory(volume: Volume) -> None:
    """300 MiB through a process of less than 300 MiB."""
    volume.init(size=512 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.sync("", "--cut")
    volume.branch("m")
    unit = noise(MIB, "unit")
    with volume.on_branch("m") as image:
        for number in range(300):
            image.write(unit, (number * 3 // 2) * MIB)
        image.flush()
    script = (
        "import os; from rbdtree_cli.main import main; leave = os._exit; "
        "peak = lambda: open('/proc/self/status').read().split('VmHWM:')[1].split()[0]; "
        "os._exit = lambda code: (print('peak', peak(), flush=True), leave(code)); main()"
    )
    words = ["--config", str(volume.pools.config), "push", f"{TREE}/m", "--wait"]
    done = subprocess.run(
        [sys.executable, "-c", script, *words], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done
    peak = int(done.stdout.rpartition("peak ")[2]) << 10
    with volume.image("root", read_only=True) as image:
        for number in range(0, 300, 7):
            assert image.read((number * 3 // 2) * MIB, MIB) == unit
    volume.check(current=True)
    volume.at_rest()
    assert peak < 300 * MIB, f"{peak >> 20} MiB"
