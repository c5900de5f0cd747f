"""The figures for Prometheus, the alerts and the dashboard over them: names that are there, expressions that parse."""

import json
import re
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from rbdtree import errors, memory
from rbdtree.engine import branch as branches
from rbdtree.engine import push
from rbdtree.engine.copy import CHUNK
from rbdtree.manager import cycle as cycles
from rbdtree.manager.cycle import Cycles
from rbdtree.manager.metrics import Metrics
from rbdtree.model.document import Intent, Kind
from rbdtree.model.position import Position

from .forest import Grove, Running, until

TOP = Path(__file__).parents[2]
DEPLOY = TOP / "deploy"
DASHBOARD = DEPLOY / "grafana" / "rbdtree.json"
_NAME = re.compile(r"\brbdtree_[a-z_]+")


@pytest.fixture(scope="module")
def promtool() -> str:
    """Of the distribution's Prometheus, in a folder."""
    found = shutil.which("promtool")
    if found:
        return found
    asked = subprocess.run([TOP / "ceph-dev" / "promtool"], capture_output=True, text=True, check=False)
    if asked.returncode:
        pytest.skip(f"promtool cannot be had here: {asked.stderr.strip().splitlines()[-1:]}")
    return asked.stdout.strip().splitlines()[-1]


def tool(promtool: str, *words: object, text: str = "", at: Path | None = None) -> str:
    command = [promtool, *map(str, words)]
    done = subprocess.run(command, input=text, capture_output=True, text=True, cwd=at, check=False)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


@pytest.fixture(scope="module")
def told() -> Iterator[str]:
    """What a manager tells that brought a tree on, cut by schedule, and scrubbed."""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.policy("root", tree=True, schedule="1s")
    grove.policy("m", scrub="1s", rpo="1h")
    grove.write(0, b"one" * 5000)
    metrics = managed(grove)
    try:
        until(lambda: grove.document("m").generations and grove.level(), "the tree is level")
        until(lambda: (s := grove.document("m").scrub) and s.finished, "a scrub has ended")
        until(lambda: all(series in text(metrics) for series in AT_LAST), "all of it is told")
        port = metrics.serve("127.0.0.1", 0)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            yield answer.read().decode()
    finally:
        grove.close()


def managed(grove: Grove, **wish: Any) -> Metrics:
    """What a manager of all of it tells."""
    metrics = Metrics()
    running = Running(grove.storages, listener=metrics, **wish)
    metrics.manager = running.manager
    grove.managers.append(running)
    return metrics


AT_LAST = (
    'rbdtree_step_seconds_total{node="m",step="copy",tree="t"}',
    'rbdtree_cut_generations_total{node="root",tree="t"}',
    'rbdtree_node_scrub_found_objects{node="m",tree="t"}',
    'rbdtree_node_lag_generations{node="m",of="root",tree="t"} 0.0',
    'rbdtree_cycles_total{node="m",result="changed",tree="t"}',
)
BOTH = "bytes", "chunks"


def text(metrics: Metrics) -> str:
    return generate_latest(metrics.registry).decode()


def value(told: str, series: str) -> float:
    """Of a series that is not told (yet) not a number, which equals nothing and is not above anything."""
    return float(next((line.split()[1] for line in told.splitlines() if line.startswith(series + " ")), "nan"))


def test_what_is_told(told: str) -> None:
    assert value(told, 'rbdtree_copied_bytes_total{node="m",tree="t"}') >= 15000
    assert value(told, 'rbdtree_node_lag_generations{node="m",of="root",tree="t"}') == 0
    assert value(told, 'rbdtree_node_rpo_met{node="m",tree="t"}') == 1
    assert value(told, 'rbdtree_node_scrub_found_objects{node="m",tree="t"}') == 0
    assert value(told, 'rbdtree_node_scrub_wanted_seconds{node="m",tree="t"}') == 1
    assert value(told, 'rbdtree_node_scrub_age_seconds{node="m",tree="t"}') < 60
    assert 'rbdtree_node_scrub_wanted_seconds{node="root' not in told
    assert value(told, "rbdtree_edges_held") == value(told, "rbdtree_edges_known") == 2
    assert value(told, 'rbdtree_cut_generations_total{node="root",tree="t"}') == 1
    assert value(told, 'rbdtree_step_seconds_total{node="m",step="copy",tree="t"}') > 0


