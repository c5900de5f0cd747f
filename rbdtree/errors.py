"""Everything that can go wrong, by what the caller should do next.

Each class has one exit code, an errno where Linux has a fitting one (as the ``rbd`` command does); the table in
``docs/exit-codes.md`` is checked against this module by a test.
A message is one lower-case sentence without full stop: what was seen. ``hint`` says what to run next.
"""

import errno


class Error(Exception):
    """Base of all; ``exit_code`` is what a command exits with."""

    exit_code = errno.EIO
    meaning = "Ceph answered with an error that has no class of its own"

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message


class CephError(Error):
    """Ceph said no for a reason nobody foresaw: show it, give up this edge, keep the others."""


class UsageError(Error):
    """Tell the person: the command, a name or the configuration cannot be right."""

    exit_code = errno.EINVAL
    meaning = "wrong command line, name, configuration or combination; nothing was changed"


class NotFound(Error):
    """Tell the person: a tree, node, site, pool, image or generation is not there."""

    exit_code = errno.ENOENT
    meaning = "unknown tree, node, site, pool, image or generation"


class Exists(Error):
    """Tell the person: the name or the image is taken."""

    exit_code = errno.EEXIST
    meaning = "the tree, node or image exists, or the image belongs to a tree already"


class NotEmpty(Error):
    """Tell the person: what should be empty holds something (data in an image, children of a node)."""

    exit_code = errno.ENOTEMPTY
    meaning = "the image holds data, or the node still has children"


class Busy(Error):
    """Try again later: another process works here, or the image is in use."""

    exit_code = errno.EBUSY
    meaning = "another process is at work on the same edge or node, or an image is in use"


class Denied(Error):
    """Tell the person: the key of this site lacks a capability."""

    exit_code = errno.EPERM
    meaning = "the site's key may not do that"


class NoSpace(Error):
    """Stop this edge until there is space; the delta resumes where it stopped."""

    exit_code = errno.ENOSPC
    meaning = "pool or cluster full; the sync resumes once there is space"


class Unreachable(Error):
    """Retry later: a cluster did not answer in time."""

    exit_code = errno.ETIMEDOUT
    meaning = "a cluster did not answer within --timeout"


class Unsupported(Error):
    """Stop: a newer rbdtree, or a feature this Ceph or this version does not have."""

    exit_code = errno.EOPNOTSUPP
    meaning = "written by a newer rbdtree, or not supported by this version"


class Diverged(Error):
    """A person decides: a replica is not what its document says; it is never overwritten."""

    exit_code = errno.EUCLEAN
    meaning = "a replica was changed, replaced or robbed of a snapshot behind our back; a person decides"


class Integrity(Error):
    """Distrust the replica: bytes are not what they should be."""

    exit_code = errno.EBADMSG
    meaning = "nodes differ, or a checksum did not match"


class Conflict(Error):
    """A person decides: a push met changes of others; nothing of either side is lost."""

    exit_code = errno.EREMCHG
    meaning = "a push conflicts with what others published; see 'rbdtree resolve'"


class Fenced(Error):
    """Stop now and write nothing more: the claim on this node was lost."""

    exit_code = errno.ESTALE
    meaning = "another process took over this node; nothing more was written"


class Changed(Error):
    """Read again and repeat: a document changed between reading and writing."""

    exit_code = errno.EAGAIN
    meaning = "a document kept changing under the command; run it again"


class HostFailed(Error):
    """Tell the person: this host's kernel, or a program of it, did not do what was asked."""

    exit_code = errno.ENODEV
    meaning = "this host could not map, mount or unmap: a driver or program is missing, or failed"


class Interrupted(Error):
    """Stopped by a signal; what was done is kept, the rest resumes."""

    exit_code = 130
    meaning = "interrupted (Ctrl-C); the state is resumable"


class Bug(Error):
    """An invariant of our own is broken: crash with a traceback."""

    exit_code = 70
    meaning = "a defect in rbdtree itself; please report it"


def all_classes() -> list[type[Error]]:
    """Every error class, in the order of its definition."""
    return Error.__subclasses__()
