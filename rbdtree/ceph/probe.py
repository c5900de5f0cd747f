"""What a site is and what its key may do, found by trying."""

import uuid
from contextlib import suppress
from dataclasses import dataclass, field

import rados

from rbdtree import errors
from rbdtree.ceph.cluster import Cluster
from rbdtree.ceph.translate import translated


@dataclass(frozen=True, slots=True)
class Place:
    """A pool or namespace: whether the key reads documents and images, writes documents, and why not."""

    name: str
    read: bool
    write: bool
    full: str = ""
    problem: str = ""


@dataclass
class SiteReport:
    """A site that answered. ``caps`` are empty where the key may not ask for its own."""

    site: str
    fsid: str
    client: str
    version: str = ""
    health: str = ""
    caps: dict[str, str] = field(default_factory=dict)
    places: list[Place] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


def probe(cluster: Cluster, client: str) -> SiteReport:
    """Raises only when the cluster itself stops answering; a lacking capability is a finding."""
    report = SiteReport(cluster.site, cluster.fsid, client)
    try:
        report.version = str(cluster.command(prefix="version")["version"])
        report.health = str(cluster.command(prefix="health")["status"])
    except errors.Denied as error:
        report.missing.append(f"mon 'profile rbd' ({error})")
    with suppress(errors.Denied, KeyError, IndexError):
        report.caps = dict(cluster.command(prefix="auth get", entity=client)[0]["caps"])
    places, silent = cluster.places()
    report.places = [_place(cluster, pool, namespace) for pool, namespace in places]
    report.missing += [f"an answer: {error}" for error in silent]
    for place in report.places:
        if not place.read:
            report.missing.append(f"osd read in {place.name} ({place.problem})")
        elif not place.write:
            report.missing.append(f"osd write in {place.name}: this key can look, not sync ({place.problem})")
        if place.full:
            report.missing.append(place.full)
    if not report.places:
        report.missing.append("a pool for RBD: 'ceph osd pool create rbd' and 'rbd pool init rbd'")
    return report


def _place(cluster: Cluster, pool: str, namespace: str) -> Place:
    name = f"{pool}/{namespace}" if namespace else pool
    try:
        opened = cluster.pool(pool, namespace)
        opened.entries()
        opened.images()
    except errors.Unreachable:
        raise
    except errors.Error as error:
        return Place(name, False, False, problem=str(error))
    full = ""
    with suppress(errors.Denied):
        full = cluster.full().get(pool, "")
    trial = f"rbdtree.probe.{uuid.uuid4().hex}"
    try:
        with translated(f"write to {cluster.site}:{name}"), rados.WriteOpCtx() as op:
            op.new(rados.LIBRADOS_CREATE_EXCLUSIVE)
            op.remove()
            opened.ioctx.operate_write_op(op, trial)
    except errors.Error as error:
        return Place(name, True, False, full, str(error))
    return Place(name, True, True, full)
