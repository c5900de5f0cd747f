"""``status``, ``log``, ``diff``, ``marks``: nothing here changes anything."""

import argparse
from dataclasses import asdict
from typing import Any

from rbdtree import errors
from rbdtree.engine import difference, marks
from rbdtree.engine import report as reports
from rbdtree.engine.forest import look
from rbdtree.model.name import NodeName
from rbdtree.model.position import Position

from . import completion, options, render, watch
from .completion import completes
from .portion import portion_value
from .session import Session, described
from .writing import diff_branch, push_value


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    common = [options.common()]
    status = commands.add_parser("status", help="the trees, drawn", parents=common)
    completes(status.add_argument("tree", nargs="?", metavar="TREE"), completion.trees)
    status.add_argument("--quick", action="store_true", help="documents only; does not look at the images")
    status.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=1.0,
        metavar="SECONDS",
        help="draw them again and again (every second), from documents, with rates",
    )
    status.set_defaults(run=run_status)

    log = commands.add_parser("log", help="generations: when, how large a delta, which nodes have them", parents=common)
    completes(log.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    log.set_defaults(run=run_log)

    diff = commands.add_parser(
        "diff", help="what changed between two generations, or what is on a branch", parents=common
    )
    completes(
        diff.add_argument(
            "tree", metavar="TREE[/NODE]", help="the volume, or what a node's branch changed and has not pushed"
        ),
        completion.trees_and_nodes,
    )
    diff.add_argument(
        "--since",
        metavar="G",
        help="the older generation (epoch.sequence; 1.0 is the empty volume)",
    )
    diff.add_argument("--to", metavar="G", help="the newer one (default: the newest)")
    diff.add_argument("--totals", action="store_true", help="sums only, not every extent")
    diff.set_defaults(run=run_diff)

    listing = commands.add_parser("marks", help="everything of ours on the sites, and whose it is", parents=common)
    completes(listing.add_argument("tree", nargs="?", metavar="TREE"), completion.trees)
    listing.set_defaults(run=run_marks)


def run_status(session: Session) -> int:
    wanted = session.whole(session.options.tree) if session.options.tree is not None else None
    if session.options.watch is not None:
        if not 0.2 <= session.options.watch <= 3600:
            raise errors.UsageError(f"--watch takes 0.2 to 3600 seconds, not {session.options.watch:g}")
        return watch.run(session, wanted, session.options.watch, _tree)
    forest = look(session.sites, wanted)
    trees = [forest.tree(wanted)] if wanted else [tree for tree in forest.trees if tree.members]
    if not trees and forest.problems:
        raise forest.problems[0]
    for problem in forest.problems:
        session.warn(problem)
    found = [reports.report(session.sites, tree, check=not session.options.quick) for tree in trees]
    problems = [described(problem) for problem in forest.problems]
    if session.json:
        session.put({"trees": [_tree(report) for report in found], "problems": problems}, "")
    elif found:
        render.status(found)
    else:
        print("no trees; make one with 'rbdtree init TREE --node NAME --image SITE:POOL/IMAGE'")
    return 0


def _tree(report: reports.TreeReport) -> dict[str, Any]:
    return {
        "tree": report.name,
        "id": report.tree_id,
        "size_bytes": report.size_bytes,
        "epoch": report.position.epoch,
        "sequence": report.position.sequence,
        "nodes": [_node(node) for node in report.nodes],
    }


def _node(node: reports.NodeReport) -> dict[str, Any]:
    position = node.position or Position(1, 0)
    return {
        "name": node.name,
        "id": node.node_id,
        "parent": node.parent,
        "kind": str(node.kind),
        "site": node.site,
        "image": node.image,
        "state": str(node.state),
        "epoch": position.epoch,
        "sequence": position.sequence,
        "lag_generations": node.lag_generations,
        "lag_seconds": node.lag_seconds,
        "lag_bytes": node.lag_bytes,
        "size_bytes": node.size_bytes,
        "generations": node.generations,
        "doing": node.doing,
        "problem": node.problem,
        "failures": node.failures,
        "next_try_seconds": node.next_try,
        "branch": (
            {"image": node.branch, "base": str(node.branch_base), "uplink": node.uplink} if node.branch else None
        ),
        "pushes": [push_value(p) for p in node.pushes],
        "portion": portion_value(node.portion),
        "portion_pending": node.portion_pending,
        "intent": str(node.intent) if node.intent else None,
        "intent_done_bytes": node.intent_done_bytes,
    }


def run_log(session: Session) -> int:
    name = NodeName.parse(session.options.tree)
    tree = session.tree(name.tree)
    entries = reports.log(tree, name.node)
    if session.json:
        rows = [
            {
                "generation": str(e.position),
                "epoch": e.position.epoch,
                "sequence": e.position.sequence,
                "created_seconds": e.created,
                "size_bytes": e.size_bytes,
                "delta_bytes": e.delta_bytes,
                "author": e.author or None,
                "nodes": list(e.nodes),
            }
            for e in entries
        ]
        session.put({"tree": tree.name, "generations": rows}, "")
    elif entries:
        render.log(entries)
    else:
        print(f"{name} has no generation yet; 'rbdtree cut {tree.name}' makes one")
    return 0


def run_diff(session: Session) -> int:
    name = NodeName.parse(session.options.tree)
    if name.node and (session.options.since or session.options.to):
        raise errors.UsageError(
            f"{name} is a node: what is on its branch has no --since and no --to",
            f"Run 'rbdtree diff {name}', or 'rbdtree diff {name.tree} --since G' for generations.",
        )
    if name.node:
        return diff_branch(session, session.find(session.options.tree)[1])
    if not session.options.since:
        raise errors.UsageError("give --since: the older generation", f"See 'rbdtree log {name.tree}'.")
    since = Position.parse(session.options.since)
    to = Position.parse(session.options.to) if session.options.to else None
    tree = session.tree(name.tree)
    found = difference.between(tree, since, to)
    totals = {
        "tree": tree.name,
        "since": str(found.since),
        "to": str(found.to),
        "size_bytes": found.size_bytes,
        "total_bytes": found.extents.total,
        "count": len(found.extents),
    }
    if session.json:
        extents = [{"offset_bytes": offset, "length_bytes": length} for offset, length in found.extents]
        session.put(totals if session.options.totals else {**totals, "extents": extents}, "")
        return 0
    if not session.options.totals and found.extents:
        render.table(("OFFSET", "LENGTH"), [(str(o), str(n)) for o, n in found.extents], right=(0, 1))
    number = render.counted(len(found.extents), "extent")
    print(f"{found.since} -> {found.to}: {render.size(found.extents.total)} in {number}")
    return 0


def run_marks(session: Session) -> int:
    wanted = session.whole(session.options.tree) if session.options.tree is not None else None
    found, failed = marks.list_marks(session.sites)
    if wanted:
        found = [m for m in found if m.tree == wanted]
    for problem in failed:
        session.warn(problem)
    if session.json:
        session.put({"marks": [asdict(m) for m in found], "problems": [described(p) for p in failed]}, "")
    elif not found:
        print(f"no marks{f' of {wanted}' if wanted else ''} on the sites that answered")
    else:
        rows = [(m.site, m.kind, f"{m.tree or '?'}/{m.node or '?'}", m.where, m.detail) for m in found]
        render.table(("SITE", "KIND", "WHOSE", "WHERE", "WHAT"), rows)
    return failed[0].exit_code if failed else 0
