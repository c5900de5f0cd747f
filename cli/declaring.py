"""``policy``, ``plan``, ``apply``, ``export``: what a tree should be, by command and by file."""

import argparse
from pathlib import Path
from typing import Any

from rbdtree import declaration, errors
from rbdtree.engine import declare
from rbdtree.engine import policy as policies
from rbdtree.engine.forest import Member, Tree, document_of, look
from rbdtree.model.declaration import Declaration
from rbdtree.model.name import NodeName
from rbdtree.model.policy import KEYS, Settings
from rbdtree.plan.declare import Change, Extra, Make, Set, blocking, doable, plan_declare

from . import completion, options, render
from .completion import completes
from .session import Session
from .writing import agreed

CHANGES = 3
"""Exit code of ``plan --exit-code`` when the tree is not as declared: the errno of this number (ESRCH) is no error of
ours."""


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parents = [options.common(), options.changing()]
    policy = commands.add_parser("policy", help="what a manager should do for a tree, or for one node of it")
    actions = policy.add_subparsers(dest="action", required=True, metavar="ACTION")
    setting = actions.add_parser("set", help="set settings, such as keep='last 5, daily 7'", parents=parents)
    completes(setting.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    setting.add_argument("settings", nargs="+", metavar="KEY=VALUE", help=f"keys: {', '.join(KEYS)}")
    setting.set_defaults(run=run_set)
    unsetting = actions.add_parser("unset", help="take settings away", parents=parents)
    completes(unsetting.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    keys = unsetting.add_argument("settings", nargs="+", metavar="KEY")
    completes(keys, lambda prefix, **_: [key for key in KEYS if key.startswith(prefix)])
    unsetting.set_defaults(run=run_unset)
    listing = actions.add_parser("ls", help="what is set, or what is in force at a node", parents=[options.common()])
    completes(listing.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    listing.set_defaults(run=run_ls)

    plan = commands.add_parser("plan", help="what 'apply' would change for a tree's file", parents=[options.common()])
    _file(plan)
    plan.add_argument("--exit-code", action="store_true", help=f"exit with {CHANGES} when the tree is not as declared")
    plan.set_defaults(run=run_plan)
    apply = commands.add_parser("apply", help="make a tree as its file declares it", parents=parents)
    _file(apply)
    apply.add_argument("-y", "--yes", action="store_true", help="do not ask")
    apply.set_defaults(run=run_apply)
    export = commands.add_parser("export", help="write the file of a tree as it is", parents=[options.common()])
    completes(export.add_argument("tree", metavar="TREE"), completion.trees)
    export.set_defaults(run=run_export)


def _file(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-f", "--file", required=True, metavar="FILE", help="the tree's TOML file (docs/policy.md)")
    parser.add_argument("--prune", action="store_true", help="remove nodes that are not declared, into the RBD trash")


def _place(session: Session) -> tuple[Tree, Member, bool]:
    """The tree, whose document it is, and whether it is about the whole tree."""
    name = NodeName.parse(session.options.tree)
    tree = session.tree(name.tree)
    return tree, tree.member(name.node) if name.node else tree.needed_root(), not name.node


def run_set(session: Session) -> int:
    wanted: dict[str, str] = {}
    for text in session.options.settings:
        key, equals, value = text.partition("=")
        if not equals:
            raise errors.UsageError(f"{text!r} sets nothing", "Write KEY=VALUE, for example keep='last 5, daily 7'.")
        if key in wanted:
            raise errors.UsageError(f"{key} is given twice", "Give it once.")
        wanted[key] = value
    return _change(session, wanted, [])


def run_unset(session: Session) -> int:
    return _change(session, {}, session.options.settings)


def _change(session: Session, wanted: dict[str, str], unwanted: list[str]) -> int:
    _, member, whole = _place(session)
    node, _ = document_of(member)
    before, after = policies.change(node, wanted, unwanted, tree=whole, dry_run=session.dry_run)
    old, new = dict(before), dict(after)
    changed = [Set("", k, old.get(k), new.get(k)) for k in sorted({*old, *new}) if old.get(k) != new.get(k)]
    if session.json:
        value = {"name": session.options.tree, "changed": bool(changed), "dry_run": session.dry_run}
        session.put({**value, "policy": _rows(after)}, "")
        return 0
    for change in changed:
        print(f"{session.options.tree}: {change}")
    if not changed:
        print(f"{session.options.tree}: that is so already")
    return 0


def _rows(settings: Settings) -> list[dict[str, str]]:
    return [{"setting": key, "value": text} for key, text in settings]


def run_ls(session: Session) -> int:
    tree, member, whole = _place(session)
    _, document = document_of(member)
    if not whole:
        found = policies.in_force(document)
        if session.json:
            force = [{"setting": s.key, "value": s.text, "from": s.source} for s in found]
            session.put({"tree": tree.name, "node": document.name, "policy": force}, "")
        else:
            render.table(("SETTING", "VALUE", "FROM"), [(s.key, s.text, s.source) for s in found])
        return 0
    nodes = {m.ref.name: m.document for m in tree.members.values() if m.document}
    late = sorted(name for name, d in nodes.items() if d.tree_policy != document.tree_policy)
    if session.json:
        value: dict[str, Any] = {
            "tree": tree.name,
            "policy": _rows(document.tree_policy),
            "nodes": [{"node": name, **row} for name, d in sorted(nodes.items()) for row in _rows(d.policy)],
            "not_told": late,
        }
        session.put(value, "")
        return 0
    rows = [("", key, text) for key, text in document.tree_policy]
    rows += [(name, key, text) for name, d in sorted(nodes.items()) for key, text in d.policy]
    if rows:
        render.table(("NODE", "SETTING", "VALUE"), [(node or "(tree)", key, text) for node, key, text in rows])
    else:
        print(f"{tree.name}: nothing is set; 'rbdtree policy ls {document.full_name}' shows what is in force")
    if late:
        print(f"not told yet: {', '.join(late)}; 'rbdtree sync {tree.name}' tells them")
    return 0


def _planned(session: Session) -> tuple[Declaration, tuple[Change, ...]]:
    declared = declaration.load(Path(session.options.file).expanduser())
    forest = look(session.sites, declared.tree)
    existing = declare.observe(session.sites, forest, declared)
    for problem in forest.problems:
        session.warn(problem)
    return declared, plan_declare(declared, existing, prune=session.options.prune)


def _value(change: Change) -> dict[str, Any]:
    return {"change": type(change).__name__.lower(), "node": _node(change) or None, "text": str(change)}


def _node(change: Change) -> str:
    return change.node.name if isinstance(change, Make) else change.node


def _show(declared: Declaration, changes: tuple[Change, ...]) -> None:
    for change in changes:
        print(f"  {change}")
    number = len(doable(changes))
    others = [f"{render.counted(len(blocking(changes)), 'thing')} that cannot be changed in place"]
    extra = sum(isinstance(change, Extra) for change in changes)
    parts = [render.counted(number, "change") if number else "nothing to change"]
    parts += others if blocking(changes) else []
    parts += [f"{render.counted(extra, 'node')} not declared"] if extra else []
    print(f"{declared.tree}: {', '.join(parts)}")


def run_plan(session: Session) -> int:
    declared, changes = _planned(session)
    if session.json:
        session.put({"tree": declared.tree, "changes": [_value(change) for change in changes]}, "")
    else:
        _show(declared, changes)
    return CHANGES if changes and session.options.exit_code else 0


def run_apply(session: Session) -> int:
    declared, changes = _planned(session)
    if not session.json:
        _show(declared, changes)
    blocked = blocking(changes)
    if blocked:
        raise errors.UsageError(
            f"{declared.tree} cannot be made as declared: {str(blocked[0])[2:]}",
            "Change the file, or remove that node ('rbdtree remove') and apply again.",
        )
    work = doable(changes)
    done: list[str] = []
    if work and not session.dry_run:
        if not agreed(session, f"{declared.tree}: make {render.counted(len(work), 'change')}?"):
            print("nothing was changed")
            return 0
        for change in work:
            done.append(
                declare.carry_out(
                    session.sites,
                    lambda: session.forest(declared.tree),
                    declared,
                    change,
                    session.config.trash_expiry_seconds,
                )
            )
            if not session.json:
                print(done[-1], flush=True)
    if session.json:
        value = [_value(change) for change in changes]
        session.put({"tree": declared.tree, "dry_run": session.dry_run, "changes": value, "done": done}, "")
    return 0


def run_export(session: Session) -> int:
    tree = session.tree(session.whole(session.options.tree))
    text = declaration.text_of(declare.declaration_of(tree))
    if session.json:
        session.put({"tree": tree.name, "toml": text}, "")
    else:
        print(text, end="")
    return 0
