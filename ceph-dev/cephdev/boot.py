"""Make a cluster, or start one whose data is there. How one is made:

    keys, monmap -> mon store -> mon starts ------> osd new, pool -> OSD starts -> pool init
                             `-> OSD stores, all at once --------'

The longest by far are the OSD's store (0.7 s of 1.5 s) and its start (0.4 s).
"""

import concurrent.futures
import contextlib
import dataclasses
import functools
import subprocess
import time
import uuid
from dataclasses import dataclass

from cephdev import Failure, address, cephconf, release
from cephdev.cluster import NEW_MARKER, Cluster, Marker
from cephdev.daemon import Daemon
from cephdev.monitor import Monitor, listens, wait_for

POOL = "rbd"
CAPS = {
    "mon.": {"mon": "allow *"},
    "client.admin": {"mon": "allow *", "osd": "allow *", "mds": "allow *", "mgr": "allow *"},
    "osd": {"mon": "allow profile osd", "mgr": "allow profile osd", "osd": "allow *"},
    "mgr.x": {"mon": "allow profile mgr", "osd": "allow *", "mds": "allow *"},
}


@dataclass(frozen=True)
class Wish:
    """What `up` was asked for."""

    osds: int = 1
    mgr: bool = False
    objectstore: str = "bluestore"
    size: int | None = None
    netns: str | None = None
    ip: str | None = None
    conf: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    cluster: Cluster
    seconds: float
    did: str  # "made", "started", "running"
    remarks: tuple[str, ...] = ()


def bring_up(cluster: Cluster, wish: Wish) -> Outcome:
    """Whatever state it is in; in a thread of its own, because a network namespace belongs to a thread."""
    began = time.monotonic()
    with cluster.locked(make=True):
        marker = cluster.marker()
        remarks: tuple[str, ...] = ()
        if marker is None and (strangers := set(cluster.directory.iterdir()) - {cluster.directory / NEW_MARKER}):
            raise Failure(
                f"{cluster.directory} has files in it ({min(strangers).name}, ...) and was not made by "
                "ceph-dev; choose another name or --dir"
            )
        if marker and marker.state == "ready":
            address.enter_namespace(marker.netns)
            if not lost_its_memory(cluster, marker):
                did, remarks = start(cluster, marker)
                return Outcome(cluster, time.monotonic() - began, did, remarks + differences(marker, wish))
            remarks = ("its memstore was lost when it stopped, made anew",)
        elif marker:
            remarks = ("was half-made, made anew",)
        if marker:
            cluster.end_daemons(gently=False)
            cluster.empty()
        try:
            address.enter_namespace(wish.netns)
            make(cluster, wish)
        except BaseException:
            if marker is None:
                with contextlib.suppress(OSError):  # not empty: then there is something to look at
                    cluster.directory.rmdir()
            raise
    return Outcome(cluster, time.monotonic() - began, "made", remarks)


def lost_its_memory(cluster: Cluster, marker: Marker) -> bool:
    return marker.objectstore == "memstore" and all(osd.state() == "dead" for osd in cluster.osds())


def differences(marker: Marker, wish: Wish) -> tuple[str, ...]:
    """What was asked for and is otherwise; options that were not given ask for nothing."""
    pairs = {
        "--osds": (marker.osds, wish.osds, Wish.osds),
        "--mgr": (marker.mgr, wish.mgr, Wish.mgr),
        "--objectstore": (marker.objectstore, wish.objectstore, Wish.objectstore),
        "--netns": (marker.netns, wish.netns, Wish.netns),
        "--addr": (marker.ip, wish.ip, Wish.ip),
    }
    return tuple(
        f"made with {option} {has or 'off'}, left so"
        for option, (has, wants, default) in pairs.items()
        if wants not in (has, default)
    )


def make(cluster: Cluster, wish: Wish) -> None:
    installed = release.installed()
    fsid = str(uuid.uuid4())
    with address.reserved(cluster.directory, wish.osds, wish.ip) as at:
        marker = Marker(
            fsid=fsid,
            state="booting",
            ip=at.ip,
            port=at.port,
            span=at.span,
            osds=wish.osds,
            mgr=wish.mgr,
            objectstore=wish.objectstore,
            netns=wish.netns,
            ceph=installed.text,
        )
        cluster.write_marker(marker)
    try:
        build(cluster, marker, wish, installed)
    except BaseException:
        cluster.end_daemons(gently=False)
        raise
    cluster.write_marker(dataclasses.replace(marker, state="ready"))


