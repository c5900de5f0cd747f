"""Joining a tree. A command that died goes on when it is run again: the document's phase says so."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace

from rbdtree import errors
from rbdtree.engine import delta, ends, marks, portion, registry
from rbdtree.engine.claim import Claim
from rbdtree.engine.forest import Forest, Tree, document_of
from rbdtree.engine.node import Node
from rbdtree.model.document import Child, Kind, NodeDocument, NodeRef, object_name
from rbdtree.model.name import ImageSpec, NodeName, parse_size
from rbdtree.model.portion import WHOLE, Portion
from rbdtree.plan.state import summary_of
from rbdtree.ports import Image, Layout, Pool, Sites

JOINING = "joining"


@dataclass(frozen=True, slots=True)
class Wish:
    """How a new image should look; None: like the parent's (the root's: RBD's default)."""

    size_bytes: int | None = None
    layout: Layout | None = None
    data_pool: str | None = None
    history: bool = False
    portion: Portion | None = None
    """None: what the parent holds."""


_SMALLEST, _LARGEST = 4 << 10, 32 << 20


def layout(object_size: str | None, stripe_unit: str | None, stripe_count: int | None) -> Layout | None:
    """Of a new image, from what a person wrote; None when that is nothing."""
    if not (object_size or stripe_unit or stripe_count):
        return None
    unit = parse_size(object_size or "4M")
    if not _SMALLEST <= unit <= _LARGEST or unit & (unit - 1):
        raise errors.UsageError(
            f"an object size of {unit} bytes is not a power of two from 4K to 32M", "Usual is 4M, RBD's default."
        )
    if bool(stripe_unit) != bool(stripe_count):
        raise errors.UsageError(
            "--stripe-unit and --stripe-count come together", "For example --stripe-unit 64K --stripe-count 8."
        )
    stripe = parse_size(stripe_unit) if stripe_unit else unit
    count = stripe_count or 1
    if stripe <= 0 or unit % stripe or count < 1:
        raise errors.UsageError(
            f"stripes of {count} units of {stripe} bytes do not fit objects of {unit} bytes",
            "The unit divides the object size, for example --stripe-unit 64K --stripe-count 8.",
        )
    return Layout(unit, stripe, count)


def _new_id() -> str:
    return str(uuid.uuid4())


def _ref(pool: Pool, node_id: str, name: str, image: str) -> NodeRef:
    return NodeRef(node_id, name, pool.site, pool.fsid, pool.name, pool.namespace, image)


def _no_owner(forest: Forest, pool: Pool, spec: ImageSpec, image_id: str | None) -> None:
    """Refuses an image that some node of some tree has already."""
    for tree in forest.trees:
        for member in tree.members.values():
            ref = member.ref
            place = (ref.fsid, ref.pool, ref.namespace, ref.image)
            if place == (pool.fsid, pool.name, pool.namespace, spec.image):
                raise errors.Exists(
                    f"{spec} belongs to tree {tree.name} already, as its node {ref.name}",
                    "Choose another image, or take that node away with 'rbdtree detach'.",
                )
    owner = image_id and pool.entries().get(marks.image_entry(image_id))
    if owner and pool.read_document(object_name(owner)) is not None:
        raise errors.Exists(
            f"{spec} belongs to a tree already, as node {owner}", "See whose it is with 'rbdtree marks'."
        )
    if owner:
        # The node left without taking its entry along.
        pool.remove_entry(marks.image_entry(str(image_id)))


