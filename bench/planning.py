#!/usr/bin/env python3
"""Seconds from an open snapshot to the whole delta: 1,000 changed objects in a thin image of 1 TiB.

Calls the engine, not the command: connecting and opening are not in it. Beside it, once and on the plain link, librbd's
own exact diff over the whole image, which asks for every object there could be: over a long link that takes most of an
hour.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import report
import tool
from images import OBJECT, Hand, Shape
from sites import Sites, orderly

from rbdtree.ceph.sites import Sites as Clusters
from rbdtree.config import Site as Conf
from rbdtree.engine import delta

CHANGED = 1000


def plan(sites: Sites, since: str, until: str) -> tuple[float, int]:
    """Seconds and number of extents, asked from site b."""
    clusters = Clusters({"a": Conf("a", sites.a.conf)}, 60)
    pool = clusters.cluster("a").pool("rbd")
    image = pool.open(str(pool.image_id("plan")), until)
    began = time.monotonic()
    extents = delta.collect(image, since, until)
    seconds = time.monotonic() - began
    image.close()
    clusters.close()
    return seconds, len(extents)


def librbd(hand: Hand, since: str, until: str) -> float:
    with hand.open("plan", until) as image:
        began = time.monotonic()
        image.diff_iterate(0, image.size(), since, lambda *_: None, True, False)
        return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--links", default="0,20", help="milliseconds each way, comma separated (0: plain)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: a smaller image, one round, plain link")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md and results/planning.json")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.links = 1, "0"
    shape = Shape.thin(2 * CHANGED, 64 << 30 if options.quick else 1 << 40)
    orderly()
    tool.check()
    figures: dict[str, Any] = {}
    rows = []
    for link in map(float, options.links.split(",")):
        label = f"{link:g} ms each way" if link else "plain"
        found: list[float] = []
        with Sites(link) as sites:
            near = Hand(sites.a)
            near.create("plan", shape.size)
            near.write(["plan"], [(offset, 4096) for offset, _ in shape.half()])
            with near.open("plan", read_only=False) as image:
                image.create_snap("0")
            for number in range(1, options.rounds + 1):
                # The first round finds half of these objects new.
                extents = [(slot * OBJECT + number * (64 << 10), 4096) for slot in shape.slots[:CHANGED]]
                near.write(["plan"], extents)
                with near.open("plan", read_only=False) as image:
                    image.create_snap(str(number))
                since, until = str(number - 1), str(number)
                seconds, count = sites.b.call(lambda s=since, u=until: plan(sites, s, u))
                if count < CHANGED:
                    raise SystemExit(f"{count} extents in the plan, {CHANGED} were written")
                found.append(seconds)
                print(f"{label}: {seconds:.2f} s, {count} extents", file=sys.stderr, flush=True)
            whole = None if link else librbd(near, str(options.rounds - 1), str(options.rounds))
            near.close()
        figures[label] = {"seconds": found, "librbd_exact_seconds": whole}
        rows.append(
            [
                label,
                f"{statistics.median(found):.2f}",
                f"{max(found):.2f}",
                "not asked" if whole is None else f"{whole:.2f}",
            ]
        )
    head = ["link", "median, s", "longest, s", "librbd's exact diff of the whole image, s"]
    body = f"{CHANGED} changed objects in {shape.size >> 30} GiB; {options.rounds} rounds.\n\n"
    report.put("planning", "Planning", body + report.table(head, rows), figures, options.write)


if __name__ == "__main__":
    main()
