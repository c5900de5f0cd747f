"""``branch``, ``push``, ``discard``, ``resolve``, ``lease``: what hosts write, and how it becomes the volume's."""

import argparse
import json
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from rbdtree import errors
from rbdtree.engine import branch as branches
from rbdtree.engine import landing, resolve
from rbdtree.engine import lease as leases
from rbdtree.engine import push as pushing
from rbdtree.engine.forest import Member, Tree, document_of
from rbdtree.engine.node import Node
from rbdtree.engine.sync import Outcome, Sync
from rbdtree.model.document import Branch, Lease, NodeDocument, Push, PushState
from rbdtree.model.extent import Extents
from rbdtree.model.name import ImageSpec, NodeName, parse_size
from rbdtree.model.position import Position
from rbdtree.model.schedule import parse_duration

from . import completion, options, progress, render
from .completion import completes
from .session import VERSION, Session, described

if TYPE_CHECKING:
    from rbdtree.engine.loss import Window


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    parents = [options.common(), options.changing()]
    branch = commands.add_parser(
        "branch", help="give a node a writable branch, or name the one it has", parents=parents
    )
    _node_argument(branch)
    branch.add_argument(
        "--uplink",
        choices=("snapshot", "journal"),
        help="how its writes are found, snapshot at first (docs/writing.md); of a branch that is there: switch it",
    )
    branch.add_argument("--at", metavar="G", help="a new branch over this generation (default: the node's newest)")
    branch.set_defaults(run=run_branch)

    push = commands.add_parser("push", help="send a branch's writes up and publish them at the root", parents=parents)
    _node_argument(push)
    push.add_argument("--wait", action="store_true", help="then sync the node, so that it has the generation itself")
    push.add_argument(
        "--shared",
        action="store_true",
        help="publish also while others have the root's image open (only for cluster-aware applications)",
    )
    push.set_defaults(run=run_push)

    uplink = commands.add_parser(
        "uplink", help="publish a branch's journal continuously, until stopped", parents=[options.common()]
    )
    _node_argument(uplink)
    uplink.add_argument(
        "--interval",
        default="1s",
        metavar="DURATION",
        help="how long writes are gathered for a generation, which ends at a flush (default 1s)",
    )
    uplink.add_argument(
        "--max-unpushed",
        metavar="SIZE",
        help="journal that may wait before the rest is published by a snapshot (default: 1G, or what was given last; "
        "who has the branch open obeys the limit it was opened with)",
    )
    uplink.add_argument("--once", action="store_true", help="publish what has been written so far, then end")
    uplink.add_argument("--shared", action="store_true", help="as for push")
    uplink.set_defaults(run=run_uplink)

    discard = commands.add_parser("discard", help="throw a branch away, into the RBD trash", parents=parents)
    _node_argument(discard)
    discard.add_argument("-y", "--yes", action="store_true", help="do not ask")
    discard.set_defaults(run=run_discard)

    ending = commands.add_parser("resolve", help="end a conflict", parents=parents)
    _node_argument(ending)
    how = ending.add_mutually_exclusive_group(required=True)
    how.add_argument(
        "--take",
        choices=("ours", "theirs"),
        help="ours: the next push writes over the others' bytes; theirs: the branch goes to the RBD trash",
    )
    how.add_argument("--park", metavar="IMAGE", help="keep the branch as an ordinary image of this name")
    ending.add_argument("-y", "--yes", action="store_true", help="do not ask")
    ending.set_defaults(run=run_resolve)

    lease = commands.add_parser("lease", help="the right to publish to a range")
    actions = lease.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text in (
        ("acquire", "get it, and bring the holder up to date"),
        ("renew", "keep what a node has for longer"),
        ("release", "give it back"),
    ):
        parser = actions.add_parser(action, help=text, parents=parents)
        _node_argument(parser)
        if action != "renew":
            parser.add_argument(
                "--portion", metavar="A..B[,C..D]", help="ranges such as 0..1G (default: all that the node holds)"
            )
        if action != "release":
            parser.add_argument(
                "--for", dest="duration", default="1h", metavar="DURATION", help="such as 15m (default 1h)"
            )
        parser.set_defaults(run=run_lease)
    listing = actions.add_parser("ls", help="who holds what, and for how long", parents=[options.common()])
    completes(listing.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    listing.set_defaults(run=run_lease_ls)


def _node_argument(parser: argparse.ArgumentParser) -> None:
    completes(parser.add_argument("node", metavar="TREE/NODE"), completion.nodes)


def _node(session: Session) -> tuple[Tree, Member, Node]:
    tree, member = session.find(session.options.node)
    return tree, member, document_of(member)[0]


def run_branch(session: Session) -> int:
    given = session.options
    _, member, node = _node(session)
    at = Position.parse(given.at) if given.at else None
    if session.dry_run:
        document = document_of(member)[1]
        said = f"{document.full_name} has a branch" if document.branch else f"{document.full_name} would get a branch"
        if document.branch and given.uplink not in (None, document.branch.uplink):
            said += f"; its uplink would be the {given.uplink}"
        session.put(_branch(document, document.branch, True), said)
        return 0
    document, branch = branches.ensure(session.sites, node, given.uplink, at)
    session.put(_branch(document, branch, False), branches.spec(document, branch))
    return 0


def _branch(document: NodeDocument, branch: Branch | None, dry_run: bool) -> dict[str, Any]:
    return {
        "node": document.full_name,
        "image": branches.spec(document, branch) if branch else None,
        "image_id": branch.image_id if branch else None,
        "base": str(branch.base) if branch else None,
        "uplink": branch.uplink if branch else None,
        "dry_run": dry_run,
    }


def diff_branch(session: Session, member: Member) -> int:
    """``diff TREE/NODE``: what the branch changed and has not pushed."""
    node, document = document_of(member)
    report = branches.look(node, document)
    totals = {
        "node": document.full_name,
        "image": report.image,
        "base": str(report.base),
        "total_bytes": report.changed.total,
        "count": len(report.changed),
        "pushes": [push_value(p) for p in report.pushes],
    }
    if session.json:
        extents = [{"offset_bytes": offset, "length_bytes": length} for offset, length in report.changed]
        session.put(totals if session.options.totals else {**totals, "extents": extents}, "")
        return 0
    if not session.options.totals and report.changed:
        render.table(("OFFSET", "LENGTH"), [(str(o), str(n)) for o, n in report.changed], right=(0, 1))
    print(
        f"{report.image} over {report.base}: {render.size(report.changed.total)} in "
        f"{render.counted(len(report.changed), 'extent')} not pushed{_under_way(report.pushes)}"
    )
    return 0


def _under_way(pushes: tuple[Push, ...]) -> str:
    """Pushes that are not published, in a phrase."""
    refused = sum(p.state is PushState.CONFLICT for p in pushes)
    parts = [(len(pushes) - refused, "under way"), (refused, "refused")]
    return "".join(f", {number} {'push' if number == 1 else 'pushes'} {what}" for number, what in parts if number)


def push_value(push: Push) -> dict[str, Any]:
    """A push in JSON."""
    return {
        "id": push.push_id,
        "number": push.number,
        "state": str(push.state),
        "base": str(push.base),
        "generation": str(push.position) if push.position else None,
        "force": push.force,
        "evidence": [
            {
                "reason": e.reason,
                "node": e.author,
                "generation": str(e.position) if e.position else None,
                "total_bytes": e.total_bytes,
                "extents": [{"offset_bytes": o, "length_bytes": n} for o, n in e.extents],
            }
            for e in push.evidence
        ],
    }


def run_push(session: Session) -> int:
    # Only here: what reads journals takes a tenth of the time that a small sync takes.
    from rbdtree.engine import join

    given = session.options
    tree, member, node = _node(session)
    document = document_of(member)[1]
    if session.dry_run:
        report = branches.look(node, document)
        text = f"{document.full_name} would push {render.size(report.changed.total)}"
        session.put(_push(pushing.PushOutcome(document.full_name), report.changed.total), text)
        return 0
    with progress.reporter(session) as reporter:
        outcome = join.push(session.sites, node, reporter, shared=given.shared)
        synced: list[Outcome] = []
        if given.wait and not outcome.refused and not outcome.stopped:
            fresh = session.forest(tree.name).tree(tree.name)
            only = frozenset(m.ref.name for m in fresh.path(fresh.member(member.ref.name)))
            expiry = session.config.trash_expiry_seconds
            run = Sync(session.sites, reporter, only=only, expiry_seconds=expiry, window=landing.WINDOW)
            synced = run.run(fresh)
    failed = next((o.error for o in synced if o.error), None)
    if outcome.refused:
        failed = pushing.conflict(document_of(session.find(given.node)[1])[1], outcome.refused[0])
    elif outcome.stopped and (given.wait or not outcome.border):
        failed = outcome.stopped
    session.put({**_push(outcome), "error": described(failed) if failed else None}, _push_text(outcome))
    if failed is None:
        return 0
    if not session.json:
        raise failed
    session.say(failed)
    return failed.exit_code


def _push(outcome: pushing.PushOutcome, would: int | None = None) -> dict[str, Any]:
    """``would``: bytes that are to be pushed, of a dry run."""
    return {
        "node": outcome.node,
        "pushes": outcome.staged,
        "total_bytes": would,
        "sent_bytes": outcome.sent_bytes,
        "published": [str(p) for p in outcome.published],
        "refused": [push_value(p) for p in outcome.refused],
        "stopped": str(outcome.stopped) if outcome.stopped else None,
        "error": None,
        "dry_run": would is not None,
    }


def _push_text(outcome: pushing.PushOutcome) -> str:
    if outcome.refused:
        return ""
    sent = f", {render.size(outcome.sent_bytes)} sent" if outcome.sent_bytes else ""
    if outcome.waiting or (outcome.border and sent):
        return f"{outcome.node}: on its way{sent}"
    if outcome.published:
        return f"{outcome.node}: published as generation {outcome.published[-1]}"
    return f"{outcome.node}: passed on{sent}" if sent else f"{outcome.node}: nothing to push"


def run_uplink(session: Session) -> int:
    from rbdtree.engine.pace import Paces
    from rbdtree.engine.uplink import Uplink

    given = session.options
    _, _, node = _node(session)
    interval = parse_duration(given.interval)
    limit = parse_size(given.max_unpushed) if given.max_unpushed else None
    run = Uplink(
        session.sites,
        node,
        progress.Notes(),
        interval=interval,
        max_unpushed=limit,
        shared=given.shared,
        show=lambda window: _show_window(session, window),
        paces=Paces(),
    )
    failed: list[BaseException] = []

    def work() -> None:
        try:
            run.run(once=given.once)
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="uplink", daemon=True)
    signal.signal(signal.SIGTERM, lambda *_: run.stop.set())
    thread.start()
    while thread.is_alive():
        try:
            thread.join(0.2)
        except KeyboardInterrupt:
            if run.stop.is_set():
                raise
            run.stop.set()
            print("rbdtree: stopping: what was read is published (again Ctrl-C: at once)", file=sys.stderr)
    if failed:
        raise failed[0]
    return 0


