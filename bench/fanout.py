#!/usr/bin/env python3
"""Read once: what 1, 2 and 4 children of one parent cost it, in bytes its OSDs send and in time.

The parent is alone in site a; its children, in site b, are brought on by one `rbdtree sync`.
"""

import argparse
import statistics
import sys
import time
from typing import Any

import report
import tool
from images import Hand, Shape
from sites import Sites, orderly

COUNTERS = ("op_out_bytes", "op_r_out_bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--children", default="1,2,4")
    parser.add_argument("--delay", type=float, default=0, help="milliseconds each way (0: a plain link)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: a small image, one round")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md and results/fanout.json")
    options = parser.parse_args()
    rounds, objects, pieces = (1, 16, 32) if options.quick else (options.rounds, 256, 1024)
    orderly()
    tool.check()
    shape = Shape.small(objects)
    counts = [int(count) for count in options.children.split(",")]
    figures: dict[str, Any] = {"rounds": rounds, "children": {}}
    rows = []
    with Sites(options.delay) as sites:
        a, b = Hand(sites.a), Hand(sites.b)
        for count in counts:
            tree, image = f"fan{count}", f"fan{count}"
            a.create(image, shape.size)
            a.write([image], shape.half())
            tool.run(sites, sites.a, "init", tree, "--node", "root", "--image", f"a:rbd/{image}")
            children = [f"{image}-c{number}" for number in range(count)]
            for child in children:
                spec = ["--parent", "root", "--kind", "mirror", "--image", f"b:rbd/{child}"]
                tool.run(sites, sites.b, "add", f"{tree}/{child}", *spec)
            found: dict[str, list[float]] = {"full_seconds": [], "full_mib": [], "seconds": [], "mib": []}
            for number in range(rounds + 1):
                if number:
                    a.write([image], shape.pieces(pieces, 64 << 10))
                tool.run(sites, sites.a, "cut", tree)
                before = {name: a.counter(name) for name in COUNTERS}
                began = time.monotonic()
                tool.run(sites, sites.b, "sync", tree)
                seconds = time.monotonic() - began
                sent = max(a.counter(name) - before[name] for name in COUNTERS) / 2**20
                kind = "" if number else "full_"
                found[f"{kind}seconds"].append(seconds)
                found[f"{kind}mib"].append(sent)
                print(f"{count} children: {seconds:.2f} s, {sent:.1f} MiB sent", file=sys.stderr, flush=True)
            digests = {a.digest(image), *(b.digest(child) for child in children)}
            if len(digests) != 1:
                raise SystemExit(f"the images of {tree} are not equal")
            figures["children"][count] = found
            middle = {name: statistics.median(values) for name, values in found.items()}
            rows.append(
                [
                    str(count),
                    *(
                        f"{middle[name]:.{1 if 'mib' in name else 2}f}"
                        for name in ("full_mib", "full_seconds", "mib", "seconds")
                    ),
                ]
            )
            for child in children:
                b.remove(child)
        a.close()
        b.close()
    head = ["children", "full copy: MiB sent by the parent", "s", "delta: MiB sent by the parent", "s"]
    body = (
        f"Full copy of {objects * 2} MiB, delta of {pieces / 16:g} MiB in 64 KiB pieces "
        f"({rounds} rounds, medians); bytes from the counters of the parent's OSDs.\n\n"
    )
    report.put("fanout", "Read once", body + report.table(head, rows), figures, options.write)


if __name__ == "__main__":
    main()
