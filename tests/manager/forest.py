"""A tree in memory and managers over it, for what needs no cluster."""

import threading
import time
from collections.abc import Callable
from typing import Any

from rbdtree import errors, memory
from rbdtree.engine import cut as cutting
from rbdtree.engine import forest, membership
from rbdtree.engine.node import Node
from rbdtree.manager.cycle import Cycle
from rbdtree.manager.service import Manager
from rbdtree.manager.unit import Unit
from rbdtree.manager.wish import Listener, Wish
from rbdtree.model.codec import decode
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.model.name import ImageSpec, NodeName
from rbdtree.ports import Layout, Snapshot

PLACE = ("p", "")


def until(seen: Callable[[], Any], what: str, seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while True:
        found = seen()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


class Heard(Listener):
    """What managers told."""

    def __init__(self) -> None:
        self.cycles: list[tuple[str, Cycle]] = []
        self.edges: list[tuple[str, str]] = []
        self.problems: list[errors.Error] = []

    def cycle(self, unit: Unit, cycle: Cycle) -> None:
        self.cycles.append((unit.ref.name, cycle))

    def edge(self, unit: Unit, what: str) -> None:
        self.edges.append((unit.ref.name, what))

    def problem(self, error: errors.Error) -> None:
        self.problems.append(error)


class Running:
    """A manager on a thread of its own."""

    def __init__(self, storages: dict[str, memory.Storage], listener: Listener | None = None, **wish: Any) -> None:
        self.heard = Heard()
        self.manager = Manager(memory.Sites(storages), Wish(**{"poll": 1.0, **wish}), listener or self.heard)
        self.thread = threading.Thread(target=self.manager.run, daemon=True)
        self.thread.start()

    def held(self) -> set[str]:
        return {u.ref.name for u in list(self.manager.units.values()) if u.held}

    def stop(self) -> None:
        self.manager.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()


class Grove:
    """Storages a, b, c; tree ``t`` whose root is at a."""

    def __init__(self) -> None:
        self.storages = {name: memory.Storage(name, [PLACE]) for name in "abc"}
        self.sites = memory.Sites(self.storages)
        self.managers: list[Running] = []
        pool = self.sites.cluster("a").pool("p")
        pool.create_image("root", 8 << 20, Layout(), None)
        spec = ImageSpec("a", "p", "", "root")
        membership.init(self.sites, forest.look(self.sites), "t", "root", spec, membership.Wish())

    def add(self, name: str, parent: str, kind: Kind, site: str) -> None:
        found, spec = forest.look(self.sites), ImageSpec(site, "p", "", name)
        membership.add(self.sites, found, NodeName("t", name), parent, kind, spec, membership.Wish())

    def document(self, name: str) -> NodeDocument:
        return self.documents()[name]

    def documents(self) -> dict[str, NodeDocument]:
        found = {}
        for storage in self.storages.values():
            for name, (_, text) in storage.places[PLACE].documents.items():
                document = decode(text, name)
                found[document.name] = document
        return found

    def node(self, name: str) -> Node:
        return Node.at(self.sites, self.document(name).ref)

    def write(self, offset: int, data: bytes) -> None:
        image = self.sites.cluster("a").pool("p").open(self.document("root").image_id, read_only=False)
        failed: list[Exception | None] = []
        image.submit_write(offset, data, failed.append)
        image.close()
        assert failed == [None]

    def cut(self) -> None:
        cutting.cut(self.node("root"))

    def policy(self, name: str, tree: bool = False, **settings: str) -> None:
        from dataclasses import replace

        from rbdtree.model import policy

        found = policy.settings(settings)
        self.node(name).update(lambda d: replace(d, **{"tree_policy" if tree else "policy": found}))

    def run(self, **wish: Any) -> Running:
        made = Running(self.storages, **wish)
        self.managers.append(made)
        return made

    def level(self) -> bool:
        found = self.documents()
        return {d.newest_position for d in found.values()} == {found["root"].newest_position}

    def snapshots(self, name: str) -> list[Snapshot]:
        document = self.document(name)
        image = Node.at(self.sites, document.ref).pool.open(document.image_id)
        try:
            return list(image.snapshots())
        finally:
            image.close()

    def close(self) -> None:
        for one in self.managers:
            one.manager.stop()
        for one in self.managers:
            one.stop()
