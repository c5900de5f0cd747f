"""A host's memory for librbd caches, divided among the volumes that are mapped here.

librbd takes the size of a cache when it opens an image and keeps it. So the budget is planned for a number of volumes
(``[host] volumes``), a share never changes while its map lives, and all shares together never exceed the budget.
"""

import json
import socket
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

LEAST = 1 << 20
"""Below this a cache is switched off."""


@dataclass(frozen=True, slots=True)
class Share:
    weight: float
    cache_bytes: int


def share(budget: int | None, volumes: int, weight: float, others: Iterable[Share]) -> int | None:
    """Of a new map; None where the host has no budget, 0 where nothing is left.

    budget x weight / (what it is planned for), and no more than is free.
    """
    if budget is None:
        return None
    there = list(others)
    total = max(float(volumes), sum(one.weight for one in there) + weight)
    free = budget - sum(one.cache_bytes for one in there)
    found = min(int(budget * weight / total), free)
    return found if found >= LEAST else 0


@dataclass(frozen=True, slots=True)
class Hits:
    """Of a cache, since its map was made."""

    hits: int
    misses: int

    @property
    def rate(self) -> float | None:
        asked = self.hits + self.misses
        return self.hits / asked if asked else None


def hits(place: Path) -> Hits | None:
    """As librbd counts them; None when it does not tell (no cache, krbd, a daemon that is gone)."""
    try:
        told = ask(place / "asok", "perf dump")
    except (OSError, ValueError):
        return None
    found = [counts for name, counts in told.items() if name.startswith("objectcacher")]
    if not found:
        return None
    return Hits(sum(c.get("cache_ops_hit", 0) for c in found), sum(c.get("cache_ops_miss", 0) for c in found))


def ask(path: Path, prefix: str, seconds: float = 2.0) -> dict[str, dict[str, int]]:
    """A question to the admin socket of a Ceph client."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(seconds)
        connection.connect(str(path))
        connection.sendall(json.dumps({"prefix": prefix, "format": "json"}).encode() + b"\0")
        (length,) = struct.unpack(">I", _exactly(connection, 4))
        return dict(json.loads(_exactly(connection, length)))


def _exactly(connection: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            raise OSError("the admin socket closed early")
        data += part
    return data
