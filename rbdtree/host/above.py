"""What lies over a block device: partitions, LVM, dm-crypt, RAID, loops; and the file systems on all of it."""

import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rbdtree.host import device, tools
from rbdtree.host.device import Mounted

_SYS = Path("/sys")


@dataclass(frozen=True, slots=True)
class Above:
    """``directories``: one of each file system that is mounted; ``bare``: devices that nothing lies over or is mounted
    from; ``trouble``: a file system that no command here can freeze, in a phrase."""

    directories: tuple[str, ...]
    bare: tuple[str, ...]
    trouble: str


def look(names: Iterable[str]) -> Above:
    """Over these devices."""
    there = stack([found for name in names if (found := numbered(name))])
    mounted = device.mounts()
    directories, covered = roots(frozenset(there), mounted)
    from_them = {number for m in mounted for number in (m.device, numbered(m.source))}
    bare = tuple(named(number) for number, over in there.items() if not over and number not in from_them)
    trouble = f"what is mounted at {covered[0]} is covered by another mount" if covered else ""
    for name in bare:
        if not trouble and device.claimed(name):
            trouble = f"{name} is in use where it cannot be frozen from here"
    return Above(directories, bare, trouble)


def numbered(name: str) -> str:
    """``MAJOR:MINOR`` of a block device; empty for anything else."""
    found = device.number(name) if name.startswith("/") else None
    return f"{os.major(found)}:{os.minor(found)}" if found is not None else ""


def named(number: str, sys: Path = _SYS) -> str:
    """The path of a device; a '!' in the kernel's name is a '/'."""
    return f"/dev/{(sys / 'dev/block' / number).resolve().name.replace('!', '/')}"


def stack(numbers: Iterable[str], sys: Path = _SYS) -> dict[str, tuple[str, ...]]:
    """These devices and all over them, by number: what lies over each directly."""
    found: dict[str, tuple[str, ...]] = {}
    waiting = list(numbers)
    while waiting:
        number = waiting.pop()
        if number not in found:
            found[number] = _over(number, sys)
            waiting += found[number]
    return found


def _over(number: str, sys: Path) -> tuple[str, ...]:
    folder = sys / "dev/block" / number
    inside = [path.parent for path in folder.glob("*/partition")]
    with suppress(OSError):
        inside += (folder / "holders").iterdir()
    for loop in sys.glob("block/loop*/loop/backing_file"):
        if numbered(next(iter(tools.lines(loop)), "")) == number:
            inside.append(loop.parents[1])
    return tuple(line for path in sorted(inside) for line in tools.lines(path / "dev")[:1])


def roots(numbers: frozenset[str], mounted: list[Mounted]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(a directory of each file system on these devices, those of file systems that are not to be seen at any)"""
    top = {m.directory: m.mount_id for m in mounted}
    seen: dict[str, str] = {}
    covered: dict[str, str] = {}
    for m in mounted:
        # btrfs shows a number of its own.
        if m.device in numbers or numbered(m.source) in numbers:
            shown = top[m.directory] == m.mount_id and not os.path.isfile(m.directory)
            (seen if shown else covered).setdefault(m.device, m.directory)
    return tuple(seen.values()), tuple(d for of, d in covered.items() if of not in seen)
