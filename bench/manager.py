#!/usr/bin/env python3
"""What managers cost and how fast they are.

idle      CPU of one manager, and operations on the clusters, with 1, 10 and 100 edges at rest
depth     seconds from a cut at the root until a chain of mirrors has it, with cut-through and without
fan-out   the same for 1, 4 and 8 mirrors of one parent

The chain alternates between the two clusters. A manager does all of it, as an operator runs it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import report
import tool
from images import Hand, Shape
from sites import Sites, orderly

TREE = "managed"
TICKS = os.sysconf("SC_CLK_TCK")


class Manager:
    """A process; a context manager."""

    def __init__(self, sites: Sites, tree: str) -> None:
        argv = [*tool.COMMAND, "--config", str(sites.config), "manager", "--metrics", "off", "--tree", tree]
        self._log = (sites.directory / "manager.log").open("ab")
        self._process = subprocess.Popen(sites.b.inside(argv), stdout=self._log, stderr=self._log)

    def __enter__(self) -> "Manager":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()

    def check(self) -> None:
        """Nothing is waited for that a dead manager would have to do."""
        if self._process.poll() is not None:
            raise SystemExit(f"the manager ended:\n{Path(self._log.name).read_text()[-2000:]}")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def rss_mib(self) -> float:
        for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        return 0.0


class Grove:
    """A tree at site a, whose root has ``objects`` written."""

    def __init__(self, sites: Sites, hand: Hand, name: str, objects: int) -> None:
        self.sites, self.hand, self.name = sites, hand, name
        self.shape = Shape.small(objects)
        hand.create(name, self.shape.size)
        hand.write([name], self.shape.half())
        tool.run(sites, sites.a, "init", name, "--node", "root", "--image", f"a:rbd/{name}")
        tool.run(sites, sites.a, "cut", name)

    def add(self, node: str, parent: str, site: str) -> None:
        image = f"{site}:rbd/{self.name}-{node}"
        tool.run(
            self.sites,
            self.sites.b,
            "add",
            f"{self.name}/{node}",
            "--parent",
            parent,
            "--kind",
            "mirror",
            "--image",
            image,
        )

    def policy(self, **settings: str) -> None:
        tool.run(self.sites, self.sites.b, "policy", "set", self.name, *(f"{k}={v}" for k, v in settings.items()))

    def level(self) -> bool:
        found = tool.ask(self.sites, self.sites.b, "status", self.name, "--quick")["trees"][0]
        return all((n["epoch"], n["sequence"]) == (found["epoch"], found["sequence"]) for n in found["nodes"])

    def settle(self, manager: Manager, seconds: float = 300) -> None:
        until = time.monotonic() + seconds
        while not self.level():
            manager.check()
            if time.monotonic() > until:
                raise SystemExit(f"{self.name} did not settle")
            time.sleep(0.3)

    def change(self, pieces: int) -> None:
        self.hand.write([self.name], self.shape.pieces(pieces, 64 << 10))

    def cut_to_level(self, names: list[str], manager: Manager) -> float:
        """Seconds from the start of the cut; seen by reading documents, ten times a second at most."""
        began = time.monotonic()
        position = tool.ask(self.sites, self.sites.a, "cut", self.name)["generation"]
        self._watch(names, position, manager)
        return time.monotonic() - began

    def _watch(self, names: list[str], position: str, manager: Manager) -> None:
        from rbdtree.ceph.sites import Sites as Clusters
        from rbdtree.config import load
        from rbdtree.engine.forest import look

        def wait() -> None:
            clusters = Clusters(load(self.sites.config).sites, 30)
            try:
                until = time.monotonic() + 300
                while time.monotonic() < until:
                    tree = look(clusters, self.name).tree(self.name)
                    found = {m.ref.name: m.document for m in tree.members.values()}
                    if all((d := found[name]) and str(d.newest_position) == position for name in names):
                        return
                    manager.check()
                    time.sleep(0.02)
                raise SystemExit(f"{self.name} did not get {position}")
            finally:
                clusters.close()

        self.sites.b.call(wait)


def idle(sites: Sites, hand: Hand, counts: list[int], seconds: float, figures: dict[str, Any]) -> list[list[str]]:
    far = Hand(sites.b)
    grove = Grove(sites, hand, "idle", 1)
    made = 0
    before, began = hand.counter("op") + far.counter("op"), time.monotonic()
    time.sleep(seconds)
    # What the clusters' own daemons do, and whoever counts.
    rest = (hand.counter("op") + far.counter("op") - before) / (time.monotonic() - began)
    figures["idle-none"] = {"ops": rest}
    rows = [["no manager", "", f"{rest:.1f}", ""]]
    for count in counts:
        for number in range(made, count):
            grove.add(f"n{number}", "root", "b")
        made = count
        tool.run(sites, sites.b, "sync", "idle")
        with Manager(sites, grove.name) as manager:
            grove.settle(manager)
            time.sleep(15)
            cpu, ops, began = manager.cpu_seconds(), hand.counter("op") + far.counter("op"), time.monotonic()
            time.sleep(seconds)
            took = time.monotonic() - began
            used = (manager.cpu_seconds() - cpu) / took
            rate = (hand.counter("op") + far.counter("op") - ops) / took
            rss = manager.rss_mib()
        figures[f"idle-{count}"] = {"cpu": used, "ops": rate, "rss_mib": rss}
        print(f"{count} idle edges: {100 * used:.2f} % of a core, {rate:.1f} op/s, {rss:.0f} MiB", file=sys.stderr)
        rows.append([str(count), f"{100 * used:.2f}", f"{rate:.1f}", f"{rss:.0f}"])
    far.close()
    return rows


def shaped(
    sites: Sites, hand: Hand, shapes: list[tuple[str, list[tuple[str, str, str]]]], rounds: int, figures: dict[str, Any]
) -> list[list[str]]:
    """Rows: shape, seconds with cut-through, without."""
    rows = []
    for number, (label, nodes) in enumerate(shapes):
        grove = Grove(sites, hand, f"shape{number}", 64)
        for node, parent, site in nodes:
            grove.add(node, parent, site)
        tool.run(sites, sites.b, "sync", grove.name)
        names = [node for node, _, _ in nodes]
        medians = {}
        for switch in ("on", "off"):
            grove.policy(cut_through=switch, parallel="16")
            tool.run(sites, sites.b, "sync", grove.name)
            found = []
            with Manager(sites, grove.name) as manager:
                grove.settle(manager)
                time.sleep(3)
                for _ in range(rounds):
                    grove.change(512)
                    found.append(grove.cut_to_level(names, manager))
                    grove.settle(manager)
            medians[switch] = statistics.median(found)
            figures[f"{label}, cut-through {switch}"] = found
            print(f"{label}, cut-through {switch}: {medians[switch]:.2f} s", file=sys.stderr, flush=True)
        rows.append([label, f"{medians['on']:.2f}", f"{medians['off']:.2f}"])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=60, help="how long a manager at rest is looked at")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few edges, one round")
    parser.add_argument("--link", type=float, default=0, help="milliseconds each way (0: plain)")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md and results/manager.json")
    options = parser.parse_args()
    counts, depths, fans = [1, 10, 100], [1, 2, 4, 6], [1, 4, 8]
    if options.quick:
        options.rounds, options.seconds, counts, depths, fans = 1, 5, [1, 3], [1, 2], [2]
    orderly()
    tool.check()
    figures: dict[str, Any] = {}
    shapes: list[tuple[str, list[tuple[str, str, str]]]] = []
    for depth in depths:
        chain = [(f"n{k}", f"n{k - 1}" if k else "root", "ba"[k % 2]) for k in range(depth)]
        shapes.append((f"chain of {depth}", chain))
    shapes += [(f"{fan} siblings", [(f"n{k}", "root", "b") for k in range(fan)]) for fan in fans]
    with Sites(options.link) as sites:
        hand = Hand(sites.a)
        moving = shaped(sites, hand, shapes, options.rounds, figures)
        resting = idle(sites, hand, counts, options.seconds, figures)
        hand.close()
    body = (
        f"From the start of `rbdtree cut` until every node has the generation: 32 MiB in 64 KiB pieces, "
        f"{options.rounds} rounds, medians.\n\n"
    )
    body += report.table(["tree", "cut-through, s", "without, s"], moving)
    body += f"\n\nAt rest, over {options.seconds:g} s; polls every 60 s:\n\n"
    body += report.table(["edges", "CPU, % of a core", "operations/s on both clusters", "RSS, MiB"], resting)
    report.put("manager", "Managers", body, figures, options.write)


if __name__ == "__main__":
    main()
