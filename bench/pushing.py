#!/usr/bin/env python3
"""A push from site b, where it was written, to the root at site a: against what carries the same bytes without judging
and publishing them.

Per round random bytes go into a branch. Three bring them to site a, in turn: `rbdtree push` (staged, compared with what
others wrote, applied, made a generation, compared once more, tidied up), `rbd export-diff` of the branch into an image
that nobody else uses, and librbd pumping them (bench/pump.py). All are whole processes at site b.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import report
import tool
from branched import Stage
from images import OBJECT, Pair
from sites import ROOT, Sites, orderly

CONTENDERS = ("push", "export-diff", "floor")
MIB = 1 << 20


class Field:
    """A branch, and an image at site a for each other contender."""

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.branch = stage.tree("pushed", "snapshot")
        self.round = 0
        self._snapshot("r0")
        for name in ("export-diff", "floor"):
            stage.a.create(name, stage.shape.size)
        self._export("", "r0")

    def _snapshot(self, name: str) -> None:
        with self.stage.b.open(self.branch, read_only=False) as image:
            image.create_snap(name)

    def _export(self, since: str, until: str) -> None:
        a, b = self.stage.sites.a, self.stage.sites.b
        after = f"--from-snap {since}" if since else ""
        pipe = (
            f"rbd -c {b.conf} export-diff --no-progress {after} {self.branch}@{until} - | "
            f"rbd -c {a.conf} import-diff --no-progress - export-diff"
        )
        b.run(["sh", "-c", pipe], stdout=subprocess.DEVNULL, timeout=600)

    def bring(self, contender: str, extents: list[Pair]) -> float:
        """Seconds."""
        sites, until = self.stage.sites, f"r{self.round}"
        told = sites.directory / "extents.json"
        told.write_text(json.dumps(extents))
        began = time.monotonic()
        if contender == "push":
            sites.b.run(tool.argv(sites.config, "push", "pushed/m"), stdout=subprocess.DEVNULL, timeout=600)
        elif contender == "export-diff":
            self._export(f"r{self.round - 1}", until)
        else:
            argv = [sys.executable, str(ROOT / "bench/pump.py"), str(sites.b.conf), f"{self.branch}@{until}"]
            sites.b.run([*argv, str(sites.a.conf), "floor", str(told)], stdout=subprocess.DEVNULL, timeout=600)
        return time.monotonic() - began

    def measure(self, count: int, length: int, rounds: int) -> dict[str, list[float]]:
        """Seconds of each for ``count`` pieces of ``length`` bytes."""
        found: dict[str, list[float]] = {contender: [] for contender in CONTENDERS}
        for turn in range(rounds):
            self.round += 1
            extents = self.stage.shape.pieces(count, length)
            self.stage.b.write([self.branch], extents)
            self._snapshot(f"r{self.round}")
            for place in range(len(CONTENDERS)):
                contender = CONTENDERS[(turn + place) % len(CONTENDERS)]
                found[contender].append(self.bring(contender, extents))
            places = sorted({offset // OBJECT for offset, _ in extents})
            written = self.stage.b.digest(self.branch, None, places)
            for image in ("pushed-vol", "export-diff"):
                if self.stage.a.digest(image, None, places) != written:
                    raise SystemExit(f"{image} does not hold what was written")
        return found


def size(count: int, length: int) -> str:
    """In words."""
    one = f"{length // MIB} MiB" if length >= MIB else f"{length >> 10} KiB"
    return one if count == 1 else f"{count * length // MIB} MiB in pieces of {one}"


def rows(figures: list[dict[str, Any]]) -> list[list[str]]:
    """Of the table."""
    found = []
    for figure in figures:
        median = {contender: statistics.median(figure["seconds"][contender]) for contender in CONTENDERS}
        ratios = [median["export-diff"] / median["push"], median["push"] / median["floor"]]
        cells = [f"{median[contender]:.2f}" for contender in CONTENDERS]
        found.append([figure["link"], figure["size"], *cells, *(f"{ratio:.2f}" for ratio in ratios)])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--links", default="0,20", help="milliseconds each way, comma separated (0: plain)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: one round of small pushes on a plain link")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md and results/pushing.json")
    options = parser.parse_args()
    loads = [(1, 4 << 10), (16, MIB), (256, MIB)]
    if options.quick:
        options.rounds, options.links, loads = 1, "0", loads[:2]
    orderly()
    tool.check()
    figures: list[dict[str, Any]] = []
    for link in map(float, options.links.split(",")):
        label = f"{link:g} ms each way" if link else "plain"
        with Sites(link) as sites:
            stage = Stage(sites, 128)
            field = Field(stage)
            for load in loads:
                found = field.measure(*load, options.rounds)
                figures.append({"link": label, "size": size(*load), "seconds": found})
                told = ", ".join(f"{name} {statistics.median(values):.2f} s" for name, values in found.items())
                print(f"{label}, {size(*load)}: {told}", file=sys.stderr, flush=True)
            stage.close()
    head = ["link", "pushed", "push, s", "export-diff, s", "floor, s", "export-diff / push", "push / floor"]
    body = f"{options.rounds} rounds, medians.\n\n" + report.table(head, rows(figures))
    report.put("pushing", "Pushes", body, {"rounds": options.rounds, "results": figures}, options.write)


if __name__ == "__main__":
    main()
