"""Block devices as the kernel shows them: what they are, and who uses them."""

import os
import stat
import subprocess
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rbdtree.host import tools

_SERVERS = ("rbd-nbd",)
"""They keep the device open that they serve."""


@dataclass(frozen=True, slots=True)
class Mounted:
    """A line of mountinfo."""

    mount_id: int
    directory: str
    device: str
    source: str
    fstype: str
    options: str


def number(device: str) -> int | None:
    """Its device number; None when there is no such block device."""
    try:
        found = os.stat(device)
    except OSError:
        return None
    return found.st_rdev if stat.S_ISBLK(found.st_mode) else None


def size(device: str) -> int:
    """In bytes; 0 when it is gone, or disconnected."""
    try:
        handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0
    try:
        return os.lseek(handle, 0, os.SEEK_END)
    except OSError:
        return 0
    finally:
        os.close(handle)


def sysfs(device: str) -> Path | None:
    """Its folder below /sys."""
    found = number(device)
    return Path(f"/sys/dev/block/{os.major(found)}:{os.minor(found)}") if found is not None else None


def mounts() -> list[Mounted]:
    """Of this process's mount namespace, in the order of mounting."""
    found = []
    for line in tools.lines("/proc/self/mountinfo"):
        left, _, right = line.partition(" - ")
        parts, more = left.split(), right.split(" ")
        if len(parts) >= 6 and len(more) >= 2:
            options = f"{parts[5]},{more[2]}" if len(more) > 2 else parts[5]
            found.append(Mounted(int(parts[0]), _plain(parts[4]), parts[2], _plain(more[1]), more[0], options))
    return found


def _plain(text: str) -> str:
    """Without the kernel's octal escapes."""
    for escape, plain in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(escape, plain)
    return text


def mounted_at(device: str) -> list[str]:
    """Directories."""
    found = number(device)
    if found is None:
        return []
    where = f"{os.major(found)}:{os.minor(found)}"
    # btrfs shows a number of its own.
    return [m.directory for m in mounts() if m.device == where or m.source == device]


def users(device: str) -> list[str]:
    """Who uses it, in phrases; empty when nobody does."""
    found = number(device)
    if found is None:
        return []
    said = [f"mounted at {directory}" for directory in mounted_at(device)]
    folder = sysfs(device)
    if folder:
        with suppress(OSError):
            said += [f"held by {holder.name}" for holder in (folder / "holders").iterdir()]
    said += [f"swap on {device}" for line in tools.lines("/proc/swaps")[1:] if line.split(" ")[0] == device]
    said += _openers(found)
    if not said and claimed(device):
        said.append("mounted or held where this command cannot see it")
    return said


def _openers(device: int) -> list[str]:
    said = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with suppress(OSError):
            for entry in (folder / "fd").iterdir():
                with suppress(OSError):
                    opened = entry.stat()
                    if stat.S_ISBLK(opened.st_mode) and opened.st_rdev == device:
                        name = (tools.lines(folder / "comm") or ["?"])[0]
                        if name in _SERVERS:
                            break
                        said.append(f"opened by {name} ({folder.name})")
                        break
    return said


def claimed(device: str) -> bool:
    """Whether the kernel itself has it claimed, for a mount of any namespace, a volume group, a RAID."""
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == 16
    return False


def flush_soon(device: str, seconds: float = 5.0) -> None:
    """The same, without waiting for longer: what hangs is left behind."""
    program = tools.find("blockdev")
    if not program or number(device) is None:
        return
    process = subprocess.Popen(
        [program, "--flushbufs", device],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)


def flush(device: str) -> None:
    """What the page cache holds goes to the device."""
    with suppress(OSError):
        handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
