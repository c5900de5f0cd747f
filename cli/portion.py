"""``portion set``, ``portion ls``: which ranges of the volume a node holds."""

import argparse
from typing import Any

from rbdtree.engine import portion as portions
from rbdtree.engine.forest import Member
from rbdtree.model.document import Kind
from rbdtree.model.name import NodeName
from rbdtree.model.portion import Portion, parse, text

from . import completion, options, render
from .completion import completes
from .session import Session


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    group = commands.add_parser("portion", help="which ranges of the volume a node holds")
    actions = group.add_subparsers(dest="action", required=True, metavar="ACTION")
    setting = actions.add_parser(
        "set",
        help="let a node hold other ranges, from the next generation on",
        parents=[options.common(), options.changing()],
    )
    completes(setting.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    setting.add_argument("ranges", metavar="RANGES", help="A..B[,C..D], such as 0..1G,4G..5G; or whole")
    setting.set_defaults(run=run_set)
    listing = actions.add_parser("ls", help="who is to hold what, and who holds what", parents=[options.common()])
    completes(listing.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    listing.set_defaults(run=run_ls)


def portion_value(portion: Portion | None) -> list[dict[str, int]] | None:
    """Ranges in JSON; null for the whole volume."""
    if not portion:
        return None
    return [{"offset_bytes": offset, "length_bytes": length} for offset, length in portion]


def run_set(session: Session) -> int:
    wanted = parse(session.options.ranges)
    tree, member = session.find(session.options.node)
    made = portions.change(session.sites, tree, member, wanted, dry_run=session.dry_run)
    said = _said(made, member.kind, tree.name, session.dry_run)
    session.put(
        {
            "tree": tree.name,
            "node": member.ref.name,
            "portion": portion_value(made.after),
            "portion_pending": made.pending,
            "result": said,
            "dry_run": session.dry_run,
        },
        said,
    )
    return 0


def _asked(portion: Portion, kind: Kind) -> str:
    return "what its replica holds" if kind is Kind.CLONE and not portion else render.ranges(portion)


def _said(made: portions.Change, kind: Kind, tree: str, dry_run: bool) -> str:
    verb = "would hold" if dry_run else "is to hold" if made.pending else "holds"
    head = f"{made.node} {verb} {_asked(made.after, kind)}"
    if made.holds is None:
        return f"{head}, from its first generation on; 'rbdtree sync {made.node}' fills it"
    if not made.pending:
        return head
    return (
        f"{head} from the next generation on, and holds {text(made.holds)} until then; 'rbdtree sync --cut {tree}' "
        "brings one"
    )


def run_ls(session: Session) -> int:
    name = NodeName.parse(session.options.tree)
    tree = session.tree(name.tree)
    members = [tree.member(name.node)] if name.node else sorted(tree.members.values(), key=lambda m: m.ref.name)
    if session.json:
        session.put({"tree": tree.name, "nodes": [_value(m) for m in members]}, "")
        return 0
    render.table(("NODE", "PORTION", "HOLDS", "GENERATION"), [_row(m) for m in members])
    return 0


def _wanted(member: Member) -> Portion:
    summary = member.told.summary if member.told else None
    return member.document.portion if member.document else summary.portion if summary else ()


def _value(member: Member) -> dict[str, Any]:
    newest = member.document.newest if member.document else None
    return {
        "node": member.ref.name,
        "portion": portion_value(_wanted(member)),
        "generation": str(newest.position) if newest else None,
        "holds": portion_value(newest.portion) if newest else None,
        "portion_pending": portions.pending(member.document) if member.document else None,
    }


def _row(member: Member) -> tuple[str, ...]:
    newest = member.document.newest if member.document else None
    holds = (render.ranges(newest.portion), str(newest.position)) if newest else ("-", "-")
    return (member.ref.name, _asked(_wanted(member), member.kind), *holds)
