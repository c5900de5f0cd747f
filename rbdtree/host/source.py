"""What is mapped: a generation, a branch, or the volume itself, as an image of one cluster."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from rbdtree import errors
from rbdtree.config import Config
from rbdtree.engine import branch as branches
from rbdtree.engine import ends
from rbdtree.engine.node import Node, cluster_of
from rbdtree.model.document import Kind, NodeDocument, NodeRef
from rbdtree.model.position import Position, snapshot_name
from rbdtree.ports import Sites

GENERATION, BRANCH, VOLUME = "generation", "branch", "volume"


@dataclass(frozen=True, slots=True)
class Source:
    """``what``: a generation, a node's branch, or the volume at its root. ``position``: the generation, or the base of
    the branch; of the volume, the newest one when it was mapped. ``snapshot`` is empty for what is written to.
    ``holder``: the node in whose document a hold keeps the generation."""

    tree: str
    tree_id: str
    node: str
    node_id: str
    what: str
    position: str
    site: str
    fsid: str
    conf: str
    client: str
    keyring: str
    pool: str
    namespace: str
    image: str
    image_id: str
    snapshot: str
    size_bytes: int
    journaled: bool
    holder: str

    @property
    def full_name(self) -> str:
        return f"{self.tree}/{self.node}"

    @property
    def write(self) -> bool:
        return self.what != GENERATION

    @property
    def path(self) -> str:
        """``POOL/[NAMESPACE/]IMAGE[@SNAPSHOT]``, as the rbd command takes it."""
        path = "/".join(part for part in (self.pool, self.namespace, self.image) if part)
        return f"{path}@{self.snapshot}" if self.snapshot else path

    @property
    def key(self) -> str:
        """Names the map in this host's state: the same thing is mapped once."""
        which = self.position if self.what == GENERATION else self.what
        return f"{self.tree_id[:8]}.{self.node_id[:8]}.{which}"

    def value(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def described(self) -> str:
        """For people: ``generation 1.7``, ``branch over 1.7``, ``the volume``."""
        if self.what == GENERATION:
            return f"generation {self.position}"
        return f"branch over {self.position}" if self.what == BRANCH else "the volume"


def generation(sites: Sites, config: Config, document: NodeDocument, at: Position | None) -> Source:
    """A generation that the node has: the snapshot at its replica."""
    wanted = at or document.newest_position
    replica = document.replica if document.kind is Kind.CLONE else document.ref
    above = Node.at(sites, replica).read() if document.kind is Kind.CLONE else document
    found = above.generation(wanted) if wanted else None
    if wanted is None or found is None or (document.kind is Kind.CLONE and wanted > document.position):
        raise errors.NotFound(
            f"{document.full_name} does not have generation {wanted}"
            if wanted
            else f"{document.full_name} has no generation yet",
            f"See 'rbdtree log {document.full_name}', or run 'rbdtree sync {document.full_name}'.",
        )
    name = snapshot_name(document.tree_id, wanted)
    pool = Node.at(sites, replica).pool
    image = pool.open(above.image_id)
    try:
        ids = {s.name: s.snapshot_id for s in image.snapshots()}
    finally:
        image.close()
    if ids.get(name) != found.snapshot_id:
        raise errors.Diverged(
            f"{document.full_name}: the snapshot {name} of generation {wanted} is gone or another one",
            f"Look at 'rbdtree status {document.tree}'; another generation can be had with --at.",
        )
    made = _source(sites, config, document, replica, above.image_id, GENERATION)
    return replace(made, position=str(wanted), snapshot=name, size_bytes=found.size_bytes, holder=replica.node_id)


def writable(sites: Sites, config: Config, node: Node, at: Position | None, *, branch: bool) -> Source:
    """The branch, made when there is none. At the root the volume itself, unless its ``branch`` is asked for."""
    document = node.read()
    if document.kind is Kind.ROOT and not branch:
        if at is not None:
            raise errors.UsageError(
                f"{document.full_name} is the root: what is written there is the volume, not one generation",
                "Leave --at away, or give --branch to write to a branch of the root.",
            )
        document = ends.read_settled(node)
        gone = ends.find_gone(node, document)
        if gone:
            raise gone.error()
        made = _source(sites, config, document, document.ref, document.image_id, VOLUME)
        size, journaled = _look(node, document.image_id)
        return replace(made, position=str(document.position), size_bytes=size, journaled=journaled)
    document, found = branches.ensure(sites, node, None, at)
    ref = replace(document.ref, image=found.image)
    made = _source(sites, config, document, ref, found.image_id, BRANCH)
    size, journaled = _look(node, found.image_id)
    return replace(made, position=str(found.base), size_bytes=size, journaled=journaled)


def foreseen(sites: Sites, config: Config, node: Node, at: Position | None, *, branch: bool) -> Source:
    """What ``writable`` would give; makes no branch."""
    document = node.read()
    if (document.kind is Kind.ROOT and not branch) or (document.branch and document.branch.image_id):
        return writable(sites, config, node, at, branch=branch)
    name = document.ref.image if document.kind is Kind.CLONE else f"{document.ref.image}-branch"
    made = generation(sites, config, document, at)
    return replace(made, what=BRANCH, image=name, image_id="", snapshot="", holder="")


def _look(node: Node, image_id: str) -> tuple[int, bool]:
    """(size, whether it has a journal)"""
    image = node.pool.open(image_id)
    try:
        size = image.size()
    finally:
        image.close()
    try:
        node.pool.journal(image_id).close()
    except errors.NotFound:
        return size, False
    return size, True


def _source(sites: Sites, config: Config, document: NodeDocument, ref: NodeRef, image_id: str, what: str) -> Source:
    cluster = cluster_of(sites, ref)
    pool = cluster.pool(ref.pool, ref.namespace)
    # Drivers open by name; a name may be another image by now.
    if pool.image_id(ref.image) != image_id:
        raise errors.Diverged(
            f"{document.full_name}: {ref.image_spec} is not the image it was (id {image_id})",
            f"Look at 'rbdtree status {document.tree}'.",
        )
    site = config.sites[cluster.site]
    return Source(
        tree=document.tree,
        tree_id=document.tree_id,
        node=document.ref.name,
        node_id=document.ref.node_id,
        what=what,
        position="",
        site=site.name,
        fsid=cluster.fsid,
        conf=str(site.conf),
        client=site.client,
        keyring=str(site.keyring) if site.keyring else "",
        pool=ref.pool,
        namespace=ref.namespace,
        image=ref.image,
        image_id=image_id,
        snapshot="",
        size_bytes=0,
        journaled=False,
        holder="",
    )
