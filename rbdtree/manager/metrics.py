"""What a manager knows, for Prometheus (https://prometheus.io/docs/practices/naming).

Counters grow with every cycle; gauges are worked out from the documents when they are asked for. A manager speaks of
the edges that it has, so that several of them together tell of each edge once; but for ``rbdtree_node_held``, which all
tell that see the node, and ``rbdtree_node_unprotected_seconds``, which who has the root tells of all nodes.
"""

import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.core import GaugeMetricFamily

from rbdtree import __version__, errors
from rbdtree.manager import answer
from rbdtree.manager.cycle import Cycle
from rbdtree.manager.service import Manager
from rbdtree.manager.unit import Unit
from rbdtree.manager.wish import Listener
from rbdtree.model.document import Kind, NodeDocument, PushState
from rbdtree.plan.behind import Behind, behind, pinned
from rbdtree.plan.health import may_stay, still_seconds, unscrubbed_since

_NODE = ("tree", "node")


class Metrics(Listener):
    """Of one manager; its registry is its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.manager: Manager | None = None

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"rbdtree_{name}", text, (*_NODE, *labels), registry=self.registry)

        self._cycles = counter("cycles", "Cycles of a node, by how they ended", "result")
        self._copied = counter("copied_bytes", "Bytes written to a node from its parent, zeroes included")
        self._read = counter("read_bytes", "Bytes read at the parent; siblings that shared a read count it each")
        self._elided = counter("elided_bytes", "Bytes of deltas that were zero at both ends and were not shipped")
        self._local = counter("local_bytes", "Bytes of a node's own pushes that needed not come down again")
        self._repeated = counter("repeated_bytes", "Bytes written by copies that failed, some of which are repeated")
        self._chunks = counter("copied_chunks", "Chunks (reads at the parent) of which something was written")
        self._elided_chunks = counter("elided_chunks", "Chunks of which nothing had to be written")
        self._repeated_chunks = counter("repeated_chunks", "Chunks written by copies that failed, some repeated")
        self._sent = counter("sent_bytes", "Bytes of pushes sent to the parent")
        self._published = counter("published_pushes", "Pushes that became generations at the root")
        self._refused = counter("refused_pushes", "Pushes that met changes of others, or a lease")
        self._scrubbed = counter("scrubbed_bytes", "Bytes of the volume compared in the background")
        self._steps = counter("step_seconds", "Time spent in each part and step of cycles", "step")
        self._cut = counter("cut_generations", "Generations cut by the schedule")
        self._moves = Counter(
            "rbdtree_edges_moved", "Edges taken, given away and lost by this manager", ("what",), registry=self.registry
        )
        self._problems = Counter(
            "rbdtree_problems", "Errors that concern no single edge, by class", ("kind",), registry=self.registry
        )
        self._seconds = Histogram(
            "rbdtree_cycle_seconds",
            "How long cycles took that changed something",
            registry=self.registry,
            buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800),
        )
        info = Gauge("rbdtree_build_info", "Always 1", ("version",), registry=self.registry)
        info.labels(__version__).set(1)
        self.registry.register(self)

    def serve(self, address: str, port: int) -> int:
        """Until the process ends; the port, which the system chose for port 0. ``Exists`` when it is taken."""
        try:
            server, _ = start_http_server(port, address, self.registry)
        except OSError as error:
            raise errors.Exists(
                f"metrics: cannot listen on {address}:{port}: {error.strerror}",
                "Choose another with --metrics ADDRESS:PORT, or none with --metrics off.",
            ) from error
        return int(server.server_port)

    # -- told by the manager

    def cycle(self, unit: Unit, cycle: Cycle) -> None:
        where = unit.document.tree, unit.ref.name
        result = str(answer.answer(cycle.error)) if cycle.error else ("changed" if cycle.changed else "idle")
        self._cycles.labels(*where, result).inc()
        edge = cycle.edge
        if edge:
            self._copied.labels(*where).inc(edge.written_bytes)
            self._read.labels(*where).inc(edge.read_bytes)
            self._elided.labels(*where).inc(edge.elided_bytes)
            self._local.labels(*where).inc(edge.local_bytes)
            self._repeated.labels(*where).inc(edge.repeated_bytes)
            self._chunks.labels(*where).inc(edge.copied_chunks)
            self._elided_chunks.labels(*where).inc(edge.elided_chunks)
            self._repeated_chunks.labels(*where).inc(edge.repeated_chunks)
            for step, seconds in edge.step_seconds.items():
                self._steps.labels(*where, step).inc(seconds)
        for part, seconds in cycle.parts.items():
            if part != "sync":
                self._steps.labels(*where, part).inc(seconds)
        self._sent.labels(*where).inc(cycle.sent_bytes)
        self._published.labels(*where).inc(cycle.published)
        self._refused.labels(*where).inc(cycle.refused)
        self._scrubbed.labels(*where).inc(cycle.scrubbed_bytes)
        self._cut.labels(*where).inc(cycle.cut is not None)
        if cycle.changed:
            self._seconds.observe(cycle.seconds)

    def edge(self, unit: Unit, what: str) -> None:
        self._moves.labels(what).inc()

    def problem(self, error: errors.Error) -> None:
        self._problems.labels(type(error).__name__).inc()

    # -- asked by Prometheus

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Gauges, as of now."""
        manager = self.manager
        if manager is None:
            return
        now = time.time()
        units = [unit for unit in list(manager.units.values()) if unit.held]
        yield _plain("edges_held", "Edges (and roots) that are this manager's", len(units))
        yield _plain("edges_known", "Edges (and roots) that this manager may work on", len(manager.units))
        yield _plain("managers", "Managers seen on the sites, this one among them", len(manager.tenure.peers()))
        yield _plain("looked_timestamp_seconds", "When all documents were looked at last", manager.looked)
        yield _plain("started_timestamp_seconds", "When this manager began", manager.began)
        up = GaugeMetricFamily("rbdtree_site_up", "Whether a site answers", labels=["site"])
        for site, error in manager.tenure.site_errors().items():
            up.add_metric([site], float(error is None))
        yield up
        is_held = GaugeMetricFamily(
            "rbdtree_node_held",
            "Whether this manager has a node it may work on: one of all managers should",
            labels=_NODE,
        )
        for unit in list(manager.units.values()):
            is_held.add_metric([unit.document.tree, unit.ref.name], float(unit.held))
        yield is_held
        yield from self._nodes(manager, units, now)
        yield from self._troubles(units)
        yield from _uplinks(manager)

    def _nodes(self, manager: Manager, units: list[Unit], now: float) -> Iterator[GaugeMetricFamily]:
        def family(name: str, text: str, *labels: str) -> GaugeMetricFamily:
            return GaugeMetricFamily(f"rbdtree_node_{name}", text, labels=[*_NODE, *labels])

        generations = family("lag_generations", "Generations a node lacks", "of")
        seconds = family("lag_seconds", "Between the newest generation there and the newest here", "of")
        size = family("lag_bytes", "Bytes a node lacks, at most", "of")
        age = family(
            "unprotected_seconds", "Age of the oldest generation a node lacks, at least; 0: of none that is seen"
        )
        stays = family(
            "may_stay", "1: a clone with a branch, which in use stays over its base; without rpo_seconds then"
        )
        objective = family("rpo_seconds", "How old what a node lacks may be, by its policy")
        met = family("rpo_met", "1 when it is not older; not told where only the root would know")
        held = family("pinned_bytes", "Bytes changed since the oldest generation held for a child, a branch, a map")
        held_age = family("pinned_seconds", "Since that generation was followed by another")
        scrubbed = family("scrub_age_seconds", "Since a whole comparison with the parent ended, or the first began")
        wanted = family("scrub_wanted_seconds", "Within what time a whole comparison is wanted, by its policy")
        found = family("scrub_found_objects", "Objects that differed in the last pass or the one under way")
        pushes = family("pushes", "Pushes at a node, by state", "state")
        copying = family("intent_bytes", "Bytes of the volume done of the delta in flight, as of the last look", "of")
        still = family(
            "still_seconds", "Since what is in flight got on: a delta, or at the root a cut or a push; 0: nothing is"
        )
        for unit in units:
            document = _newest(manager, unit)
            where = [document.tree, unit.ref.name]
            for of, lack in self._lags(manager, unit):
                generations.add_metric([*where, of], lack.generations)
                size.add_metric([*where, of], lack.bytes)
                if lack.seconds is not None:
                    seconds.add_metric([*where, of], lack.seconds)
            self._age(manager, unit, now, age, met)
            if unit.is_root:
                _told(document, {other.ref.node_id for other in units}, now, age)
            else:
                stays.add_metric(where, float(may_stay(document)))
                rpo = _objective(unit, document)
                if rpo is not None:
                    objective.add_metric(where, rpo)
            costs = pinned(document)
            held.add_metric(where, costs.bytes)
            held_age.add_metric(where, max(0.0, now - costs.since) if costs.since else 0.0)
            if unit.policy.scrub is not None and not unit.is_root:
                wanted.add_metric(where, unit.policy.scrub)
                since = unscrubbed_since(document)
                scrubbed.add_metric(where, max(0.0, now - since) if since else 0.0)
            if document.scrub:
                found.add_metric(where, document.scrub.found)
            for state in PushState:
                pushes.add_metric([*where, str(state)], sum(p.state is state for p in document.pushes))
            still.add_metric(where, still_seconds(document, now))
            if document.intent:
                copying.add_metric([*where, "done"], document.intent.done_bytes)
                copying.add_metric([*where, "total"], document.intent.size_bytes)
        yield from (generations, seconds, size, age, objective, met, held, held_age, scrubbed, found)
        yield from (wanted, pushes, copying, still, stays)

    @staticmethod
    def _troubles(units: list[Unit]) -> Iterator[GaugeMetricFamily]:
        troubled = GaugeMetricFamily(
            "rbdtree_node_trouble",
            "Failures in a row of an edge, by what a manager does about it",
            labels=[*_NODE, "kind", "answer"],
        )
        tried = GaugeMetricFamily(
            "rbdtree_node_next_try_timestamp_seconds",
            "When an edge that fails is tried again; 0: it waits for a person",
            labels=_NODE,
        )
        for unit in units:
            trouble = unit.trouble
            if trouble:
                where = [unit.document.tree, unit.ref.name]
                troubled.add_metric([*where, trouble.kind, str(answer.kind_of(trouble))], trouble.count)
                tried.add_metric(where, trouble.next_try)
        yield from (troubled, tried)

    def _age(self, manager: Manager, unit: Unit, now: float, age: GaugeMetricFamily, met: GaugeMetricFamily) -> None:
        """Against the root or, out of its sight, the parent: what that lacks itself is not seen from here."""
        lags, rpo = dict(self._lags(manager, unit)), _objective(unit, _newest(manager, unit))
        lack = lags.get("root") or lags.get("parent")
        if lack is None:
            return
        where, old = [unit.document.tree, unit.ref.name], _age_of(lack, now)
        age.add_metric(where, old)
        if rpo is not None and ("root" in lags or old > rpo):
            met.add_metric(where, float(old <= rpo))

    def _lags(self, manager: Manager, unit: Unit) -> Iterator[tuple[str, Behind]]:
        if unit.is_root:
            return
        document = _newest(manager, unit)
        above = document.parent and manager.documents.get(document.parent.node_id)
        if above:
            yield "parent", behind(document.newest_position, above.generations)
        root = self._root(manager, unit)
        if root is not None:
            yield "root", root

    def _root(self, manager: Manager, unit: Unit) -> Behind | None:
        """None when this manager cannot see the root."""
        tree = unit.document.tree_id
        for document in list(manager.documents.values()):
            if document.tree_id == tree and document.kind is Kind.ROOT:
                return behind(_newest(manager, unit).newest_position, document.generations)
        return None


