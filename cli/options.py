"""Options that every command takes, before or after its name; habits are those of the rbd command."""

import argparse

TIMEOUT = 30.0


def common() -> argparse.ArgumentParser:
    """A parent parser. Defaults are left out so that an option given before the command is not undone after it."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    group = parser.add_argument_group("options of every command")
    group.add_argument(
        "--config",
        metavar="FILE",
        help="the sites; default $RBDTREE_CONFIG, ~/.config/rbdtree/rbdtree.toml, /etc/rbdtree/rbdtree.toml",
    )
    group.add_argument(
        "-c",
        "--conf",
        metavar="CEPH.CONF",
        help="a single site called 'ceph' with this ceph.conf, no file of sites",
    )
    group.add_argument("--id", metavar="ID", help="client id instead of the sites' own (without 'client.')")
    group.add_argument(
        "-n",
        "--name",
        dest="client_name",
        metavar="CLIENT",
        help="client name instead of the sites' own (client.ID)",
    )
    group.add_argument("--keyring", metavar="FILE", help="keyring, with -c")
    group.add_argument(
        "--timeout",
        type=float,
        metavar="SECONDS",
        help=f"how long a cluster may keep silent (default {TIMEOUT:g})",
    )
    group.add_argument("--format", choices=("plain", "json"), help="plain (default) or json (docs/json.md)")
    group.add_argument("--no-progress", action="store_true", help="no progress on stderr")
    return parser


def changing() -> argparse.ArgumentParser:
    """Adds ``--dry-run``."""
    parser = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--dry-run", action="store_true", help="say what would be done, change nothing")
    return parser


DEFAULTS = {
    "config": None,
    "conf": None,
    "id": None,
    "client_name": None,
    "keyring": None,
    "timeout": TIMEOUT,
    "format": "plain",
    "no_progress": False,
    "dry_run": False,
}


def completed(given: argparse.Namespace, **stronger: object) -> argparse.Namespace:
    """The options given, with the defaults of those left out."""
    known = {key: value for key, value in vars(given).items() if value is not None}
    return argparse.Namespace(**{**DEFAULTS, **known, **stronger})