def _show_window(session: Session, window: "Window") -> None:
    """The loss window: a JSON line each, or a line on stderr that renews itself on a terminal."""
    published = str(window.published) if window.published else None
    if session.json:
        value = {
            "version": VERSION,
            "unpublished_records": window.records,
            "unpublished_bytes": window.bytes,
            "unpublished_seconds": round(window.seconds, 3),
            "generation": published,
            "shut": window.shut,
        }
        print(json.dumps(value), flush=True)
    elif not session.options.no_progress:
        ends = "\r" if sys.stderr.isatty() else "\n"
        text = (
            f"generation {published or '-'}, unpublished: {window.records} records, {render.size(window.bytes)}, "
            f"{window.seconds:.1f} s" + (f"; {window.shut}" if window.shut else "")
        )
        print(f"{text:<78}", end=ends, file=sys.stderr, flush=True)


def agreed(session: Session, question: str) -> bool:
    """Asks on a terminal; elsewhere --yes must have been given."""
    if session.options.yes or session.dry_run:
        return True
    if not sys.stdin.isatty():
        raise errors.UsageError(f"{question} nobody is there to answer", "Give --yes if you are sure.")
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _what_goes(node: Node, member: Member) -> str:
    document = document_of(member)[1]
    try:
        report = branches.look(node, node.read())
    except errors.Error as error:
        return f"the branch of {document.full_name} ({error})"
    return f"{report.image} with {report.changed.total} bytes never pushed{_under_way(report.pushes)}"


