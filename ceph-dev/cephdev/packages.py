"""The Debian and Ubuntu packages that ceph-dev and rbdtree need."""

import os
import shutil
import subprocess
from pathlib import Path

from cephdev import Failure

NEEDED = (
    *("ceph-mon", "ceph-osd", "ceph-mgr", "ceph-common", "python3-rados", "python3-rbd"),
    *("python3-venv", "e2fsprogs", "iproute2", "uuid-runtime"),
)

FOR_HOSTS = (
    # qemu-utils, because qemu-block-extra would be content with a whole emulator too, which is ten times as much.
    *("rbd-nbd", "user-mode-linux", "qemu-utils", "qemu-system-common", "qemu-block-extra"),
    *("xfsprogs", "btrfs-progs", "kmod", "util-linux", "mount"),
)
"""For block devices, and hosts to try them in. What a distribution does not have, its tests do without."""


def missing() -> list[str]:
    if not shutil.which("dpkg-query"):
        raise Failure(f"this is neither Debian nor Ubuntu; install what corresponds to: {' '.join(NEEDED)}")
    wanted = (*NEEDED, *FOR_HOSTS)
    lines = output(["dpkg-query", "-W", "-f=${Package} ${db:Status-Status}\n", *wanted]).splitlines()
    present = {line.split()[0] for line in lines if line.endswith(" installed")}
    absent = [package for package in wanted if package not in present]
    return [package for package in absent if package in NEEDED or not known_sources() or has_candidate(package)]


def known_sources() -> bool:
    """Whether apt has ever been told what there is."""
    folder = Path("/var/lib/apt/lists")
    return folder.is_dir() and any("Packages" in path.name for path in folder.iterdir())


def install(packages: list[str]) -> None:
    privilege = as_root()
    services = ceph_services()
    fresh = False
    if not all(has_candidate(package) for package in packages):
        update(privilege)
        fresh = True
    packages = [package for package in packages if package not in FOR_HOSTS or has_candidate(package)]
    if unknown := [package for package in packages if not has_candidate(package)]:
        raise Failure(f"no configured package source has {' '.join(unknown)}; add one to /etc/apt and run this again")
    if not apt_install(privilege, packages):
        if fresh:
            raise Failure("apt-get install failed, see above; put that right and run this again")
        update(privilege)  # the list named versions that the mirror no longer has
        if not apt_install(privilege, packages):
            raise Failure("apt-get install failed, see above; put that right and run this again")
    stop_new(privilege, sorted(ceph_services() - services))


def as_root() -> list[str]:
    """What to put before a command; the environment goes with it as arguments, because sudo drops it."""
    if os.geteuid() == 0:
        return []
    if not shutil.which("sudo"):
        raise Failure("installing packages needs root, and there is no sudo; run ceph-dev/install as root")
    return ["sudo"]


def apt_get(privilege: list[str], *arguments: str) -> bool:
    quiet = ["env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-y", "-o", "DPkg::Lock::Timeout=120"]
    return subprocess.run([*privilege, *quiet, *arguments], check=False).returncode == 0


def apt_install(privilege: list[str], packages: list[str]) -> bool:
    return apt_get(privilege, "install", "--no-install-recommends", *packages)


def update(privilege: list[str]) -> None:
    if not apt_get(privilege, "update"):
        raise Failure("apt-get update failed, see above; check the network and /etc/apt and run this again")


def has_candidate(package: str) -> bool:
    lines = output(["apt-cache", "policy", package]).splitlines()
    return any(line.strip().startswith("Candidate:") and "(none)" not in line for line in lines)


def ceph_services() -> set[str]:
    """Those that run now. Targets are left out: they start nothing by themselves."""
    if not os.path.isdir("/run/systemd/system"):
        return set()
    running = ["--type=service", "--state=active,activating"]
    lines = output(["systemctl", "list-units", "--plain", "--no-legend", *running, "ceph*"])
    return {line.split()[0] for line in lines.splitlines() if line.strip()}


def stop_new(privilege: list[str], services: list[str]) -> None:
    """Packages start services of theirs (ceph-crash). What ran before is somebody's and goes on."""
    if services:
        subprocess.run([*privilege, "systemctl", "disable", "--now", "--quiet", *services], check=False)


def output(argv: list[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"})
    return done.stdout
