# PYTHON_ARGCOMPLETE_OK
"""The entry point: arguments in, exit code out."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterable
from importlib import import_module
from itertools import pairwise
from typing import NoReturn

from rbdtree import __version__, errors, heap

from . import options
from .session import VERSION, Session, described

MODULES = {
    "site": ("site", "caps"),
    "member": ("init", "add", "remove", "rm", "detach", "rollback"),
    "portion": ("portion",),
    "flow": ("cut", "sync"),
    "look": ("status", "log", "diff", "marks"),
    "verifying": ("verify",),
    "writing": ("branch", "push", "uplink", "discard", "resolve", "lease"),
    "host": ("map", "unmap", "mapped"),
    "mounting": ("mount", "umount"),
    "boot": ("maps", "doctor"),
    "retention": ("retain", "hold", "resync"),
    "declaring": ("policy", "plan", "apply", "export"),
    "manager": ("manager", "managers"),
    "health": ("check",),
    "completion": ("completion",),
}
"""Which commands each module registers. A command starts a third sooner without the modules of the others."""


class _Parser(argparse.ArgumentParser):
    """Exits with EINVAL as rbd does: argparse's 2 would be ENOENT."""

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(message, f"See '{self.prog} --help'.")


def parser(modules: Iterable[str] = MODULES) -> argparse.ArgumentParser:
    """All commands, or those of some modules."""
    found = _Parser(
        prog="rbdtree",
        description="One RBD volume on many hosts: a tree of mirrors and clones, kept equal by deltas.",
        parents=[options.common()],
    )
    found.add_argument("--version", action="version", version=f"rbdtree {__version__}")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in modules:
        import_module(f".{module}", __package__).register(commands)
    return found


def _parsed(arguments: list[str]) -> argparse.Namespace:
    # The value of an option may be spelt as a command, so whatever word could be one counts.
    likely = [module for module, words in MODULES.items() if not set(words).isdisjoint(arguments)]
    if likely and {"-h", "--help"}.isdisjoint(arguments):
        try:
            return parser(likely).parse_args(arguments)
        except errors.UsageError:
            pass  # said below, where all commands are known
    return parser().parse_args(arguments)


def run(arguments: list[str]) -> int:
    """One command; prints its errors and returns its exit code."""
    try:
        given = _parsed(arguments)
        for key, value in options.DEFAULTS.items():
            if not hasattr(given, key):
                setattr(given, key, value)
        return int(given.run(Session(given)))
    except errors.Error as error:
        if isinstance(error, errors.Bug):
            traceback.print_exc()
        return _failed(error, arguments)
    except KeyboardInterrupt:
        return _failed(errors.Interrupted("interrupted"), arguments)
    except BrokenPipeError:
        # The reader of a pipe went away, as 'head' does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        traceback.print_exc()
        return _failed(errors.Bug(f"{type(error).__name__}: {error}"), arguments)


def _failed(error: errors.Error, arguments: list[str]) -> int:
    """Says what was seen and what to run next; with ``--format json`` stdout gets an object too, as always."""
    if isinstance(error, errors.Bug):
        error = errors.Bug(f"this is a defect: {error}", "Please report it, with the lines above.")
    print(f"rbdtree: {error}", file=sys.stderr)
    if error.hint:
        print(f"  {error.hint}", file=sys.stderr)
    # The command line may be what is wrong, so there may be no parsed one.
    if "--format=json" in arguments or ("--format", "json") in pairwise(arguments):
        print(json.dumps({"version": VERSION, "error": described(error)}, indent=2))
    return error.exit_code


def main() -> NoReturn:
    """The console script. Leaves without waiting for clusters that do not answer."""
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser())
    heap.bound()
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
