"""One run of a command: the configuration, the sites, and where output goes."""

import argparse
import json
import sys
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from rbdtree import config, errors
from rbdtree.ceph.sites import Sites
from rbdtree.engine.forest import Forest, Member, Tree, look
from rbdtree.model.name import NodeName

VERSION = 1
"""Of the JSON output; rises when a key changes its meaning or goes. New keys come without notice."""
DEFAULT_CONF = Path("/etc/ceph/ceph.conf")


class Session:
    """What a command is given."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options

    @property
    def json(self) -> bool:
        return bool(self.options.format == "json")

    @property
    def dry_run(self) -> bool:
        return bool(self.options.dry_run)

    @cached_property
    def config(self) -> config.Config:
        """Of the file; or a single site made of -c, --id, -n, --keyring."""
        options = self.options
        if options.id and options.client_name:
            raise errors.UsageError("give --id or -n, not both")
        client = options.client_name or (f"client.{options.id}" if options.id else None)
        path = None if options.conf and not options.config else config.find(options.config)
        if path is None:
            conf = Path(options.conf) if options.conf else DEFAULT_CONF
            if not options.conf and not conf.is_file():
                raise errors.NotFound(
                    f"there is no configuration ({', '.join(config.SEARCH)}) and no {DEFAULT_CONF}",
                    "Write one (docs/clusters.md), or give --config FILE or -c CEPH.CONF.",
                )
            keyring = Path(options.keyring) if options.keyring else None
            return config.Config({"ceph": config.Site("ceph", conf, client or "client.admin", keyring)})
        loaded = config.load(path)
        if client:
            loaded = replace(loaded, sites={name: replace(site, client=client) for name, site in loaded.sites.items()})
        return loaded

    @cached_property
    def sites(self) -> Sites:
        if self.options.timeout <= 0:
            raise errors.UsageError("--timeout takes a number of seconds above 0")
        return Sites(self.config.sites, self.options.timeout)

    def forest(self, tree: str | None = None) -> Forest:
        """What there is now."""
        return look(self.sites, tree)

    def find(self, text: str) -> tuple[Tree, Member]:
        """``TREE/NODE``."""
        name = NodeName.parse(text)
        if not name.node:
            raise errors.UsageError(f"{text!r} names a tree; this command wants TREE/NODE")
        return self.forest(name.tree).find(name)

    def put(self, value: dict[str, Any], plain: str) -> None:
        """The result: JSON with its version, or a line for people."""
        if self.json:
            print(json.dumps({"version": VERSION, **value}, indent=2))
        elif plain:
            print(plain)

    def warn(self, error: errors.Error) -> None:
        """Something that does not stop the command."""
        print(f"rbdtree: warning: {error}", file=sys.stderr)
