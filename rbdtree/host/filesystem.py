"""File systems on generations: how each is mounted read-only without a replay of its journal, and beside its like."""

import os
import struct

from rbdtree import errors
from rbdtree.host import tools

_READ_ONLY = {
    # A device that takes no writes cannot be replayed onto: without these, mount refuses a journal that is not empty.
    "ext3": ("noload",),
    "ext4": ("noload",),
    "xfs": ("norecovery", "nouuid"),
    "btrfs": ("rescue=nologreplay",),
    "f2fs": ("norecovery",),
    "nilfs2": ("norecovery",),
    "reiserfs": ("nolog",),
}
_WRITE = {
    # Every generation and branch has the UUID of the first; xfs refuses the second one that it meets.
    "xfs": ("nouuid",),
}
_ALONE = ("btrfs",)
"""Known by UUID in the whole kernel: a second one is taken for the first."""


def kind(device: str) -> str:
    """What is on it, as mount calls it; ``UsageError`` when there is no file system."""
    program = tools.find("blkid")
    if program is None:
        raise errors.HostFailed("there is no program blkid", "Install util-linux.")
    try:
        found = tools.run(f"look at {device}", "blkid", "-p", "-o", "value", "-s", "TYPE", device).strip()
    except errors.HostFailed:
        found = ""
    if not found:
        raise errors.UsageError(
            f"{device} holds no file system",
            "Make one at the root: 'rbdtree map TREE/NODE --write', mkfs, 'rbdtree cut'.",
        )
    return found


def options(fstype: str, write: bool, more: str) -> str:
    """For mount -o."""
    own = _WRITE.get(fstype, ()) if write else _READ_ONLY.get(fstype, ())
    return ",".join(["rw" if write else "ro", *own, *([more] if more else [])])


def alone(fstype: str) -> bool:
    """Whether the kernel cannot tell two generations of it from one another."""
    return fstype in _ALONE


def unclean(device: str, fstype: str) -> bool:
    """Whether its journal holds what is not in its place yet; False where that cannot be told."""
    if fstype not in ("ext3", "ext4"):
        return False
    try:
        handle = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
        try:
            block = os.pread(handle, 1024, 1024)
        finally:
            os.close(handle)
    except OSError:
        return False
    if len(block) < 0x64 or struct.unpack_from("<H", block, 0x38)[0] != 0xEF53:
        return False
    return bool(struct.unpack_from("<I", block, 0x60)[0] & 0x4)