def test_what_is_copied_elided_and_repeated_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    half, write, failures = 4 << 20, memory.Image.submit_write, [1]

    def fails_once(self: memory.Image, offset: int, data: bytes, done: Any) -> None:
        if offset >= half and data[0] == ord("c") and failures:
            failures.pop()
            done(errors.NoSpace("of the test"))
        else:
            write(self, offset, data, done)

    metrics = managed(grove, poll=1.0)

    def told(kind: str) -> tuple[float, ...]:
        return tuple(value(text(metrics), f'rbdtree_{kind}_{what}_total{{node="m",tree="t"}}') for what in BOTH)

    def repeated() -> bool:
        size, chunks = told("repeated")
        return half <= size <= 2 * half and half / CHUNK <= chunks <= 2 * half / CHUNK

    try:
        grove.write(0, b"a" * half)
        grove.write(half, bytes(half))
        grove.cut()
        until(lambda: grove.level() and grove.document("m").generations, "it is level")
        until(lambda: told("copied") == (half, half / CHUNK), "what was copied is told")
        until(lambda: told("elided") == (half, half / CHUNK), "what was elided is told with it")
        until(lambda: told("repeated") == (0, 0), "that nothing was repeated is told with it")
        grove.write(0, b"b" * half)
        monkeypatch.setattr(memory.Image, "submit_write", fails_once)
        sites = memory.Sites(grove.storages)
        image = sites.cluster("a").pool("p").open(grove.document("root").image_id, read_only=False)
        write(image, half, b"c" * half, lambda _: None)
        image.close()
        grove.cut()
        until(lambda: not failures and grove.level(), "it is level again")
        until(lambda: told("copied") >= (2 * half, 0), "what was copied since is told")
        until(repeated, "what the failed copy had written is told")
    finally:
        grove.close()


def test_a_scrub_that_never_begins_grows_old_and_one_that_nobody_wants_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Cycles, "_scrub", lambda *_: None)
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.cut()
    grove.policy("m", scrub="1h")
    metrics = managed(grove, poll=0.2)
    age = 'rbdtree_node_scrub_age_seconds{node="m",tree="t"}'
    try:
        until(lambda: grove.document("m").generations and age in text(metrics), "it is told")
        day = tuple(replace(g, arrived=time.time() - 86400) for g in grove.document("m").generations)
        grove.node("m").update(lambda d: replace(d, generations=day))
        until(lambda: value(text(metrics), age) >= 86400, "it counts from when the node had its first generation")
        grove.policy("m", scrub="off")
        until(lambda: age not in text(metrics), "it is not told any more")
    finally:
        grove.close()


def test_every_manager_tells_whether_it_has_what_it_sees() -> None:
    """The one reaches the root and the mirror, the other the mirror and the leaf"""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.add("leaf", "m", Kind.MIRROR, "c")
    upper, lower = Metrics(), Metrics()
    for metrics, sites in ((upper, "ab"), (lower, "bc")):
        running = Running({name: grove.storages[name] for name in sites}, listener=metrics)
        metrics.manager = running.manager
        grove.managers.append(running)

    def held(metrics: Metrics) -> dict[str, str]:
        return dict(re.findall(r'rbdtree_node_held\{node="(\w+)",tree="t"\} ([01])\.0', text(metrics)))

    try:
        until(lambda: held(upper) == {"root": "1", "m": "1"}, "what it has")
        until(lambda: held(lower) == {"m": "0", "leaf": "1"}, "what it has, and what it sees")
    finally:
        grove.close()


