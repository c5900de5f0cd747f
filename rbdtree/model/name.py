"""Names as people write them: ``TREE/NODE`` and ``SITE:[POOL/[NAMESPACE/]]IMAGE``."""

import re
from dataclasses import dataclass

from rbdtree import errors

DEFAULT_POOL = "rbd"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_CEPH_NAME = re.compile(r"[^/@:\s\x00-\x1f][^/@\x00-\x1f]{0,95}")


def check_name(kind: str, text: str) -> str:
    """A tree's, node's or site's name: letters, digits, dot, dash, underscore; 63 at most."""
    if not _NAME.fullmatch(text):
        raise errors.UsageError(
            f"{text!r} is not a {kind} name",
            "A name begins with a letter or digit and goes on with letters, digits, '.', '_' and '-', "
            "63 characters at most.",
        )
    return text


@dataclass(frozen=True, slots=True)
class NodeName:
    """``TREE`` or ``TREE/NODE``; ``node`` is empty for the whole tree."""

    tree: str
    node: str = ""

    @classmethod
    def parse(cls, text: str) -> "NodeName":
        tree, slash, node = text.partition("/")
        check_name("tree", tree)
        if slash:
            check_name("node", node)
        return cls(tree, node)

    def __str__(self) -> str:
        return f"{self.tree}/{self.node}" if self.node else self.tree


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """An image at a site. Pool and namespace as rbd writes them; the namespace may be empty."""

    site: str
    pool: str
    namespace: str
    image: str

    @classmethod
    def parse(cls, text: str) -> "ImageSpec":
        site, colon, path = text.partition(":")
        parts = path.split("/")
        if not colon or not 1 <= len(parts) <= 3 or not all(_CEPH_NAME.fullmatch(part) for part in parts):
            raise errors.UsageError(
                f"{text!r} is not an image spec",
                "Write SITE:[POOL/[NAMESPACE/]]IMAGE, for example b:rbd/vol1.",
            )
        check_name("site", site)
        pool = parts[0] if len(parts) > 1 else DEFAULT_POOL
        namespace = parts[1] if len(parts) == 3 else ""
        return cls(site, pool, namespace, parts[-1])

    @property
    def path(self) -> str:
        """``POOL/[NAMESPACE/]IMAGE``, as the rbd command takes it."""
        return "/".join(part for part in (self.pool, self.namespace, self.image) if part)

    def __str__(self) -> str:
        return f"{self.site}:{self.path}"


def format_duration(seconds: float) -> str:
    """As people write it, in the largest unit that fits: ``1 d``, ``12 h``, ``90 s``."""
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g} {unit}"
    return f"{seconds:g} s"


_UNITS = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40, "P": 1 << 50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([BKMGTP]?)(?:i?B)?", re.IGNORECASE)
_SIZE_HINT = "Write for example 10G, 512M or 4096 (bytes)."


def parse_size(text: str) -> int:
    """Bytes from ``10G``, ``512M``, ``64KiB``, ``4096``; units are powers of 1024, as in rbd. A bare number is
    bytes here (rbd's own bare numbers are MiB, a well-known trap)."""
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise errors.UsageError(f"{text!r} is not a size", _SIZE_HINT)
    size = float(match[1]) * _UNITS[match[2].upper()]
    if size >= 1 << 62:
        raise errors.UsageError(f"{text!r} is more than an image can hold", _SIZE_HINT)
    if size != int(size):
        raise errors.UsageError(f"{text!r} is not a whole number of bytes", _SIZE_HINT)
    return int(size)
