"""``map``, ``unmap``, ``mapped``: block devices of this host."""

import argparse
from contextlib import suppress
from typing import Any

from rbdtree import errors
from rbdtree.engine.forest import Tree, document_of
from rbdtree.host import portion as portions
from rbdtree.host import quiesce, source
from rbdtree.host.driver import NAMES
from rbdtree.host.holds import Keeper
from rbdtree.host.maps import Maps, Seen, Wish
from rbdtree.host.state import Record, State
from rbdtree.model import policy
from rbdtree.model.name import NodeName
from rbdtree.model.position import Position

from . import completion, options, render
from .completion import completes
from .session import Session


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parents = [options.common(), options.changing()]
    mapping = commands.add_parser(
        "map", help="make a generation or a branch a block device of this host", parents=parents
    )
    completes(mapping.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    add_source(mapping)
    add_how(mapping)
    mapping.add_argument(
        "--portion", metavar="A..B", help="only this range of the volume, such as 0..1G, as a device that begins at 0"
    )
    mapping.set_defaults(run=run_map)

    unmapping = commands.add_parser("unmap", help="take a block device away", parents=parents)
    unmapping.add_argument("what", metavar="TREE/NODE|DEVICE", nargs="?")
    unmapping.add_argument("--at", metavar="G", help="of the node's maps, the one of this generation")
    unmapping.add_argument("--write", action="store_true", help="of the node's maps, the writable one")
    unmapping.add_argument("--all", action="store_true", help="everything that is mapped here")
    unmapping.add_argument(
        "--force", action="store_true", help="also when it is in use: whoever uses it gets I/O errors from then on"
    )
    unmapping.set_defaults(run=run_unmap)

    listing = commands.add_parser("mapped", help="list what is mapped on this host", parents=[options.common()])
    listing.set_defaults(run=run_mapped)


def add_source(parser: argparse.ArgumentParser) -> None:
    """Which bytes."""
    parser.add_argument("--at", metavar="G", help="this generation (default: the newest that the node has)")
    parser.add_argument(
        "--write",
        action="store_true",
        help="to write to: the node's branch, made if need be; at the root, the volume itself",
    )
    parser.add_argument("--branch", action="store_true", help="with --write at the root: its branch, not the volume")


def add_how(parser: argparse.ArgumentParser) -> None:
    """By what."""
    parser.add_argument("--driver", choices=NAMES, help="default: the first of these that this host has")
    parser.add_argument("--exclusive", action="store_true", help="with --write: nobody else writes while it is mapped")
    parser.add_argument(
        "--quiesce", action="store_true", help="with --write: freeze its file systems while a snapshot is made of it"
    )
    parser.add_argument("--quiesce-hook", metavar="CMD", help="with --quiesce: run this before the freeze and after it")


def maps_of(session: Session) -> Maps:
    """The maps of this host, by this configuration."""
    return Maps(State(), session.config.host, Keeper(session.sites), session.warn)


def find_source(session: Session, text: str) -> tuple[source.Source, bool]:
    """What the options name, and whether reads shall fill a branch."""
    given = session.options
    at = Position.parse(given.at) if given.at else None
    for option, needs in (("exclusive", given.exclusive), ("quiesce", given.quiesce), ("branch", given.branch)):
        if needs and not given.write:
            raise errors.UsageError(
                f"--{option} goes with --write: a generation never changes", f"Leave out --{option}, or add --write."
            )
    if given.quiesce_hook and not given.quiesce:
        raise errors.UsageError("--quiesce-hook goes with --quiesce", "Add --quiesce.")
    _, member = session.find(text)
    node, document = document_of(member)
    if not given.write:
        return source.generation(session.sites, session.config, document, at), False
    expected = source.foreseen(session.sites, session.config, node, at, branch=given.branch)
    if session.dry_run:
        return expected, False
    # A branch that nothing here can map is not made.
    maps_of(session).foreseen(expected, wish_of(session, False))
    found = source.writable(session.sites, session.config, node, at, branch=given.branch)
    wanted = policy.effective(document.policy, document.tree_policy).copy_on_read
    return found, wanted and found.what == source.BRANCH


def wish_of(session: Session, copy_on_read: bool) -> Wish:
    given = session.options
    portion = getattr(given, "portion", None)
    return Wish(
        driver=given.driver or "",
        portion=portions.parse(portion) if portion else None,
        exclusive=given.exclusive,
        quiesce=given.quiesce,
        hook=given.quiesce_hook or "",
        copy_on_read=copy_on_read,
        boot=getattr(given, "boot", ""),
    )


def map_one(session: Session) -> Record:
    """Maps what the options name, and warns of what it cannot do."""
    found, copy_on_read = find_source(session, session.options.node)
    maps, wish = maps_of(session), wish_of(session, copy_on_read)
    if session.dry_run:
        return maps.foreseen(found, wish)
    record = maps.map(found, wish)
    warn_of_freeze(session, record)
    return record


def warn_of_freeze(session: Session, record: Record) -> None:
    """Where snapshots that are made elsewhere freeze nothing; of a branch, none does."""
    if not record.quiesce or quiesce.asked_elsewhere(record):
        return
    if record.source.what == source.BRANCH:
        session.warn(
            errors.Unsupported(
                f"{record.driver} is not told of snapshots: the branch of {record.source.full_name} is not frozen, and "
                "a push takes what a power cut would leave",
                "Unmount it before a push, or map it with rbd-nbd, which freezes for every snapshot.",
            )
        )
    else:
        session.warn(
            errors.Unsupported(
                f"{record.driver} is not told of snapshots: {record.source.full_name} is frozen by 'rbdtree cut' "
                "on this host only",
                "rbd-nbd freezes for every snapshot, wherever it is made.",
            )
        )


def run_map(session: Session) -> int:
    record = map_one(session)
    if session.dry_run:
        text = f"would map {record.source.described} of {record.source.full_name} with {record.driver}"
        session.put({**_value(record), "device": None, "dry_run": True}, text)
        return 0
    session.put({**_value(record), "dry_run": False}, record.device)
    if not session.json and not session.options.no_progress:
        session.tell(f"{record.source.described} of {record.source.full_name}, by {record.driver}")
    return 0


def _value(record: Record) -> dict[str, Any]:
    portion = record.portion
    return {
        "node": record.source.full_name,
        "what": record.source.what,
        "generation": record.source.position,
        "driver": record.driver,
        "device": record.device,
        "image": f"{record.source.site}:{record.source.path}",
        "size_bytes": record.size_bytes,
        "portion": {"offset_bytes": portion[0], "length_bytes": portion[1]} if portion else None,
        "cache_bytes": record.cache_bytes,
    }


# -- unmap


def run_unmap(session: Session) -> int:
    given = session.options
    maps = maps_of(session)
    chosen = _chosen(session, maps)
    done: list[str] = []
    failed: errors.Error | None = None
    for record in chosen:
        name = f"{record.device or record.key} ({record.source.described} of {record.source.full_name})"
        if session.dry_run:
            done.append(f"would unmap {name}")
            continue
        try:
            maps.unmap(record, force=given.force)
            done.append(f"unmapped {name}")
        except errors.Error as error:
            if not given.all:
                raise
            session.say(error)
            failed = failed or error
    devices = [record.device or None for record in chosen]
    session.put({"devices": devices, "dry_run": session.dry_run}, "\n".join(done) or "nothing is mapped here")
    return failed.exit_code if failed else 0


def _chosen(session: Session, maps: Maps) -> list[Record]:
    given = session.options
    records = maps.state.records()
    if given.all == bool(given.what):
        raise errors.UsageError("give a node, a device, or --all", "See 'rbdtree mapped'.")
    if given.all:
        return records
    text = given.what
    if text.startswith("/"):
        found = [r for r in records if text in (r.device, r.base) or (not r.device and maps.find(r) == text)]
        if len(found) > 1:
            # An unmap that died left its note, and its device went to another map.
            found = [r for r in found if maps.find(r)] or found
    else:
        name = NodeName.parse(text)
        found = [r for r in records if r.source.full_name == str(name)]
        if given.at:
            found = [r for r in found if not r.source.write and r.source.position == str(Position.parse(given.at))]
        if given.write:
            found = [r for r in found if r.source.write]
    if not found:
        raise errors.NotFound(f"{text} is not mapped here", "See 'rbdtree mapped'.")
    if len(found) > 1:
        devices = ", ".join(r.device or r.key for r in found)
        raise errors.UsageError(
            f"{text} is mapped {len(found)} times here ({devices})", "Name the device, or give --at or --write."
        )
    return found


# -- mapped


def run_mapped(session: Session) -> int:
    maps = maps_of(session)
    seen = maps.seen()
    trees = _trees(session, {s.record.source.tree_id for s in seen})
    rows = [_row(one, trees.get(one.record.source.tree_id)) for one in seen]
    budget = session.config.host.cache_bytes
    if session.json:
        given = sum(one.record.cache_bytes or 0 for one in seen)
        session.put({"maps": rows, "cache_bytes": budget, "cache_given_bytes": given}, "")
        return 0
    if not rows:
        print("nothing is mapped here")
        return 0
    render.table(
        ("NODE", "WHAT", "BEHIND", "DRIVER", "DEVICE", "SIZE", "CACHE", "HITS", "USED BY"),
        [_cells(one, row) for one, row in zip(seen, rows, strict=True)],
        right=(5, 6),
    )
    for one in seen:
        _remarks(session, one)
    return 0


def _remarks(session: Session, one: Seen) -> None:
    record = one.record
    name = record.device or record.key
    if not one.device:
        session.warn(
            errors.HostFailed(
                f"{name}: its device is gone, or was never made",
                f"Map {record.source.full_name} again, or 'rbdtree unmap' it.",
            )
        )
    if one.freeze and one.freeze.trouble:
        session.warn(
            errors.HostFailed(
                f"{name}: the last freeze was not clean: {one.freeze.trouble}",
                "That generation is crash-consistent; see the hook, and 'freeze_limit' of [host].",
            )
        )


def _trees(session: Session, wanted: set[str]) -> dict[str, Tree]:
    """Those that can be seen, by id: what is mapped is known without."""
    found: dict[str, Tree] = {}
    for tree_id in wanted:
        with suppress(errors.Error):
            found[tree_id] = session.tree(tree_id)
    return found


def behind(record: Record, tree: Tree | None) -> int | None:
    """Generations that the root has and this map does not show; None when that cannot be told."""
    if record.source.what == source.VOLUME:
        return 0
    root = tree.root.document if tree and tree.root else None
    if root is None:
        return None
    return sum(g.position > Position.parse(record.source.position) for g in root.generations)


def _row(one: Seen, tree: Tree | None) -> dict[str, Any]:
    record = one.record
    freeze = one.freeze
    return {
        **_value(record),
        "device": one.device or None,
        "behind": behind(record, tree),
        "exclusive": record.exclusive,
        "quiesce": record.quiesce,
        "used_by": list(one.users),
        "cache_hits": one.hits.hits if one.hits else None,
        "cache_misses": one.hits.misses if one.hits else None,
        "last_freeze": {
            "seconds": round(max(0.0, freeze.ended - freeze.began), 3),
            "directories": list(freeze.directories),
            "trouble": freeze.trouble or None,
        }
        if freeze
        else None,
        "mapped_seconds": record.started,
    }


def _cells(one: Seen, row: dict[str, Any]) -> tuple[str, ...]:
    record = one.record
    late, rate = row["behind"], one.hits.rate if one.hits else None
    what = record.source.described
    if record.portion:
        what += f", {record.portion[0]}..{record.portion[0] + record.portion[1]}"
    return (
        record.source.full_name,
        what,
        "?" if late is None else f"{late} gen" if late else "-",
        record.driver,
        one.device or "gone",
        render.size(record.size_bytes),
        render.size(record.cache_bytes) if record.cache_bytes is not None else "-",
        f"{rate:.0%}" if rate is not None else "-",
        ", ".join(one.users) or "-",
    )
