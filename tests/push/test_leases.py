"""Leases: refused before a byte moves; and a volume with a file system handed back and forth."""

import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from live.world import TREE, admin_socket, noise

from .volume import BUSY, DIVERGED, MIB, MISUSED, REFUSED, Volume

pytestmark = pytest.mark.ceph


def bytes_in(volume: Volume, site: str) -> int:
    """What the OSD of a cluster has been given to write since it started."""
    found = admin_socket(volume.pools.clusters.dir / site / "run" / "osd.0.asok", "perf dump")
    return int(found["osd"]["op_in_bytes"])


def held(volume: Volume) -> list[tuple[str, list[tuple[int, int]]]]:
    found: list[dict[str, Any]] = volume.get("lease", "ls", TREE)["leases"]
    return sorted(
        (x["holder"], [(e["offset_bytes"], e["offset_bytes"] + e["length_bytes"]) for e in x["extents"]]) for x in found
    )


@pytest.fixture
def pair(volume: Volume) -> Volume:
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("leaf", "m", "mirror", "c")
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(MIB)})
    volume.step()
    return volume


def test_refused_before_data_moves(pair: Volume) -> None:
    pair.cli("lease", "acquire", f"{TREE}/k", "--portion", "0..8M")
    pair.put("leaf", {4 * MIB: noise(3 * MIB, "leaf")})
    pair.put("k", {2 * MIB: noise(4096, "k")})
    before = {site: bytes_in(pair, site) for site in "ab"}
    done = pair.push("leaf", code=REFUSED)
    assert "leased by k" in done.err, done.err
    for site in "ab":
        assert bytes_in(pair, site) - before[site] < 256 * 1024
    for name in ("m", "root"):
        assert not pair.document(name).pushes
    (evidence,) = pair.conflict("leaf")["evidence"]
    assert (evidence["reason"], evidence["node"]) == ("leased", "k")
    assert pair.branch_bytes("leaf")[4 * MIB : 7 * MIB] == noise(3 * MIB, "leaf")
    pair.push("k", "--wait")
    # Given back in part: what is still leased stays so.
    pair.cli("lease", "release", f"{TREE}/k", "--portion", "3M..5M")
    assert held(pair) == [("k", [(0, 3 * MIB), (5 * MIB, 8 * MIB)])]
    pair.cli("resolve", f"{TREE}/leaf", "--take", "ours")
    pair.push("leaf", code=REFUSED)
    pair.cli("lease", "release", f"{TREE}/k")
    assert held(pair) == []
    pair.cli("resolve", f"{TREE}/leaf", "--take", "ours")
    pair.push("leaf", "--wait")
    pair.sync()
    pair.sync()
    pair.settled()


def test_a_lease_is_no_reason_to_overwrite(pair: Volume) -> None:
    """A push that met a lease and is tried again is still judged by what the holder published."""
    pair.cli("lease", "acquire", f"{TREE}/k")
    pair.put("leaf", {MIB: noise(512, "leaf")}, expect=False)
    pair.push("leaf", code=REFUSED)
    pair.put("k", {MIB: noise(512, "k")})
    pair.push("k", "--wait")
    pair.cli("lease", "release", f"{TREE}/k")
    pair.cli("resolve", f"{TREE}/leaf", "--take", "ours")
    pair.push("leaf", code=REFUSED)
    pair.check_model()
    assert pair.conflict("leaf")["evidence"][0]["reason"] == "changed"
    pair.cli("resolve", f"{TREE}/leaf", "--take", "ours")
    pair.push("leaf", "--wait")
    pair.expect({MIB: noise(512, "leaf")})
    pair.check_model()


def test_overlap_expiry_and_renewal(pair: Volume) -> None:
    pair.cli("lease", "acquire", f"{TREE}/k", "--portion", "0..1M,4M..6M", "--for", "1h")
    for more in (("--dry-run",), ()):
        done = pair.cli("lease", "acquire", f"{TREE}/m", "--portion", "5M..7M", *more, code=BUSY)
        assert "leased by k" in done.err
    pair.cli("lease", "renew", f"{TREE}/m", "--dry-run", code=2)
    pair.cli("lease", "acquire", f"{TREE}/m", "--portion", "7M..8M", "--dry-run")
    pair.cli("lease", "acquire", f"{TREE}/m", "--portion", "6M..7M")
    assert held(pair) == [("k", [(0, MIB), (4 * MIB, 6 * MIB)]), ("m", [(6 * MIB, 7 * MIB)])]
    pair.cli("lease", "acquire", f"{TREE}/k", "--portion", "0..1M", "--for", "1s")
    pair.cli("lease", "renew", f"{TREE}/m", "--for", "1s")
    time.sleep(1.3)
    assert held(pair) == [("k", [(4 * MIB, 6 * MIB)])]
    pair.cli("lease", "renew", f"{TREE}/m", code=2)
    pair.cli("lease", "acquire", f"{TREE}/m", "--portion", "0..1M,6M..16M")
    pair.cli("lease", "acquire", f"{TREE}/m", "--portion", "16M..17M", code=MISUSED)
    pair.cli("lease", "acquire", f"{TREE}/m", "--portion", "3M..2M", code=MISUSED)
    pair.cli("lease", "release", f"{TREE}/m")
    pair.cli("lease", "release", f"{TREE}/k")
    assert held(pair) == []


