"""The next generation at the root: intend, (apply a push,) snapshot, settle.

A cut that died after its snapshot is finished by the next one, which then makes its own; one that died before left
nothing but a number to use again. A push that was being applied is applied to the end first.
"""

import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import delta, ends, landing, pushed
from rbdtree.engine.claim import Claim, worker_name
from rbdtree.engine.node import Node
from rbdtree.engine.pushed import Opened
from rbdtree.model.document import Intent, Kind, NodeDocument, Push, PushState
from rbdtree.model.extent import NOTHING, Extents
from rbdtree.model.position import Generation, Position, snapshot_name
from rbdtree.ports import Image, Reporter, Silent, Snapshot

_EXACT_OBJECTS = 4096
_OTHERS = 64
"""Ranges in which somebody else wrote while a push was published, as many as a document tells of."""
_NOTED_SECONDS = 30.0
"""Between two notes that a push gets on: one that does not for three minutes is called stuck (plan/health.py)."""


class Root:
    """The root under its claim, its image open, whatever was interrupted there finished."""

    def __init__(self, node: Node, claim: Claim, image: Image, reporter: Reporter) -> None:
        self.node = node
        self.claim = claim
        self.image = image
        self.reporter = reporter
        self.document = node.read()
        self._done = 0
        self._noted = time.time()

    def cut(self, push: Push | None = None, known: tuple[Opened, Extents] | None = None) -> Generation:
        """A generation of what the image holds now, with ``push`` applied to it first; ``known``: its bytes, and which
        of them."""
        document = self.document
        position = Position(document.epoch, document.last_sequence + 1)
        intent = Intent(
            target=position,
            since=document.newest_position,
            size_bytes=self.image.size(),
            started=time.time(),
            worker=worker_name(),
            client="",
            push=push.push_id if push else "",
        )
        self.document = self.node.update(
            lambda d: replace(d.with_push(push) if push else d, intent=intent), self.claim.cookie
        )
        return self._complete(intent, known)

    def _complete(self, intent: Intent, known: tuple[Opened, Extents] | None = None) -> Generation:
        name = snapshot_name(self.document.tree_id, intent.target)
        snapshot = ends.whole(self.node.pool, self.image, name)
        push = self.document.push(intent.push) if intent.push else None
        if snapshot is None:
            if push and known:
                landing.apply(self.node, known[0], self.image, self.reporter, self._applied, known[1])
            elif intent.push:
                self._resume(intent, push)
            self.claim.check()
            snapshot = ends.seal(self.node.pool, self.image, name)
        # A host of the root's may have come, written and gone since anybody looked: the bytes tell, and nothing else.
        others = landing.others(self.node, self.document, intent, push, self._moved, known) if push else None
        return self._settle(intent, snapshot, push, known[1].total if known and others == NOTHING else None, others)

    def _resume(self, intent: Intent, push: Push | None) -> None:
        if push is None:
            raise torn(self.document, intent)
        try:
            with closing(pushed.opened(self.node.pool, push)) as source:
                wanted = pushed.changed(self.node.pool, push, source)
                # A predecessor wrote some of it; what is otherwise new there, the root's host wrote after it died.
                wanted = wanted.subtract(
                    landing.newer(self.node, self.document, intent, self.image, wanted, self._moved)
                )
                landing.apply(self.node, source, self.image, self.reporter, self._applied, wanted)
        except errors.NotFound as error:
            raise torn(self.document, intent) from error

    def _applied(self, done_bytes: int) -> None:
        self.claim.check()
        if done_bytes != self._done:
            self._done = done_bytes
            self._moved()

    def _moved(self) -> None:
        """Notes, now and then, that what is in flight gets on, for whoever looks."""
        now = time.time()
        if now - self._noted >= _NOTED_SECONDS:
            self._noted = now
            self.document = self.node.update(
                lambda d: replace(d, intent=d.intent and replace(d.intent, moved=now)), self.claim.cookie
            )

    def _settle(
        self, intent: Intent, snapshot: Snapshot, push: Push | None, changed_bytes: int | None, others: Extents | None
    ) -> Generation:
        late = False
        if changed_bytes is None:
            changed_bytes, late = measure(self.node, self.document, intent)
        generation = Generation(
            position=intent.target,
            snapshot_id=snapshot.snapshot_id,
            size_bytes=snapshot.size_bytes,
            created=intent.started,
            delta_bytes=changed_bytes,
            author=push.owner_name if push else "",
            push=push.push_id if push else "",
            exact=others == NOTHING,
            others=others.few(_OTHERS).pairs if others else (),
            late=late,
        )

        def change(d: NodeDocument) -> NodeDocument:
            changed = replace(
                d.with_generation(generation),
                intent=None,
                last_sequence=max(d.last_sequence, intent.target.sequence),
            )
            if push is None:
                return changed
            landed = {**dict(d.landed), push.owner: max(push.number, dict(d.landed).get(push.owner, 0))}
            done = replace(push, state=PushState.PUBLISHED, position=intent.target)
            return replace(changed.with_push(done), landed=tuple(sorted(landed.items())))

        self.document = self.node.update(change, self.claim.cookie)
        return generation

    def finish(self) -> None:
        """What a predecessor began."""
        intent = self.document.intent
        if intent is None:
            return
        name = snapshot_name(self.document.tree_id, intent.target)
        if intent.push or ends.whole(self.node.pool, self.image, name):
            self._complete(intent)
        else:
            self.document = self.node.update(lambda d: replace(d, intent=None), self.claim.cookie)

    def changed(self) -> bool:
        """Whether the image differs from its newest generation."""
        newest = self.document.newest
        if newest is None or self.image.size() != newest.size_bytes:
            return True
        return bool(delta.coarse(self.image, snapshot_name(self.document.tree_id, newest.position), None))


