"""On this machine: librbd behind FUSE and a loop device. Everything that needs no nbd and no krbd."""

import json
import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ground import MIB, Here, check_json, until

pytestmark = [pytest.mark.ceph, pytest.mark.timeout(240)]


def contents(here: Here, site: str, image: str, snapshot: str | None = None) -> bytes:
    """By plain librbd."""
    import rbd

    with (
        here.clusters.admin(site).open_ioctx(here.pools.name) as ioctx,
        rbd.Image(ioctx, image, snapshot=snapshot, read_only=True) as opened,
    ):
        return bytes(opened.read(0, opened.size()))


def put(here: Here, image: str, data: bytes, offset: int = 0) -> None:
    """Into the root, by plain librbd."""
    import rbd

    with here.clusters.admin("a").open_ioctx(here.pools.name) as ioctx, rbd.Image(ioctx, image) as opened:
        opened.write(data, offset)


def daemons(here: Here) -> list[int]:
    """Of this test's maps."""
    said = here.shell("pgrep -af ^[^[:space:]]*qemu-storage-daemon", code=None).out
    return [int(words.split()[0]) for words in said.splitlines() if str(here.run_dir) in words]


def loops(here: Here) -> list[str]:
    said = here.shell("losetup --list --noheadings --output NAME,BACK-FILE").out
    return [words.split()[0] for words in said.splitlines() if str(here.run_dir) in words]


def mapped(here: Here) -> list[Any]:
    return list(here.get("mapped")["maps"])


def two_generations(here: Here, name: str) -> None:
    """A tree of 64 MiB: the mirror m has the first, the root both."""
    here.tree(name)
    put(here, name, b"one" * MIB)
    here("sync", "--cut", name)
    put(here, name, b"two" * MIB, 8 * MIB)
    here("cut", name)


@pytest.fixture(scope="module")
def made(ground: Here) -> None:
    """The tree vol, to which tests only add maps."""
    two_generations(ground, "vol")


@pytest.fixture
def vol(made: None, here: Here) -> Here:
    return here


def test_a_generation_is_a_device_that_cannot_be_written(vol: Here) -> None:
    said = vol("map", "vol/m", "--driver", "fuse")
    device = said.out.strip()
    assert "generation 1.1 of vol/m, by fuse" in said.err
    snapshot = next(s for s in snapshots(vol, "b", "vol") if s.endswith(".1.1"))
    assert Path(device).read_bytes() == contents(vol, "b", "vol", snapshot)
    assert vol.shell(f"dd if=/dev/zero of={device} bs=4096 count=1 conv=fsync", code=None).code != 0
    (row,) = mapped(vol)
    assert (row["device"], row["generation"], row["behind"], row["driver"]) == (device, "1.1", 1, "fuse")

    link = vol.run_dir / "dev" / "vol" / "m@1.1"
    assert str(link.readlink()) == device

    # Once more: the same device, no second daemon.
    assert vol("map", "vol/m").out.strip() == device
    assert len(daemons(vol)) == 1
    holds = [m for m in vol.get("marks")["marks"] if m["kind"] == "hold" and "mapped at" in m["detail"]]
    assert len(holds) == 1
    vol("unmap", "vol/m")
    assert not os.path.lexists(link)
    assert not daemons(vol)
    assert not loops(vol)
    assert not mapped(vol)
    assert not [m for m in vol.get("marks")["marks"] if m["kind"] == "hold" and "mapped at" in m["detail"]]


def snapshots(here: Here, site: str, image: str) -> list[str]:
    import rbd

    with here.clusters.admin(site).open_ioctx(here.pools.name) as ioctx, rbd.Image(ioctx, image) as opened:
        return [snap["name"] for snap in opened.list_snaps()]


def test_what_is_written_to_a_branch_is_pushed(here: Here) -> None:
    two_generations(here, "push")
    said = here("map", "push/m", "--write", "--quiesce", "--driver", "fuse")
    assert "the branch of push/m is not frozen" in said.err
    device = said.out.strip()
    data = os.urandom(MIB)
    handle = os.open(device, os.O_RDWR)
    os.pwrite(handle, data, 20 * MIB)
    os.fsync(handle)
    os.close(handle)
    (row,) = mapped(here)
    assert (row["what"], row["generation"]) == ("branch", "1.1")
    here("unmap", device)
    here("push", "push/m", "--wait")
    assert contents(here, "a", "push")[20 * MIB : 21 * MIB] == data
    assert contents(here, "a", "push") == contents(here, "b", "push")


