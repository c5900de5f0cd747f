"""``manager`` and ``managers``: the service that keeps trees in sync, and who runs it."""

import argparse
import logging
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from rbdtree import errors, heap
from rbdtree.ceph.sites import RETIRED_SECONDS, Sites
from rbdtree.engine.forest import look
from rbdtree.host import quiesce
from rbdtree.manager import notify
from rbdtree.manager.cycle import Cycle
from rbdtree.manager.roster import roster
from rbdtree.manager.service import Manager
from rbdtree.manager.unit import Unit
from rbdtree.manager.wish import Listener, Wish
from rbdtree.model.schedule import parse_duration

from . import completion, options, render
from .completion import completes
from .session import Session

METRICS = "127.0.0.1:9842"
_RETRY_SECONDS = 10.0
_TRIM_SECONDS = 30.0


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    common = [options.common()]
    service = commands.add_parser(
        "manager", help="keep trees in sync until stopped: a service, any number of them", parents=common
    )
    completes(
        service.add_argument(
            "--tree", action="append", default=[], metavar="TREE", help="this tree only; may be given several times"
        ),
        completion.trees,
    )
    service.add_argument(
        "--site",
        action="append",
        default=[],
        metavar="SITE",
        help="nodes at this site only; may be given several times",
    )
    service.add_argument("--poll", default="60s", metavar="TIME", help="how often to look unasked (default 60s)")
    service.add_argument("--jobs", type=int, default=16, metavar="N", help="edges at work at a time (default 16)")
    service.add_argument(
        "--metrics",
        default=METRICS,
        metavar="ADDRESS:PORT",
        help=f"where Prometheus finds the figures (default {METRICS}; 'off': nowhere)",
    )
    service.add_argument("--log-format", choices=("logfmt", "json"), default="logfmt", help="of the log on stderr")
    service.add_argument("--verbose", action="store_true", help="log cycles that found nothing to do, too")
    service.set_defaults(run=run_manager)
    listing = commands.add_parser("managers", help="which managers run, and whose each edge is", parents=common)
    completes(listing.add_argument("tree", nargs="?", metavar="TREE"), completion.trees)
    listing.set_defaults(run=run_managers)


class _Log(Listener):
    """One canonical line a cycle; edges taken and lost; sites that fall silent. And Prometheus' figures."""

    def __init__(self, form: str, verbose: bool, metrics: Listener | None) -> None:
        import structlog

        renderer: Any = (
            structlog.processors.JSONRenderer()
            if form == "json"
            else structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"], bool_as_flag=False)
        )
        structlog.configure(
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                renderer,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG if verbose else logging.INFO),
            logger_factory=structlog.PrintLoggerFactory(sys.stderr),
            cache_logger_on_first_use=False,
        )
        self.log: Any = structlog.get_logger()
        self._metrics = metrics or Listener()

    def cycle(self, unit: Unit, cycle: Cycle) -> None:
        self._metrics.cycle(unit, cycle)
        found = canonical(unit, cycle)
        if cycle.error is None:
            said = self.log.warning if cycle.skewed else self.log.info if cycle.changed else self.log.debug
            said("cycle", **found)
        elif isinstance(cycle.error, errors.Bug):
            self.log.error("cycle", **found, exc_info=cycle.error.__cause__ or cycle.error)
        else:
            self.log.warning("cycle", **found)

    def edge(self, unit: Unit, what: str) -> None:
        self._metrics.edge(unit, what)
        self.log.info("edge", node=unit.name, what=what)

    def site(self, site: str, error: errors.Error | None) -> None:
        self._metrics.site(site, error)
        if error:
            self.log.warning("site", site=site, answers=False, error=str(error))
        else:
            self.log.info("site", site=site, answers=True)

    def problem(self, error: errors.Error) -> None:
        self._metrics.problem(error)
        self.log.warning("problem", error=str(error), kind=type(error).__name__)


def canonical(unit: Unit, cycle: Cycle) -> dict[str, Any]:
    """Everything about a cycle in one flat line; what is nought is left out."""
    edge = cycle.edge
    found: dict[str, Any] = {
        "tree": unit.document.tree,
        "node": unit.ref.name,
        "kind": str(unit.document.kind),
        "generation": str(unit.document.newest_position or ""),
        "seconds": round(cycle.seconds, 3),
        "cut": str(cycle.cut or ""),
        "unfrozen": cycle.unfrozen,
        "published": cycle.published,
        "refused": cycle.refused,
        "sent_bytes": cycle.sent_bytes,
        "scrubbed_bytes": cycle.scrubbed_bytes,
        "removed": cycle.removed,
        "let_go": ", ".join(cycle.let_go),
        "skewed": cycle.skewed,
    }
    if edge:
        found |= {
            "written_bytes": edge.written_bytes,
            "local_bytes": edge.local_bytes,
            "read_bytes": edge.read_bytes,
            "elided_bytes": edge.elided_bytes,
            "repeated_bytes": edge.repeated_bytes,
            "chunks": edge.copied_chunks,
            "elided_chunks": edge.elided_chunks,
            "repeated_chunks": edge.repeated_chunks,
            "steps": len(edge.steps),
            "waits": edge.waits,
        }
        found |= {f"{step}_seconds": round(seconds, 3) for step, seconds in edge.step_seconds.items()}
    if cycle.error:
        found |= {"error": str(cycle.error), "error_kind": type(cycle.error).__name__, "hint": cycle.error.hint}
    if cycle.trouble:
        found |= {"failures": cycle.trouble.count, "next_try": cycle.trouble.next_try}
    return {key: value for key, value in found.items() if value not in ("", 0, None)}


