"""``mount``, ``umount``: file systems of a tree on this host."""

import argparse
import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

from rbdtree import errors
from rbdtree.engine.forest import document_of
from rbdtree.engine.node import Node
from rbdtree.host import process, source
from rbdtree.host.maps import Wish
from rbdtree.host.mounts import Mounts, follow
from rbdtree.host.state import MountRecord

from . import completion, host, options
from .completion import completes
from .session import VERSION, Session


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parents = [options.common(), options.changing()]
    mounting = commands.add_parser("mount", help="mount the file system of a node on this host", parents=parents)
    completes(mounting.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    mounting.add_argument("directory", metavar="DIR")
    host.add_source(mounting)
    host.add_how(mounting)
    mounting.add_argument("-o", "--options", metavar="OPTIONS", default="", help="more options for mount(8)")
    mounting.add_argument(
        "--follow", action="store_true", help="keep it on the node's newest generation, until stopped or unmounted"
    )
    mounting.add_argument("--on-switch", metavar="CMD", default="", help="with --follow: run this after each switch")
    mounting.set_defaults(run=run_mount)

    leaving = commands.add_parser("umount", help="unmount it, and unmap what was mapped for it", parents=parents)
    leaving.add_argument("directory", metavar="DIR")
    leaving.add_argument("--force", action="store_true", help="also when files are open: they stay valid until closed")
    leaving.set_defaults(run=run_umount)


def run_mount(session: Session) -> int:
    given = session.options
    if given.follow and (given.write or given.at):
        raise errors.UsageError(
            "--follow keeps a read-only mount on the newest generation: it goes with neither --write nor --at",
            "Leave one of them out.",
        )
    if given.on_switch and not given.follow:
        raise errors.UsageError("--on-switch goes with --follow", "Add --follow.")
    mounts, done, wish, found = mount_one(session, follows=given.follow)
    if session.dry_run:
        text = f"would mount {found.described} of {found.full_name} at {done.directory}"
        session.put({**_value(done, None, found), "dry_run": True}, text)
        return 0
    _show(session, mounts, done, found)
    if given.follow:
        _follow(session, mounts, done, wish)
    return 0


def mount_one(session: Session, *, follows: bool) -> tuple[Mounts, MountRecord, Wish, source.Source]:
    """Mounts what the options name, once. ``follows``: something will keep it on the newest generation."""
    given = session.options
    found, copy_on_read = host.find_source(session, given.node)
    wish = host.wish_of(session, copy_on_read)
    mounts = Mounts(host.maps_of(session))
    record = MountRecord(
        os.path.realpath(given.directory),
        found.tree,
        found.node,
        "",
        write=given.write,
        follow=follows,
        on_switch=given.on_switch,
        options=given.options,
        follower=os.getpid() if given.follow else 0,
    )
    if session.dry_run:
        mounts.maps.foreseen(found, wish)
        return mounts, record, wish, found
    if given.follow:
        _check_alone(mounts, record.directory)
    done = mounts.mount(found, wish, record, exact=bool(given.at))
    mapped = mounts.state.record(done.key)
    if mapped:
        host.warn_of_freeze(session, mapped)
    return mounts, done, wish, found


def _check_alone(mounts: Mounts, directory: str) -> None:
    there = mounts.state.mount(directory)
    if there and there.follower and _follows(there):
        raise errors.Busy(
            f"{directory} is followed already (process {there.follower})", "End that process, or 'rbdtree umount' it."
        )


def _follows(record: MountRecord) -> bool:
    """Whether its follower lives: a pid may be another's by now."""
    return record.follower != os.getpid() and process.mentions(record.follower, ("rbdtree", "follow"))


def _value(record: MountRecord, device: str | None, shown: source.Source) -> dict[str, Any]:
    return {
        "node": f"{record.tree}/{record.node}",
        "directory": record.directory,
        "what": shown.what,
        "generation": shown.position,
        "device": device,
        "fstype": record.fstype or None,
    }


def _show(session: Session, mounts: Mounts, record: MountRecord, shown: source.Source) -> None:
    mapped = mounts.state.record(record.key)
    shown = mapped.source if mapped else shown
    device = mapped.device if mapped else None
    text = f"{shown.described} of {shown.full_name} at {record.directory} ({device}, {record.fstype})"
    if session.json and session.options.follow:
        # A line each: it runs until it is stopped.
        print(json.dumps({"version": VERSION, **_value(record, device, shown), "dry_run": False}), flush=True)
    else:
        session.put({**_value(record, device, shown), "dry_run": False}, text)
        sys.stdout.flush()


def _follow(session: Session, mounts: Mounts, record: MountRecord, wish: Wish) -> None:
    stop, woken = threading.Event(), threading.Event()

    def end(*_: object) -> None:
        stop.set()
        woken.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    _, member = session.find(session.options.node)
    node, _ = document_of(member)
    watch = _Watch(node, woken)

    def newest() -> tuple[source.Source, Wish]:
        watch.renew()
        document = node.read()
        return source.generation(session.sites, session.config, document, None), wish

    def wait(seconds: float) -> bool:
        woken.wait(seconds)
        woken.clear()
        return stop.is_set()

    follow(mounts, record, newest, wait, lambda done, shown: _show(session, mounts, done, shown))


class _Watch:
    """Wakes when the node's document changes; where that cannot be had, the clock does."""

    def __init__(self, node: Node, woken: threading.Event) -> None:
        self._node = node
        self._woken = woken
        self._watch: Any = None

    def renew(self) -> None:
        with suppress(errors.Error):
            if self._watch is None or not self._watch.alive():
                if self._watch is not None:
                    self._watch.close()
                self._watch = self._node.pool.watch(self._node.object, self._woken.set)


def run_umount(session: Session) -> int:
    given = session.options
    directory = os.path.realpath(given.directory)
    mounts = Mounts(host.maps_of(session))
    record = mounts.state.mount(directory)
    if session.dry_run:
        session.put({"directory": directory, "kept": [], "dry_run": True}, f"would unmount {directory}")
        return 0
    kept = mounts.umount(directory, force=given.force)
    if record and record.follower and _follows(record):
        # It would see that the mount has gone, too; this is quicker.
        with suppress(ProcessLookupError):
            os.kill(record.follower, signal.SIGTERM)
    devices = [r.device for key in kept if (r := mounts.state.record(key))]
    text = f"unmounted {directory}"
    if devices:
        text += f"; {', '.join(devices)} stays mapped until its files are closed: 'rbdtree doctor --mend' then"
    session.put({"directory": directory, "kept": devices, "dry_run": False}, text)
    return 0


def end_follower(mounts: Mounts, directory: str) -> None:
    """Stops whoever follows for this mount; the mount stays."""
    record = mounts.state.mount(directory)
    if record and record.follower and _follows(record):
        with suppress(ProcessLookupError):
            os.kill(record.follower, signal.SIGTERM)
