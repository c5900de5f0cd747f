"""``cut`` and ``sync``: generations made, and brought down the tree."""

import argparse
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine import ends
from rbdtree.engine.cut import cut
from rbdtree.engine.forest import Tree, document_of
from rbdtree.engine.node import cluster_of
from rbdtree.engine.sync import Outcome, Sync
from rbdtree.host import quiesce
from rbdtree.model.document import Kind
from rbdtree.model.name import NodeName
from rbdtree.model.position import Generation, Position

from . import completion, options, progress, render
from .completion import completes
from .session import Session, described


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    parents = [options.common(), options.changing()]
    cutting = commands.add_parser("cut", help="make the next generation at the root", parents=parents)
    completes(cutting.add_argument("tree", metavar="TREE"), completion.trees)
    cutting.set_defaults(run=run_cut)
    syncing = commands.add_parser(
        "sync", help="bring the tree, or the path to a node, to the newest generation", parents=parents
    )
    completes(syncing.add_argument("tree", metavar="TREE[/NODE]"), completion.trees_and_nodes)
    syncing.add_argument("--cut", action="store_true", help="cut a generation first")
    syncing.set_defaults(run=run_sync)


def make(session: Session, tree: Tree) -> Generation:
    """The next generation, of a root whose maps on this host are frozen meanwhile."""
    node, document = document_of(tree.needed_root())
    if session.dry_run:
        document = ends.read_settled(node)
        position = replace(document.position, sequence=document.last_sequence + 1)
        return Generation(position, 0, document.newest.size_bytes if document.newest else 0, 0.0)
    with quiesce.frozen(document.tree_id) as freezes:
        for trouble in filter(None, (freeze.trouble for freeze in freezes)):
            session.warn(
                errors.HostFailed(f"{tree.name} is cut without a clean freeze: {trouble}", "See 'rbdtree mapped'.")
            )
        return cut(node)


def _describe(generation: Generation, planned: bool) -> dict[str, object]:
    """A planned one has no size, delta or time yet."""
    return {
        "epoch": generation.position.epoch,
        "sequence": generation.position.sequence,
        "generation": str(generation.position),
        "size_bytes": None if planned else generation.size_bytes,
        "delta_bytes": None if planned else generation.delta_bytes,
        "created_seconds": None if planned else generation.created,
    }


def run_cut(session: Session) -> int:
    tree = session.tree(session.whole(session.options.tree))
    made = make(session, tree)
    text = (
        f"{tree.name}: would cut generation {made.position}"
        if session.dry_run
        else (
            f"{tree.name}: generation {made.position}, {render.size(made.size_bytes)}, "
            + (f"{render.size(made.delta_bytes)} changed" if made.delta_bytes is not None else "delta not measured")
        )
    )
    session.put({"tree": tree.name, "dry_run": session.dry_run, **_describe(made, session.dry_run)}, text)
    return 0


def run_sync(session: Session) -> int:
    name = NodeName.parse(session.options.tree)
    tree = session.tree(name.tree)
    only = path_to(session, tree, name)
    made: Generation | None = None
    if session.options.cut:
        made = make(session, tree)
        if not session.json:
            print(f"{tree.name}: {'would cut' if session.dry_run else 'cut'} generation {made.position}", flush=True)
        tree = session.tree(name.tree)
    if not tree.position.sequence and not (session.options.cut and session.dry_run):
        raise errors.NotFound(
            f"{tree.name} has no generation yet",
            f"Make one: 'rbdtree cut {tree.name}', or 'rbdtree sync --cut {tree.name}'.",
        )
    outcomes = bring(session, tree, only)
    if made and session.dry_run:
        for outcome in outcomes:
            outcome.steps.append(f"then follow to {made.position}")
    return say(session, tree, outcomes, made.position if made else tree.position)


def bring(session: Session, tree: Tree, only: frozenset[str] | None) -> list[Outcome]:
    """All nodes, or those of these names, to their parents' newest generation; with progress."""
    with progress.reporter(session) as reporter:
        run = Sync(
            session.sites,
            reporter,
            only=only,
            dry_run=session.dry_run,
            expiry_seconds=session.config.trash_expiry_seconds,
        )
        in_background(lambda: run.run(tree), run.stop, reporter)
        return list(run.outcomes.values())


def path_to(session: Session, tree: Tree, name: NodeName) -> frozenset[str] | None:
    """Names of the nodes to bring on; None: all. An edge to a cluster of which this host knows nothing is none of its
    business: another host brings on what is above."""
    if not name.node:
        return None
    member = tree.member(name.node)
    if member.kind is Kind.ROOT:
        raise errors.UsageError(
            f"{name} is the root: it is what the others are brought to",
            f"Run 'rbdtree sync {tree.name}' for all nodes, 'rbdtree cut {tree.name}' for a new generation.",
        )
    path = tree.path(member)
    parent = path[0].document.parent if path[0].document else None
    if parent and path[0] is not member:
        try:
            cluster_of(session.sites, parent)
        except errors.NotFound:
            path = path[1:]
    return frozenset(m.ref.name for m in path)


def in_background(call: Callable[[], object], stop: threading.Event, reporter: progress.Bars | progress.Notes) -> None:
    """The main thread stays free for Ctrl-C; the first one stops in good order, the second at once."""
    failed: list[BaseException] = []
    # Not Thread.join: interrupted by Ctrl-C, Python 3.11's takes a running thread for one that ended.
    done = threading.Event()

    def work() -> None:
        try:
            call()
        except BaseException as error:
            failed.append(error)
        finally:
            done.set()

    threading.Thread(target=work, name="work", daemon=True).start()
    while not done.is_set():
        try:
            done.wait(0.2)
        except KeyboardInterrupt:
            if stop.is_set():
                raise
            stop.set()
            reporter.say("stopping: what is in flight is finished and noted; Ctrl-C again stops at once")
    if failed:
        raise failed[0]


def say(session: Session, tree: Tree, outcomes: list[Outcome], position: Position) -> int:
    rows = [
        {
            "node": o.node.partition("/")[2],
            "changed": o.changed,
            "written_bytes": o.written_bytes,
            "seconds": round(o.seconds, 3),
            "steps": o.steps,
            "waits": o.waits or None,
            "error": described(o.error) if o.error else None,
        }
        for o in outcomes
    ]
    if session.json:
        session.put(
            {"tree": tree.name, "generation": str(position), "dry_run": session.dry_run, "nodes": rows},
            "",
        )
    else:
        for outcome in outcomes:
            _line(session, outcome)
        if not outcomes:
            print(f"{tree.name}: nothing to sync: the root has no children yet")
    failed = [o.error for o in outcomes if o.error]
    interrupted = next((e for e in failed if isinstance(e, errors.Interrupted)), None)
    return (interrupted or failed[0]).exit_code if failed else 0


def _line(session: Session, outcome: Outcome) -> None:
    if outcome.error:
        text = str(outcome.error)
        print(f"rbdtree: {text if outcome.node in text else f'{outcome.node}: {text}'}", file=sys.stderr)
        if outcome.error.hint:
            print(f"  {outcome.error.hint}", file=sys.stderr)
    elif session.dry_run:
        print(f"{outcome.node}: " + ("; ".join(outcome.steps) if outcome.steps else "nothing to do"))
    elif outcome.changed:
        print(f"{outcome.node}: up to date, {render.size(outcome.written_bytes)} written in {outcome.seconds:.2f} s")
    else:
        print(f"{outcome.node}: up to date already")
    if outcome.waits and not outcome.error:
        print(f"{outcome.node} waits: {outcome.waits}")