def test_who_has_the_root_tells_what_those_lack_that_do_not_see_it() -> None:
    """The leaf is level with the mirror, and nobody brings that on any more."""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.add("leaf", "m", Kind.MIRROR, "c")
    grove.policy("root", tree=True, rpo="1h")
    grove.cut()

    def running(sites: str) -> tuple[Running, Metrics]:
        metrics = Metrics()
        made = Running({name: grove.storages[name] for name in sites}, listener=metrics)
        metrics.manager = made.manager
        grove.managers.append(made)
        return made, metrics

    def told(metrics: Metrics, name: str) -> dict[str, float]:
        found = re.findall(rf'rbdtree_node_{name}{{node="(\w+)",tree="t"}} (\S+)', text(metrics))
        return {node: float(number) for node, number in found}

    try:
        both, both_told = running("ab")
        _, lower = running("bc")
        until(lambda: "leaf" in told(lower, "rpo_seconds"), "the leaf has its policy")
        until(lambda: "leaf" in told(both_told, "unprotected_seconds"), "the root was told")
        both.stop()
        _, upper = running("a")
        grove.write(0, b"more" * 1000)
        grove.cut()
        until(lambda: told(upper, "unprotected_seconds").get("leaf", 0) > 0.5, "it grows older")
        assert told(upper, "unprotected_seconds").keys() == {"m", "leaf"}
        assert told(lower, "unprotected_seconds") == {"leaf": 0}
        assert told(lower, "rpo_met") == {}, "who sees the parent alone cannot know"
    finally:
        grove.close()


def test_a_clone_in_use_misses_no_rpo() -> None:
    """It stays over its base by design; how old that is is told all the same."""
    grove = Grove()
    for name in ("used", "bare"):
        grove.add(name, "root", Kind.CLONE, "a")
    grove.policy("root", tree=True, rpo="1s")
    grove.write(0, b"one" * 1000)
    grove.cut()
    metrics = managed(grove, poll=0.2)
    try:
        until(grove.level, "both have a generation")
        _, branch = branches.ensure(grove.sites, grove.node("used"), None, None)
        image = grove.sites.cluster("a").pool("p").open(branch.image_id, read_only=False)
        grove.write(0, b"two" * 1000)
        grove.cut()
        until(lambda: grove.document("bare").position == grove.document("root").position, "the other one moves on")

        def told_of_both() -> str:
            told = text(metrics)
            old = value(told, 'rbdtree_node_unprotected_seconds{node="used",tree="t"}') > 1
            return told if old and value(told, 'rbdtree_node_rpo_met{node="bare",tree="t"}') == 1 else ""

        told = until(told_of_both, "the one is old, the other is not")
        image.close()
    finally:
        grove.close()
    assert value(told, 'rbdtree_node_lag_generations{node="used",of="parent",tree="t"}') == 1
    assert value(told, 'rbdtree_node_may_stay{node="used",tree="t"}') == 1
    assert value(told, 'rbdtree_node_may_stay{node="bare",tree="t"}') == 0
    assert value(told, 'rbdtree_node_rpo_seconds{node="bare",tree="t"}') == 1
    assert 'rbdtree_node_rpo_seconds{node="used"' not in told
    assert 'rbdtree_node_rpo_met{node="used"' not in told


def test_what_a_branch_holds_is_told_until_it_is_pushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole objects, as nothing is read for it."""
    monkeypatch.setattr(cycles, "_WEIGH_SECONDS", 0.0)
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.write(0, b"one" * 1000)
    grove.cut()
    metrics = managed(grove, poll=0.2)
    holds = 'rbdtree_unpublished_bytes{node="m",tree="t"}'
    try:
        until(lambda: grove.document("m").generations and grove.level(), "it has a generation")
        assert holds not in text(metrics)
        _, branch = branches.ensure(grove.sites, grove.node("m"), branches.SNAPSHOT, None)
        until(lambda: holds in text(metrics), "it is told of")
        assert value(text(metrics), holds) == 0
        image = grove.sites.cluster("b").pool("p").open(branch.image_id, read_only=False)
        image.submit_write(5 << 20, b"two" * 1000, lambda _: None)
        image.close()
        until(lambda: value(text(metrics), holds) == 4 << 20, "the object is told of")
        push.stage(grove.sites, grove.node("m"))
        until(lambda: value(text(metrics), holds) == 0, "it is on its way")
    finally:
        grove.close()


def test_what_stands_still_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cut whose maker died when it had just begun, and that nobody goes on with."""
    monkeypatch.setattr(Cycles, "_cut", lambda *_: None)
    grove = Grove()
    metrics = managed(grove, poll=0.2)
    still = 'rbdtree_node_still_seconds{node="root",tree="t"}'
    try:
        until(lambda: still in text(metrics), "it is told of")
        assert value(text(metrics), still) == 0
        began = time.time() - 1000
        intent = Intent(Position(1, 1), None, 8 << 20, began, "gone", "", moved=began)
        grove.node("root").update(lambda d: replace(d, intent=intent))
        until(lambda: value(text(metrics), still) >= 1000, "it stands still")
    finally:
        grove.close()


