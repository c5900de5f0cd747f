"""Bring nodes to the newest generation: parents first, siblings side by side, equal deltas read once.

One thread an edge (``engine.edge``), then its children. One bad edge stops nobody else.
"""

import threading

from rbdtree import errors
from rbdtree.engine import copy as copying
from rbdtree.engine.claim import Claim
from rbdtree.engine.desk import Desk
from rbdtree.engine.edge import EdgeRun, Outcome, after, summarise
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.ports import Reporter, Silent, Sites

__all__ = ["Outcome", "Sync"]


class Sync:
    """One run over a tree (``only``: the names of the nodes to bring on, None: all)."""

    def __init__(
        self,
        sites: Sites,
        reporter: Reporter | None = None,
        *,
        only: frozenset[str] | None = None,
        dry_run: bool = False,
        expiry_seconds: float = 0,
        window: int = copying.WINDOW,
    ) -> None:
        self.stop = threading.Event()
        self._sites = sites
        self._reporter = reporter or Silent()
        self._only = only
        self._dry_run = dry_run
        self._expiry_seconds = expiry_seconds
        self._window = copying.Window(window)
        self._run = EdgeRun(sites, self._reporter, self.stop, dry_run=dry_run, expiry_seconds=expiry_seconds)
        self._guard = threading.Lock()
        self.outcomes: dict[str, Outcome] = {}

    def run(self, tree: Tree) -> list[Outcome]:
        """Returns one outcome a node, in the order in which they ended. Raises nothing of a single edge's."""
        for top in tree.tops():
            if top.kind is not Kind.ROOT and (self._only is None or top.ref.name in self._only):
                # Its parent was not found: the edge says why, and what is below it goes on.
                self._together(tree, [top])
                continue
            root = top.kind is Kind.ROOT
            if root and top.node and top.document and top.document.branch and not self._dry_run:
                with Claim(top.node, "sync", wait=True) as claim:
                    after(self._sites, top.node, claim, self._reporter, self._expiry_seconds)
            self._below(tree, top)
        return list(self.outcomes.values())

    def _below(self, tree: Tree, parent: Member) -> None:
        """The children of a node, each with all below it."""
        self._together(tree, tree.children(parent.ref.node_id))

    def _together(self, tree: Tree, members: list[Member]) -> None:
        wanted = [m for m in members if self._only is None or m.ref.name in self._only]
        if not wanted:
            return
        desk = Desk(sum(c.kind is Kind.MIRROR for c in wanted), self._reporter, self.stop, self._window)
        threads = [
            threading.Thread(target=self._edge, args=(tree, child, desk), name=f"sync-{child.ref.name}", daemon=True)
            for child in wanted
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            while thread.is_alive():
                # In small sips: a signal must reach the main thread.
                thread.join(0.2)

    def _edge(self, tree: Tree, child: Member, desk: Desk) -> None:
        name = f"{tree.name}/{child.ref.name}"
        try:
            node, _ = document_of(child)
        except errors.Error as error:
            if child.kind is Kind.MIRROR:
                desk.leave()
            outcome = Outcome(name, error=error)
        else:
            node.name = name
            outcome = self._run.run(node, child.kind, desk)
        with self._guard:
            self.outcomes[name] = outcome
        self._reporter.finished(name, str(outcome.error) if outcome.error else "")
        if not self.stop.is_set():
            self._below(tree, child)
            if child.document and not self._dry_run and not isinstance(outcome.error, errors.Unreachable):
                self._summarise(child.document, quiet=outcome.error is not None)

    def _summarise(self, document: NodeDocument, *, quiet: bool) -> None:
        """A parent out of reach hears it another time."""
        try:
            summarise(self._sites, document)
        except errors.Error as error:
            if not quiet:
                self._reporter.note(document.full_name, f"its parent was not told: {error}")