def torn(document: NodeDocument, intent: Intent) -> errors.Diverged:
    """A push was being applied, and its bytes are gone: what the image holds was never together anywhere."""
    return errors.Diverged(
        f"the image of {document.full_name} may hold a part of a push that was being published, and the rest is gone",
        f"Run 'rbdtree rollback {document.full_name}': it keeps what the image holds in a snapshot, and goes back to "
        f"generation {intent.since}.",
    )


@contextmanager
def opened(node: Node, purpose: str, reporter: Reporter | None = None) -> Iterator[Root]:
    """Waits for whoever works at the root; refuses other nodes."""
    with Claim(node, purpose, wait=True) as claim:
        document = ends.read_settled(node)
        if document.kind is not Kind.ROOT:
            raise errors.UsageError(f"{document.full_name} is not the root: generations are cut there")
        gone = ends.find_gone(node, document)
        if gone:
            raise gone.error()
        # Without a push nothing is written: librbd hands the snapshot to whoever holds the image's lock.
        image = node.pool.open(document.image_id, read_only=False)
        try:
            claim.free(image)
            root = Root(node, claim, image, reporter or Silent())
            root.finish()
            yield root
        finally:
            image.close()


def cut(node: Node) -> Generation:
    """Waits for another cut that is under way."""
    with opened(node, "cut") as root:
        return root.cut()


def measure(node: Node, document: NodeDocument, intent: Intent) -> tuple[int | None, bool]:
    """Bytes that changed since the generation before, and whether that was written to late, as far as was looked.

    Whole objects when there are very many, None when it is not cheap to know."""
    until = snapshot_name(document.tree_id, intent.target)
    since = snapshot_name(document.tree_id, intent.since) if intent.since else None
    try:
        image = node.pool.open(document.image_id, until)
    except errors.NotFound:
        return None, False
    try:
        if not image.fast_diff():
            return None, False
        rough = delta.coarse(image, since, until)
        if since is None or rough.total > _EXACT_OBJECTS * image.layout.object_bytes:
            return rough.total, False
        late: list[Extents] = []
        exact = sum(length for batch in delta.exact(image, since, rough, late=late.append) for _, length in batch)
        return exact + sum(extents.total for extents in late), bool(late)
    except errors.NotFound:
        return None, False
    finally:
        image.close()
