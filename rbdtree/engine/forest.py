"""Which trees there are: the directories of all sites read, the documents behind them assembled into trees.

A node whose cluster does not answer is shown from what its parent was last told.
"""

import json
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial

from rbdtree import errors
from rbdtree.engine.node import Node
from rbdtree.model.document import Child, Kind, NodeDocument, NodeRef
from rbdtree.model.name import NodeName
from rbdtree.model.position import START, Position
from rbdtree.ports import Cluster, Sites

_AT_A_TIME = 8
"""Pools, then documents, asked of a site at a time: each takes a round trip, or a time-out."""
BROKEN = (errors.Unsupported, errors.Diverged)
"""What a document that is there and cannot be used raises."""


@dataclass(frozen=True, slots=True)
class Member:
    """A node as found. ``document`` is None when only its parent's summary (``told``) is known; ``error`` says why."""

    ref: NodeRef
    kind: Kind
    parent_id: str
    document: NodeDocument | None = None
    node: Node | None = None
    told: Child | None = None
    error: errors.Error | None = None

    @property
    def problem(self) -> str:
        return str(self.error) if self.error else ""


@dataclass(frozen=True, slots=True)
class Tree:
    """All that was found of one tree; ``members`` by node id.

    ``broken``: nodes (id -> name, what is wrong) that the directory tells of and whose documents cannot be read.
    """

    tree_id: str
    name: str
    members: dict[str, Member] = field(default_factory=dict)
    broken: dict[str, tuple[str, errors.Error]] = field(default_factory=dict)

    @property
    def root(self) -> Member | None:
        return next((m for m in self.members.values() if m.kind is Kind.ROOT), None)

    def needed_root(self) -> Member:
        """The root; raises what is wrong with it."""
        root = self.root
        if root is not None:
            return root
        for _, error in self.broken.values():
            raise error
        above = next((m.document.parent for m in self.tops() if m.document and m.document.parent), None)
        where = f" ({above.name}, {above.image_spec})" if above else ""
        raise errors.Unreachable(
            f"the root of {self.name} cannot be reached; above what was found there is something{where}",
            f"Look at 'rbdtree site check{' ' + above.site if above else ''}'.",
        )

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
            for broken, error in self.broken.values():
                if broken == name:
                    raise error
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
    """All trees, and the errors of the sites (or documents) that could not be read. ``unread``: by site, why what is
    not told of it may be there all the same."""

    trees: tuple[Tree, ...]
    problems: tuple[errors.Error, ...] = ()
    unread: Mapping[str, errors.Error] = field(default_factory=dict)

    def tree(self, name: str) -> Tree:
        """By name or by (the beginning, 8 digits at least, of) its id."""
        found = [t for t in self.trees if t.name == name or (len(name) >= 8 and t.tree_id.startswith(name))]
        if len(found) > 1:
            ids = ", ".join(t.tree_id[:8] for t in found)
            raise errors.UsageError(f"there are {len(found)} trees named {name!r}", f"Name one by its id: {ids}.")
        if found:
            if not found[0].members:
                # Nothing of it can be read: there is nothing that a command could do with it.
                raise next(error for _, error in found[0].broken.values())
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
        why = member.error or errors.Unreachable("its cluster does not answer")
        raise type(why)(
            f"node {member.ref.name} cannot be reached: {why}",
            why.hint if isinstance(why, BROKEN) else f"Look at 'rbdtree site check {member.ref.site}'.",
        )
    return member.node, member.document


@dataclass
class _Found:
    """What one site has: ``broken`` as (tree id, tree, node id, node, error), ``problem`` when it cannot be asked."""

    site: str
    members: list[Member] = field(default_factory=list)
    broken: list[tuple[str, str, str, str, errors.Error]] = field(default_factory=list)
    problems: list[errors.Error] = field(default_factory=list)


