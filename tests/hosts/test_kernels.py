"""In test hosts: rbd-nbd and krbd for real, three hosts at a time, and what a power cut leaves."""

import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ground import HOSTS, MIB, Yard, testhost, until

pytestmark = [pytest.mark.ceph, pytest.mark.timeout(1200)]
HAVE = Path("/usr/bin/rbd-nbd").exists()


@pytest.fixture(autouse=True)
def _needs() -> None:
    if not HAVE:
        pytest.skip("rbd-nbd is not installed: run ceph-dev/install")


def test_map_mkfs_write_cut_follow_push(yard: Yard) -> None:
    """The day of a volume: made at h1, followed at h2 and, a level below, at h3, changed at h2, published, seen by
    the others."""
    yard.tree("128M")
    yard("add", "vol/leaf", "--parent", "m", "--kind", "mirror", "--image", yard.spec("a", "leaf"))
    device = yard.at("h1", "map", "vol/root", "--write").out.strip()
    assert device.startswith("/dev/nbd")
    yard.sh("h1", f"mkfs.ext4 -q {device} && mkdir -p /mnt/v")
    assert yard.at("h1", "mount", "vol/root", "/mnt/v", "--write", "--quiesce", code=16).err.count("without --quiesce")
    yard.at("h1", "unmap", device)
    yard.at("h1", "mount", "vol/root", "/mnt/v", "--write", "--quiesce")
    yard.sh("h1", "echo first >/mnt/v/word")
    # Cut elsewhere: librbd asks h1 to freeze, so that the generation is clean.
    yard("sync", "--cut", "vol")
    row = yard.at("h1", "--format", "json", "mapped").json["maps"][0]
    assert row["last_freeze"] == {**row["last_freeze"], "directories": ["/mnt/v"], "trouble": None}

    for host in ("h2", "h3"):
        yard.sh(host, "mkdir -p /mnt/v")
    yard.sh("h3", _line(yard, "mount vol/leaf /mnt/v --follow"))
    yard.sh("h2", _line(yard, "mount vol/m /mnt/v --follow --on-switch 'echo $RBDTREE_GENERATION >>/run/log'"))
    for host in ("h2", "h3"):
        until(f"{host} sees it", lambda host=host: yard.sh(host, "cat /mnt/v/word", code=None).out == "first\n")
    yard.sh("h2", "exec 9</mnt/v/word; (sleep 1000 & echo $! >/run/holder) >/dev/null")
    yard.sh("h1", "echo second >/mnt/v/word; head -c 3M /dev/urandom >/mnt/v/data; sync -f /mnt/v")
    yard("sync", "--cut", "vol")
    for host in ("h2", "h3"):
        until(f"{host} follows", lambda host=host: yard.sh(host, "cat /mnt/v/word", code=None).out == "second\n")
    assert yard.sh("h2", "cat /proc/$(cat /run/holder)/fd/9").out == "first\n"
    assert yard.sh("h2", "cat /run/log").out == "1.2\n"
    assert len({yard.sh(host, "sha256sum </mnt/v/data").out for host in HOSTS}) == 1
    yard.sh("h2", "kill $(cat /run/holder)")
    until("the old one is unmapped", lambda: len(yard.at("h2", "--format", "json", "mapped").json["maps"]) == 1)

    yard.at("h1", "umount", "/mnt/v")
    yard.at("h2", "umount", "/mnt/v")
    # The unmount wrote, too.
    yard("sync", "--cut", "vol")
    yard.at("h2", "mount", "vol/m", "/mnt/v", "--write")
    yard.sh("h2", "echo third >/mnt/v/word")
    yard.at("h2", "umount", "/mnt/v")
    yard("push", "vol/m", "--wait")
    yard.at("h1", "mount", "vol/root", "/mnt/v")
    assert yard.sh("h1", "cat /mnt/v/word").out == "third\n"
    yard.at("h1", "umount", "/mnt/v")
    yard("sync", "vol")
    until("h3 has followed", lambda: yard.sh("h3", "cat /mnt/v/word", code=None).out == "third\n")
    yard.at("h3", "umount", "/mnt/v")
    for host in HOSTS:
        assert yard.at(host, "mapped").out == "nothing is mapped here\n"
        assert yard.sh(host, "rbd-nbd list-mapped").out == ""
    yard("verify", "vol")


