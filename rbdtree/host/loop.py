"""Loop devices: over the file of a FUSE export, or over a range of another device."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

from rbdtree import errors
from rbdtree.host import device, tools


@dataclass(frozen=True, slots=True)
class Loop:
    name: str
    backing: str
    offset: int
    limit: int


def listed() -> list[Loop]:
    """All of this host."""
    found = []
    for folder in sorted(Path("/sys/block").glob("loop*/loop")):
        backing = next(iter(tools.lines(folder / "backing_file")), "")
        numbers = [next(iter(tools.lines(folder / name)), "") for name in ("offset", "sizelimit")]
        # One that is taken away just now.
        if backing and all(number.isdecimal() for number in numbers):
            name = f"/dev/{folder.parent.name}"
            found.append(Loop(name, backing.removesuffix(" (deleted)"), int(numbers[0]), int(numbers[1])))
    return found


def find(backing: str, portion: tuple[int, int] | None) -> str:
    """The device that is set up so; empty without one."""
    offset, length = portion or (0, 0)
    for loop in listed():
        if loop.backing == backing and loop.offset == offset and (not portion or loop.limit == length):
            return loop.name
    return ""


def attach(backing: str, portion: tuple[int, int] | None, *, read_only: bool) -> str:
    """The device; the one that is there when it is."""
    tools.load_module("loop")
    found = find(backing, portion)
    if found:
        return found
    words = ["losetup", "--find", "--show", *(["--read-only"] if read_only else [])]
    if portion:
        words += ["--offset", str(portion[0]), "--sizelimit", str(portion[1])]
    what = f"make a loop device over {backing}"
    try:
        # Direct: the page cache of the device below would keep everything a second time.
        return tools.run(what, *words, "--direct-io=on", backing).strip()
    except errors.HostFailed:
        found = find(backing, portion)
        return found or tools.run(what, *words, backing).strip()


def detach(name: str, backing: str, *, seconds: float = 10.0) -> None:
    """Nothing when it is gone. One that is in use goes when its last user does; ``Busy`` if that takes too long."""
    if not any(loop.name == name and loop.backing == backing for loop in listed()):
        return
    device.flush(name)
    tools.run(f"take {name} off {backing}", "losetup", "--detach", name)
    deadline = time.monotonic() + seconds
    while any(loop.name == name and loop.backing == backing for loop in listed()):
        if time.monotonic() > deadline:
            raise errors.Busy(f"{name} is still in use", "It goes when its last user does.")
        time.sleep(0.02)


def let_go(backing: str) -> None:
    """All over this file, at once or with their last user. Before the file goes: then none can tell whose they are."""
    for one in listed():
        if one.backing == backing:
            tools.run(f"take {one.name} off {backing}", "losetup", "--detach", one.name)


def gone() -> list[Loop]:
    """Loop devices over files of ours that are no more."""
    return [loop for loop in listed() if "/maps/" in loop.backing and not os.path.exists(loop.backing)]