@pytest.mark.hosts
def test_the_root_writes_to_the_volume_itself(here: Here) -> None:
    here.tree("own")
    here("cut", "own")
    device = here("map", "own/root", "--write", "--driver", "fuse").out.strip()
    here.shell(f"dd if=/dev/urandom of={device} bs=1M count=4 conv=fsync; blockdev --flushbufs {device}")
    assert Path(device).read_bytes() == contents(here, "a", "own")
    here("unmap", device)
    other = here("map", "own/root", "--write", "--branch", "--driver", "fuse").out.strip()
    here.shell(f"dd if=/dev/zero of={other} bs=1M count=4 conv=fsync")
    assert contents(here, "a", "own")[: 4 * MIB] != bytes(4 * MIB)


def test_a_portion_begins_at_zero(vol: Here) -> None:
    whole = contents(vol, "a", "vol")
    device = vol("map", "vol/root", "--portion", "8M..11M", "--driver", "fuse").out.strip()
    assert Path(device).read_bytes() == whole[8 * MIB : 11 * MIB]
    refused = vol("map", "vol/root", "--portion", "60M..65M", code=22)
    assert "ends beyond the volume" in refused.err
    assert f"{60 * MIB}..{64 * MIB}" in refused.err
    # Beside it, another: they do not meet.
    second = vol("map", "vol/root", "--portion", "0..1M", "--driver", "fuse").out.strip()
    assert second != device
    assert Path(second).read_bytes() == whole[:MIB]
    assert "2 times" in vol("unmap", "vol/root", code=22).err
    vol("unmap", second)
    assert [row["portion"]["offset_bytes"] for row in mapped(vol)] == [8 * MIB]


def test_what_is_in_use_is_not_pulled_away(vol: Here) -> None:
    device = vol("map", "vol/m", "--driver", "fuse").out.strip()
    with open(device, "rb") as opened:
        refused = vol("unmap", device, code=16)
        assert "opened by" in refused.err
        assert len(opened.read(4096)) == 4096
        vol("unmap", device, "--force")
    assert not daemons(vol)
    assert not mapped(vol)
    until("the loop device has gone", lambda: not loops(vol))


def test_a_map_whose_command_died_is_adopted(vol: Here) -> None:
    device = vol("map", "vol/m", "--driver", "fuse").out.strip()
    (note,) = vol.run_dir.glob("maps/*/map.json")
    raw = json.loads(note.read_text())
    for step, base in (("mapping", ""), ("mapping", device)):
        note.write_text(json.dumps({**raw, "step": step, "device": "", "base": base}))
        assert vol("map", "vol/m", "--driver", "fuse").out.strip() == device
        assert len(daemons(vol)) == 1
    # Died before there was a loop device, then before there was anything.
    note.write_text(json.dumps({**raw, "step": "mapping", "device": "", "base": ""}))
    vol.shell(f"losetup -d {device}")
    again = vol("map", "vol/m", "--driver", "fuse").out.strip()
    assert len(daemons(vol)) == 1
    assert len(Path(again).read_bytes()) == 64 * MIB
    # An unmap that died goes on.
    note.write_text(json.dumps({**json.loads(note.read_text()), "step": "unmapping"}))
    assert "half done" in vol("doctor", code=None).out
    vol("unmap", "vol/m")
    assert not daemons(vol)
    assert not loops(vol)


@pytest.mark.hosts
def test_a_note_of_an_unmap_that_died_is_not_taken_for_the_device(vol: Here) -> None:
    device = vol("map", "vol/m", "--driver", "fuse").out.strip()
    (note,) = vol.run_dir.glob("maps/*/map.json")
    raw = json.loads(note.read_text())
    old = vol.run_dir / "maps" / "old" / "map.json"
    old.parent.mkdir()
    old.write_text(json.dumps({**raw, "key": "old", "step": "unmapping", "held": False}))
    vol("unmap", device)
    assert not daemons(vol)
    vol("unmap", device)
    assert not mapped(vol)


