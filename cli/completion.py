"""``completion``: shell code that completes commands, options, and the names of trees and nodes."""

import argparse

from . import options
from .session import Session


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "completion", help="print shell completion for bash, zsh or fish", parents=[options.common()]
    )
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))
    parser.set_defaults(run=run_completion)


def run_completion(session: Session) -> int:
    import argcomplete

    print(argcomplete.shellcode(["rbdtree"], shell=session.options.shell))  # type: ignore[no-untyped-call]
    return 0
