#!/usr/bin/env python3
"""Peak memory of `rbdtree sync`: full copies and scattered deltas, with 1 and 4 children."""

import argparse
import os
import subprocess
import sys
from typing import Any

import report
import tool
from images import Hand, Shape
from sites import Sites, orderly

MARK = 300


def peak(sites: Sites, tree: str) -> float:
    """MiB: the largest resident set the process ever had, as the kernel accounts it when it ends."""
    process = subprocess.Popen(sites.b.inside(tool.argv(sites.config, "sync", tree)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"sync {tree} ended with {process.returncode}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=int, default=2, help="size of the full copy")
    parser.add_argument("--children", default="1,4")
    parser.add_argument("--delay", type=float, default=0, help="milliseconds each way (0: a plain link)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: a small image")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md and results/memory.json")
    options = parser.parse_args()
    objects = 32 if options.quick else options.gib * 512
    share = 16 if options.quick else 1
    deltas = {
        "64 MiB in 64 KiB pieces": (1024 // share, 64 << 10),
        "128 MiB in 4 KiB pieces": (32768 // share, 4 << 10),
    }
    orderly()
    tool.check()
    figures: dict[str, Any] = {}
    rows = []
    with Sites(options.delay) as sites:
        a, b = Hand(sites.a), Hand(sites.b)
        for count in map(int, options.children.split(",")):
            shape = Shape.small(objects)
            tree = image = f"memory{count}"
            a.create(image, shape.size)
            a.write([image], shape.half())
            tool.run(sites, sites.a, "init", tree, "--node", "root", "--image", f"a:rbd/{image}")
            children = [f"{image}-c{number}" for number in range(count)]
            for child in children:
                spec = ["--parent", "root", "--kind", "mirror", "--image", f"b:rbd/{child}"]
                tool.run(sites, sites.b, "add", f"{tree}/{child}", *spec)
            found = {}
            for name, extents in (
                (f"full copy of {objects // 512 or objects / 512:g} GiB", []),
                *((name, shape.pieces(*delta)) for name, delta in deltas.items()),
            ):
                a.write([image], extents)
                tool.run(sites, sites.a, "cut", tree)
                found[name] = peak(sites, tree)
                print(f"{count} children, {name}: {found[name]:.0f} MiB", file=sys.stderr, flush=True)
            figures[str(count)] = found
            rows.append([str(count), *(f"{value:.0f}" for value in found.values())])
            head = ["children", *(f"{name}, MiB" for name in found)]
            for child in children:
                b.remove(child)
            a.remove(image)
        a.close()
        b.close()
    worst = max(value for found in figures.values() for value in found.values())
    verdict = "kept" if worst < MARK else "MISSED"
    body = report.table(head, rows) + f"\n\nMark: under {MARK} MiB; {verdict} (largest {worst:.0f} MiB)."
    report.put("memory", "Peak memory of one sync", body, {"mib": figures}, options.write)


if __name__ == "__main__":
    main()