def test_a_delta_in_flight_is_told_before_its_cycle_ends() -> None:
    """The second object has to wait until the first one is paid for."""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    grove.policy("m", bandwidth="256K")
    for offset in (0, 4 << 20):
        grove.write(offset, b"x" * (4 << 20))
    grove.cut()
    metrics = managed(grove)
    try:
        done = 'rbdtree_node_intent_bytes{node="m",of="done",tree="t"} 4.194304e+06'
        until(lambda: done in text(metrics), "the first object is told of")
        assert grove.document("m").intent
        assert 'node="m",result="changed"' not in text(metrics), "its cycle has not ended"
    finally:
        grove.close()


def test_metrics_are_well_formed(promtool: str, told: str) -> None:
    tool(promtool, "check", "metrics", text=told)


def test_alerts(promtool: str) -> None:
    tool(promtool, "check", "rules", DEPLOY / "prometheus" / "rbdtree.rules.yml")
    tool(promtool, "test", "rules", "rbdtree.rules.test.yml", at=DEPLOY / "prometheus")


def expressions() -> list[str]:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_the_dashboard_parses(promtool: str, tmp_path: Path) -> None:
    """Grafana's variables filled in, every expression as a recording rule."""
    rules = [
        {"record": f"panel:{number}", "expr": expr.replace("$__rate_interval", "5m").replace("$tree", ".*")}
        for number, expr in enumerate(expressions())
    ]
    assert len(rules) > 20
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    tool(promtool, "check", "rules", path)


# Told only where there is an uplink, a scrub that has not ended, or a trouble.
SOMETIMES = {
    "rbdtree_unpublished_bytes",
    "rbdtree_unpublished_seconds",
    "rbdtree_node_trouble",
    "rbdtree_edges_moved_total",
}


def test_alerts_and_dashboard_ask_for_what_is_told(told: str) -> None:
    there = set(_NAME.findall(told)) | SOMETIMES
    rules = (DEPLOY / "prometheus" / "rbdtree.rules.yml").read_text()
    asked = set(_NAME.findall(" ".join(expressions())))
    asked |= set(_NAME.findall(" ".join(re.findall(r"expr: (.*(?:\n {10,}.*)*)", rules))))
    assert len(asked) > 15
    assert asked <= there, asked - there


def test_every_alert_is_made_to_fire() -> None:
    """By promtool, see above."""
    folder = DEPLOY / "prometheus"
    alerts = set(re.findall(r"alert: (\w+)", (folder / "rbdtree.rules.yml").read_text()))
    fired = re.findall(r"alertname: (\w+)\n +exp_alerts:", (folder / "rbdtree.rules.test.yml").read_text())
    assert alerts - set(fired) == set()


def test_every_alert_is_in_the_runbook() -> None:
    rules = (DEPLOY / "prometheus" / "rbdtree.rules.yml").read_text()
    pages = (TOP / "docs" / "operations.md").read_text()
    alerts = re.findall(r"alert: (\w+)", rules)
    assert alerts
    for alert in alerts:
        assert f"\n### {alert}\n" in pages, alert
        assert f"docs/operations.md#{alert.lower()}" in rules
