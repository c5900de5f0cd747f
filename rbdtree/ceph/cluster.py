"""``ports.Cluster``: one connection to one site."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import rados
import rbd

from rbdtree import errors
from rbdtree.ceph.checksum import Checksums
from rbdtree.ceph.pool import Pool
from rbdtree.ceph.translate import from_errno, translated
from rbdtree.config import Site

_OPTIONS = {
    # A write that was acknowledged is on the OSDs; our copies are large and never read twice.
    "rbd_cache": "false",
    # Clones that need no protected parent; every cluster since Mimic takes them.
    "rbd_default_clone_format": "2",
    # Diffs, resizes and rollbacks ask this many objects at once (librbd's 10 are 10 round trips on a long link).
    "rbd_concurrent_management_ops": "64",
    # An operation that timed out says nothing about the maps.
    "rbd_invalidate_object_map_on_timeout": "false",
    # An OSD that came back has another address. A client that only asks now and then learns of it when an operation is
    # overdue; with librados' 10 s that is after an operation has timed out, so it would never learn.
    "objecter_timeout": "3",
    "objecter_tick_interval": "1",
    # In flight we bound bytes ourselves; the default of 1024 operations is less than a window of small ones.
    "objecter_inflight_ops": "24576",
    "objecter_inflight_op_bytes": str(512 << 20),
    # librbd 16 tells that an image is open before it has let go of it (ImageState::complete_action_unlock), most of all
    # at a snapshot: closed at once, its memory is torn. Of twelve processes that did so for half a minute six died; of
    # twelve with one thread, where what is told runs after what told it, none in 32,000 times.
    "librados_thread_count": "1",
}

_AT_A_TIME = 8
"""Pools asked at a time: each takes a round trip, or a time-out."""


@dataclass
class _Lane:
    guard: threading.Lock = field(default_factory=threading.Lock)
    handle: rados.Rados | None = None


class Cluster:
    """A connected site."""

    def __init__(self, site: Site, timeout: float) -> None:
        self.site = site.name
        self._site = site
        self._options = {
            **_OPTIONS,
            "client_mount_timeout": str(max(1, int(timeout))),
            "rados_mon_op_timeout": str(max(1, int(timeout))),
            "rados_osd_op_timeout": str(max(1, int(timeout))),
        }
        if site.keyring:
            self._options["keyring"] = str(site.keyring)
        self._guard = threading.Lock()
        self._lanes: dict[int, _Lane] = {}
        self._pools: dict[tuple[str, str], Pool] = {}
        self._checksums: Checksums | None = None
        for key, path in (("conf", site.conf), ("keyring", site.keyring)):
            if path and not path.is_file():
                raise errors.NotFound(
                    f"site {site.name}: there is no {path}", f"Correct '{key}' of this site in the configuration."
                )
        try:
            with translated(f"connect to site {site.name}"):
                self._rados = self._handle()
                # Whole seconds: later bindings refuse a float.
                self._rados.connect(timeout=max(1, int(timeout)))
        except errors.Unreachable as error:
            raise errors.Unreachable(
                f"site {site.name} did not answer within {timeout:g} s ({site.conf})",
                "Check the cluster's monitors and the network, or give it longer with --timeout.",
            ) from error
        except errors.NotFound as error:
            if not self._rados.conf_get("mon_host"):
                raise errors.UsageError(
                    f"site {site.name}: {site.conf} names no monitors (mon host)",
                    "Correct 'conf' of this site in the configuration.",
                ) from error
            raise errors.Denied(
                f"site {site.name}: no usable key for {site.client}",
                "Set 'keyring' of this site, or put the key where its ceph.conf looks for it.",
            ) from error
        except errors.Denied as error:
            raise errors.Denied(
                f"site {site.name} refuses {site.client}: wrong or unknown key",
                "Set 'id' and 'keyring' of this site; 'ceph auth get' at the cluster shows the key.",
            ) from error
        except errors.CephError as error:
            used = f"{site.conf}{f' with {site.keyring}' if site.keyring else ''}"
            raise errors.UsageError(
                f"site {site.name}: cannot use {used} ({str(error).rpartition(': ')[2]})",
                f"See what 'ceph -c {site.conf} -n {site.client} status' says.",
            ) from error
        with translated(f"fsid of site {site.name}"):
            self.fsid = str(self._rados.get_fsid())

    def _handle(self) -> rados.Rados:
        handle = rados.Rados(conffile=str(self._site.conf), name=self._site.client)
        for key, value in self._options.items():
            # Options come and go between releases; a missing one costs speed, not safety.
            with suppress(rados.ObjectNotFound):
                handle.conf_set(key, value)
        return handle

    def lane(self, number: int) -> rados.Rados:
        """Another connection, for reading only, made when first asked for."""
        with self._guard:
            lane = self._lanes.setdefault(number, _Lane())
        with lane.guard:
            if lane.handle is None:
                handle = self._handle()
                handle.connect(timeout=int(self._options["client_mount_timeout"]))
                lane.handle = handle
            return lane.handle

    def pool(self, name: str, namespace: str = "") -> Pool:
        with self._guard:
            found = self._pools.get((name, namespace))
        if found:
            return found
        try:
            with translated(f"open pool {self.site}:{name}"):
                ioctx = self._rados.open_ioctx(name)
                # Asks an OSD, which may not answer: other pools are not to wait for that.
                if namespace and not rbd.RBD().namespace_exists(ioctx, namespace):
                    raise errors.NotFound(
                        f"site {self.site} has no namespace {name}/{namespace}",
                        f"Make it with 'rbd namespace create {name}/{namespace}'.",
                    )
                ioctx.set_namespace(namespace)
        except errors.NotFound as error:
            if error.hint:
                raise
            raise errors.NotFound(
                f"site {self.site} has no pool {name!r}", f"It has: {', '.join(self.pools()) or 'none'}."
            ) from error
        pool = Pool(self, name, namespace, ioctx)
        with self._guard:
            first = self._pools.setdefault((name, namespace), pool)
        if first is not pool:
            pool.close()
        return first

    def pools(self) -> list[str]:
        """Names of the pools that are for RBD, or for nothing in particular."""
        with translated(f"list pools of site {self.site}"):
            names = [str(name) for name in self._rados.list_pools()]
        return [name for name in names if self._is_for_rbd(name)]

    def _is_for_rbd(self, name: str) -> bool:
        try:
            with translated(f"open pool {self.site}:{name}"), self._rados.open_ioctx(name) as ioctx:
                uses = [str(use) for use in ioctx.application_list()]
                return "rbd" in uses or not uses
        except errors.Error:
            return False

    def places(self) -> tuple[list[tuple[str, str]], list[errors.Error]]:
        if self._site.pools:
            split = (place.partition("/") for place in self._site.pools)
            return [(pool, namespace) for pool, _, namespace in split], []
        names = self.pools()
        with ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="places") as threads:
            asked = list(zip(names, threads.map(self._namespaces, names), strict=True))
        found = [(name, space) for name, spaces in asked if not isinstance(spaces, errors.Error) for space in spaces]
        silent = [spaces for _, spaces in asked if isinstance(spaces, errors.Error)]
        if silent and not found:
            raise silent[0]
        return found, silent

    def _namespaces(self, pool: str) -> list[str] | errors.Error:
        """The unnamed one among them."""
        try:
            with translated(f"list namespaces of {self.site}:{pool}"):
                return ["", *map(str, rbd.RBD().namespace_list(self.pool(pool).ioctx))]
        except errors.Denied:
            # A key may be good for one pool only: what it cannot read holds no tree of its own.
            return [""]
        except errors.Error as error:
            return error

    def address(self) -> str:
        return str(self._rados.get_addrs())

    def fence(self, address: str) -> None:
        with translated(f"fence {address} at site {self.site}"):
            self._rados.blocklist_add(address, 3600)
            self._rados.wait_for_latest_osdmap()

    def wait_for_latest_map(self) -> None:
        """OSDs answer what is asked from here on with the newest map, its blocklist included."""
        self._rados.wait_for_latest_osdmap()

    def open_pool_id(self, pool_id: int) -> rados.Ioctx:
        """For whoever closes it."""
        with translated(f"open pool {pool_id} of site {self.site}"):
            return self._rados.open_ioctx2(pool_id)

    def command(self, **words: Any) -> Any:
        """A mon command; its JSON answer."""
        with translated(f"ask site {self.site}"):
            code, out, message = self._rados.mon_command(json.dumps({**words, "format": "json"}), b"")
        if code:
            raise from_errno(code, f"site {self.site}: {words['prefix']}{f' ({message})' if message else ''}")
        return json.loads(out or b"null")

    def pool_name(self, pool_id: int) -> str:
        """Of a pool of this cluster, by its number."""
        with translated(f"look up pool {pool_id} of site {self.site}"):
            return str(self._rados.pool_reverse_lookup(pool_id))

    def full(self) -> dict[str, str]:
        """Why pools take no writes, by the names of those that take none. Asks monitors, not OSDs."""
        dump = self.command(prefix="osd dump")
        everywhere = "full" in str(dump.get("flags", "")).split(",")
        found = {}
        for entry in dump["pools"]:
            name, flags = entry["pool_name"], set(str(entry.get("flags_names", "")).split(","))
            if everywhere:
                found[name] = f"cluster {self.site} is full"
            elif "full_quota" in flags:
                found[name] = f"pool {self.site}:{name} is full (its quota)"
            elif "full" in flags:
                found[name] = f"pool {self.site}:{name} is full"
        return found

    def checksums(self) -> Checksums:
        """The client that asks OSDs for checksums, connected when first used."""
        with self._guard:
            if self._checksums is None:
                self._checksums = Checksums(str(self._site.conf), self._site.client, self._options)
            return self._checksums

    def close(self) -> None:
        with self._guard:
            if self._checksums:
                self._checksums.close()
            for pool in self._pools.values():
                pool.close()
            self._pools.clear()
            with translated(f"leave site {self.site}"):
                for lane in self._lanes.values():
                    with lane.guard:
                        if lane.handle:
                            lane.handle.shutdown()
                self._rados.shutdown()
