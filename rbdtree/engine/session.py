"""One run of an uplink and its node: what it may assume of the branch, and that a newer run takes over."""

import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import marks, tidy
from rbdtree.engine import push as pushes
from rbdtree.engine.batch import Batch
from rbdtree.engine.claim import Claim, identity
from rbdtree.engine.node import Node
from rbdtree.model.document import Branch, NodeDocument
from rbdtree.ports import Reporter, Sites

SHUT_SECONDS = 2.0
"""Between two attempts while the way up is shut."""
Taken = tuple[tuple[int, int, int], ...]


class Again(Exception):
    """The journal must be opened anew: the branch, or how far it is published, changed elsewhere."""


def positions(batch: Batch) -> Taken:
    """Up to where a batch goes, as documents have it."""
    return tuple((p.object_number, p.tag_tid, p.entry_tid) for p in batch.positions)


class Session:
    """``join``: a push that does an uplink's work where none runs; it takes nothing over, and waits for nobody long."""

    def __init__(self, sites: Sites, node: Node, reporter: Reporter, *, join: bool) -> None:
        self.stop = threading.Event()
        self.sites = sites
        self.node = node
        self.reporter = reporter
        self.join = join
        self.client = marks.journal_client(node.node_id)
        self.image_id = ""
        self.size_bytes = 0
        self.taken: Taken = ()
        self._name = identity(f"uplink {uuid.uuid4().hex}", node.pool.cluster.address())

    def begin(self) -> None:
        """This run is the one; an older one stops at its next batch."""
        with self.claim() as claim:
            document = branches.clear(self.sites, self.node, self.node.read(), claim)
            document = branches.remake(self.sites, self.node, document, claim)
            document = pushes.seal_taken(self.node, document, claim)
            tidy.drop_unfinished(self.node, document)
            branch = branches.require(document)
            if branch.uplink != branches.JOURNAL:
                raise errors.UsageError(
                    f"the branch of {document.full_name} is pushed by snapshots",
                    f"Switch it with 'rbdtree branch {document.full_name} --uplink journal'.",
                )
            if not self.join:
                self.update(lambda b: replace(b, session=self._name), claim)

    def end(self) -> None:
        """Pushes need not wait for this run any more."""
        with suppress(errors.Error):
            self.update(lambda b: replace(b, session="") if b.session == self._name else b)

    def open(self) -> Branch:
        """The branch as it is now; whoever moves it on, or gives it up, is done."""
        with self.claim():
            branch = self.branch(self.node.read())
        self.image_id, self.taken = branch.image_id, branch.taken
        image = self.node.pool.open(branch.image_id)
        try:
            self.size_bytes = image.size()
        finally:
            image.close()
        return branch

    @contextmanager
    def claim(self) -> Iterator[Claim]:
        """However long somebody else is at work on the node."""
        while True:
            claim = Claim(self.node, "uplink", wait=True)
            try:
                claim.__enter__()
                break
            except errors.Busy as error:
                self.reporter.note(self.node.name, f"waits: {error}")
                if self.join or self.stop.wait(SHUT_SECONDS):
                    raise
        try:
            yield claim
        finally:
            claim.__exit__()

    def _ours(self, branch: Branch) -> bool:
        return self.join or branch.session == self._name

    def branch(self, document: NodeDocument) -> Branch:
        """The branch; ``Fenced`` when it is another's to publish."""
        branch = branches.require(document)
        if branch.uplink != branches.JOURNAL or not self._ours(branch):
            raise errors.Fenced(
                f"another uplink of {document.full_name} was started, or another way to push was chosen",
                "One is enough: the newest goes on.",
            )
        return branch

    def mine(self, document: NodeDocument) -> Branch:
        """The branch, if all is as this run knows it."""
        branch = self.branch(document)
        if (branch.image_id, branch.taken) != (self.image_id, self.taken):
            raise Again
        return branch

    def mine_of(self, branch: Branch) -> Branch:
        """The same of a branch that is being changed."""
        if not self._ours(branch) or (branch.image_id, branch.taken) != (self.image_id, self.taken):
            raise Again
        return branch

    def update(self, change: Callable[[Branch], Branch], claim: Claim | None = None) -> NodeDocument:
        """A change of the branch alone."""

        def changed(document: NodeDocument) -> NodeDocument:
            return replace(document, branch=change(branches.require(document)))

        return self.node.update(changed, claim.cookie if claim else None)

    def move(self, change: Callable[[Branch], Branch]) -> None:
        """A change of the branch as this run knows it, after which it knows it so."""
        self.taken = branches.require(self.update(lambda b: change(self.mine_of(b)))).taken
