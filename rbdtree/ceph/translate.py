"""The bindings' exceptions, turned into ours at the door.

``rbd.OSError`` and ``rados.OSError`` are no subclasses of Python's ``OSError`` and have no common parent, so nothing
above this package may see them.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import rados
import rbd

from rbdtree import errors

_CLASSES: dict[int, type[errors.Error]] = {
    errno.EPERM: errors.Denied,
    errno.EACCES: errors.Denied,
    errno.ENOENT: errors.NotFound,
    errno.EEXIST: errors.Exists,
    errno.EBUSY: errors.Busy,
    errno.EROFS: errors.Busy,
    errno.ENOSPC: errors.NoSpace,
    errno.EDQUOT: errors.NoSpace,
    errno.ENOTEMPTY: errors.NotEmpty,
    errno.ETIMEDOUT: errors.Unreachable,
    errno.ENOTCONN: errors.Unreachable,
    errno.ECANCELED: errors.Changed,
    errno.EOPNOTSUPP: errors.Unsupported,
    errno.ESHUTDOWN: errors.Fenced,
}
_WORDS = {
    errno.EPERM: "this key may not do that (EPERM)",
    errno.EACCES: "this key may not do that (EACCES)",
    errno.EROFS: "another client has it locked, or it is read-only",
    errno.ESHUTDOWN: "this client was fenced (blocklisted)",
    errno.ETIMEDOUT: "no answer in time",
}


_HINTS = {
    errors.Denied: "'rbdtree site check' tells what is missing, 'rbdtree caps' what a key needs.",
    errors.Unreachable: "Check the cluster ('rbdtree site check'), or give it longer with --timeout.",
    errors.NoSpace: "Free space or raise the quota, then run this again.",
}


def from_errno(code: int, doing: str) -> errors.Error:
    """Our error for a (positive or negative) errno of Ceph's; ``doing`` says what was asked, and of whom."""
    code = abs(code)
    words = _WORDS.get(code) or errno.errorcode.get(code, f"error {code}")
    found = _CLASSES.get(code, errors.CephError)
    return found(f"{doing}: {words}", _HINTS.get(found))


def from_exception(error: Exception, doing: str) -> errors.Error:
    """Our error for one that the bindings raised."""
    code = getattr(error, "errno", None)
    if isinstance(code, int):
        return from_errno(code, doing)
    return errors.CephError(f"{doing}: {error}")


@contextmanager
def translated(doing: str) -> Iterator[None]:
    """Whatever the bindings raise inside comes out as ours."""
    try:
        yield
    except (rados.Error, rbd.Error) as error:
        raise from_exception(error, doing) from error