def test_a_dead_holders_late_push_is_refused_and_kept(pair: Volume) -> None:
    pair.root_write({9 * MIB: noise(512, "root")})
    pair.cli("lease", "acquire", f"{TREE}/leaf", "--for", "1s")
    # Granting brought it to what the root had.
    assert pair.document("leaf").position.sequence == pair.newest()
    pair.put("leaf", {MIB: noise(512, "leaf")}, expect=False)
    time.sleep(1.2)
    pair.cli("lease", "acquire", f"{TREE}/k")
    pair.put("k", {MIB: noise(512, "k")})
    pair.push("k", "--wait")
    pair.cli("lease", "release", f"{TREE}/k")
    pair.push("leaf", code=REFUSED)
    pair.check_model()
    assert pair.branch_bytes("leaf")[MIB : MIB + 512] == noise(512, "leaf")


def test_a_late_push_into_what_another_was_granted(pair: Volume) -> None:
    """Refused though no byte of it was changed: its writer's file system is not the one that is there now."""
    pair.cli("lease", "acquire", f"{TREE}/leaf", "--portion", "0..8M", "--for", "1s")
    pair.put("leaf", {MIB: noise(512, "leaf"), 9 * MIB: noise(512, "free")}, expect=False)
    time.sleep(1.2)
    # Nobody minds what others lease elsewhere.
    pair.cli("lease", "acquire", f"{TREE}/k", "--portion", "4M..8M")
    pair.put("k", {5 * MIB: noise(512, "k")})
    pair.push("k", "--wait")
    pair.cli("lease", "release", f"{TREE}/k")
    pair.push("leaf", "--wait")
    pair.expect({MIB: noise(512, "leaf"), 9 * MIB: noise(512, "free")})
    pair.sync()
    # Granted once more, it has not lost anything yet.
    pair.cli("lease", "acquire", f"{TREE}/leaf", "--for", "1s")
    pair.put("leaf", {2 * MIB: noise(512, "late")}, expect=False)
    time.sleep(1.2)
    pair.cli("lease", "acquire", f"{TREE}/k", "--portion", "0..4M")
    pair.put("k", {3 * MIB: noise(512, "k2")})
    pair.push("k", "--wait")
    pair.cli("lease", "release", f"{TREE}/k")
    assert held(pair) == []
    pair.push("leaf", code=REFUSED)
    (evidence,) = pair.conflict("leaf")["evidence"]
    assert (evidence["reason"], evidence["total_bytes"]) == ("late", 512)
    # It is told so, also by what only knows its parent.
    pair.check_model()
    pair.cli("resolve", f"{TREE}/leaf", "--take", "ours")
    pair.expect({2 * MIB: noise(512, "late")})
    pair.push("leaf", "--wait")
    pair.put("leaf", {3 * MIB: noise(512, "next")})
    pair.push("leaf", "--wait")
    pair.sync()
    pair.settled()


def test_no_lease_for_whom_cannot_be_brought_up_to_date(pair: Volume) -> None:
    """It would keep the others out for nothing."""
    pair.root_write({9 * MIB: noise(512, "root")})
    with pair.image("leaf") as image:
        image.write(b"foreign", 0)
    pair.cli("lease", "acquire", f"{TREE}/leaf", code=DIVERGED)
    assert held(pair) == []
    pair.cli("lease", "acquire", f"{TREE}/k")
    assert [name for name, _ in held(pair)] == ["k"]


@pytest.mark.release
def test_ext4_handed_back_and_forth(volume: Volume, tmp_path: Path) -> None:
    """Ten turns of two leaf hosts: acquire, write a file, push, release; fsck and every file each time."""
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(16 * MIB))
    run("mkfs.ext4", "-q", "-F", "-b", "1024", "-E", "lazy_itable_init=0,nodiscard", disk)
    volume.init(size=16 * MIB)
    volume.add("m", "root", "mirror", "b")
    volume.add("leaf1", "m", "mirror", "c")
    volume.add("leaf2", "root", "clone", "a")
    volume.root_write({0: disk.read_bytes()})
    volume.step()
    files: dict[str, bytes] = {}
    for turn in range(10):
        name = ("leaf1", "leaf2")[turn % 2]
        volume.cli("lease", "acquire", f"{TREE}/{name}", "--for", "1m")
        volume.branch(name)
        before = volume.branch_bytes(name)
        disk.write_bytes(before)
        check_disk(disk, files, tmp_path)
        files[f"file{turn}"] = noise(20_000 + turn * 3000, turn)
        (tmp_path / "new").write_bytes(files[f"file{turn}"])
        commands = [f"write {tmp_path / 'new'} file{turn}"]
        if turn >= 3:
            commands.append(f"rm file{turn - 3}")
            del files[f"file{turn - 3}"]
        script = tmp_path / "script"
        script.write_text("\n".join(commands) + "\n")
        run("debugfs", "-w", "-f", script, disk)
        after = disk.read_bytes()
        changed = {
            at: after[at : at + 1024]
            for at in range(0, len(after), 1024)
            if after[at : at + 1024] != before[at : at + 1024]
        }
        volume.put(name, changed)
        volume.push(name)
        volume.cli("lease", "release", f"{TREE}/{name}")
    volume.sync()
    volume.sync()
    volume.settled()
    disk.write_bytes(volume.at_root())
    check_disk(disk, files, tmp_path)


def run(*words: object) -> None:
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"


def check_disk(disk: Path, files: dict[str, bytes], around: Path) -> None:
    run("e2fsck", "-fn", disk)
    for name, data in files.items():
        run("debugfs", "-R", f"dump {name} {around / 'dumped'}", disk)
        assert (around / "dumped").read_bytes() == data, name
