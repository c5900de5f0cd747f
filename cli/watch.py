"""``status --watch``: the trees, drawn again and again, with how fast what is under way gets on."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rbdtree import errors
from rbdtree.ceph.sites import Sites
from rbdtree.engine.forest import Forest, look
from rbdtree.engine.report import NodeReport, TreeReport, report

from . import render
from .session import VERSION, Session

if TYPE_CHECKING:
    from rich.console import RenderableType

_RETRY_SECONDS = 10.0


@dataclass
class _Progress:
    """Where a delta in flight was seen last: its target, bytes of the volume done, and when."""

    target: str
    done_bytes: int
    at: float
    rate: float = 0.0


class Pace:
    """How fast deltas in flight pass over the volume, from one look to the next."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: dict[str, _Progress] = {}

    def rate(self, tree: str, node: NodeReport) -> float | None:
        """Bytes of the volume a second; None while that is not known, or nothing is under way."""
        name = f"{tree}/{node.name}"
        if node.intent is None or node.intent_done_bytes is None:
            self._seen.pop(name, None)
            return None
        now, target, done = self._clock(), str(node.intent), node.intent_done_bytes
        before = self._seen.get(name)
        if before is None or before.target != target or done < before.done_bytes:
            self._seen[name] = _Progress(target, done, now)
            return None
        if done > before.done_bytes and now > before.at:
            self._seen[name] = _Progress(target, done, now, (done - before.done_bytes) / (now - before.at))
            return self._seen[name].rate
        return before.rate or None


def run(session: Session, wanted: str | None, seconds: float, row: Callable[[TreeReport], dict[str, Any]]) -> int:
    """Until Ctrl-C, or the reader of a pipe goes. JSON: an object a line."""
    sites = Sites(session.config.sites, session.options.timeout, _RETRY_SECONDS)
    pace = Pace()
    if session.json:
        while True:
            forest, found = _see(sites, wanted)
            trees = [row(one) for one in found]
            print(json.dumps({"version": VERSION, "time_seconds": round(time.time(), 3), "trees": trees}), flush=True)
            time.sleep(seconds)
    if not sys.stdout.isatty():
        raise errors.UsageError("--watch draws on a terminal", "With --format json it writes a line a look.")
    from rich.live import Live

    with Live(auto_refresh=False, screen=False, vertical_overflow="visible") as live:
        try:
            while True:
                forest, found = _see(sites, wanted)
                live.update(_drawn(forest, found, pace), refresh=True)
                time.sleep(seconds)
        except KeyboardInterrupt:
            return 0


def _see(sites: Sites, wanted: str | None) -> tuple[Forest, list[TreeReport]]:
    forest = look(sites, wanted)
    if not forest.trees and wanted and not forest.problems:
        forest.tree(wanted)
    return forest, [report(sites, tree, check=False) for tree in forest.trees if tree.members]


def _drawn(forest: Forest, found: list[TreeReport], pace: Pace) -> "RenderableType":
    from rich.console import Group
    from rich.text import Text

    parts: list[RenderableType] = []
    for one in found:
        rates = {node.name: pace.rate(one.name, node) for node in one.nodes}
        parts += render.watched(one, rates)
    if not found:
        parts.append(Text("no trees"))
    parts += [Text(str(problem), style="red") for problem in forest.problems]
    parts.append(Text(time.strftime("%H:%M:%S") + "  Ctrl-C ends", style="dim"))
    return Group(*parts)