@pytest.mark.hosts
def test_a_map_whose_daemon_died_is_made_anew(vol: Here) -> None:
    vol("map", "vol/m", "--driver", "fuse")
    (pid,) = daemons(vol)
    os.kill(pid, signal.SIGKILL)
    until("it has gone", lambda: not daemons(vol))
    (row,) = mapped(vol)
    assert row["device"] is None
    assert "its device is gone" in vol("doctor", code=19).out
    device = vol("map", "vol/m", "--driver", "fuse").out.strip()
    assert len(Path(device).read_bytes()) == 64 * MIB


@pytest.mark.hosts
def test_two_commands_at_once_make_one_device(vol: Here) -> None:
    both = [vol.start("map", "vol/m", "--driver", "fuse") for _ in range(2)]
    said = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert len({out for out, _ in said}) == 1
    assert len(daemons(vol)) == 1


def test_refusals_change_nothing(vol: Here) -> None:
    for words, code in (
        (("map", "vol/m", "--at", "1.9"), 2),
        (("map", "vol/m", "--exclusive"), 22),
        (("map", "vol/m", "--quiesce-hook", "true"), 22),
        (("map", "vol/m", "--portion", "0..1000"), 22),
        (("map", "vol/m", "--write", "--exclusive", "--driver", "fuse", "--portion", "5M..4M"), 22),
        (("unmap", "vol/m"), 2),
        (("unmap",), 22),
        (("umount", "/nowhere"), 2),
        (("mount", "vol/m", "/nowhere"), 2),
    ):
        refused = vol(*words, code=code)
        assert refused.err.count("\n  ") == 1, refused
    assert not mapped(vol)
    assert not daemons(vol)
    assert not vol.get("status", "vol")["trees"][0]["nodes"][1]["branch"]


@pytest.mark.hosts
def test_shares_of_a_cache(vol: Here) -> None:
    vol.config.write_text(vol.config.read_text() + '\n[host]\ncache = "64M"\nvolumes = 2\nweights = { "vol/m" = 3 }\n')
    vol("map", "vol/m", "--driver", "fuse")
    device = vol("map", "vol/root", "--driver", "fuse").out.strip()
    third = vol("map", "vol/root", "--at", "1.1", "--driver", "fuse")
    shares = {(row["node"], row["generation"]): row["cache_bytes"] for row in mapped(vol)}
    assert shares == {("vol/m", "1.1"): 64 * MIB, ("vol/root", "1.2"): 0, ("vol/root", "1.1"): 0}
    assert "nothing is left" in third.err
    vol("unmap", "--all")
    vol.config.write_text(vol.config.read_text().replace("volumes = 2", "volumes = 8"))
    device = vol("map", "vol/root", "--driver", "fuse").out.strip()
    for _ in range(2):
        vol.shell(f"dd if={device} of=/dev/null bs=1M count=4 iflag=direct")
    (row,) = mapped(vol)
    assert row["cache_bytes"] == 8 * MIB
    assert row["cache_hits"] > 0, row


@pytest.mark.hosts
def test_copy_on_read_fills_a_branch_and_is_no_change(here: Here) -> None:
    import rbd

    two_generations(here, "fill")
    here("policy", "set", "fill/m", "copy_on_read=on")
    device = here("map", "fill/m", "--write", "--driver", "fuse").out.strip()
    handle = os.open(device, os.O_RDWR)
    os.pwrite(handle, b"mine" * 1024, 40 * MIB)
    os.fsync(handle)
    os.close(handle)
    here.shell(f"dd if={device} of=/dev/null bs=4M count=1 iflag=direct")

    def own(offset: int) -> int:
        found: list[int] = []
        with (
            here.clusters.admin("b").open_ioctx(here.pools.name) as ioctx,
            rbd.Image(ioctx, "fill-branch", read_only=True) as branch,
        ):
            branch.diff_iterate(offset, 4 * MIB, None, lambda o, n, _: found.append(n), include_parent=False)
        return sum(found)

    until("what was read is a local copy", lambda: own(0) > 0)
    assert here.get("diff", "fill/m")["total_bytes"] == 4096


# -- mounts


@pytest.fixture(scope="module")
def formatted(ground: Here) -> None:
    """The tree fs, with an ext4."""
    ground.tree("fs", "32M")
    device = ground("map", "fs/root", "--write", "--driver", "fuse").out.strip()
    ground.shell(f"mkfs.ext4 -q -F {device}")
    ground("unmap", device)


