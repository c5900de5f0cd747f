"""Mounts moved in the tree of directories: a new one takes the place of an old one, whose open files stay valid."""

import ctypes
import errno
import os

from rbdtree import errors

_OPEN_TREE, _MOVE_MOUNT = 428, 429
"""System calls since Linux 5.2; the same numbers on every architecture but alpha."""
_AT_FDCWD = -100
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, 0o2000000
_EMPTY_PATH = 0x4
_BENEATH = 0x200
"""Since Linux 6.5."""
_MNT_DETACH = 2


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def detach(directory: str) -> None:
    """Out of sight at once; the file system goes when its last file is closed."""
    if _libc().umount2(os.fsencode(directory), _MNT_DETACH):
        raise _failed(f"detach {directory}")


def replace(side: str, directory: str) -> bool:
    """What is mounted at ``side`` takes the place of what is mounted at ``directory``, and is at ``side`` no more.

    True: nobody ever saw the directory empty. False: for a moment it was (kernels before 6.5).
    """
    libc = _libc()
    # A copy, not the mount itself: one below a shared mount (systemd makes all of them shared) cannot be moved.
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC
    handle = libc.syscall(_OPEN_TREE, _AT_FDCWD, os.fsencode(side), flags)
    if handle < 0:
        raise _failed(f"take {side}")
    try:
        seamless = not _attach(libc, handle, directory, _BENEATH)
        detach(directory)
        if not seamless and _attach(libc, handle, directory, 0):
            raise _failed(f"mount at {directory}")
    finally:
        os.close(handle)
    detach(side)
    return seamless


def _attach(libc: ctypes.CDLL, handle: int, directory: str, flags: int) -> int:
    return int(libc.syscall(_MOVE_MOUNT, handle, b"", _AT_FDCWD, os.fsencode(directory), _EMPTY_PATH | flags))


def _failed(what: str) -> errors.HostFailed:
    number = ctypes.get_errno()
    hint = "Run it as root." if number == errno.EPERM else "See the kernel's log (dmesg)."
    return errors.HostFailed(f"cannot {what}: {os.strerror(number)}", hint)
