"""``init``, ``add``, ``remove``, ``detach``, ``rollback``: who is in a tree."""

import argparse

from rbdtree import errors
from rbdtree.engine import leave, membership, registry, rollback
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind
from rbdtree.model.name import ImageSpec, NodeName, check_name, parse_size
from rbdtree.model.portion import parse, text
from rbdtree.model.schedule import parse_duration

from . import completion, options, progress
from .completion import completes
from .portion import portion_value
from .session import Session


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parents = [options.common(), options.changing()]
    init = commands.add_parser("init", help="make a tree: adopt an image as its root, or create one", parents=parents)
    init.add_argument("tree", metavar="TREE")
    init.add_argument("--node", required=True, metavar="NAME", help="name of the root node")
    spec = init.add_argument("--image", required=True, metavar="SPEC", help="SITE:[POOL/[NAMESPACE/]]IMAGE")
    completes(spec, completion.specs)
    init.add_argument("--size", help="create the image with this size, such as 10G; without it the image must be there")
    _layout(init)
    init.set_defaults(run=run_init)

    add = commands.add_parser("add", help="add a node to a tree", parents=parents)
    completes(add.add_argument("node", metavar="TREE/NODE"), completion.trees)
    parent = add.add_argument("--parent", required=True, metavar="NAME", help="the node it hangs under")
    completes(parent, completion.parents)
    add.add_argument(
        "--kind",
        required=True,
        choices=("mirror", "clone"),
        help="a copy of its own, or a clone of the nearest replica",
    )
    spec = add.add_argument("--image", required=True, metavar="SPEC", help="SITE:[POOL/[NAMESPACE/]]IMAGE")
    completes(spec, completion.specs)
    add.add_argument(
        "--history",
        action="store_true",
        help="seed with the oldest generation and follow, not with the newest alone",
    )
    add.add_argument(
        "--portion",
        metavar="A..B[,C..D]",
        help="hold only these ranges of the volume, such as 0..1G,4G..5G (default: what the parent holds)",
    )
    _layout(add)
    add.set_defaults(run=run_add)

    remove = commands.add_parser(
        "remove", aliases=["rm"], help="take a node away, its image to the RBD trash", parents=parents
    )
    completes(remove.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    remove.add_argument(
        "--expiry",
        metavar="DURATION",
        help="how long the trash keeps it, such as 7d (default: [trash] expiry, 1d)",
    )
    remove.add_argument(
        "--forget",
        action="store_true",
        help="its cluster is gone for good: take away only what its parent knows of it",
    )
    remove.set_defaults(run=run_remove)

    detach = commands.add_parser("detach", help="take a node away, its image stays an ordinary image", parents=parents)
    completes(detach.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    detach.set_defaults(run=run_detach)

    back = commands.add_parser(
        "rollback",
        help="return a diverged node to its newest generation; what was written is kept",
        parents=parents,
    )
    completes(back.add_argument("node", metavar="TREE/NODE"), completion.nodes)
    back.set_defaults(run=run_rollback)


def _layout(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("a new image", "by default like the parent's; a root's like RBD's defaults")
    group.add_argument("--object-size", metavar="SIZE", help="power of two, 4K to 32M")
    group.add_argument("--stripe-unit", metavar="SIZE")
    group.add_argument("--stripe-count", type=int, metavar="N")
    group.add_argument("--data-pool", metavar="POOL", help="pool for the data objects")


def _wish(session: Session) -> membership.Wish:
    given = session.options
    layout = membership.layout(given.object_size, given.stripe_unit, given.stripe_count)
    size = parse_size(given.size) if getattr(given, "size", None) is not None else None
    if size == 0:
        raise errors.UsageError("a volume of 0 bytes holds nothing", "Write for example --size 10G.")
    ranges = getattr(given, "portion", None)
    return membership.Wish(
        size, layout, given.data_pool, getattr(given, "history", False), parse(ranges) if ranges else None
    )


def run_init(session: Session) -> int:
    given = session.options
    tree, node, spec = (
        check_name("tree", given.tree),
        check_name("node", given.node),
        ImageSpec.parse(given.image),
    )
    forest = session.forest()
    document = membership.init(session.sites, forest, tree, node, spec, _wish(session), dry_run=session.dry_run)
    verb = "would be" if session.dry_run else "is"
    session.put(
        {
            "tree": tree,
            "id": document.tree_id,
            "node": node,
            "image": document.ref.image_spec,
            "dry_run": session.dry_run,
        },
        f"{tree}/{node} {verb} the root of {tree}, on {document.ref.image_spec}",
    )
    return 0


def run_add(session: Session) -> int:
    given = session.options
    name = NodeName.parse(given.node)
    if not name.node:
        raise errors.UsageError(f"{given.node!r} names no node", f"Write TREE/NODE, for example {name.tree}/copy.")
    spec, kind = ImageSpec.parse(given.image), Kind(given.kind)
    if kind is Kind.CLONE and (given.object_size or given.stripe_unit or given.data_pool or given.history):
        raise errors.UsageError(
            "a clone takes its layout and history from what it is cloned from",
            "Leave these options out, or use --kind mirror.",
        )
    parent = check_name("node", given.parent.removeprefix(f"{name.tree}/"))
    document = membership.add(
        session.sites,
        session.forest(),
        name,
        parent,
        kind,
        spec,
        _wish(session),
        dry_run=session.dry_run,
    )
    verb = "would be" if session.dry_run else "is"
    held = f", for {text(document.portion)} of the volume" if document.portion else ""
    session.put(
        {
            "tree": name.tree,
            "node": name.node,
            "id": document.ref.node_id,
            "parent": parent,
            "kind": str(kind),
            "image": document.ref.image_spec,
            "portion": portion_value(document.portion),
            "dry_run": session.dry_run,
        },
        f"{name} {verb} a {kind} below {parent}, on {document.ref.image_spec}{held}; 'rbdtree sync {name}' fills it",
    )
    return 0


def _expiry(session: Session) -> float:
    given = getattr(session.options, "expiry", None)
    if not given:
        return session.config.trash_expiry_seconds
    return parse_duration(given)


def _leaving(session: Session) -> tuple[Tree, Member]:
    """The node. ``NotFound`` too where it left but for a last trace, which is taken away."""
    try:
        return session.find(session.options.node)
    except errors.NotFound as error:
        name = NodeName.parse(session.options.node)
        if not name.node or session.dry_run or not registry.sweep_left(session.sites, name):
            raise
        raise errors.NotFound(f"{name} had left already; its last trace is gone now") from error


def run_remove(session: Session) -> int:
    tree, member = _leaving(session)
    expiry = _expiry(session)
    if session.options.forget:
        return _forget(session, tree, member)
    said = leave.leave(session.sites, tree, member, keep=False, expiry_seconds=expiry, dry_run=session.dry_run)
    return _left(session, tree, member, said)


def run_detach(session: Session) -> int:
    tree, member = _leaving(session)
    said = leave.leave(session.sites, tree, member, keep=True, expiry_seconds=0, dry_run=session.dry_run)
    return _left(session, tree, member, said)


def _left(session: Session, tree: Tree, member: Member, said: str) -> int:
    result = {"tree": tree.name, "node": member.ref.name, "image": member.ref.image_spec, "result": said}
    session.put({**result, "dry_run": session.dry_run}, said)
    return 0


def _forget(session: Session, tree: Tree, member: Member) -> int:
    if member.document is not None:
        raise errors.UsageError(
            f"{session.options.node} can be reached: --forget is for a cluster that is gone",
            f"Use 'rbdtree remove {session.options.node}'.",
        )
    children = [m.ref.name for m in tree.children(member.ref.node_id)]
    if children:
        raise errors.NotEmpty(
            f"{tree.name}/{member.ref.name} still has children: {', '.join(children)}", "Remove or detach them first."
        )
    _, parent = document_of(tree.members[member.parent_id])
    edge = next(c.edge for c in parent.children if c.ref.node_id == member.ref.node_id)
    if not session.dry_run:
        leave.forget_upstream(session.sites, parent.ref, parent.replica, edge)
    verb = "would forget" if session.dry_run else "forgot"
    return _left(
        session,
        tree,
        member,
        f"{parent.full_name} {verb} {member.ref.name}; its image {member.ref.image_spec} was not touched",
    )


def run_rollback(session: Session) -> int:
    tree, member = session.find(session.options.node)
    node, _ = document_of(member)
    with progress.reporter(session) as reporter:
        said = rollback.roll_back(
            session.sites,
            Node(node.pool, node.node_id, node.name),
            reporter,
            session.config.trash_expiry_seconds,
            dry_run=session.dry_run,
        )
    return _left(session, tree, member, said)