@pytest.fixture
def filled(formatted: None, here: Here, tmp_path: Path) -> tuple[Here, Path]:
    """A generation of fs that both nodes have, with 'first' in its file 'word', and a directory."""
    change(here, tmp_path, "first")
    here("sync", "--cut", "fs")
    directory = tmp_path / "srv"
    directory.mkdir()
    return here, directory


def change(here: Here, tmp_path: Path, word: str) -> None:
    """Changes the file on the volume, by plain means."""
    side = tmp_path / "root"
    side.mkdir(exist_ok=True)
    device = here("map", "fs/root", "--write", "--driver", "fuse").out.strip()
    here.shell(f"mount {device} {side}; echo {word} >{side}/word; umount {side}")
    here("unmap", device)


def newest(here: Here) -> str:
    """Generation of fs."""
    found = max(here.get("log", "fs")["generations"], key=lambda g: int(g["sequence"]))
    return str(found["generation"])


MAKE = {"ext4": "mkfs.ext4 -q -F", "xfs": "mkfs.xfs -q -f", "btrfs": "mkfs.btrfs -q -f"}


@pytest.mark.hosts
@pytest.mark.parametrize("kind", MAKE)
def test_generations_of_every_file_system(here: Here, tmp_path: Path, kind: str) -> None:
    """Written to while a generation of it is made and while one of them is read, but for btrfs, which the kernel knows
    by its UUID alone."""
    if kind not in Path("/proc/filesystems").read_text().split():
        pytest.skip(f"this kernel has no {kind}")
    if not shutil.which(f"mkfs.{kind}"):
        pytest.skip(f"mkfs.{kind} is not installed: run ceph-dev/install")
    name = f"of-{kind}"
    volume, seen, beside, mine = (tmp_path / word for word in ("volume", "seen", "beside", "mine"))
    for directory in (volume, seen, beside, mine):
        directory.mkdir()
    here.tree(name, "320M")
    device = here("map", f"{name}/root", "--write", "--driver", "fuse").out.strip()
    here.shell(f"{MAKE[kind]} {device}")
    here("unmap", device)
    here("mount", f"{name}/root", volume, "--write", "--quiesce", "--driver", "fuse")
    for word in ("first", "second"):
        (volume / "word").write_text(f"{word}\n")
        here("sync", "--cut", name)
    (volume / "word").write_text("not in a generation\n")
    if kind == "btrfs":
        here("umount", volume)
    here("mount", f"{name}/m", seen, "--driver", "fuse")
    assert (seen / "word").read_text() == "second\n"
    if kind != "btrfs":
        here("mount", f"{name}/m", beside, "--at", "1.1", "--driver", "fuse")
        assert (beside / "word").read_text() == "first\n"
        assert (volume / "word").read_text() == "not in a generation\n"
        here("umount", beside)
        here("umount", volume)
    here("umount", seen)
    here("mount", f"{name}/m", mine, "--write", "--driver", "fuse")
    (mine / "word").write_text("third\n")
    here("umount", mine)
    # The root's own last word and that of the branch are in the same place: the later one is refused, and kept.
    here("push", f"{name}/m", "--wait", code=78)
    assert here.get("status", name, code=None)["trees"][0]["sequence"] == 3
    here("discard", f"{name}/m", "--yes")


@pytest.mark.hosts
def test_a_mount_and_its_end(filled: tuple[Here, Path]) -> None:
    here, directory = filled
    said = here("mount", "fs/m", directory, "--driver", "fuse")
    assert f"generation {newest(here)} of fs/m" in said.out
    assert (directory / "word").read_text() == "first\n"
    here("mount", "fs/m", directory)
    with open(directory / "word") as opened:
        refused = here("umount", directory, code=16)
        assert "is in use" in refused.err
        assert opened.read() == "first\n"
    here("umount", directory)
    assert not mapped(here)
    assert not daemons(here)


