# PYTHON_ARGCOMPLETE_OK
"""The entry point: arguments in, exit code out."""

import argparse
import os
import sys
import traceback
from typing import NoReturn

from rbdtree import __version__, errors

from . import completion, flow, look, member, options, site, writing
from .session import Session


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
    for module in (site, member, flow, look, writing, completion):
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
    except errors.Bug as error:
        traceback.print_exc()
        print(f"rbdtree: this is a defect: {error}", file=sys.stderr)
        return error.exit_code
    except errors.Error as error:
        print(f"rbdtree: {error}", file=sys.stderr)
        if error.hint:
            print(f"  {error.hint}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("rbdtree: interrupted", file=sys.stderr)
        return errors.Interrupted.exit_code
    except BrokenPipeError:
        # The reader of a pipe went away, as 'head' does.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


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