def look(sites: Sites, tree: str | None = None) -> Forest:
    """Reads every directory and document; ``tree`` (a name or an id) limits the documents read."""
    names = sites.names()
    with ThreadPoolExecutor(max(1, len(names))) as threads:
        found = list(threads.map(lambda site: _site(sites, site, tree), names))
    trees: dict[str, Tree] = {}
    for at_site in found:
        for member in at_site.members:
            if member.document:
                document = member.document
                at = trees.setdefault(document.tree_id, Tree(document.tree_id, document.tree))
                at.members[member.ref.node_id] = member
        for tree_id, name, node_id, node, error in at_site.broken:
            trees.setdefault(tree_id, Tree(tree_id, name)).broken[node_id] = (node, error)
    silent = {at_site.site: at_site.problems[0] for at_site in found if at_site.problems}
    for found_tree in trees.values():
        for member in list(found_tree.members.values()):
            if member.document:
                _hearsay(found_tree, member.ref.node_id, member.document.children, silent)
    problems = [error for at_site in found for error in at_site.problems]
    problems += [error for at_site in found for *_, error in at_site.broken]
    return Forest(tuple(sorted(trees.values(), key=lambda t: t.name)), tuple(problems), silent)


def _site(sites: Sites, site: str, tree: str | None) -> _Found:
    found = _Found(site)
    try:
        cluster = sites.cluster(site)
        places, found.problems = cluster.places()
    except errors.Error as error:
        found.problems.append(error)
        return found
    denied: list[errors.Error] = []
    with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix=f"look-{site}") as threads:
        listed: list[tuple[Node, dict[str, str]]] = []
        for nodes in threads.map(partial(_nodes, cluster, tree), places):
            if isinstance(nodes, errors.Denied):
                # A key may be good for some pools only: what it cannot read holds no tree of its own.
                denied.append(nodes)
            elif isinstance(nodes, errors.Error):
                found.problems.append(nodes)
            else:
                listed += nodes
        for (node, told), document in zip(listed, threads.map(_document, (node for node, _ in listed)), strict=True):
            _take(found, node, told, document)
    if denied and len(denied) == len(places):
        found.problems.append(denied[0])
    return found


def _nodes(
    cluster: Cluster, tree: str | None, place: tuple[str, str]
) -> list[tuple[Node, dict[str, str]]] | errors.Error:
    """Those of a place, by its directory, and what that tells of them."""
    try:
        pool = cluster.pool(*place)
        known = _entries(pool.entries(), tree)
        return [(Node(pool, node_id, f"{told['tree']}/{told['node']}"), told) for node_id, told in known]
    except errors.Error as error:
        return error


def _document(node: Node) -> NodeDocument | errors.Error:
    try:
        return node.read()
    except errors.Error as error:
        return error


def _take(found: _Found, node: Node, told: dict[str, str], document: NodeDocument | errors.Error) -> None:
    """One document; a bad one keeps nobody from the others."""
    if isinstance(document, errors.NotFound):
        # A directory entry of an add that never came to its document, or of a removal under way.
        return
    if isinstance(document, BROKEN):
        found.broken.append((told["tree_id"], told["tree"], node.node_id, told["node"], document))
        return
    if isinstance(document, errors.Error):
        found.problems.append(document)
        return
    node.name = document.full_name
    if document.ref.site != found.site:
        # Another host's configuration calls this cluster otherwise: ours is the name that works here.
        document = replace(document, ref=replace(document.ref, site=found.site))
    parent = document.parent.node_id if document.parent else ""
    found.members.append(Member(document.ref, document.kind, parent, document, node))


def _entries(entries: dict[str, str], tree: str | None) -> Iterator[tuple[str, dict[str, str]]]:
    """(node id, what the directory tells of it)"""
    for key, value in entries.items():
        kind, _, node_id = key.partition(".")
        if kind != "node":
            continue
        with suppress(ValueError, KeyError, TypeError):
            told = json.loads(value)
            told = {key: str(told[key]) for key in ("tree_id", "tree", "node")}
            if tree is None or told["tree"] == tree or told["tree_id"].startswith(tree):
                yield node_id, told


def _hearsay(tree: Tree, parent_id: str, children: tuple[Child, ...], silent: dict[str, errors.Error]) -> None:
    for child in children:
        node_id = child.ref.node_id
        if node_id not in tree.members:
            broken = tree.broken.get(node_id)
            error = broken[1] if broken else silent.get(child.ref.site) or _unknown(child.ref)
            tree.members[node_id] = Member(child.ref, child.kind, parent_id, told=child, error=error)
        if child.summary and tree.members[node_id].document is None:
            _hearsay(tree, node_id, child.summary.children, silent)


def _unknown(ref: NodeRef) -> errors.Error:
    return errors.Unreachable(f"its document was not found on the sites of this configuration (it is at {ref.site})")
