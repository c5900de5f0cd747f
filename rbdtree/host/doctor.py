"""Looks at a host: what it lacks, what was left behind, and how each is mended."""

import ctypes
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rbdtree import errors
from rbdtree.config import Host
from rbdtree.engine.forest import Tree
from rbdtree.host import device, holds, loop, quiesce, table, tools
from rbdtree.host.maps import Maps
from rbdtree.host.mounts import Mounts
from rbdtree.host.state import MAPPED

GOOD, MINOR, BAD = "ok", "minor", "bad"
_SKEW = 5.0
_TIME_ERROR = 5
_PACKAGES = {
    "rbd-nbd": "install rbd-nbd, and a kernel with the module nbd",
    "krbd": "install ceph-common, and a kernel with the module rbd",
    "fuse": "install qemu-system-common and qemu-block-extra; the kernel needs fuse and loop",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """``mend``: what to run or to do; ``cure``: what --mend does about it."""

    level: str
    subject: str
    text: str
    mend: str = ""
    cure: Callable[[], None] | None = None


def tools_and_drivers(maps: Maps) -> Iterator[Finding]:
    usable = 0
    for name, driver in maps.drivers.items():
        missing = driver.missing()
        usable += not missing
        if missing:
            yield Finding(MINOR, f"driver {name}", missing, _PACKAGES[name])
        else:
            yield Finding(GOOD, f"driver {name}", "can be used")
    if not usable:
        yield Finding(BAD, "drivers", "nothing can be mapped here", "One of the three above is enough.")
    for program, needs in (
        ("blkid", "util-linux"),
        ("mount", "mount"),
        ("losetup", "mount"),
        ("fsfreeze", "util-linux"),
    ):
        if tools.find(program) is None:
            yield Finding(BAD, f"program {program}", "is not installed", f"install {needs}")


def state_directory(maps: Maps) -> Iterator[Finding]:
    try:
        with maps.state.locked("doctor"):
            yield Finding(GOOD, "state", f"{maps.state.root} can be written")
    except errors.Denied as error:
        yield Finding(BAD, "state", str(error), error.hint or "")


def clock(trees: tuple[Tree, ...]) -> Iterator[Finding]:
    """Claims and leases run out by time, and generations bear the time of their cut."""
    if _synchronised() is False:
        yield Finding(MINOR, "clock", "the kernel's clock is not synchronised", "run chrony, ntpd or systemd-timesyncd")
    now = time.time()
    ahead = [
        (g.created - now, m.ref.name, tree.name)
        for tree in trees
        for m in tree.members.values()
        for g in (m.document.generations[-1:] if m.document else ())
        if g.created > now + _SKEW
    ]
    if ahead:
        seconds, _, tree_name = max(ahead)
        yield Finding(
            BAD,
            "clock",
            f"the newest generation of {tree_name} was cut {seconds:.0f} s from now, by this host's clock",
            "correct the clock of this host, or of the one that cut it",
        )
    elif trees:
        yield Finding(GOOD, "clock", "no generation is from the future")


def _synchronised() -> bool | None:
    """None where the kernel does not tell."""
    buffer = ctypes.create_string_buffer(512)
    try:
        answer = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR


def maps_left(maps: Maps) -> Iterator[Finding]:
    """Maps that are not whole, and devices whose file has gone."""
    whole = 0
    for record in maps.state.records():
        found = maps.find(record)
        name = f"map of {record.source.full_name} ({record.source.described})"
        if found and record.step == MAPPED:
            whole += 1
            freeze = quiesce.last(maps.state.place(record.key))
            if freeze and freeze.trouble:
                yield Finding(
                    MINOR, name, f"its last freeze was not clean: {freeze.trouble}", "see its hook and freeze_limit"
                )
            continue
        said = f"was left half done ({record.step})" if found else "its device is gone"
        yield Finding(
            BAD,
            name,
            said,
            f"rbdtree unmap --force {found}" if found else "rbdtree doctor --mend; then map it again",
            None if found and device.users(found) else lambda r=record: maps.clear(r),  # type: ignore[misc]
        )
    if whole:
        yield Finding(GOOD, "maps", f"{whole} mapped, all there")
    for one in loop.gone():
        yield Finding(BAD, one.name, f"its file {one.backing} is gone", f"losetup --detach {one.name}")


def mounts_left(mounts: Mounts, follows: Callable[[int], bool]) -> Iterator[Finding]:
    """Mounts that are not there, followers that are not, maps that nobody mounts any more."""
    state = mounts.state
    wanted = set()
    for record in state.mounts():
        wanted |= {record.key, record.next, *record.leaving}
        name = f"mount at {record.directory}"
        if mounts.shown(record.directory) is None:
            yield Finding(
                BAD,
                name,
                f"{record.tree}/{record.node} is not mounted there any more",
                "rbdtree doctor --mend, then mount it again",
                lambda r=record: mounts.tidy(r.directory),  # type: ignore[misc]
            )
        elif record.follow and not follows(record.follower):
            yield Finding(
                BAD,
                name,
                f"nothing follows {record.tree}/{record.node} for it any more",
                f"rbdtree mount --follow {record.tree}/{record.node} {record.directory}",
            )
    for mapped in state.records():
        if mapped.for_mount and mapped.key not in wanted and not device.users(mapped.device):
            yield Finding(
                MINOR,
                f"map of {mapped.source.full_name} ({mapped.source.described})",
                "was made for a mount that has gone",
                f"rbdtree unmap {mapped.device}",
                lambda r=mapped: mounts.maps.unmap(r),  # type: ignore[misc]
            )


def holds_left(maps: Maps, trees: tuple[Tree, ...]) -> Iterator[Finding]:
    keys = frozenset(record.key for record in maps.state.records())
    for node, hold in holds.leftover(trees, keys):
        yield Finding(
            MINOR,
            f"hold on {node.name} {hold.position}",
            "this host holds it, and does not have it mapped",
            "rbdtree doctor --mend",
            lambda n=node, h=hold: holds.release_leftover(n, h),  # type: ignore[misc]
        )


def boot(file: Path) -> Iterator[Finding]:
    """The table of what is mapped at boot, and the service that does it."""
    try:
        entries = table.load(file)
    except errors.UsageError as error:
        yield Finding(BAD, "table", str(error), f"correct {file}")
        return
    if not entries:
        return
    yield Finding(GOOD, "table", f"{file} has {len(entries)} lines" if len(entries) > 1 else f"{file} has 1 line")
    if Path("/run/systemd/system").is_dir() and tools.find("systemctl"):
        try:
            tools.run("ask systemd", "systemctl", "is-enabled", "rbdtree-maps.service")
        except errors.HostFailed:
            yield Finding(
                MINOR, "service", "rbdtree-maps.service is not enabled", "systemctl enable rbdtree-maps.service"
            )


def memory(host: Host) -> Iterator[Finding]:
    if host.cache_bytes is None:
        return
    total = next(
        (int(line.split()[1]) << 10 for line in tools.lines("/proc/meminfo") if line.startswith("MemTotal")), 0
    )
    if total and host.cache_bytes > total // 2:
        yield Finding(
            MINOR,
            "cache",
            f"the budget is {host.cache_bytes} bytes, more than half of this host's memory ({total})",
            "lower 'cache' of [host]",
        )
    else:
        yield Finding(GOOD, "cache", f"a budget of {host.cache_bytes} bytes for {host.volumes} volumes")
