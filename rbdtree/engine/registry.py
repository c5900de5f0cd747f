"""The directories: entries of nodes, made before their documents and taken away after them."""

from contextlib import suppress

from rbdtree import errors
from rbdtree.engine import marks
from rbdtree.engine.node import Node
from rbdtree.model.document import DIRECTORY, NodeDocument, object_name
from rbdtree.model.name import NodeName
from rbdtree.ports import Pool, Sites


def register(pool: Pool, document: NodeDocument) -> None:
    _sweep(pool, document)
    entry = (marks.node_entry(document.ref.node_id), marks.entry_text(document))
    pool.add_entry(*entry)
    Node(pool, document.ref.node_id).create(document)
    # Again, as somebody may have swept it away in between.
    pool.add_entry(*entry)
    # Managers need not wait for their next poll.
    pool.notify(DIRECTORY)


def _sweep(pool: Pool, document: NodeDocument) -> None:
    """Entries of the tree's nodes that have no document: of commands that died before they made or after they removed
    it."""
    for key, value in pool.entries().items():
        kind, _, node_id = key.partition(".")
        tree_id, *names = marks.told_by(value)
        ours = kind == "node" and (tree_id == document.tree_id or names == [document.tree, document.name])
        if ours and pool.read_document(object_name(node_id)) is None:
            pool.remove_entry(key)


def sweep_everywhere(sites: Sites, document: NodeDocument) -> None:
    for site in sites.names():
        # What cannot be reached is swept another time.
        with suppress(errors.Error):
            cluster = sites.cluster(site)
            for place in cluster.places()[0]:
                _sweep(cluster.pool(*place), document)


def sweep_left(sites: Sites, name: NodeName) -> bool:
    """Takes away the entry of a node whose document is gone: its ``remove`` or ``detach`` died at the last step."""
    swept = False
    for site in sites.names():
        with suppress(errors.Error):
            cluster = sites.cluster(site)
            for place in cluster.places()[0]:
                pool = cluster.pool(*place)
                for key, value in pool.entries().items():
                    kind, _, node_id = key.partition(".")
                    _, *names = marks.told_by(value)
                    left = kind == "node" and names == [name.tree, name.node]
                    if left and pool.read_document(object_name(node_id)) is None:
                        pool.remove_entry(key)
                        swept = True
    return swept


def unregister(node: Node) -> None:
    # One of an image that a frozen worker, or an OSD after its death, removed beside us may be left.
    for key, owner in node.pool.entries().items():
        if owner == node.node_id and key.startswith(marks.image_entry("")):
            node.pool.remove_entry(key)
    node.remove()
    node.pool.remove_entry(marks.node_entry(node.node_id))
    node.pool.notify(DIRECTORY)