def _objective(unit: Unit, document: NodeDocument) -> float | None:
    """Its rpo; None also of a clone that may stay over its base."""
    return None if may_stay(document) else unit.policy.rpo


def _age_of(lack: Behind, now: float) -> float:
    return max(0.0, now - lack.oldest) if lack.oldest else 0.0


def _told(root: NodeDocument, ours: set[str], now: float, age: GaugeMetricFamily) -> None:
    """Of the nodes that are others', who may not see the root, by what the root was told of them."""
    below = list(root.children)
    while below:
        child = below.pop()
        if child.summary is None:
            continue
        below += child.summary.children
        if child.ref.node_id not in ours:
            age.add_metric([root.tree, child.ref.name], _age_of(behind(child.summary.position, root.generations), now))


def _newest(manager: Manager, unit: Unit) -> NodeDocument:
    """Its document. What a cycle works with may be as old as the cycle; every look reads all documents anew."""
    return manager.documents.get(unit.ref.node_id, unit.document) if unit.running else unit.document


def _plain(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"rbdtree_{name}", text, value=value)


def _uplinks(manager: Manager) -> Iterator[GaugeMetricFamily]:
    def family(name: str, text: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"rbdtree_unpublished_{name}", text, labels=list(_NODE))

    records = family("records", "Journal records of a branch that are not upstream")
    size = family(
        "bytes",
        "What would be lost with a branch, at most: of its journal, or of the objects written since its last push",
    )
    seconds = family("seconds", "Age of the oldest record of a journal that is not upstream")
    for unit in list(manager.units.values()):
        if unit.held and unit.unpublished_bytes is not None:
            size.add_metric([unit.document.tree, unit.ref.name], unit.unpublished_bytes)
    for name, window in manager.uplinks.windows().items():
        where = list(name.split("/", 1))
        records.add_metric(where, window.records)
        size.add_metric(where, window.bytes)
        seconds.add_metric(where, window.seconds)
    yield from (records, size, seconds)
