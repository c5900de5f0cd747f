"""Which trees there are: the directories of all sites read, the documents behind them assembled into trees.

A node whose cluster does not answer is shown from what its parent was last told.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace

from rbdtree import errors
from rbdtree.engine.node import Node
from rbdtree.model.document import Child, Kind, NodeDocument, NodeRef
from rbdtree.model.name import NodeName
from rbdtree.model.position import START, Position
from rbdtree.ports import Sites


@dataclass(frozen=True, slots=True)
class Member:
    """A node as found. ``document`` is None when only its parent's summary (``told``) is known."""

    ref: NodeRef
    kind: Kind
    parent_id: str
    document: NodeDocument | None = None
    node: Node | None = None
    told: Child | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Tree:
    """All that was found of one tree; ``members`` by node id."""

    tree_id: str
    name: str
    members: dict[str, Member] = field(default_factory=dict)

    @property
    def root(self) -> Member | None:
        return next((m for m in self.members.values() if m.kind is Kind.ROOT), None)

    @property
    def position(self) -> Position:
        """The newest generation known: the root's, or the newest anybody has."""
        known = [m.document.position for m in self.members.values() if m.document]
        return max(known, default=START)

    def children(self, node_id: str) -> list[Member]:
        """Children by name."""
        return sorted((m for m in self.members.values() if m.parent_id == node_id), key=lambda m: m.ref.name)

    def tops(self) -> list[Member]:
        """Nodes without a known parent: the root, or what is left when the root's cluster does not answer."""
        return [m for m in self.members.values() if m.parent_id not in self.members]

    def member(self, name: str) -> Member:
        """By name; raises ``NotFound``."""
        found = next((m for m in self.members.values() if m.ref.name == name), None)
        if found is None:
            names = ", ".join(sorted(m.ref.name for m in self.members.values()))
            raise errors.NotFound(f"tree {self.name} has no node {name!r}", f"It has: {names}.")
        return found

    def path(self, member: Member) -> list[Member]:
        """From below the root down to this node."""
        found = [member]
        while found[0].parent_id in self.members:
            found.insert(0, self.members[found[0].parent_id])
        return [m for m in found if m.kind is not Kind.ROOT]


@dataclass(frozen=True, slots=True)
class Forest:
    """All trees, and the errors of the sites (or documents) that could not be read."""

    trees: tuple[Tree, ...]
    problems: tuple[errors.Error, ...] = ()

    def tree(self, name: str) -> Tree:
        """By name or by (the beginning, 8 digits at least, of) its id."""
        found = [t for t in self.trees if t.name == name or (len(name) >= 8 and t.tree_id.startswith(name))]
        if len(found) > 1:
            ids = ", ".join(t.tree_id[:8] for t in found)
            raise errors.UsageError(f"there are {len(found)} trees named {name!r}", f"Name one by its id: {ids}.")
        if found:
            return found[0]
        if self.problems:
            first = self.problems[0]
            raise type(first)(f"tree {name!r} was not found on the sites that answered; {first}", first.hint)
        raise errors.NotFound(
            f"there is no tree {name!r}", "Make one with 'rbdtree init', list them with 'rbdtree status'."
        )

    def find(self, name: NodeName) -> tuple[Tree, Member]:
        """The tree and the node of ``TREE/NODE``."""
        tree = self.tree(name.tree)
        return tree, tree.member(name.node)


def document_of(member: Member) -> tuple[Node, NodeDocument]:
    """A member that can be worked on; raises ``Unreachable`` when only hearsay is known."""
    if member.node is None or member.document is None:
        raise errors.Unreachable(
            f"node {member.ref.name} cannot be reached: {member.problem or 'its cluster does not answer'}",
            f"Look at 'rbdtree site check {member.ref.site}'.",
        )
    return member.node, member.document


def look(sites: Sites, tree: str | None = None) -> Forest:
    """Reads every directory and document; ``tree`` (a name or an id) limits the documents read."""
    problems: list[errors.Error] = []
    members: list[Member] = []
    names = sites.names()
    with ThreadPoolExecutor(max(1, len(names))) as threads:
        for found, failed in threads.map(lambda site: _site(sites, site, tree), names):
            members += found
            problems += failed
    trees: dict[str, Tree] = {}
    for member in members:
        document = member.document
        if document:
            at = trees.setdefault(document.tree_id, Tree(document.tree_id, document.tree))
            at.members[member.ref.node_id] = member
    for found_tree in trees.values():
        for member in list(found_tree.members.values()):
            if member.document:
                _hearsay(found_tree, member.ref.node_id, member.document.children, problems)
    return Forest(tuple(sorted(trees.values(), key=lambda t: t.name)), tuple(problems))


def _site(sites: Sites, site: str, tree: str | None) -> tuple[list[Member], list[errors.Error]]:
    found: list[Member] = []
    failed: list[errors.Error] = []
    try:
        cluster = sites.cluster(site)
        places = cluster.places()
    except errors.Error as error:
        return found, [error]
    for name, namespace in places:
        try:
            pool = cluster.pool(name, namespace)
            for node_id in _entries(pool.entries(), tree):
                node = Node(pool, node_id)
                document = node.read()
                node.name = document.full_name
                if document.ref.site != site:
                    # Another host's configuration calls this cluster otherwise: ours is the name that works here.
                    document = replace(document, ref=replace(document.ref, site=site))
                parent = document.parent.node_id if document.parent else ""
                found.append(Member(document.ref, document.kind, parent, document, node))
        except errors.Denied:
            continue
        except errors.NotFound as error:
            # A directory entry of an add that never came to its document, or of a removal under way.
            if "document" not in str(error):
                failed.append(error)
        except errors.Error as error:
            failed.append(error)
    return found, failed


def _entries(entries: dict[str, str], tree: str | None) -> Iterator[str]:
    for key, value in entries.items():
        kind, _, node_id = key.partition(".")
        if kind != "node":
            continue
        with suppress(ValueError, KeyError):
            told = json.loads(value)
            if tree is None or told["tree"] == tree or str(told["tree_id"]).startswith(tree):
                yield node_id


def _hearsay(tree: Tree, parent_id: str, children: tuple[Child, ...], problems: list[errors.Error]) -> None:
    for child in children:
        if child.ref.node_id not in tree.members:
            problem = next((str(p) for p in problems if child.ref.site in str(p)), "its document was not found")
            tree.members[child.ref.node_id] = Member(child.ref, child.kind, parent_id, told=child, problem=problem)
        if child.summary and tree.members[child.ref.node_id].document is None:
            _hearsay(tree, child.ref.node_id, child.summary.children, problems)
