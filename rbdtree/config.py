"""The TOML configuration: which sites there are and how to reach them.

    [sites.a]
    conf = "/etc/ceph/a.conf"
    id = "rbdtree"                  # or name = "client.rbdtree"
    keyring = "/etc/ceph/a.keyring" # optional
    pools = ["rbd", "rbd/tenant1"]  # optional: where to look for trees

    [host]                          # optional: block devices of this host (docs/hosts.md)
    cache = "2GiB"
    volumes = 4
    weights = { "vol/desk" = 3 }
    freeze_limit = "10s"

Every mistake of a file is reported at once; an unknown key is a mistake.
"""

import os
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rbdtree import errors
from rbdtree.model.name import check_name

SEARCH = ("~/.config/rbdtree/rbdtree.toml", "/etc/rbdtree/rbdtree.toml")
_HINT = "docs/clusters.md shows what is in it."
VARIABLE = "RBDTREE_CONFIG"


@dataclass(frozen=True, slots=True)
class Site:
    """How to reach one Ceph cluster. ``client`` is the full name, such as ``client.admin``."""

    name: str
    conf: Path
    client: str = "client.admin"
    keyring: Path | None = None
    pools: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """This host. ``cache_bytes``: all that librbd caches of maps may take, planned for ``volumes`` of them (None: no
    budget); ``weights`` by TREE/NODE or TREE; ``freeze_seconds``: how long a freeze may last."""

    cache_bytes: int | None = None
    volumes: int = 4
    weights: tuple[tuple[str, float], ...] = ()
    freeze_seconds: float = 10.0

    def weight(self, node: str) -> float:
        """Of a volume's share; 1 where none is set."""
        weights = dict(self.weights)
        return weights.get(node, weights.get(node.partition("/")[0], 1.0))


@dataclass(frozen=True, slots=True)
class Config:
    """A valid configuration. ``trash_expiry_seconds``: how long the RBD trash keeps images that leave a tree."""

    sites: dict[str, Site]
    trash_expiry_seconds: float = 86400.0
    host: Host = Host()
    path: Path | None = None


def find(explicit: str | None) -> Path | None:
    """``--config``, $RBDTREE_CONFIG, the user's file, the system's: the first that is given or exists."""
    chosen = explicit or os.environ.get(VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return next((path for path in (Path(p).expanduser() for p in SEARCH) if path.is_file()), None)


def _misnamed(raw: dict[str, Any]) -> list[str]:
    """Sites whose names are none."""
    found: list[str] = []
    sites = raw.get("sites")
    for name in sites if isinstance(sites, dict) else ():
        try:
            check_name("site", name)
        except errors.UsageError as error:
            found.append(f"sites: {error}")
    return found


def load(path: Path) -> Config:
    """Raises ``NotFound`` for a missing file and ``UsageError`` naming every mistake in it."""
    from pydantic import ValidationError

    from rbdtree.schema import File, mistakes_of

    try:
        raw: dict[str, Any] = tomllib.loads(path.read_text())
    except OSError as error:
        raise errors.NotFound(
            f"cannot read the configuration {path}: {error.strerror}",
            f"Give one with --config FILE. {_HINT}",
        ) from error
    except ValueError as error:
        raise errors.UsageError(f"{path} is not TOML: {error}", _HINT) from error
    mistakes = _misnamed(raw)
    try:
        parsed = File.model_validate(raw)
    except ValidationError as error:
        mistakes += mistakes_of(error)
    if mistakes:
        raise errors.UsageError(f"{path}: {'; '.join(mistakes)}", _HINT)
    base = path.resolve().parent
    sites = {
        name: Site(
            name,
            base / Path(site.conf).expanduser(),
            site.name or f"client.{site.id or 'admin'}",
            base / Path(site.keyring).expanduser() if site.keyring else None,
            tuple(site.pools),
        )
        for name, site in parsed.sites.items()
    }
    section = parsed.host
    host = Host(section.cache_bytes(), section.volumes, tuple(section.weights.items()), section.freeze_seconds())
    return Config(sites, parsed.trash.expiry_seconds(), host, path)