def _line(yard: Yard, words: str) -> str:
    """A command of ours that stays in the background."""
    from ground import RBDTREE

    return f"RBDTREE_CONFIG={yard.config} setsid {RBDTREE} {words} >/run/follow.log 2>&1 &"


WRITER = """
import os, socket, sys
link = socket.create_connection(("{gateway}", {port}))
for number in range(100000):
    data = b"%08d" % number * 1024
    handle = os.open("/mnt/v/f%d" % (number % 50), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(handle, data)
    os.fsync(handle)
    os.close(handle)
    link.sendall(b"%d\\n" % number)
"""


def test_a_power_cut_loses_nothing_that_was_acknowledged(yard: Yard) -> None:
    """h1 loses its power in the middle of fsynced writes. The branch maps again at h2, its journal is replayed."""
    yard.tree("128M")
    device = yard.at("h1", "map", "vol/root", "--write").out.strip()
    yard.sh("h1", f"mkfs.ext4 -q {device}")
    yard.at("h1", "unmap", device)
    yard("sync", "--cut", "vol")
    yard.sh("h1", "mkdir -p /mnt/v")
    yard.at("h1", "mount", "vol/m", "/mnt/v", "--write")
    done: list[int] = []
    with yard.site.listener() as listening:
        port = listening.getsockname()[1]
        script = yard.config.with_suffix(".py")
        script.write_text(WRITER.format(gateway=testhost.GATEWAY, port=port))
        yard.sh("h1", f"setsid /usr/bin/python3 {script} >/run/writer.log 2>&1 &")
        connection, _ = listening.accept()
        with connection, connection.makefile("rb") as lines:

            def read() -> None:
                done.extend(int(line) for line in lines if line.endswith(b"\n"))

            reader = threading.Thread(target=read, daemon=True)
            reader.start()
            until("a hundred files are acknowledged", lambda: len(done) > 100)
            yard.site.network.host("h1").crash()
            connection.shutdown(socket.SHUT_RDWR)
            reader.join(10)
    last = done[-1]
    found = yard.at("h2", "map", "vol/m", "--write", seconds=100).out.strip()
    checked = yard.sh("h2", f"fsck.ext4 -p {found}; fsck.ext4 -fn {found}", code=None)
    assert checked.code == 0, checked
    yard.sh("h2", "mkdir -p /mnt/v")
    yard.at("h2", "mount", "vol/m", "/mnt/v", "--write")
    there = yard.sh("h2", "cd /mnt/v; for f in f*; do echo $f:$(head -c 8 $f); done").out.split()
    files = dict(one.split(":") for one in there)
    for number in range(max(0, last - 49), last + 1):
        data = files[f"f{number % 50}"]
        # The file after the last one acknowledged may be there in part: it took the place of one 50 before.
        taken = ("", f"{last + 1:08d}") if number == last - 49 else ()
        assert data in (f"{number:08d}", *taken), (number, last)
    yard.at("h2", "umount", "/mnt/v")
    yard.at("h2", "unmap", found)
    yard("push", "vol/m", "--wait", seconds=100)
    # The host comes back: nothing of its maps is there but a hold, if it had one, and that is mended.
    yard.site.network.up(["h1"])
    assert yard.at("h1", "mapped").out == "nothing is mapped here\n"
    yard.at("h1", "doctor", "--mend", code=None)
    yard("verify", "vol")


