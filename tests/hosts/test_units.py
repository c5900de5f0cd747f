"""The units of deploy/systemd, run by a systemd of their own in a test host."""

import shlex
import shutil
import sys
from pathlib import Path

import pytest
from ground import RBDTREE, Yard, until

pytestmark = [pytest.mark.ceph, pytest.mark.hosts, pytest.mark.timeout(240)]
UNITS = Path(__file__).parents[2] / "deploy" / "systemd"
SYSTEMD = "/lib/systemd/systemd"
BOOT = f"""
set -e
mkdir -p /etc/systemd/system /etc/rbdtree /sys/fs/cgroup
cp {shlex.quote(str(UNITS))}/*.service /etc/systemd/system/
printf '#!/bin/sh\\nexec %s "$@"\\n' {shlex.quote(RBDTREE)} >/usr/local/bin/rbdtree
chmod 755 /usr/local/bin/rbdtree
id -u rbdtree >/dev/null 2>&1 || useradd --system rbdtree
# Of the machine's own units none is wanted here, nor what they hang on.
for unit in maps manager follow@; do
  mkdir -p /etc/systemd/system/rbdtree-$unit.service.d
  printf '[Unit]\\nDefaultDependencies=no\\nAfter=\\nWants=\\n' >/etc/systemd/system/rbdtree-$unit.service.d/test.conf
done
printf '[Unit]\\nDefaultDependencies=no\\n' >/etc/systemd/system/nothing.target
setsid unshare --pid --mount --fork --kill-child /bin/sh -c '
  mount -t proc proc /proc && mount -t cgroup2 cgroup /sys/fs/cgroup
  exec env container=test {SYSTEMD} --system --unit=nothing.target --log-target=console --show-status=no
' >/run/systemd.log 2>&1 &
"""


@pytest.fixture
def booted(yard: Yard) -> Yard:
    if not Path(SYSTEMD).exists():
        pytest.skip("systemd is not installed")
    yard.sh("h3", BOOT)
    until("systemd answers", lambda: systemctl(yard, "is-system-running", code=None) in ("running", "degraded"))
    return yard


def systemctl(yard: Yard, words: str, code: int | None = 0, seconds: float = 90) -> str:
    inside = "nsenter -t $(pgrep -x systemd | head -1) -p -m systemctl"
    return yard.sh("h3", f"{inside} {words}", code, seconds).out.strip()


def test_a_host_boots_with_its_maps(booted: Yard) -> None:
    pass
