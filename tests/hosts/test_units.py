"""The units of deploy/systemd, run by a systemd of their own in a test host."""

import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest
from ground import REPO, Yard, until

pytestmark = [pytest.mark.ceph, pytest.mark.hosts, pytest.mark.timeout(1200)]
UNITS = REPO / "deploy" / "systemd"
SYSTEMD = Path("/lib/systemd/systemd")
BOOT = """
set -e
mkdir -p /etc/systemd/system /etc/rbdtree /etc/ceph /srv/vol
cp {units}/*.service /etc/systemd/system/
mkdir -p /usr/local/lib/rbdtree
mountpoint -q /usr/local/lib/rbdtree || mount --bind {installed} /usr/local/lib/rbdtree
printf '#!/bin/sh\\nPYTHONPATH=/usr/local/lib/rbdtree exec {python} -m rbdtree_cli.main "$@"\\n' >/usr/local/bin/rbdtree
chmod 755 /usr/local/bin/rbdtree
id -u rbdtree >/dev/null 2>&1 || useradd --system rbdtree
# None of the machine's own units is wanted here. A watchdog of a minute would take as long.
for unit in maps maps-retry manager follow@; do
  mkdir -p /etc/systemd/system/rbdtree-$unit.service.d
  printf '[Unit]\\nDefaultDependencies=no\\n' >/etc/systemd/system/rbdtree-$unit.service.d/test.conf
done
printf '[Service]\\nRestartSec=2\\n' >>/etc/systemd/system/rbdtree-maps-retry.service.d/test.conf
printf '[Service]\\nWatchdogSec=10\\nTimeoutAbortSec=3\\nProtectHome=read-only\\n%s\\n' \\
  StandardError=append:/run/manager.log >>/etc/systemd/system/rbdtree-manager.service.d/test.conf
printf '[Unit]\\nDefaultDependencies=no\\n' >/etc/systemd/system/nothing.target
# Where the service's user can read them.
for site in a b; do
  cp {site}/$site/ceph.conf /etc/ceph/$site.conf
  cp {site}/$site/keyring /etc/ceph/$site.keyring
  printf '[sites.%s]\\nconf = "/etc/ceph/%s.conf"\\nkeyring = "/etc/ceph/%s.keyring"\\npools = ["{pool}"]\\n' \\
    $site $site $site
done >/etc/rbdtree/rbdtree.toml
chmod 644 /etc/ceph/* /etc/rbdtree/*
setsid unshare --pid --mount --fork /bin/sh -c '
  mount -t proc proc /proc && mount -t cgroup2 cgroup /sys/fs/cgroup
  exec env -i container=test PATH=$PATH {systemd} --system --unit=nothing.target --log-target=console --show-status=no
' >/run/systemd.log 2>&1 </dev/null &
"""


class Booted:
    """Host h3, with a systemd whose mounts are its own."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard

    def sh(self, command: str, code: int | None = 0) -> str:
        """Seen from its services."""
        inside = f"nsenter -t $(pgrep -x systemd | head -1) -p -m -r -w /bin/sh -c {shlex.quote(command)}"
        return self.yard.sh("h3", inside, code).out.strip()

    def show(self, unit: str, what: str) -> str:
        return self.sh(f"systemctl show -P {what} rbdtree-{unit}.service")

    def devices(self) -> list[str]:
        """Of krbd: what rbd-nbd tells of itself means nothing in another namespace of processes."""
        return self.sh("ls /sys/bus/rbd/devices").split()

    def has(self, word: str) -> None:
        until(f"it shows {word}", lambda: self.sh("cat /srv/vol/word", code=None) == word)


def install(into: Path) -> None:
    """As a service's user can read it, wherever the checkout is, with what it needs."""
    if not into.exists():
        for source, name in (
            (sysconfig.get_path("purelib"), ""),
            (REPO / "rbdtree", "rbdtree"),
            (REPO / "cli", "rbdtree_cli"),
        ):
            shutil.copytree(source, into / name, dirs_exist_ok=True)
        subprocess.run(["chmod", "-R", "a+rX", into], check=True)


@pytest.fixture
def booted(yard: Yard) -> Iterator[Booted]:
    if not SYSTEMD.exists():
        pytest.skip("systemd is not installed")
    installed = yard.site.directory / "installed"
    install(installed)
    words = {
        "units": UNITS,
        "installed": installed,
        "python": os.path.realpath(sys.executable),
        "site": yard.site.directory,
        "pool": yard.name,
        "systemd": SYSTEMD,
    }
    yard.sh("h3", BOOT.format(**words))
    made = Booted(yard)
    try:
        until("systemd answers", lambda: made.sh("systemctl list-units --all", code=None))
        yield made
    finally:
        said = yard.sh("h3", "pkill -9 -x systemd; cat /run/systemd.log /run/manager.log", code=None).out
        print(said[-4000:])