def run_discard(session: Session) -> int:
    _, member, node = _node(session)
    document = document_of(member)[1]
    if document.branch is None:
        _result(session, f"{document.full_name} has no branch")
        return 0
    what = _what_goes(node, member)
    if session.dry_run:
        _result(session, f"would discard {what}")
    elif agreed(session, f"Discard {what}?"):
        _result(session, branches.discard(session.sites, node, session.config.trash_expiry_seconds))
    else:
        _result(session, "nothing was changed")
    return 0


def _result(session: Session, said: str) -> None:
    session.put({"node": session.options.node, "result": said, "dry_run": session.dry_run}, said)


def run_resolve(session: Session) -> int:
    given = session.options
    _, member, node = _node(session)
    resolve.refused(document_of(member)[1])
    how = f"--park {given.park}" if given.park else f"--take {given.take}"
    if session.dry_run:
        said = f"would resolve {given.node} with {how}"
    elif given.take == "theirs" and not agreed(session, f"Give up {_what_goes(node, member)}?"):
        said = "nothing was changed"
    elif given.take == "ours":
        said = resolve.take_ours(node)
    elif given.take == "theirs":
        said = resolve.take_theirs(session.sites, node, session.config.trash_expiry_seconds)
    else:
        document = document_of(member)[1]
        name = given.park if ":" in given.park else f"{_place(document.ref.image_spec)}{given.park}"
        said = resolve.park(session.sites, node, ImageSpec.parse(name))
    _result(session, said)
    return 0


def _place(spec: str) -> str:
    return spec[: max(spec.rfind("/"), spec.rfind(":")) + 1]


