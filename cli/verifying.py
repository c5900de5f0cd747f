"""``verify``: whether nodes are equal, and with ``--repair`` the mending of those that are not."""

import argparse
import sys
from typing import Any

from rbdtree import errors
from rbdtree.engine import repair, verify
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.model.name import NodeName
from rbdtree.model.position import Position

from . import completion, flow, options, progress, render
from .completion import completes
from .session import Session, described


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = commands.add_parser(
        "verify",
        help="compare a node with its parent, or the whole tree with the root",
        parents=[options.common(), options.changing()],
    )
    completes(check.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    check.add_argument("--at", metavar="G", help="at this generation (default: the newest that both have)")
    check.add_argument(
        "--repair",
        action="store_true",
        help="of mirrors that differ, write what does: cut a generation, with which they are compared whole",
    )
    check.set_defaults(run=run_verify)


Pairs = list[tuple[Member, Member]]


def _pairs(tree: Tree, node: str) -> Pairs:
    """(node, what it is compared with)"""
    if node:
        member = tree.member(node)
        parent = tree.members.get(member.parent_id)
        if parent is None:
            raise errors.UsageError(
                f"{tree.name}/{node} has no parent to be compared with", f"Run 'rbdtree verify {tree.name}'."
            )
        return [(member, parent)]
    root = tree.needed_root()
    return sorted(((m, root) for m in tree.members.values() if m is not root), key=lambda pair: pair[0].ref.name)


def _compare(session: Session, tree: Tree, pairs: Pairs, at: Position | None) -> list[verify.Verdict]:
    with progress.reporter(session) as reporter:
        return [verify.verify(session.sites, tree, mine, other, at, reporter) for mine, other in pairs]


def run_verify(session: Session) -> int:
    name = NodeName.parse(session.options.tree)
    at = Position.parse(session.options.at) if session.options.at else None
    if at and session.options.repair:
        raise errors.UsageError(
            "--repair mends with a new generation: one that is sealed is never written to", "Leave out --at."
        )
    tree = session.tree(name.tree)
    verdicts = _compare(session, tree, _pairs(tree, name.node), at)
    repaired: list[str] = []
    if session.options.repair:
        repaired = _repair(session, tree, verdicts)
        if repaired and not session.dry_run:
            tree = session.tree(tree.name)
            verdicts = _compare(session, tree, _pairs(tree, name.node), None)
    if session.json:
        nodes = [_verdict(v) for v in verdicts]
        session.put({"tree": tree.name, "nodes": nodes, "repaired": repaired, "dry_run": session.dry_run}, "")
    else:
        for verdict in verdicts:
            _print(verdict)
        if not verdicts:
            print(f"{tree.name}: nothing to compare: the root has no children yet")
        if repaired and session.dry_run:
            print(f"would cut a generation of {tree.name}, and with it compare {', '.join(repaired)} whole, and mend")
    if any(v.differences for v in verdicts):
        return errors.Integrity.exit_code
    return next((v.error.exit_code for v in verdicts if v.error), 0)


def _repair(session: Session, tree: Tree, verdicts: list[verify.Verdict]) -> list[str]:
    """Names of the nodes that were (would be) compared whole, and written to where they differ."""
    wrong = [(tree.member(v.node.partition("/")[2]), v) for v in verdicts if v.differences]
    mirrors = [(m, v) for m, v in wrong if repair.possible(document_of(m)[1])]
    for _, verdict in (entry for entry in wrong if entry not in mirrors):
        session.warn(
            errors.Diverged(
                f"{verdict.node} is a clone with data of its own: no copy that could be mended",
                f"Run 'rbdtree rollback {verdict.node}', which keeps what it holds.",
            )
        )
    if _all_alike(verdicts, [v for _, v in mirrors]):
        session.warn(
            errors.Integrity(
                f"all nodes of {tree.name} differ from the root in the same bytes: it may be the root that is wrong",
                f"Restore it; or, if it is right, mend one by one: 'rbdtree verify {verdicts[0].node} --repair'.",
            )
        )
        return []
    names = sorted(m.ref.name for m, v in mirrors if session.dry_run or _distrusted(session, m, v))
    try:
        tree.needed_root()
    except errors.Error as error:
        # Whoever has the root cuts the generation that mends them.
        session.warn(error)
        return []
    if not names or session.dry_run:
        return names
    if not session.json:
        for verdict in verdicts:
            _print(verdict)
    return _mended(session, tree, names)


def _all_alike(verdicts: list[verify.Verdict], wrong: list[verify.Verdict]) -> bool:
    """Several mirrors, none of which is like what all were compared with, and all of them in the same bytes."""
    extents = {tuple(pair for d in v.differences for pair in d.extents) for v in wrong}
    return 1 < len(wrong) == len(verdicts) and len(extents) == 1


def _distrusted(session: Session, member: Member, verdict: verify.Verdict) -> bool:
    """Whether it is to be compared whole now."""
    try:
        repair.distrust(document_of(member)[0], verdict)
    except errors.Error as error:
        session.warn(error)
        return False
    return True


def _mended(session: Session, tree: Tree, names: list[str]) -> list[str]:
    """Cuts, and brings the nodes to what was cut; those that are there now, and were compared."""
    made = flow.make(session, session.tree(tree.name))
    if not session.json:
        print(f"{tree.name}: cut generation {made.position}; with it compared whole: {', '.join(names)}", flush=True)
    before: list[object] = []
    while True:
        tree = session.tree(tree.name)
        paths = [flow.path_to(session, tree, NodeName(tree.name, name)) or frozenset[str]() for name in names]
        failed = [o.error for o in flow.bring(session, tree, frozenset[str]().union(*paths)) if o.error]
        for error in failed:
            if isinstance(error, errors.Interrupted):
                raise error
            session.warn(error)
        documents = [document_of(session.tree(tree.name).member(name))[1] for name in names]
        now: list[object] = [(d.position, d.intent) for d in documents]
        # A manager may have begun before us; what it does is the same, and takes as long.
        if now == before or not any(isinstance(error, errors.Busy) for error in failed):
            return [d.name for d in documents if d.position >= made.position and not d.distrust]
        before = now


def _verdict(verdict: verify.Verdict) -> dict[str, Any]:
    return {
        "node": verdict.node.partition("/")[2],
        "against": verdict.against.partition("/")[2],
        "generation": str(verdict.position) if verdict.position else None,
        "equal": verdict.equal,
        "checksummed_bytes": verdict.checksummed_bytes,
        "read_bytes": verdict.read_bytes,
        "structural": verdict.structural,
        "differences": [
            {
                "object": d.object_number,
                "extents": [{"offset_bytes": offset, "length_bytes": length} for offset, length in d.extents],
            }
            for d in verdict.differences
        ],
        "error": described(verdict.error) if verdict.error else None,
    }


def _print(verdict: verify.Verdict) -> None:
    if verdict.error:
        text = str(verdict.error)
        print(f"rbdtree: {text if verdict.node in text else f'{verdict.node}: {text}'}", file=sys.stderr)
        if verdict.error.hint:
            print(f"  {verdict.error.hint}", file=sys.stderr)
    elif verdict.structural:
        print(f"{verdict.node} = {verdict.against} at {verdict.position}: a clean clone of that very snapshot")
    elif verdict.equal:
        print(
            f"{verdict.node} = {verdict.against} at {verdict.position}: {render.size(verdict.checksummed_bytes)} by "
            f"checksums of the OSDs, {render.size(verdict.read_bytes)} by reading"
        )
    else:
        print(
            f"{verdict.node} DIFFERS from {verdict.against} at {verdict.position} in "
            f"{render.counted(len(verdict.differences), 'object')}:"
        )
        for found in verdict.differences:
            where = ", ".join(f"{offset}+{length}" for offset, length in found.extents)
            print(f"  object {found.object_number}: {where}")
