"""``retain``, ``hold``, ``resync``: which generations stay where, who holds them, and what to do when too many did."""

import argparse
import sys
import threading
import time
from typing import Any

from rbdtree import errors
from rbdtree.engine import hold, retain
from rbdtree.engine.claim import Claim
from rbdtree.engine.edge import Outcome
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.engine.resync import resync
from rbdtree.engine.retain import Retained
from rbdtree.model.document import Kind
from rbdtree.model.name import NodeName
from rbdtree.model.position import Position

from . import completion, flow, options, progress, render
from .completion import completes
from .session import Session, described


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parents = [options.common(), options.changing()]
    retaining = commands.add_parser(
        "retain", help="remove generations that no rule keeps and nobody needs; says why of each", parents=parents
    )
    completes(retaining.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    retaining.set_defaults(run=run_retain)

    holds = commands.add_parser("hold", help="who keeps which generation, and what for")
    actions = holds.add_subparsers(dest="action", required=True, metavar="ACTION")
    listing = actions.add_parser("ls", help="who holds what, why, and the space it takes", parents=[options.common()])
    completes(listing.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    listing.add_argument("--quick", action="store_true", help="documents only; does not ask the images for the space")
    listing.set_defaults(run=run_hold_ls)
    adding = actions.add_parser("add", help="keep a generation until the hold is removed", parents=parents)
    completes(adding.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    adding.add_argument("name", metavar="NAME", help="of the hold, to end it by")
    adding.add_argument("--at", metavar="G", help="the generation (default: the node's newest)")
    adding.add_argument("--reason", default="", metavar="TEXT", help="what for, for people")
    adding.set_defaults(run=run_hold_add)
    ending = actions.add_parser("rm", help="end a hold of a person, or of a host that is no more", parents=parents)
    completes(ending.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    ending.add_argument("name", metavar="NAME", help="as 'hold ls' shows it: a person's, or map:HOST")
    ending.add_argument("--at", metavar="G", help="on this generation only")
    ending.add_argument("--force", action="store_true", help="also of a host, which may have it mapped")
    ending.set_defaults(run=run_hold_rm)

    again = commands.add_parser(
        "resync", help="bring a node whose base was let go to the newest generation", parents=parents
    )
    completes(again.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    again.set_defaults(run=run_resync)


def _wanted(session: Session, text: str) -> tuple[Tree, list[Member]]:
    """The node, or every node of the tree that has generations of its own."""
    name = NodeName.parse(text)
    tree = session.tree(name.tree)
    if name.node:
        return tree, [tree.member(name.node)]
    found = [m for m in tree.members.values() if m.kind is not Kind.CLONE]
    return tree, sorted(found, key=lambda m: m.ref.name)


def run_retain(session: Session) -> int:
    tree, members = _wanted(session, session.options.tree)
    failed: list[errors.Error] = []
    rows: list[dict[str, Any]] = []
    for member in members:
        try:
            found = _retain(session, member)
        except errors.Error as error:
            failed.append(error)
            rows.append({"node": member.ref.name, "error": described(error)})
            session.say(error)
            continue
        rows.append(_retained(found))
        if not session.json:
            _show(session, found)
    if session.json:
        session.put({"tree": tree.name, "dry_run": session.dry_run, "nodes": rows}, "")
    return failed[0].exit_code if failed else 0


def _retain(session: Session, member: Member) -> Retained:
    node, _ = document_of(member)
    if session.dry_run:
        return retain.retain(session.sites, node, None, time.time(), dry_run=True)
    with Claim(node, "retain", wait=True) as claim:
        return retain.retain(session.sites, node, claim, time.time())


def _retained(found: Retained) -> dict[str, Any]:
    return {
        "node": found.node.partition("/")[2],
        "generations": [
            {
                "generation": str(v.position),
                "created_seconds": v.generation.created,
                "stays": not v.goes,
                "why": list(v.why),
            }
            for v in found.verdicts
        ],
        "removed": found.removed,
        "leftover": found.leftover,
        "resync": [name.partition("/")[2] for name in found.resyncs],
        "nothing": found.nothing,
        "skewed": found.skewed,
        "error": None,
    }


def _show(session: Session, found: Retained) -> None:
    if found.nothing:
        print(f"{found.node}: {found.nothing}")
        return
    if found.verdicts:
        goes = "would go" if session.dry_run else "gone"
        rows = [
            (str(v.position), render.moment(v.generation.created), goes if v.goes else "stays", "; ".join(v.why))
            for v in reversed(found.verdicts)
        ]
        print(f"{found.node}:")
        render.table(("GENERATION", "CUT", "", "WHY"), rows)
    going = sum(v.goes for v in found.verdicts)
    staying = len(found.verdicts) - going
    verb = "would be removed" if session.dry_run else "removed"
    print(f"{found.node}: {render.counted(going, 'generation')} {verb}, {staying} stay")
    if found.leftover:
        print(f"{found.node}: {render.counted(len(found.leftover), 'snapshot')} of an earlier retention {verb} as well")
    if found.skewed:
        print(f"rbdtree: {found.node}: {found.skewed}", file=sys.stderr)
    for name in found.resyncs:
        print(f"rbdtree: {name} needs a resync: what it stood on was let go", file=sys.stderr)
        print(f"  Run 'rbdtree resync {name}': it compares everything and writes what differs.", file=sys.stderr)


def run_hold_ls(session: Session) -> int:
    tree, members = _wanted(session, session.options.tree)
    found: list[hold.Holding] = []
    resyncs: list[dict[str, Any]] = []
    failed: list[errors.Error] = []
    for member in members:
        try:
            node, document = document_of(member)
            found += hold.listed(node, sizes=not session.options.quick)
        except errors.Error as error:
            failed.append(error)
            session.warn(error)
            continue
        resyncs += [
            {
                "node": r.name.partition("/")[2],
                "at": document.name,
                "generation": str(r.position),
                "reason": r.reason,
                "since_seconds": r.since,
            }
            for r in document.resyncs
        ]
    if session.json:
        rows = [
            {
                "node": h.node.partition("/")[2],
                "generation": str(h.position),
                "created_seconds": h.created,
                "kind": h.kind,
                "name": h.name or None,
                "reason": h.reason,
                "pinned_bytes": h.pinned_bytes,
                "kept_by_rule": h.ruled,
            }
            for h in found
        ]
        session.put({"tree": tree.name, "holds": rows, "resyncs": resyncs}, "")
        return failed[0].exit_code if failed else 0
    if found:
        render.table(
            ("NODE", "GENERATION", "CUT", "KIND", "WHY", "TAKES"),
            [
                (
                    h.node.partition("/")[2],
                    str(h.position),
                    render.moment(h.created),
                    h.kind,
                    ": ".join(part for part in (h.name, h.reason) if part)
                    + (" (a rule keeps it too)" if h.ruled else ""),
                    "-" if h.pinned_bytes is None else render.size(h.pinned_bytes),
                )
                for h in found
            ],
            right=(5,),
        )
    else:
        print(f"{session.options.tree}: nobody holds anything")
    for entry in resyncs:
        print(f"{entry['node']} needs a resync: {entry['generation']} was let go at {entry['at']} ({entry['reason']})")
    return failed[0].exit_code if failed else 0


def _at(session: Session) -> Position | None:
    return Position.parse(session.options.at) if session.options.at else None


def run_hold_add(session: Session) -> int:
    _, member = session.find(session.options.node)
    node, document = document_of(member)
    name, reason = session.options.name, " ".join(session.options.reason.split())
    position = hold.add(node, name, _at(session), reason, dry_run=session.dry_run)
    session.put(
        {
            "node": document.full_name,
            "name": name,
            "generation": str(position),
            "reason": reason,
            "dry_run": session.dry_run,
        },
        f"{document.full_name}: {position} {'would stay' if session.dry_run else 'stays'} until hold {name} is removed",
    )
    return 0


def run_hold_rm(session: Session) -> int:
    _, member = session.find(session.options.node)
    node, document = document_of(member)
    name = session.options.name
    gone = hold.remove(node, name, _at(session), force=session.options.force, dry_run=session.dry_run)
    listed = ", ".join(map(str, gone))
    session.put(
        {
            "node": document.full_name,
            "name": name,
            "generations": [str(position) for position in gone],
            "dry_run": session.dry_run,
        },
        f"{document.full_name}: hold {name} on {listed} {'would end' if session.dry_run else 'is over'}",
    )
    return 0


def run_resync(session: Session) -> int:
    tree, member = session.find(session.options.node)
    node, document = document_of(member)
    node.name = document.full_name
    stop = threading.Event()
    found: list[Outcome | None] = []
    with progress.reporter(session) as reporter:
        flow.in_background(
            lambda: found.append(resync(session.sites, node, reporter, stop, dry_run=session.dry_run)), stop, reporter
        )
    outcome = found[0] or Outcome(document.full_name)
    if found[0] is None and not session.json:
        print(f"{document.full_name} needs no resync: a delta leads to it ('rbdtree sync {document.full_name}')")
        return 0
    return flow.say(session, tree, [outcome], tree.position)