def build(cluster: Cluster, marker: Marker, wish: Wish, installed: release.Release) -> None:
    for folder in ("run", "log", "mon.a"):
        (cluster.directory / folder).mkdir()
    conf = cephconf.text(
        cluster.directory,
        marker.fsid,
        marker.address,
        objectstore=wish.objectstore,
        size=wish.size,
        extra=dict(wish.conf),
    )
    cluster.conf.write_text(conf)
    write_keyring(cluster, installed)
    write_monmap(cluster, marker, installed)
    mon, *others = cluster.daemons()
    osds = cluster.osds()
    uuids = {osd.ident: str(uuid.uuid4()) for osd in osds}
    mon.make_store("--monmap", str(cluster.directory / "monmap"), "--keyring", str(cluster.keyring))
    with concurrent.futures.ThreadPoolExecutor(max_workers=len(osds)) as pool:
        stores = [pool.submit(osd.make_store, "--osd-uuid", uuids[osd.ident]) for osd in osds]
        running = [(mon, mon.start())]
        wait_for(lambda: listens(marker.address), f"{cluster.name}: mon.a listening", running)
        with Monitor(cluster.conf) as monitor:
            for osd in osds:
                monitor.ask("osd new", uuid=uuids[osd.ident], id=int(osd.ident))
            monitor.ask("osd pool create", pool=POOL, pg_num=8)
            for store in stores:
                store.result()
            running += [(daemon, daemon.start()) for daemon in others]
            wait_for(lambda: len(monitor.osds_up()) == len(osds), f"{cluster.name}: {len(osds)} OSDs up", running)
            if marker.mgr:
                wait_for(lambda: monitor.manager() > 0, f"{cluster.name}: mgr.x available", running)
            monitor.check_pool(POOL, new=True)


def write_keyring(cluster: Cluster, installed: release.Release) -> None:
    sections = []
    for daemon in [None, *cluster.daemons()]:
        name = "client.admin" if daemon is None else "mon." if daemon.kind == "mon" else daemon.name
        caps = CAPS["osd" if daemon and daemon.kind == "osd" else name]
        sections.append(f"[{name}]\n\tkey = {new_key(installed)}\n")
        sections += [f'\tcaps {service} = "{cap}"\n' for service, cap in caps.items()]
    cluster.keyring.touch(mode=0o600)
    cluster.keyring.write_text("".join(sections))


def new_key(installed: release.Release) -> str:
    return ran(["ceph-authtool", *installed.key_options, "--gen-print-key"]).strip()


def write_monmap(cluster: Cluster, marker: Marker, installed: release.Release) -> None:
    path = str(cluster.directory / "monmap")
    ran(["monmaptool", "--create", "--fsid", marker.fsid, "--addv", "a", marker.address.monitor, path])
    if installed.min_mon_release:
        ran(["monmaptool", "--set-min-mon-release", installed.min_mon_release, path])
    if installed.monmap_cipher_options:
        ran(["monmaptool", *installed.monmap_cipher_options, path])


def ran(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    except FileNotFoundError:
        raise Failure(f"{argv[0]} is not installed; run ceph-dev/install") from None
    except subprocess.CalledProcessError as error:
        raise Failure(f"{' '.join(argv)}: {error.stderr.strip() or error.returncode}") from None


def start(cluster: Cluster, marker: Marker) -> tuple[str, tuple[str, ...]]:
    """Start what is dead, wake what is paused; a running cluster is left alone."""
    remarks = []
    for daemon in cluster.daemons():
        if daemon.state() == "paused":
            daemon.resume()
            remarks.append(f"{daemon.name} was paused, resumed")
    dead = [daemon for daemon in cluster.daemons() if daemon.state() == "dead"]
    if not dead:
        return "running", tuple(remarks)
    try:
        start_daemons(cluster, marker, dead)
    except BaseException:
        if len(dead) == len(cluster.daemons()):
            cluster.end_daemons(gently=True)
        raise
    if len(dead) < len(cluster.daemons()):
        remarks.append(f"started {', '.join(daemon.name for daemon in dead)}")
    return "started", tuple(remarks)


def start_one(cluster: Cluster, daemon: Daemon) -> None:
    marker = cluster.must_exist()
    mon = cluster.daemons()[0]
    if daemon != mon and (state := mon.state()) != "running":
        raise Failure(
            f"{cluster.name}: {daemon.name} cannot come up, because {mon.name} is {state}; "
            f"first: ceph-dev/daemon --dir {cluster.directory.parent} {cluster.name} {mon.name} "
            f"{'resume' if state == 'paused' else 'start'}"
        )
    address.enter_namespace(marker.netns)
    start_daemons(cluster, marker, [daemon])


def start_daemons(cluster: Cluster, marker: Marker, dead: list[Daemon]) -> None:
    """Returns when all of them are up and the pool answers."""
    running = []
    for mon in (daemon for daemon in dead if daemon.kind == "mon"):
        running.append((mon, mon.start()))
        wait_for(lambda: listens(marker.address), f"{cluster.name}: mon.a listening", running)
    with Monitor(cluster.conf) as monitor:
        # The maps may still call a killed daemon up: it is back when it is up since a later epoch.
        osds_before, manager_before = monitor.osds_up(), monitor.manager()
        others = [daemon for daemon in dead if daemon.kind != "mon"]
        running += [(daemon, daemon.start()) for daemon in others]

        def is_back(daemon: Daemon) -> bool:
            if daemon.kind == "mgr":
                return monitor.manager() not in (0, manager_before)
            return monitor.osds_up().get(daemon.ident, 0) > osds_before.get(daemon.ident, 0)

        for daemon in others:
            wait_for(functools.partial(is_back, daemon), f"{cluster.name}: {daemon.name} up", running)
        if all(osd.state() == "running" for osd in cluster.osds()):
            monitor.check_pool(POOL, new=False)