def test_krbd_and_what_it_cannot_map(yard: Yard) -> None:
    yard.tree()
    yard("sync", "--cut", "vol")
    device = yard.at("h1", "map", "vol/m", "--write", "--driver", "krbd").out.strip()
    assert device.startswith("/dev/rbd")
    yard.sh("h1", f"head -c 1M /dev/urandom >/run/data; dd if=/run/data of={device} bs=1M conv=fsync oflag=direct")
    assert yard.at("h1", "map", "vol/m", "--write").out.strip() == device
    held = yard.sh("h1", f"exec 9<{device}; {_command(yard, 'unmap', device)}; exit $?", code=16)
    assert "in use" in held.err
    part = yard.at("h1", "map", "vol/m", "--write", "--driver", "krbd", "--portion", "0..1M").out.strip()
    assert part.startswith("/dev/loop")
    yard.sh("h1", f"cmp /run/data {part}")
    yard.at("h1", "unmap", part)
    yard.at("h1", "unmap", device)
    yard("push", "vol/m", "--wait")
    seen = yard.at("h2", "map", "vol/root", "--driver", "krbd").out.strip()
    sums = {yard.sh("h1", "sha256sum </run/data").out, yard.sh("h2", f"head -c 1M {seen} | sha256sum").out}
    assert len(sums) == 1
    assert yard.sh("h2", f"dd if=/dev/zero of={seen} bs=4k count=1 oflag=direct", code=None).code != 0

    # Found again: a command that died right after the kernel's map.
    kept = "import json,glob; p=glob.glob('/run/rbdtree/maps/*/map.json')[0]; r=json.load(open(p)); "
    change = "r.update(step='mapping', device='', base='', known=[]); json.dump(r, open(p,'w'))"
    yard.sh("h2", f'/usr/bin/python3 -c "{kept}{change}"')
    assert yard.at("h2", "map", "vol/root", "--driver", "krbd").out.strip() == seen
    yard.at("h2", "unmap", seen)
    assert yard.sh("h2", "ls /sys/bus/rbd/devices").out == ""

    # With a journal krbd is of no use, whoever asks for it.
    yard("branch", "vol/m", "--uplink", "journal")
    said = yard.at("h1", "map", "vol/m", "--write", "--driver", "krbd")
    assert said.out.startswith("/dev/nbd")
    assert "krbd cannot map an image with a journal" in said.err


def _command(yard: Yard, *words: str) -> str:
    from ground import line

    return line(words, yard.config)


@pytest.mark.hosts
def test_nbd_in_use_exclusive_and_killed(yard: Yard) -> None:
    yard.tree("320M")
    yard("sync", "--cut", "vol")
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(yard.at, "h1", "map", "vol/m", "--write", "--exclusive") for _ in range(2)]
        (device,) = {one.result().out.strip() for one in asked}
    assert len(yard.sh("h1", "pgrep -x rbd-nbd").out.split()) == 1
    refused = yard.at("h2", "map", "vol/m", "--write", "--exclusive", "--driver", "rbd-nbd", code=19)
    assert yard.at("h2", "mapped").out == "nothing is mapped here\n", refused
    yard.sh("h1", f"mkfs.xfs -q {device} && mkdir -p /mnt/v && mount {device} /mnt/v && echo kept >/mnt/v/word; sync")
    refused = yard.at("h1", "unmap", device, code=16)
    assert "mounted at /mnt/v" in refused.err
    assert yard.sh("h1", "cat /mnt/v/word").out == "kept\n"
    yard.at("h1", "unmap", device, "--force")
    assert yard.sh("h1", "pgrep -x rbd-nbd", code=None).out == ""
    yard.sh("h1", "umount -l /mnt/v")

    # A daemon that is killed: seen, and mapped anew.
    yard.at("h1", "map", "vol/m", "--write")
    yard.sh("h1", "pkill -9 -x rbd-nbd; sleep 0.5")
    assert "its device is gone" in yard.at("h1", "doctor", code=19).out
    again = yard.at("h1", "map", "vol/m", "--write", seconds=100).out.strip()
    yard.sh("h1", f"mount -o nouuid {again} /mnt/v && cat /mnt/v/word && umount /mnt/v")
    yard.at("h1", "unmap", "--all")