def init(
    sites: Sites,
    forest: Forest,
    tree_name: str,
    node_name: str,
    spec: ImageSpec,
    wish: Wish,
    *,
    dry_run: bool = False,
) -> NodeDocument:
    """Makes a root of an image that is there (nothing is copied), or of a new one with ``wish.size_bytes``."""
    pool = sites.cluster(spec.site).pool(spec.pool, spec.namespace)
    image_id = pool.image_id(spec.image)
    resumed = _resumed_root(forest, tree_name, node_name, pool, spec)
    if resumed is None:
        _no_owner(forest, pool, spec, image_id)
        if image_id is None and wish.size_bytes is None:
            raise errors.NotFound(f"there is no image {spec}", "Give --size to make it.")
        if image_id is not None and wish.size_bytes is not None:
            raise errors.Exists(f"image {spec} exists", "Leave out --size to make a tree of it as it is.")
        _check_data_pool(sites, spec, wish)
        ref = _ref(pool, _new_id(), node_name, spec.image)
        resumed = NodeDocument(_new_id(), tree_name, Kind.ROOT, ref, image_id or "", ref, phase=JOINING)
        if dry_run:
            return resumed
        registry.register(pool, resumed)
    if dry_run:
        return resumed
    node = Node(pool, resumed.ref.node_id, resumed.full_name)

    def make() -> str:
        found = pool.image_id(spec.image)
        return found or _create(pool, spec, wish.size_bytes or 0, wish.layout or Layout(), wish)

    # Claimed, so that whoever goes on after our death can see that we are dead and need not wait for RBD's lock.
    with Claim(node, "init"):
        document = _take_image(node, resumed, make)
        return node.update(lambda d: replace(d, image_id=document.image_id, phase=""))


def _resumed_root(forest: Forest, tree_name: str, node_name: str, pool: Pool, spec: ImageSpec) -> NodeDocument | None:
    """The root that an interrupted ``init`` left; ``Exists`` for a finished one."""
    for tree in forest.trees:
        if tree.name != tree_name:
            continue
        root = tree.root
        document = root.document if root else None
        if document and document.phase == JOINING:
            here = (
                document.ref.fsid,
                document.ref.pool,
                document.ref.namespace,
                document.ref.image,
                document.name,
            )
            if here == (pool.fsid, pool.name, pool.namespace, spec.image, node_name):
                return document
        where = f": {root.ref.name} ({root.ref.image_spec})" if root else ""
        raise errors.Exists(
            f"tree {tree_name} has a root already{where}", f"Add nodes with 'rbdtree add {tree_name}/NAME'."
        )
    return None


def _check_data_pool(sites: Sites, spec: ImageSpec, wish: Wish) -> None:
    if wish.data_pool:
        sites.cluster(spec.site).pool(wish.data_pool)


def _take_image(node: Node, document: NodeDocument, make: Callable[[], str]) -> NodeDocument:
    """The image becomes the node's. When it cannot be made, or is another's after all, the node is undone; a cluster
    that falls silent leaves a node that joins, for the same command to go on with."""
    try:
        image_id = make()
        marks.mark_image(node.pool, image_id, document)
    except (errors.Unreachable, errors.Fenced):
        raise
    except errors.Error:
        with suppress(errors.Error):
            registry.unregister(node)
        raise
    return replace(document, image_id=image_id)


def add(
    sites: Sites,
    forest: Forest,
    name: NodeName,
    parent_name: str,
    kind: Kind,
    spec: ImageSpec,
    wish: Wish,
    *,
    dry_run: bool = False,
) -> NodeDocument:
    """A child of ``parent_name``: a mirror with an image of its own, or a clone of the nearest replica above."""
    tree = forest.tree(name.tree)
    if name.node == parent_name:
        raise errors.UsageError(
            f"{name} cannot be its own parent: that would be a cycle",
            f"Name another node with --parent; 'rbdtree status {name.tree}' shows them.",
        )
    parent_node, parent = document_of(tree.member(parent_name))
    if parent.phase:
        raise errors.Busy(f"{parent.full_name} is {parent.phase}", "Finish that first.")
    pool = sites.cluster(spec.site).pool(spec.pool, spec.namespace)
    document = _resumed_child(tree, name, parent, kind, pool, spec)
    if document is None:
        image_id = pool.image_id(spec.image)
        _no_owner(forest, pool, spec, image_id)
        if kind is Kind.CLONE:
            _check_clone(parent, pool, spec, image_id)
        elif image_id is not None:
            _check_empty(pool, spec, image_id)
        else:
            _check_data_pool(sites, spec, wish)
        ref = _ref(pool, _new_id(), name.node, spec.image)
        document = NodeDocument(
            tree_id=parent.tree_id,
            tree=parent.tree,
            kind=kind,
            ref=ref,
            image_id=image_id or "",
            replica=parent.replica if kind is Kind.CLONE else ref,
            parent=parent.ref,
            edge=_new_id(),
            epoch=parent.epoch,
            history=wish.history,
            phase=JOINING,
            tree_policy=parent.tree_policy,
        )
        document = _with_portion(sites, tree, pool, document, parent, wish)
        if dry_run:
            return document
        registry.register(pool, document)
    else:
        document = _with_portion(sites, tree, pool, document, parent, wish)
    if dry_run:
        return document
    node = Node(pool, document.ref.node_id, document.full_name)
    with Claim(node, "add"):
        if kind is Kind.MIRROR:
            replica = Node.at(sites, parent.replica)
            document = _take_image(node, document, lambda: _make_mirror(replica, pool, spec, wish))
        child = Child(document.edge, kind, document.ref, summary_of(document, None))
        parent_node.update(ends.with_child(child))
        return node.update(lambda d: replace(d, image_id=document.image_id, phase="", portion=document.portion))


