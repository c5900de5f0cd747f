# PYTHON_ARGCOMPLETE_OK
"""The entry point: arguments in, exit code out."""

import argparse
import json
import os
import sys
import traceback
from itertools import pairwise
from typing import NoReturn

from rbdtree import __version__, errors

from . import (
    boot,
    completion,
    declaring,
    flow,
    health,
    host,
    look,
    manager,
    member,
    mounting,
    options,
    portion,
    retention,
    site,
    writing,
)
from .session import VERSION, Session, described


class _Parser(argparse.ArgumentParser):
    """Exits with EINVAL as rbd does: argparse's 2 would be ENOENT."""

    def error(self, message: str) -> NoReturn:
        raise errors.UsageError(message, f"See '{self.prog} --help'.")


def parser() -> argparse.ArgumentParser:
    """All commands."""
    found = _Parser(
        prog="rbdtree",
        description="One RBD volume on many hosts: a tree of mirrors and clones, kept equal by deltas.",
        parents=[options.common()],
    )
    found.add_argument("--version", action="version", version=f"rbdtree {__version__}")
    commands = found.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for module in (
        *(site, member, portion, flow, look, writing, host, mounting, boot, retention, declaring, manager, health),
        completion,
    ):
        module.register(commands)
    return found


def run(arguments: list[str]) -> int:
    """One command; prints its errors and returns its exit code."""
    try:
        given = parser().parse_args(arguments)
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
    code = run(sys.argv[1:])
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