def test_a_host_boots_with_its_maps(booted: Booted) -> None:
    """Mapped, mounted and followed when it is up; the follower is started again; nothing is left when it goes down."""
    yard = booted.yard
    yard.tree()
    device = yard.at("h1", "map", "vol/root", "--write").out.strip()
    yard.sh("h1", f"mkfs.ext4 -q {device} && mkdir -p /mnt/v")
    yard.at("h1", "unmap", device)

    def write(word: str) -> None:
        yard.at("h1", "mount", "vol/root", "/mnt/v", "--write")
        yard.sh("h1", f"echo {word} >/mnt/v/word")
        yard.at("h1", "umount", "/mnt/v")
        yard("sync", "--cut", "vol")

    write("first")
    yard.sh("h3", "printf 'vol/m - driver=krbd\\nvol/m /srv/vol follow,driver=krbd\\n' >/etc/rbdtree/maps")
    booted.sh("systemctl start rbdtree-maps.service")
    assert booted.show("maps", "ActiveState") == "active"
    booted.has("first")
    follower = r"follow@srv-vol"
    pid = booted.show(follower, "MainPID")
    booted.sh(f"kill -9 {pid}")
    write("second")
    booted.has("second")
    assert booted.show(follower, "MainPID") not in (pid, "0")
    booted.sh("systemctl stop rbdtree-maps.service")
    assert booted.show("maps", "ExecMainStatus") == "0"
    assert booted.show(follower, "ActiveState") == "inactive"
    assert booted.devices() == []
    assert booted.sh("findmnt /srv/vol", code=1) == ""


def test_a_line_that_fails_stops_no_other_and_is_tried_again(booted: Booted) -> None:
    yard = booted.yard
    yard.tree()
    device = yard.at("h1", "map", "vol/root", "--write").out.strip()
    yard.sh("h1", f"mkfs.ext4 -q {device} && mkdir -p /mnt/v && mount {device} /mnt/v && echo first >/mnt/v/word")
    yard.sh("h1", "umount /mnt/v")
    yard.at("h1", "unmap", device)
    yard("sync", "--cut", "vol")
    yard.sh("h3", "printf 'vol/late - driver=krbd\\nvol/m /srv/vol follow,driver=krbd\\n' >/etc/rbdtree/maps")
    booted.sh("systemctl start rbdtree-maps.service")
    assert booted.show("maps", "ActiveState") == "active"
    booted.has("first")
    until("it is followed", lambda: booted.show(r"follow@srv-vol", "ActiveState") == "active")
    until("the other line is tried again", lambda: int(booted.show("maps-retry", "NRestarts")) > 1)
    yard("add", "vol/late", "--parent", "root", "--kind", "mirror", "--image", yard.spec("b", "late"))
    yard("sync", "vol")
    until("both are mapped", lambda: len(booted.devices()) == 2)
    until("nothing is tried any more", lambda: booted.show("maps-retry", "ActiveState") == "inactive")
    booted.sh("systemctl stop rbdtree-maps.service")
    assert booted.show(r"follow@srv-vol", "ActiveState") == "inactive"
    assert booted.devices() == []
    assert booted.sh("findmnt /srv/vol", code=1) == ""


def test_a_manager_is_a_service(booted: Booted) -> None:
    """Ready when it says so; killed, and stopped for longer than its watchdog allows, it is started again."""
    yard = booted.yard
    yard.tree()
    yard("policy", "set", "vol", "schedule=2s")

    def arrives(byte: int) -> None:
        yard.sh("h1", f"head -c 65536 /dev/zero | tr '\\0' '\\{byte:o}' >/run/data")
        device = yard.at("h1", "map", "vol/root", "--write").out.strip()
        yard.sh("h1", f"dd if=/run/data of={device} conv=fsync oflag=direct bs=64k")
        yard.at("h1", "unmap", device)
        wanted = f"{yard.name}/vol"

        def there() -> bool:
            snapshots = yard.site.shell(f"rbd -c {yard.site.conf('b')} snap ls {wanted} | awk 'END {{print $2}}'").out
            name = snapshots.strip()
            if "rbdtree." not in name:
                return False
            found = yard.site.shell(
                f"rbd -c {yard.site.conf('b')} export --no-progress {wanted}@{name} - | head -c 65536 | md5sum"
            ).out
            return found == yard.sh("h1", "md5sum </run/data").out

        # A manager that was killed leaves locks, which end after 20 s, as does its claim on a node in mid-sync.
        until(f"generation with {byte} arrives", there, 300)

    booted.sh("systemctl start rbdtree-manager.service")
    assert booted.show("manager", "ActiveState") == "active"
    arrives(1)
    pid = booted.show("manager", "MainPID")
    booted.sh("systemctl reload rbdtree-manager.service")
    assert (booted.show("manager", "ActiveState"), booted.show("manager", "MainPID")) == ("active", pid)
    for number in ("KILL", "STOP"):
        pid = booted.show("manager", "MainPID")
        booted.sh(f"kill -{number} {pid}")
        until(
            f"it is started again after SIG{number}",
            lambda pid=pid: (
                booted.show("manager", "MainPID") not in (pid, "0")
                and booted.show("manager", "ActiveState") == "active"
            ),
        )
        arrives(2 + (number == "STOP"))
    booted.sh("systemctl stop rbdtree-manager.service")
    assert booted.show("manager", "Result") == "success"
    assert booted.show("manager", "ExecMainStatus") == "0"