def _with_portion(
    sites: Sites, tree: Tree, pool: Pool, document: NodeDocument, parent: NodeDocument, wish: Wish
) -> NodeDocument:
    """What it is to hold: ranges inside what its parent holds."""
    wanted = wish.portion
    if wanted is None:
        inherited = WHOLE if document.kind is Kind.CLONE else portion.effective(sites, parent)
        return replace(document, portion=inherited)
    layout = wish.layout if document.kind is Kind.MIRROR else None
    if layout is None:
        replica = Node.at(sites, parent.replica)
        # An image that is there already, or else the one that the new one is made like.
        source = pool.open(document.image_id) if document.image_id else replica.pool.open(replica.read().image_id)
        layout = source.layout
        source.close()
    portion.check_allowed(sites, tree, document.full_name, parent, wanted, layout, document.kind)
    return replace(document, portion=wanted)


def _resumed_child(
    tree: Tree, name: NodeName, parent: NodeDocument, kind: Kind, pool: Pool, spec: ImageSpec
) -> NodeDocument | None:
    found = next((m for m in tree.members.values() if m.ref.name == name.node), None)
    if found is None:
        return None
    document = found.document
    if document and document.phase == JOINING and document.parent:
        wanted = (parent.ref.node_id, kind, pool.fsid, pool.name, pool.namespace, spec.image)
        ref = document.ref
        if wanted == (document.parent.node_id, document.kind, ref.fsid, ref.pool, ref.namespace, ref.image):
            return document
    raise errors.Exists(
        f"tree {tree.name} has a node {name.node} already ({found.kind}, {found.ref.image_spec})",
        "Choose another name.",
    )


def _check_clone(parent: NodeDocument, pool: Pool, spec: ImageSpec, image_id: str | None) -> None:
    if pool.fsid != parent.replica.fsid:
        raise errors.UsageError(
            f"{spec} is on another cluster than the nearest replica above it ({parent.replica.image_spec})",
            "A clone lives beside what it is cloned from: use --kind mirror.",
        )
    if image_id is not None:
        raise errors.Exists(f"image {spec} exists", "Name an image that is not there yet: the clone will be made.")


def _check_empty(pool: Pool, spec: ImageSpec, image_id: str) -> None:
    image = pool.open(image_id)
    try:
        holds = _what_it_holds(image)
        used = image.watchers()
    finally:
        image.close()
    if holds:
        raise errors.NotEmpty(
            f"image {spec} exists and holds {holds}", "Name an image that is not there, or an empty one."
        )
    if used:
        raise errors.Busy(f"image {spec} is in use by {', '.join(used)}", "Unmap it first.")


def _what_it_holds(image: Image) -> str:
    snapshots = image.snapshots()
    if snapshots:
        return f"snapshots ({snapshots[0].name})"
    if image.ancestor():
        return "a parent: it is a clone"
    data = delta.coarse(image, None, None)
    return f"{data.total} bytes of objects" if data else ""


def _make_mirror(replica: Node, pool: Pool, spec: ImageSpec, wish: Wish) -> str:
    found = pool.image_id(spec.image)
    if found is not None:
        return found
    layout = wish.layout
    if layout is None:
        source = replica.pool.open(replica.read().image_id)
        layout = source.layout
        source.close()
    return _create(pool, spec, 0, layout, wish)


def _create(pool: Pool, spec: ImageSpec, size: int, layout: Layout, wish: Wish) -> str:
    """Whoever was quicker made it: whose it becomes is decided in the directory."""
    try:
        return pool.create_image(spec.image, size, layout, wish.data_pool)
    except errors.Exists:
        found = pool.image_id(spec.image)
        if found is None:
            raise
        return found