@pytest.mark.hosts
def test_a_hook_that_hangs_does_not_hang_the_host(yard: Yard) -> None:
    yard.configure('[host]\nfreeze_limit = "3s"\n')
    yard.tree("320M")
    device = yard.at("h1", "map", "vol/root", "--write").out.strip()
    yard.sh("h1", f"mkfs.xfs -q {device} && mkdir -p /mnt/v")
    yard.at("h1", "unmap", device)
    yard.at("h1", "mount", "vol/root", "/mnt/v", "--write", "--quiesce", "--quiesce-hook", "sleep 300")
    yard("cut", "vol", seconds=40)
    yard.sh("h1", "echo goes on >/mnt/v/word; sync -f /mnt/v", seconds=15)
    row = yard.at("h1", "--format", "json", "mapped").json["maps"][0]
    assert "hung" in row["last_freeze"]["trouble"]
    # xfs: a generation is mounted beside the volume, though both have one UUID.
    yard.sh("h1", "mkdir -p /mnt/old")
    yard.at("h1", "mount", "vol/root", "/mnt/old")
    yard.at("h1", "umount", "/mnt/old")
    yard.at("h1", "umount", "/mnt/v")


@pytest.mark.hosts
def test_a_cache_counts_its_hits(yard: Yard) -> None:
    yard.configure('[host]\ncache = "64M"\nvolumes = 2\n')
    yard.tree()
    yard("sync", "--cut", "vol")
    device = yard.at("h1", "map", "vol/root", "--write", "--driver", "rbd-nbd").out.strip()
    yard.sh("h1", f"dd if=/dev/urandom of={device} bs=1M count=4 oflag=direct conv=fsync")
    yard.sh("h1", f"dd if={device} of=/dev/null bs=1M count=4 iflag=direct; " * 2)
    row = yard.at("h1", "--format", "json", "mapped").json["maps"][0]
    assert row["cache_bytes"] == 32 * MIB
    assert row["cache_hits"] > 0


def used(yard: Yard, image: str) -> int:
    """Bytes that the image has something in, as rbd tells."""
    return sum(entry["length"] for entry in json.loads(yard.rbd("a", "diff", "--whole-object", "--format=json", image)))


@pytest.mark.hosts
@pytest.mark.parametrize("driver", ["rbd-nbd", "krbd", "fuse"])
def test_discards_and_growth(yard: Yard, driver: str) -> None:
    """As docs/hosts.md has it of each driver."""
    yard.tree()
    mapped = yard.at("h1", "map", "vol/root", "--write", "--driver", driver, code=None)
    if driver == "fuse" and mapped.code == 19:
        pytest.skip("the test host has no FUSE")
    assert mapped.code == 0, mapped
    device = mapped.out.strip()
    yard.sh("h1", f"dd if=/dev/urandom of={device} bs=1M count=16 oflag=direct")
    assert used(yard, "vol") == 16 * MIB
    yard.sh("h1", f"blkdiscard -o {4 * MIB} -l {8 * MIB} {device} && blockdev --flushbufs {device}")
    assert used(yard, "vol") == 8 * MIB
    yard.rbd("a", "resize", "--no-progress", "--size", "96M", "vol")

    def seen() -> int:
        return int(yard.sh("h1", f"blockdev --getsize64 {device}").out)

    if driver == "fuse":
        time.sleep(3)
        assert seen() == 64 * MIB
    else:
        until("it has grown", lambda: seen() == 96 * MIB)
    yard.at("h1", "unmap", device)
    device = yard.at("h1", "map", "vol/root", "--write", "--driver", driver).out.strip()
    assert seen() == 96 * MIB
    yard.at("h1", "unmap", device)