@pytest.mark.hosts
def test_a_mount_that_is_not_what_is_asked_for_is_said(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    older = newest(here)
    change(here, tmp_path, "second")
    here("sync", "--cut", "fs")
    here("mount", "fs/m", directory, "--driver", "fuse")
    here("mount", "fs/m", directory, "--at", newest(here))
    for words in (("fs/m", directory, "--at", older), ("fs/m", directory, "-o", "noatime"), ("fs/root", directory)):
        refused = here("mount", *words, code=16)
        assert f"is mounted at {directory}" in refused.err
        assert f"rbdtree umount {directory}" in refused.err
    # One that was the newest once will do.
    change(here, tmp_path, "third")
    here("sync", "--cut", "fs")
    here("mount", "fs/m", directory)
    here("umount", directory)
    here("mount", "fs/root", directory, "--write", "--driver", "fuse")
    assert "without --quiesce" in here("mount", "fs/root", directory, "--write", "--quiesce", code=16).err
    assert "the volume" in here("mount", "fs/root", directory, "--write", "--branch", code=16).err
    here("umount", directory)
    here("mount", "fs/root", directory, "--write", "--quiesce", "--quiesce-hook", "true", "--driver", "fuse")
    changed = ("fs/root", directory, "--write", "--quiesce", "--quiesce-hook", "false")
    assert "another --quiesce-hook" in here("mount", *changed, code=16).err
    here("mount", "fs/root", directory, "--write", "--quiesce", "--quiesce-hook", "true")
    here("umount", directory)


@pytest.mark.hosts
def test_two_mounts_of_one_generation_share_a_device(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    other = tmp_path / "other"
    other.mkdir()
    here("mount", "fs/m", directory, "--driver", "fuse")
    here("mount", "fs/m", other, "--driver", "fuse")
    assert len(mapped(here)) == 1
    here("umount", directory)
    assert (other / "word").read_text() == "first\n"
    here("umount", other)
    assert not mapped(here)


@pytest.mark.hosts
def test_a_mount_to_write_is_a_branch(filled: tuple[Here, Path]) -> None:
    here, directory = filled
    here("mount", "fs/m", directory, "--write", "--driver", "fuse")
    (directory / "word").write_text("mine\n")
    here("umount", directory)
    here("push", "fs/m", "--wait")
    here("mount", "fs/root", directory, "--driver", "fuse")
    assert (directory / "word").read_text() == "mine\n"


@pytest.mark.hosts
def test_an_unclean_generation_is_mounted_and_said(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    side = tmp_path / "root"
    device = here("map", "fs/root", "--write", "--driver", "fuse").out.strip()
    here.shell(f"mount {device} {side}; echo second >{side}/word; sync -f {side}")
    here("sync", "--cut", "fs")
    said = here("mount", "fs/m", directory, "--driver", "fuse")
    assert "in use" in said.err
    here.shell(f"umount {side}")
    here("umount", directory)
    here("unmap", device)


def test_following_and_open_files(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    log = tmp_path / "log"
    tell = f"echo $RBDTREE_GENERATION $(cat $RBDTREE_DIRECTORY/word) >>{log}"
    follower = here.start("mount", "fs/m", directory, "--follow", "--driver", "fuse", "--on-switch", tell)
    try:
        until("it is mounted", (directory / "word").exists)
        assert "followed already" in here("mount", "fs/m", directory, "--follow", code=16).err
        with open(directory / "word") as opened:
            change(here, tmp_path, "second")
            # The directory is never seen empty, where the kernel can put a mount beneath another.
            watcher = subprocess.Popen(
                ["/bin/sh", "-c", f"while :; do [ -e {directory}/word ] || echo gap; sleep 0.002; done"],
                stdout=subprocess.PIPE,
                text=True,
            )
            here("sync", "--cut", "fs")
            until("it has switched", lambda: (directory / "word").read_text() == "second\n")
            until("the command has run", lambda: log.exists() and log.read_text() == f"{newest(here)} second\n")
            watcher.kill()
            gaps = watcher.communicate()[0]
            if tuple(map(int, os.uname().release.split(".")[:2])) >= (6, 5):
                assert not gaps
            # What was open stays, and keeps its device.
            assert opened.read() == "first\n"
            assert len(daemons(here)) == 2
        until("the old device has gone", lambda: len(daemons(here)) == 1)
        # Killed without a word: the next one goes on from there.
        follower.kill()
        follower.wait()
        assert "nothing follows" in here("doctor", code=19).out
        change(here, tmp_path, "third")
        here("sync", "--cut", "fs")
        follower = here.start("mount", "fs/m", directory, "--follow", "--driver", "fuse")
        until("it has switched again", lambda: (directory / "word").read_text() == "third\n")
        here("umount", directory)
        until("the follower has ended", lambda: follower.poll() is not None)
        assert not mapped(here)
    finally:
        follower.kill()
        follower.communicate()


@pytest.mark.hosts
def test_a_switch_that_died_is_finished_or_taken_back(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    here("mount", "fs/m", directory, "--driver", "fuse")
    older = newest(here)
    change(here, tmp_path, "second")
    here("sync", "--cut", "fs")
    # Died with the next generation mapped and mounted at the side.
    side = here.run_dir / "side" / str(directory).strip("/").replace("-", "--").replace("/", "-")
    side.mkdir(parents=True)
    device = here("map", "fs/m", "--driver", "fuse").out.strip()
    here.shell(f"mount -o ro,noload {device} {side}")
    (note,) = here.run_dir.glob("mounts/*.json")
    records = {json.loads(p.read_text())["source"]["position"]: p for p in here.run_dir.glob("maps/*/map.json")}
    newer = json.loads(records[newest(here)].read_text())
    records[newest(here)].write_text(json.dumps({**newer, "for_mount": True}))
    note.write_text(json.dumps({**json.loads(note.read_text()), "next": newer["key"]}))
    here("mount", "fs/m", directory, "--driver", "fuse")
    assert (directory / "word").read_text() == "first\n"
    assert not os.path.ismount(side)
    assert [row["generation"] for row in mapped(here)] == [older]
    here("umount", directory)


@pytest.mark.hosts
def test_no_file_system_is_said(vol: Here, tmp_path: Path) -> None:
    assert "no file system" in vol("mount", "vol/m", tmp_path, "--driver", "fuse", code=22).err
    assert not mapped(vol)
    assert not daemons(vol)


# -- freezes


def test_a_cut_on_this_host_freezes_what_is_mounted(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    log = tmp_path / "log"
    hook = f"echo $RBDTREE_ACTION >>{log}"
    said = here("mount", "fs/root", directory, "--write", "--quiesce", "--quiesce-hook", hook, "--driver", "fuse")
    assert "on this host only" in said.err
    (directory / "word").write_text("frozen\n")
    here("cut", "fs")
    assert log.read_text() == "freeze\nthaw\n"
    (row,) = mapped(here)
    assert row["last_freeze"]["trouble"] is None
    assert row["last_freeze"]["directories"] == [str(directory)]
    (directory / "word").write_text("goes on\n")
    here("umount", directory)
    # Clean: the journal is empty, so that even without it everything is there.
    seen = here("mount", "fs/root", directory, "--at", newest(here), "--driver", "fuse")
    assert "in use" not in seen.err
    assert (directory / "word").read_text() == "frozen\n"


@pytest.mark.hosts
def test_two_mounts_of_one_file_system_are_frozen_once(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    other = tmp_path / "other"
    other.mkdir()
    here("mount", "fs/root", directory, "--write", "--quiesce", "--driver", "fuse")
    here.shell(f"mount --bind {directory} {other}")
    try:
        (directory / "word").write_text("twice\n")
        assert "without a clean freeze" not in here("cut", "fs").err
        assert mapped(here)[0]["last_freeze"]["directories"] == [str(directory)]
    finally:
        here.shell(f"umount {other}")
    here("umount", directory)


@pytest.mark.hosts
def test_file_systems_on_partitions_are_frozen(here: Here, tmp_path: Path) -> None:
    here.tree("parts")
    inside, nested = tmp_path / "inside", tmp_path / "nested"
    inside.mkdir()
    nested.mkdir()
    device = here("map", "parts/root", "--write", "--quiesce", "--driver", "fuse").out.strip()
    table = bytearray(512)
    struct.pack_into("<B3sB3sII", table, 446, 0, bytes(3), 0x83, bytes(3), 2048, 40960)
    struct.pack_into("<B3sB3sII", table, 462, 0, bytes(3), 0x83, bytes(3), 45056, 40960)
    table[510:] = b"\x55\xaa"
    Path(device).write_bytes(table)
    here.shell(f"partx --add {device} && mkfs.ext4 -q {device}p1 && mkfs.ext4 -q {device}p2")
    over = here.shell(f"losetup --find --show {device}p2").out.strip()
    try:
        here.shell(f"mount {device}p1 {inside} && mount {over} {nested}")
        assert "without a clean freeze" not in here("cut", "parts").err
        assert set(mapped(here)[0]["last_freeze"]["directories"]) == {str(inside), str(nested)}
        # Mounted where nobody here can see it.
        here.shell(f"umount {nested}")
        hidden = subprocess.Popen(
            ["unshare", "--mount", "/bin/sh", "-c", f"mount {over} {nested}; echo; exec sleep 60"],
            stdout=subprocess.PIPE,
        )
        try:
            assert hidden.stdout
            hidden.stdout.readline()
            assert f"{over} is in use where it cannot be frozen" in here("cut", "parts").err
        finally:
            hidden.kill()
            hidden.communicate()
    finally:
        here.shell(f"umount {nested}; umount {inside}; losetup --detach {over}; partx --delete {device}", code=None)
    here("unmap", device)


@pytest.mark.hosts
@pytest.mark.parametrize("hook", ["sleep 60", "false"])
def test_a_hook_that_hangs_or_fails_stops_nothing(filled: tuple[Here, Path], hook: str) -> None:
    here, directory = filled
    here.config.write_text(here.config.read_text() + '\n[host]\nfreeze_limit = "2s"\n')
    here("mount", "fs/root", directory, "--write", "--quiesce", "--quiesce-hook", hook, "--driver", "fuse")
    said = here("cut", "fs", seconds=20)
    assert "without a clean freeze" in said.err
    (directory / "word").write_text("goes on\n")
    here.shell(f"sync -f {directory}", seconds=10)
    assert mapped(here)[0]["last_freeze"]["trouble"]
    here("umount", directory)


@pytest.mark.hosts
def test_a_freeze_whose_cut_died_thaws_by_itself(filled: tuple[Here, Path]) -> None:
    here, directory = filled
    here.config.write_text(here.config.read_text() + '\n[host]\nfreeze_limit = "2s"\n')
    here("mount", "fs/root", directory, "--write", "--quiesce", "--driver", "fuse")
    (place,) = here.run_dir.glob("maps/*")
    words = [
        sys.executable,
        "-c",
        f"from rbdtree.host import quiesce; from pathlib import Path; quiesce.freeze(Path('{place}'))",
    ]
    subprocess.run(words, check=True, timeout=20)
    writer = subprocess.Popen(["/bin/sh", "-c", f"echo late >{directory}/late; sync -f {directory}"])
    assert writer.wait(timeout=20) == 0
    assert "lasted longer" in mapped(here)[0]["last_freeze"]["trouble"]
    here("umount", directory)


# -- boot, doctor


def test_a_table_of_maps(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    table = tmp_path / "maps"
    table.write_text(f"fs/m {directory} driver=fuse\nfs/root - driver=fuse,at={newest(here)}\nfs/none - driver=fuse\n")
    said = here("maps", "start", "--table", table, code=2)
    assert "2 of 3 lines started" in said.out
    assert (directory / "word").read_text() == "first\n"
    assert len(mapped(here)) == 2
    rows = here.get("maps", "ls", "--table", table)["maps"]
    assert [row["there"] for row in rows] == [True, True, False]
    here("maps", "start", "--table", table, code=2)
    assert len(daemons(here)) == 2
    here("maps", "stop", "--table", table)
    assert not mapped(here)


@pytest.mark.hosts
def test_what_the_table_made_is_stopped_and_no_more(filled: tuple[Here, Path], tmp_path: Path) -> None:
    """Also below a symbolic link; what was mapped by hand stays, and a line with a mistake stops nothing."""
    here, directory = filled
    older = newest(here)
    here("sync", "--cut", "fs")
    link = tmp_path / "link"
    link.symlink_to(directory)
    table = tmp_path / "maps"
    table.write_text(f"fs/m - driver=nbd\nfs/m {link} driver=fuse\nfs/root - driver=fuse\n")
    here("map", "fs/root", "--portion", "0..1M", "--driver", "fuse")
    here("map", "fs/root", "--at", older, "--driver", "fuse")
    said = here("maps", "start", "--table", table, code=22)
    assert "2 of 2 lines started" in said.out
    assert "'nbd' is no driver" in said.err
    assert (directory / "word").read_text() == "first\n"
    assert len(mapped(here)) == 4
    # Once more, when there is a newer one: what is there stays, alone.
    started = newest(here)
    here("sync", "--cut", "fs")
    here("maps", "start", "--table", table, code=22)
    assert len(mapped(here)) == 4
    assert "'nbd' is no driver" in here("maps", "stop", "--table", table, code=22).err
    assert not os.path.ismount(directory)
    kept = {(row["node"], row["generation"], bool(row["portion"])) for row in mapped(here)}
    assert kept == {("fs/root", started, True), ("fs/root", older, False)}
    here("unmap", "--all")


@pytest.mark.hosts
def test_doctor_mends_what_was_left(vol: Here) -> None:
    vol("map", "vol/m", "--driver", "fuse")
    (pid,) = daemons(vol)
    os.kill(pid, signal.SIGKILL)
    until("it has gone", lambda: not daemons(vol))
    said = vol.get("doctor", code=19)
    assert not said["healthy"]
    assert any(f["curable"] and "is gone" in f["text"] for f in said["findings"])
    said = vol.get("doctor", "--mend", code=None)
    assert said["mended"]
    assert not mapped(vol)
    # As after a power cut: the state is gone, the hold is not.
    vol("map", "vol/m", "--driver", "fuse")
    vol("unmap", "vol/m")
    device = vol("map", "vol/m", "--driver", "fuse").out.strip()
    (note,) = vol.run_dir.glob("maps/*/map.json")
    kept = note.read_text()
    note.unlink()
    said = vol.get("doctor", "--mend", code=None)
    assert any("hold on" in subject for subject in said["mended"])
    assert not [m for m in vol.get("marks")["marks"] if "mapped at" in m["detail"]]
    note.write_text(kept)
    vol("unmap", device)


def test_json_is_as_documented(filled: tuple[Here, Path], tmp_path: Path) -> None:
    here, directory = filled
    table = tmp_path / "maps"
    table.write_text(f"fs/m {directory} driver=fuse\nfs/none -\n")
    here.config.write_text(here.config.read_text() + '\n[host]\ncache = "64M"\n')
    check_json("map", here.get("map", "fs/m", "--dry-run"))
    check_json("map", here.get("map", "fs/m", "--portion", "0..1M", "--driver", "fuse"))
    check_json("mount", here.get("mount", "fs/m", directory, "--driver", "fuse", "--dry-run"))
    check_json("mount", here.get("mount", "fs/m", directory, "--driver", "fuse"))
    check_json("mapped", here.get("mapped"))
    check_json("umount", here.get("umount", directory))
    check_json("maps start", here.get("maps", "start", "--table", table, code=2))
    check_json("maps ls", here.get("maps", "ls", "--table", table))
    check_json("maps stop", here.get("maps", "stop", "--table", table))
    check_json("doctor", here.get("doctor", "--table", table, code=None))
    check_json("unmap", here.get("unmap", "--all"))


@pytest.mark.hosts
def test_two_trees_on_one_host(here: Here) -> None:
    """A leaf of one tree, and the root of the next: a clone of a generation of the first."""
    two_generations(here, "first")
    here("sync", "first")
    base = contents(here, "b", "first")
    conf, pool = here.pools.conf("b"), here.pools.name
    newest = next(s for s in snapshots(here, "b", "first") if s.endswith(".1.2"))
    here.shell(f"rbd -c {conf} clone --rbd-default-clone-format 2 {pool}/first@{newest} {pool}/second")
    here("init", "next", "--node", "root", "--image", here.pools.spec("b", "second"))
    here("cut", "next")
    here("add", "next/copy", "--parent", "root", "--kind", "mirror", "--image", here.pools.spec("a", "copy"))
    here("sync", "next")
    one = here("map", "first/m", "--driver", "fuse").out.strip()
    two = here("map", "next/root", "--write", "--driver", "fuse").out.strip()
    assert Path(one).read_bytes() == Path(two).read_bytes() == base
    handle = os.open(two, os.O_RDWR)
    os.pwrite(handle, b"only here" * 512, 30 * MIB)
    os.fsync(handle)
    os.close(handle)
    here("sync", "--cut", "next")
    assert contents(here, "a", "copy")[30 * MIB :].startswith(b"only here")
    assert Path(one).read_bytes() == base
    assert {row["node"] for row in mapped(here)} == {"first/m", "next/root"}
    here("verify", "first")
    here("verify", "next")