def _portion(text: str | None) -> Extents | None:
    if not text:
        return None
    pairs = []
    for part in text.split(","):
        low, dots, high = part.partition("..")
        if not dots:
            raise errors.UsageError(f"{part!r} is not a range", "Write A..B, for example 0..1G.")
        start, end = parse_size(low or "0"), parse_size(high)
        if end <= start:
            raise errors.UsageError(f"{part!r} ends before it begins")
        pairs.append((start, end - start))
    return Extents.of(pairs)


def run_lease(session: Session) -> int:
    given = session.options
    tree, member, _ = _node(session)
    holder = document_of(member)[1]
    root = tree.root
    if root is None or root.node is None:
        raise errors.Unreachable(f"the root of {tree.name} cannot be reached: leases are granted there")
    if session.dry_run:
        _check_lease(session, root, holder)
        nothing: dict[str, Any] = {"released": 0} if given.action == "release" else {"leases": []}
        text = f"would {given.action} a lease for {given.node}"
        session.put({"node": given.node, **nothing, "dry_run": True}, text)
        return 0
    if given.action == "release":
        count = leases.release(root.node, holder, _portion(given.portion))
        text = f"{given.node}: {render.counted(count, 'lease')} given back"
        session.put({"node": given.node, "released": count, "dry_run": False}, text)
        return 0
    seconds = parse_duration(given.duration)
    if given.action == "renew":
        granted = leases.renew(root.node, holder, seconds)
    else:
        granted = (_acquire(session, root.node, member, _portion(given.portion), seconds),)
    session.put(
        {"node": given.node, "leases": [_lease(x) for x in granted], "dry_run": False},
        "\n".join(f"{given.node} holds {_ranges(x)} for {seconds:g} s" for x in granted),
    )
    return 0


def _acquire(session: Session, root: Node, member: Member, wanted: Extents | None, seconds: float) -> Lease:
    """The holder is brought up to date first, as that may take long; then again, to what was cut meanwhile."""
    holder = document_of(member)[1]
    leases.prepare(root, holder, wanted)
    _bring(session, member)
    holder = Node.at(session.sites, member.ref).read()
    held = Extents.of(
        p for x in leases.active(root.read(), time.time()) if x.holder == member.ref.node_id for p in x.extents
    )
    lease = leases.acquire(root, holder, wanted, seconds)
    try:
        _bring(session, member)
    except errors.Error:
        fresh = Extents.of(lease.extents).subtract(held)
        if fresh:
            leases.release(root, holder, fresh)
        raise
    return lease


def _bring(session: Session, member: Member) -> None:
    """Everything down to a node to the newest generation; raises what failed."""
    with progress.reporter(session) as reporter:
        name = document_of(member)[1].tree
        tree = session.forest(name).tree(name)
        only = frozenset(m.ref.name for m in tree.path(tree.member(member.ref.name)))
        expiry = session.config.trash_expiry_seconds
        outcomes = Sync(session.sites, reporter, only=only, expiry_seconds=expiry).run(tree)
    failed = next((o.error for o in outcomes if o.error), None)
    if failed:
        raise failed


def _check_lease(session: Session, root: Member, holder: NodeDocument) -> None:
    """Raises what would be refused."""
    given, (node, document), now = session.options, document_of(root), time.time()
    if given.action == "renew":
        leases.of(document, holder, now)
    elif given.action == "acquire":
        image = node.pool.open(document.image_id)
        try:
            size = image.size()
        finally:
            image.close()
        leases.check(document, holder, _portion(given.portion) or leases.everything(holder, size), size, now)


def _ranges(lease: Lease) -> str:
    return ", ".join(f"{offset}..{offset + length}" for offset, length in lease.extents)


def _lease(lease: Lease) -> dict[str, Any]:
    return {
        "holder": lease.holder_name,
        "epoch": lease.epoch,
        "expires_seconds": lease.expires,
        "extents": [{"offset_bytes": o, "length_bytes": n} for o, n in lease.extents],
    }


def run_lease_ls(session: Session) -> int:
    import time

    name = NodeName.parse(session.options.tree)
    tree = session.forest(name.tree).tree(name.tree)
    if tree.root is None or tree.root.document is None:
        raise errors.Unreachable(f"the root of {tree.name} cannot be reached: leases are kept there")
    now = time.time()
    found = [
        x
        for x in leases.active(tree.root.document, now)
        if not name.node or x.holder == tree.member(name.node).ref.node_id
    ]
    if session.json:
        session.put({"tree": tree.name, "leases": [_lease(x) for x in found]}, "")
    elif found:
        rows = [(x.holder_name, _ranges(x), render.age(x.expires - now)) for x in found]
        render.table(("HOLDER", "RANGE", "LEFT"), rows)
    else:
        print(f"{name} has no leases")
    return 0
