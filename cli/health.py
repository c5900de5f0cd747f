"""``check``: for monitoring; one line, performance data, exit code 0, 1, 2 or 3."""

import argparse
import time
from dataclasses import dataclass, replace
from typing import Any

from rbdtree import errors
from rbdtree.engine.claim import is_dead
from rbdtree.engine.forest import Forest, Tree, look
from rbdtree.manager.roster import roster
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.plan import health
from rbdtree.plan.behind import behind
from rbdtree.plan.health import Finding, Level

from . import completion, options
from .completion import completes
from .session import Session


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = commands.add_parser(
        "check", help="for monitoring: is all well? exit code 0, 1, 2 or 3", parents=[options.common()]
    )
    completes(check.add_argument("tree", nargs="?", metavar="TREE"), completion.trees)
    check.set_defaults(run=run_check)


def run_check(session: Session) -> int:
    """What cannot be checked is unknown (3), whatever the reason."""
    wanted = session.options.tree
    try:
        forest = look(session.sites, session.whole(wanted) if wanted else None)
        trees = [forest.tree(wanted)] if wanted else [t for t in forest.trees if t.members or t.broken]
        if not trees and not forest.problems:
            raise errors.NotFound("there is no tree")
    except errors.Error as error:
        return _say(session, {"": [Finding(Level.UNKNOWN, "", "unknown", str(error), error.hint or "")]}, [], None)
    who = roster(forest)
    managers = len(who.managers) if who.managers or who.complete else None
    found = {tree.name: _findings(tree, managers, who.edges) for tree in trees}
    if unasked := _unasked(forest, trees[0] if wanted else None):
        found[""] = unasked
    return _say(session, found, [_figures(tree) for tree in trees], managers)


def _unasked(forest: Forest, tree: Tree | None) -> list[Finding]:
    """Sites that could not be asked: whole trees may be there. Of one ``tree``: only where a node of it is missing, for
    a reason that no finding about it tells."""
    told = [error for found in forest.trees for _, error in _broken(found)]
    if tree:
        told += [member.error for member in tree.members.values() if member.error]
        missing = any(
            member.kind is not Kind.ROOT
            and (member.parent_id not in tree.members or (member.error and member.error not in forest.problems))
            for member in tree.members.values()
        )
        if tree.root is None or not missing:
            return []
    silent = [problem for problem in forest.problems if problem not in told]
    return [Finding(Level.UNKNOWN, "", "unknown", str(problem), problem.hint or "") for problem in silent]


def _findings(tree: Tree, managers: int | None, edges: dict[str, str]) -> list[Finding]:
    nodes = [
        health.Seen(
            m.ref.name,
            m.parent_id,
            without_dead_uplink(m.document),
            m.told.summary if m.told else None,
            m.problem,
            m.kind,
        )
        for m in tree.members.values()
    ]
    holders = {m.ref.name: edges[name] for m in tree.members.values() if (name := f"{tree.name}/{m.ref.name}") in edges}
    broken = [Finding(Level.CRITICAL, name, "document", str(error), error.hint or "") for name, error in _broken(tree)]
    return [*broken, *health.findings(tree.name, nodes, time.time(), managers, holders)]


def without_dead_uplink(document: NodeDocument | None) -> NodeDocument | None:
    """Without the run of an uplink whose process was on this machine and is gone."""
    branch = document.branch if document else None
    if document and branch and is_dead(branch.session):
        return replace(document, branch=replace(branch, session=""))
    return document


def _broken(tree: Tree) -> list[tuple[str, errors.Error]]:
    return list(tree.broken.values())


@dataclass(frozen=True)
class _Figures:
    """Of one tree. ``unprotected``: seconds since the oldest generation was cut that some node lacks."""

    tree: str
    nodes: int
    unprotected: float
    lag_bytes: int


def _figures(tree: Tree) -> _Figures:
    now = time.time()
    root = tree.root
    line = root.document.generations if root and root.document else ()
    lacks = []
    for member in tree.members.values():
        if member.kind is not Kind.ROOT:
            told = member.told.summary if member.told else None
            position = member.document.newest_position if member.document else told.position if told else None
            lacks.append(behind(position, line))
    oldest = min((lack.oldest for lack in lacks if lack.oldest), default=now)
    most = max((lack.bytes for lack in lacks), default=0)
    return _Figures(tree.name, len(tree.members), round(max(0.0, now - oldest), 1), most)


def _say(session: Session, found: dict[str, list[Finding]], figures: list[_Figures], managers: int | None) -> int:
    every = [finding for findings in found.values() for finding in findings]
    level = health.worst(every)
    if session.json:
        rows: list[dict[str, Any]] = [
            {
                "tree": tree or None,
                "node": f.node or None,
                "level": f.level.name.lower(),
                "kind": f.kind,
                "message": f.text,
                "hint": f.hint or None,
            }
            for tree, findings in found.items()
            for f in findings
        ]
        trees = [
            {"tree": f.tree, "nodes": f.nodes, "unprotected_seconds": f.unprotected, "lag_bytes": f.lag_bytes}
            for f in figures
        ]
        session.put({"status": level.name.lower(), "findings": rows, "trees": trees, "managers": managers}, "")
        return int(level)
    lines = [(tree, f) for tree, findings in found.items() for f in findings]
    lines.sort(key=lambda pair: pair[1].level is not level)
    head = _sentence(*lines[0]) if lines else ", ".join(f"{tree} is well" for tree in found)
    more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
    data = [] if managers is None else [f"managers={managers}"]
    for f in figures:
        data += [f"{f.tree}_nodes={f.nodes}", f"{f.tree}_unprotected={f.unprotected}s", f"{f.tree}_lag={f.lag_bytes}B"]
    print(f"RBDTREE {level.name} - {head}{more}{' | ' if data else ''}{' '.join(data)}")
    for tree, finding in lines:
        print(f"{finding.level.name}: {_sentence(tree, finding)}{f'. {finding.hint}' if finding.hint else ''}")
    return int(level)


def _sentence(tree: str, finding: Finding) -> str:
    where = "/".join(part for part in (tree, finding.node) if part)
    # A pipe would begin the performance data.
    text = finding.text.replace("|", "/")
    return text if not where or text.startswith(where) else f"{where}: {text}"