def _wish(session: Session) -> Wish:
    given = session.options
    poll = parse_duration(given.poll)
    if not 1 <= poll <= 3600:
        raise errors.UsageError(f"--poll takes 1s to 1h, not {given.poll}", "The default is 60s.")
    if not 1 <= given.jobs <= 1024:
        raise errors.UsageError(f"--jobs takes a number from 1 to 1024, not {given.jobs}", "The default is 16.")
    for site in given.site:
        if site not in session.config.sites:
            raise errors.NotFound(
                f"there is no site {site!r} in the configuration", f"It has: {', '.join(session.config.sites)}."
            )
    return Wish(
        trees=frozenset(given.tree),
        sites=frozenset(given.site),
        poll=poll,
        jobs=given.jobs,
        expiry_seconds=session.config.trash_expiry_seconds,
    )


def _address(text: str) -> tuple[str, int] | None:
    if text == "off":
        return None
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise errors.UsageError(f"{text!r} is not ADDRESS:PORT", f"Write for example {METRICS}, or 'off'.")
    return host.strip("[]"), int(port)


def run_manager(session: Session) -> int:
    """Until SIGTERM or SIGINT; SIGHUP reads the configuration anew."""
    from rbdtree.manager.metrics import Metrics

    address = _address(session.options.metrics)
    wish = _wish(session)
    metrics = Metrics()
    log = _Log(session.options.log_format, session.options.verbose, metrics)
    if address:
        port = metrics.serve(*address)
        log.log.info("metrics", address=address[0], port=port)
    stopped, reload = threading.Event(), threading.Event()
    current: list[Manager] = []

    def on_signal(number: int, _frame: object) -> None:
        # Stopping is said when it is the process that stops: systemd would wait for its end, and then kill it.
        notify.tell("RELOADING=1" if number == signal.SIGHUP else "STOPPING=1")
        (reload if number == signal.SIGHUP else stopped).set()
        for manager in current:
            manager.stop()

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    while True:
        sites = Sites(session.config.sites, session.options.timeout, _RETRY_SECONDS)
        manager = Manager(sites, wish, log, frozen=_frozen)
        metrics.manager = manager
        current[:] = [manager]
        log.log.info("started", manager=manager.name, sites=",".join(session.config.sites), jobs=wish.jobs)
        if stopped.is_set():
            break
        if reload.is_set():
            # It came while this one was being made: the one before was told to stop, once more.
            manager.stop()
        _run(manager)
        if stopped.is_set():
            # Connections end with the process. A client that is shut down while an operation waits for its time-out may
            # take the process with it (16: Objecter::op_cancel, without a session).
            break
        _retire(sites)
        reload.clear()
        session, wish = _reloaded(session, wish, log)
    log.log.info("stopped", manager=manager.name)
    return 0


def _retire(sites: Sites) -> None:
    """Ends connections when nothing can be under way on them any more."""

    def end() -> None:
        with suppress(errors.Error):
            sites.close()

    timer = threading.Timer(RETIRED_SECONDS, end)
    timer.daemon = True
    timer.start()


@contextmanager
def _frozen(tree_id: str) -> Iterator[list[str]]:
    """What this host has mapped of the volume with --quiesce, where librbd does not see to it."""
    with quiesce.frozen(tree_id) as freezes:
        yield [freeze.trouble for freeze in freezes if freeze.trouble]


def _run(manager: Manager) -> None:
    """On a thread: the main one stays free for signals."""
    failed: list[BaseException] = []

    def work() -> None:
        try:
            manager.run()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work, name="manager", daemon=True)
    thread.start()
    told, trimmed = False, time.monotonic()
    while thread.is_alive():
        if time.monotonic() >= trimmed + _TRIM_SECONDS:
            heap.trim()
            trimmed = time.monotonic()
        if not told and manager.ready.is_set():
            notify.tell(f"READY=1\nSTATUS={manager.name}")
            told = True
        thread.join(0.2)
    if failed:
        raise failed[0]


def _reloaded(session: Session, wish: Wish, log: _Log) -> tuple[Session, Wish]:
    """With the configuration of now; with the one before when that cannot be used."""
    try:
        fresh = Session(session.options)
        made = _wish(fresh)
    except errors.Error as error:
        log.log.error("reload", error=str(error), hint=error.hint, kept="the configuration before")
        return session, wish
    log.log.info("reload", sites=",".join(fresh.config.sites))
    return fresh, made


def run_managers(session: Session) -> int:
    wanted = session.whole(session.options.tree) if session.options.tree is not None else None
    forest = look(session.sites, wanted)
    if wanted:
        forest.tree(wanted)
    for problem in forest.problems:
        session.warn(problem)
    who = roster(forest)
    managers = [
        {"manager": m.peer.manager, "worker": m.worker, "clusters": sorted(m.peer.fsids), "edges": m.peer.load}
        for m in who.managers
    ]
    edges = [{"node": node, "worker": worker or None} for node, worker in who.edges.items()]
    if session.json:
        session.put({"managers": managers, "edges": edges}, "")
        return 0
    if managers:
        rows = [
            (m.peer.manager, render.counted(m.peer.load, "edge"), render.counted(len(m.peer.fsids), "cluster"))
            for m in who.managers
        ]
        render.table(("MANAGER", "HAS", "REACHES"), rows)
    else:
        print("no manager runs; start one with 'rbdtree manager', or the systemd unit rbdtree-manager")
    if edges:
        print()
        render.table(("NODE", "WORKER"), [(node, worker or "-") for node, worker in who.edges.items()])
    return 0
