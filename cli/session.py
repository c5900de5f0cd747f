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


def described(error: errors.Error) -> dict[str, Any]:
    """An error in JSON."""
    return {"message": str(error), "hint": error.hint, "exit_code": error.exit_code}


class Session:
    """What a command is given."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self._warned: set[str] = set()

    def like(self, options: argparse.Namespace) -> "Session":
        """The same run with other options: the same connections."""
        made = Session(options)
        made._warned = self._warned
        made.__dict__.update(config=self.config, sites=self.sites)
        return made

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
        client = self._client()
        if options.config and options.conf:
            raise errors.UsageError(
                "give --config or -c, not both", "--config is a file of sites, -c the ceph.conf of a single one."
            )
        if options.keyring and not options.conf:
            raise errors.UsageError(
                "--keyring goes with -c", "Keyrings of the sites of a file are its 'keyring' keys (docs/clusters.md)."
            )
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

    def _client(self) -> str | None:
        """The client named by --id or -n."""
        given, name = self.options.id, self.options.client_name
        if given is not None and name is not None:
            raise errors.UsageError("give --id or -n, not both", "'--id x' means '-n client.x'.")
        if given is not None and (not given or given.startswith("client.")):
            raise errors.UsageError(f"{given!r} is not a client id", "Leave out 'client.': --id rbdtree, or use -n.")
        if name is not None and not name.startswith("client."):
            raise errors.UsageError(f"{name!r} is not a client name", f"Write it in full: -n client.{name}.")
        return name or (f"client.{given}" if given else None)

    @cached_property
    def sites(self) -> Sites:
        if self.options.timeout <= 0:
            raise errors.UsageError(
                f"--timeout takes a number of seconds above 0, not {self.options.timeout:g}", "The default is 30."
            )
        return Sites(self.config.sites, self.options.timeout)

    def forest(self, tree: str | None = None) -> Forest:
        """What there is now. What could not be seen is said, once."""
        found = look(self.sites, tree)
        for problem in found.problems:
            self.warn(problem)
        return found

    def tree(self, name: str) -> Tree:
        """One tree, by name or id."""
        found = look(self.sites, name)
        tree = found.tree(name)
        for problem in found.problems:
            self.warn(problem)
        return tree

    def find(self, text: str) -> tuple[Tree, Member]:
        """``TREE/NODE``."""
        name = NodeName.parse(text)
        if not name.node:
            raise errors.UsageError(
                f"{text!r} names a tree; this command wants TREE/NODE",
                f"See its nodes with 'rbdtree status {name.tree}'.",
            )
        tree = self.tree(name.tree)
        return tree, tree.member(name.node)

    def whole(self, text: str) -> str:
        """``TREE``, where a node would make no sense."""
        name = NodeName.parse(text)
        if name.node:
            command = self.options.command
            raise errors.UsageError(
                f"{text!r} names a node; {command} is about the whole tree", f"Run 'rbdtree {command} {name.tree}'."
            )
        return name.tree

    def put(self, value: dict[str, Any], plain: str) -> None:
        """The result: JSON with its version, or a line for people."""
        if self.json:
            print(json.dumps({"version": VERSION, **value}, indent=2))
        elif plain:
            print(plain)

    def say(self, error: errors.Error) -> None:
        """An error that the JSON on stdout tells as well."""
        print(f"rbdtree: {error}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)

    def tell(self, text: str) -> None:
        """How it was done, for people, beside the result."""
        print(f"rbdtree: {text}", file=sys.stderr)

    def warn(self, error: errors.Error) -> None:
        """Something that does not stop the command; said once."""
        if str(error) not in self._warned:
            self._warned.add(str(error))
            print(f"rbdtree: warning: {error}", file=sys.stderr)
            if error.hint:
                print(f"  {error.hint}", file=sys.stderr)
