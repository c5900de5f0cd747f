"""``completion``: shell code that completes commands, options, and the names of trees, nodes and sites.

Names are asked of the sites while somebody waits with a finger on the Tab key: whatever does not answer at once, or is
wrong in any way, completes to nothing.
"""

import argparse
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from . import options
from .session import Session

_SECONDS = 2.0
_SITE_SECONDS = 1.0
_SHELLS = ("bash", "zsh", "fish")


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parser = commands.add_parser(
        "completion", help="print shell completion for bash, zsh or fish", parents=[options.common()]
    )
    parser.add_argument("shell", choices=_SHELLS)
    parser.set_defaults(run=run_completion)


def run_completion(session: Session) -> int:
    import argcomplete

    code = argcomplete.shellcode(["rbdtree"], shell=session.options.shell)
    if session.options.shell == "zsh" and not code.strip():
        # argcomplete 2 has none of its own for zsh, which can use bash's.
        code = "autoload -U +X bashcompinit && bashcompinit\n" + argcomplete.shellcode(["rbdtree"], shell="bash")
    print(code)
    return 0


Completer = Callable[..., list[str]]


def _quick(ask: Callable[[Session], list[str]]) -> Completer:
    """A completer that is never late and never fails."""

    def complete(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
        found: list[str] = []

        def work() -> None:
            with suppress(Exception):
                found.extend(ask(Session(options.completed(parsed_args, timeout=_SITE_SECONDS))))

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        thread.join(_SECONDS)
        return [name for name in found if name.startswith(prefix)]

    return complete


def _told(session: Session) -> list[tuple[str, str]]:
    """(tree, node) of every directory entry that can be read; no document is."""

    def at(site: str) -> Iterator[tuple[str, str]]:
        with suppress(Exception):
            cluster = session.sites.cluster(site)
            for pool, namespace in cluster.places()[0]:
                with suppress(Exception):
                    for key, value in cluster.pool(pool, namespace).entries().items():
                        if key.startswith("node."):
                            told = json.loads(value)
                            yield told["tree"], told["node"]

    names = session.sites.names()
    with ThreadPoolExecutor(len(names)) as threads:
        return sorted({pair for found in threads.map(lambda site: list(at(site)), names) for pair in found})


trees = _quick(lambda session: sorted({tree for tree, _ in _told(session)}))
nodes = _quick(lambda session: [f"{tree}/{node}" for tree, node in _told(session)])
trees_and_nodes = _quick(
    lambda session: sorted({name for tree, node in _told(session) for name in (tree, f"{tree}/{node}")})
)
sites = _quick(lambda session: list(session.config.sites))
specs = _quick(lambda session: [f"{site}:" for site in session.config.sites])


def parents(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    """Nodes of the tree that ``add`` was given before."""
    tree = str(getattr(parsed_args, "node", None) or "").partition("/")[0]
    ask = _quick(lambda session: [node for of, node in _told(session) if of == tree])
    return ask(prefix, parsed_args)


def completes(action: argparse.Action, completer: Completer) -> None:
    """Ties a completer to an argument, as argcomplete looks for it."""
    action.completer = completer  # type: ignore[attr-defined]
