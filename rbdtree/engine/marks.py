"""What we leave on a site: one document and directory entries a node, metadata on its image, snapshots, a claim.

``list_marks`` finds all of it by looking, not by asking the documents alone, so that leftovers of interrupted commands
show too.
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine.claim import describe
from rbdtree.model.codec import decode
from rbdtree.model.document import DIRECTORY, NodeDocument, object_name
from rbdtree.model.position import tree_of_snapshot
from rbdtree.ports import ImageEntry, Pool, Sites

TREE_KEY = "rbdtree.tree"
NODE_KEY = "rbdtree.node"
JOURNAL_LIMIT = "conf_rbd_journal_max_concurrent_object_sets"
"""Image metadata that every librbd client of the image obeys: a writer that finds a journal client this many object
sets behind cuts it off, and trims."""


def journal_client(node_id: str) -> str:
    """Of the journal client that keeps what is not upstream yet."""
    return f"rbdtree.{node_id}"


def node_entry(node_id: str) -> str:
    """Directory key of a node."""
    return f"node.{node_id}"


def image_entry(image_id: str) -> str:
    """Directory key that makes an image one node's only."""
    return f"image.{image_id}"


def parcel_entry(name: str) -> str:
    """Directory key of a push that lies packed at a node."""
    return f"parcel.{name}"


def entry_text(document: NodeDocument) -> str:
    """Directory value of a node."""
    return json.dumps({"tree_id": document.tree_id, "tree": document.tree, "node": document.name}, sort_keys=True)


def told_by(value: str) -> tuple[str, str, str]:
    """(tree id, tree, node) in a node's directory value; empty when they are not there."""
    with suppress(ValueError, KeyError, TypeError):
        told = json.loads(value)
        return str(told["tree_id"]), str(told["tree"]), str(told["node"])
    return "", "", ""


def mark_image(pool: Pool, image_id: str, document: NodeDocument) -> None:
    """The image belongs to this node from now on. ``Exists`` when it is another's.

    The directory decides, in one compare-and-swap; the metadata is for people, and clones inherit it.
    """
    try:
        pool.add_entry(image_entry(image_id), document.ref.node_id)
    except errors.Exists as error:
        raise errors.Exists(f"image {document.ref.image_spec} belongs to a tree already") from error
    image = pool.open(image_id, read_only=False)
    try:
        image.set_metadata(TREE_KEY, f"{document.tree_id} {document.tree}")
        image.set_metadata(NODE_KEY, document.ref.node_id)
    finally:
        image.close()


def unmark_image(pool: Pool, image_id: str) -> None:
    """Our metadata and directory entry off an image; nothing when it is gone."""
    with suppress(errors.NotFound):
        image = pool.open(image_id, read_only=False)
        try:
            for key in (TREE_KEY, NODE_KEY):
                if key in image.metadata():
                    image.remove_metadata(key)
        finally:
            image.close()
    pool.remove_entry(image_entry(image_id))


@dataclass(frozen=True, slots=True)
class Mark:
    """One thing of ours. ``tree`` and ``node`` are empty when nobody knows whose it is."""

    site: str
    kind: str
    where: str
    tree: str
    node: str
    detail: str = ""


def list_marks(sites: Sites) -> tuple[list[Mark], list[errors.Error]]:
    """Everything of ours on the configured sites, and the sites that could not be asked."""
    names = sites.names()
    with ThreadPoolExecutor(max(1, len(names))) as threads:
        asked = list(threads.map(lambda site: _at_site(sites, site), names))
    return [mark for found, _ in asked for mark in found], [error for _, failed in asked for error in failed]


def _at_site(sites: Sites, site: str) -> tuple[list[Mark], list[errors.Error]]:
    found: list[Mark] = []
    failed: list[errors.Error] = []
    denied: list[errors.Error] = []
    places: list[tuple[str, str]] = []
    try:
        cluster = sites.cluster(site)
        places, failed = cluster.places()
    except errors.Error as error:
        failed.append(error)
    for name, namespace in places:
        try:
            found += _in_pool(cluster.pool(name, namespace))
        except errors.Denied as error:
            denied.append(error)
        except errors.Error as error:
            failed.append(error)
    # A key may be good for some pools only.
    return found, failed + (denied[:1] if denied and len(denied) == len(places) else [])


def _in_pool(pool: Pool) -> Iterator[Mark]:
    path = f"{pool.name}/{pool.namespace}" if pool.namespace else pool.name
    entries = pool.entries()
    owners: dict[str, tuple[str, str]] = {}
    trees: dict[str, str] = {}
    for key, value in entries.items():
        kind, _, name = key.partition(".")
        if kind != "node":
            continue
        with suppress(ValueError, KeyError):
            told = json.loads(value)
            owners[name] = (told["tree"], told["node"])
            trees[told["tree_id"][:8]] = told["tree"]
    for key, value in sorted(entries.items()):
        kind, _, name = key.partition(".")
        tree, node = owners.get(name if kind == "node" else value, ("", ""))
        yield Mark(pool.site, "directory", f"{path}/{DIRECTORY}", tree, node, key)
        if kind == "node":
            yield from _document(pool, path, name, tree, node)
    for entry in (*pool.images(), *pool.trashed()):
        yield from _image(pool, path, entry, owners, trees)


def _document(pool: Pool, path: str, node_id: str, tree: str, node: str) -> Iterator[Mark]:
    oid = object_name(node_id)
    found = pool.read_document(oid)
    if found is None:
        return
    try:
        document = decode(found[1], oid)
        detail = f"revision {found[0]}" + (f", intent {document.intent.target}" if document.intent else "")
        for hold in document.holds:
            yield Mark(pool.site, "hold", f"{path}/{oid}", tree, node, f"{hold.position}: {hold.reason}")
    except errors.Error as error:
        detail = str(error)
    yield Mark(pool.site, "object", f"{path}/{oid}", tree, node, detail)
    claimed = pool.claimed(oid)
    if claimed:
        yield Mark(pool.site, "lock", f"{path}/{oid}", tree, node, describe(claimed))


def _image(
    pool: Pool, path: str, entry: ImageEntry, owners: dict[str, tuple[str, str]], trees: dict[str, str]
) -> Iterator[Mark]:
    try:
        image = pool.open(entry.image_id)
    except errors.Error:
        return
    where, trash = f"{path}/{entry.name}", f" (trash {entry.image_id})" if entry.trashed else ""
    try:
        metadata = image.metadata()
        node_id = metadata.get(NODE_KEY, "")
        tree, node = owners.get(node_id, ("", ""))
        told = metadata.get(TREE_KEY, "").partition(" ")[2]
        for key in (TREE_KEY, NODE_KEY, *((JOURNAL_LIMIT,) if node_id else ())):
            if key in metadata:
                yield Mark(pool.site, "metadata", f"{where}{trash}", tree or told, node, f"{key}={metadata[key]}")
        for snapshot in image.snapshots():
            whose_tree = tree_of_snapshot(snapshot.name)
            if whose_tree:
                whose = trees.get(whose_tree, tree or told)
                yield Mark(pool.site, "snapshot", f"{where}@{snapshot.name}{trash}", whose, node)
        if node_id:
            for client in _journal_clients(pool, entry.image_id):
                yield Mark(pool.site, "journal client", f"{where}{trash}", tree or told, node, client)
    finally:
        image.close()


def _journal_clients(pool: Pool, image_id: str) -> list[str]:
    try:
        journal = pool.journal(image_id)
    except errors.NotFound:
        return []
    try:
        return [client.client_id for client in journal.clients() if client.client_id.startswith(journal_client(""))]
    finally:
        journal.close()
