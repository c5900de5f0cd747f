#!/usr/bin/env python3
"""How long a change takes from site a to site b, against the peers and against the floor.

Per round, the same fresh random bytes go into two images of site a: one for `rbdtree`, for `rbd export-diff | rbd
import-diff` and for the floor, a twin for rbd-mirror (which would also replicate the others' snapshots). Then each
contender brings its own image of site b to that state, in an order that rotates from round to round; every process runs
at site b. After each round the images are read back and compared.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import report
import tool
from images import OBJECT, Hand, Pair, Shape
from sites import ROOT, Site, Sites, orderly

CONTENDERS = ("rbdtree", "export-diff", "rbd-mirror", "floor")
TREE = "speed"


@dataclass(frozen=True)
class Workload:
    """``pieces`` random places of ``length`` bytes; ``full``: an image without anything at the other site."""

    name: str
    pieces: int = 0
    length: int = 0
    full: bool = False


FULL = "full copy"
WORKLOADS = (
    Workload(f"{FULL}: 1 GiB thin, half written", full=True),
    Workload("64 MiB in 64 KiB pieces", 1024, 64 << 10),
    Workload("32 MiB in 4 KiB pieces", 8192, 4 << 10),
    Workload("nothing changed"),
)
QUICK = (
    Workload(f"{FULL}: 32 MiB", full=True),
    Workload("4 MiB in 64 KiB pieces", 64, 64 << 10),
    Workload("1 MiB in 4 KiB pieces", 256, 4 << 10),
    Workload("nothing changed"),
)


class Mirror:
    """rbd-mirror at site b, pulling from site a."""

    def __init__(self, sites: Sites, a: Hand, b: Hand) -> None:
        self._sites, self._a, self._b = sites, a, b

    def __enter__(self) -> "Mirror":
        a, b = self._sites.a, self._sites.b
        for site in (a, b):
            enable = ["mirror", "pool", "enable", "--site-name", site.name, "rbd", "image"]
            site.run(["rbd", "-c", str(site.conf), *enable])
        peer = ["mirror", "pool", "peer", "bootstrap"]
        token = a.run(
            ["rbd", "-c", str(a.conf), *peer, "create", "--site-name", "a", "rbd"], stdout=subprocess.PIPE
        ).stdout
        file = self._sites.directory / "token"
        file.write_bytes(token)
        b.run(
            ["rbd", "-c", str(b.conf), *peer, "import", "--site-name", "b", "--direction", "rx-only", "rbd", str(file)]
        )
        log = self._sites.directory / "rbd-mirror.log"
        # By the environment: the daemon's second connection, to its own cluster, does not see -c.
        argv = ["env", f"CEPH_CONF={b.conf}", "rbd-mirror", "-n", "client.admin", "-f", "--log-file", str(log)]
        self._daemon = subprocess.Popen(b.inside(argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        return self

    def __exit__(self, *_: object) -> None:
        self._daemon.terminate()
        try:
            self._daemon.wait(20)
        except subprocess.TimeoutExpired:
            self._daemon.kill()
            self._daemon.wait()

    def enable(self, name: str) -> float:
        """Seconds until the first copy is complete at b, from the moment mirroring was asked for."""
        began = time.monotonic()
        argv = ["rbd", "-c", str(self._sites.a.conf), "mirror", "image", "enable", name, "snapshot"]
        self._sites.a.run(argv, stdout=subprocess.DEVNULL)
        return self._await(name, began)

    def disable(self, name: str) -> None:
        argv = ["rbd", "-c", str(self._sites.a.conf), "mirror", "image", "disable", name]
        self._sites.a.run(argv, stdout=subprocess.DEVNULL)
        _until(lambda: name not in self._b.names(), f"{name} leaves site b")

    def sync(self, name: str) -> float:
        """Seconds from asking for a mirror snapshot until it is complete at b."""
        with self._a.open(name, read_only=False) as image:
            began = time.monotonic()
            image.mirror_image_create_snapshot()
        return self._await(name, began)

    def _await(self, name: str, began: float) -> float:
        with self._a.open(name) as image:
            wanted = max(s["id"] for s in image.list_snaps() if s.get("mirror"))
        _until(lambda: name in self._b.names(), f"{name} comes to site b")
        while True:
            # A handle is told of new snapshots; now and then a fresh one, should it have missed one.
            with self._b.open(name) as image:
                for _ in range(50):
                    marks = [s["mirror"] for s in image.list_snaps() if s.get("mirror")]
                    if any(m["primary_snap_id"] == wanted and m["complete"] for m in marks):
                        return time.monotonic() - began
                    if time.monotonic() - began > 600:
                        raise SystemExit(f"rbd-mirror did not bring {name} in ten minutes")
                    time.sleep(0.005)


def _until(true: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 120
    while not true():
        if time.monotonic() > end:
            raise SystemExit(f"waited two minutes: {what}")
        time.sleep(0.005)


class Field:
    """One image of site a and the contenders' images of site b."""

    def __init__(
        self, sites: Sites, a: Hand, b: Hand, mirror: Mirror, shape: Shape, name: str, contenders: tuple[str, ...]
    ) -> None:
        self.sites, self.a, self.b, self.mirror, self.shape, self.name = sites, a, b, mirror, shape, name
        self.contenders = contenders
        self.twin = f"{name}-twin"
        # Removing one of 1 TiB asks for every object there could be, and would go on while others are measured.
        self.lasting = shape.size >= 1 << 39
        self.since: str | None = None
        self.until = ""
        self.floor_extents: list[Pair] = shape.half()
        for image in (name, self.twin):
            a.create(image, shape.size)
        a.write((name, self.twin), shape.half())
        tool.run(sites, sites.a, "init", f"{TREE}-{name}", "--node", "root", "--image", f"a:rbd/{name}")
        self.cut()

    def cut(self) -> None:
        made = tool.ask(self.sites, self.sites.a, "cut", f"{TREE}-{self.name}")
        ending = f".{made['epoch']}.{made['sequence']}"
        with self.a.open(self.name) as image:
            names = [s["name"] for s in image.list_snaps()]
        self.since = self.until or None
        self.until = next(n for n in names if n.startswith("rbdtree.") and n.endswith(ending))

    def targets(self, tag: str) -> dict[str, str]:
        """The contenders' images at b."""
        found = {c: f"{self.name}-{c}{tag}" for c in self.contenders}
        return {**found, **({"rbd-mirror": self.twin} if "rbd-mirror" in found else {})}

    def prepare(self, tag: str) -> None:
        """Empty images for a full copy."""
        if self.lasting and tag not in ("", "-0"):
            self._another_twin(tag)
        images = self.targets(tag)
        for contender in {"export-diff", "floor"} & images.keys():
            self.b.create(images[contender], self.shape.size)
        spec = f"b:rbd/{images['rbdtree']}"
        node = f"{TREE}-{self.name}/n{tag or '-0'}"
        tool.run(self.sites, self.sites.b, "add", node, "--parent", "root", "--kind", "mirror", "--image", spec)

    def _another_twin(self, tag: str) -> None:
        """With the bytes of the last one, which stays mirrored."""
        self.twin = f"{self.name}-twin{tag}"
        self.a.create(self.twin, self.shape.size)
        argv = self._pump(f"{self.name}@{self.until}", self.sites.a, self.twin)
        self.sites.a.run(argv, stdout=subprocess.DEVNULL, timeout=600)

    def _pump(self, source: str, to: Site, target: str) -> list[str]:
        extents = self.sites.directory / "extents.json"
        extents.write_text(json.dumps(self.floor_extents))
        argv = [sys.executable, str(ROOT / "bench/pump.py"), str(self.sites.a.conf), source]
        return [*argv, str(to.conf), target, str(extents)]

    def discard(self, tag: str) -> None:
        if self.lasting:
            return
        images = self.targets(tag)
        tool.run(self.sites, self.sites.b, "remove", f"{TREE}-{self.name}/n{tag or '-0'}")
        if "rbd-mirror" in images:
            self.mirror.disable(self.twin)
        for contender in {"export-diff", "floor"} & images.keys():
            self.b.remove(images[contender])
        self.b.empty_trash()

    def bring(self, contender: str, tag: str, full: bool) -> float:
        """Seconds."""
        target = self.targets(tag)[contender]
        if contender == "rbd-mirror":
            return self.mirror.enable(self.twin) if full else self.mirror.sync(self.twin)
        if contender == "rbdtree":
            argv = tool.argv(self.sites.config, "sync", f"{TREE}-{self.name}/n{tag or '-0'}")
        elif contender == "export-diff":
            argv = ["sh", "-c", self._pipe(target, full)]
        else:
            argv = self._pump(f"{self.name}@{self.until}", self.sites.b, target)
        began = time.monotonic()
        # import-diff of Ceph 16 was seen to hang for good: better no table than one that waits.
        self.sites.b.run(argv, stdout=subprocess.DEVNULL, timeout=600)
        return time.monotonic() - began

    def _pipe(self, target: str, full: bool) -> str:
        since = "" if full else f"--from-snap {self.since}"
        return (
            f"rbd -c {self.sites.a.conf} export-diff --no-progress {since} {self.name}@{self.until} - | "
            f"rbd -c {self.sites.b.conf} import-diff --no-progress - {target}"
        )

    def change(self, workload: Workload) -> set[int]:
        """Numbers of the objects that changed."""
        extents = self.shape.pieces(workload.pieces, workload.length) if workload.pieces else []
        self.a.write((self.name, self.twin), extents)
        self.floor_extents = extents
        self.cut()
        return {offset // OBJECT for offset, _ in extents}

    def check(self, tag: str, objects: set[int] | None) -> None:
        """Raises unless all images are equal in these objects (None: in all)."""
        digests: dict[str, str] = {}

        def look(hand: Hand, name: str, label: str) -> None:
            digests[label] = hand.digest(name, None, objects)

        def far() -> None:
            look(self.a, self.name, "a")
            look(self.a, self.twin, "a, twin")

        thread = threading.Thread(target=far)
        thread.start()
        for contender, image in self.targets(tag).items():
            look(self.b, image, contender)
        thread.join()
        if len(digests) != len(self.contenders) + 2 or len(set(digests.values())) != 1:
            raise SystemExit(f"the images are not equal: {digests}")


def measure(
    field: Field, workload: Workload, rounds: int, say: Callable[[str], None], *, check_last: bool
) -> dict[str, Any]:
    """One row of the table: seconds and MiB over the link, by contender."""
    contenders = field.contenders
    seconds: dict[str, list[float]] = {c: [] for c in contenders}
    received: dict[str, list[float]] = {c: [] for c in contenders}
    for number in range(rounds):
        tag = f"-{number}" if workload.full else ""
        if workload.full:
            field.prepare(tag)
            objects: set[int] | None = None
        else:
            objects = field.change(workload)
        turn = number % len(contenders)
        for contender in contenders[turn:] + contenders[:turn]:
            before = field.sites.b.received()
            seconds[contender].append(field.bring(contender, tag, workload.full))
            received[contender].append((field.sites.b.received() - before) / 2**20)
        if number == rounds - 1 or not check_last:
            field.check(tag, None if number == rounds - 1 else objects)
        if workload.full:
            field.discard(tag)
        say(f"  {workload.name}, round {number + 1}: " + ", ".join(f"{c} {v[-1]:.2f}" for c, v in seconds.items()))
    return {"seconds": seconds, "received_mib": received}


def rows_of(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for result in results:
        median = {c: statistics.median(v) for c, v in result["seconds"].items()}
        mine = median["rbdtree"]
        cells = [f"{median[c]:.2f}" if c in median else "not run" for c in CONTENDERS]
        ratios = [f"{median[c] / mine:.2f}" if c in median else "-" for c in ("export-diff", "rbd-mirror")]
        wire = statistics.median(result["received_mib"]["rbdtree"])
        rows.append(
            [
                *(result[key] for key in ("link", "image", "workload")),
                *cells,
                *ratios,
                f"{mine / median['floor']:.2f}",
                f"{wire:.0f}",
            ]
        )
    return rows


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--quick", action="store_true", help="a smoke run: small images, one round, plain link")
    made.add_argument("--links", default="0,20", help="milliseconds each way, comma separated (0: plain)")
    made.add_argument("--images", default="small,thin")
    made.add_argument("--workloads", help="words that the names of the workloads begin with, comma separated")
    made.add_argument(
        "--check-last", action="store_true", help="compare the images after the last round of each change only"
    )
    made.add_argument(
        "--far-without",
        default="",
        metavar="CONTENDERS",
        help="not run on a link with a delay: export-diff asks for every object there could be, 17 minutes for 1 TiB",
    )
    made.add_argument("--dir", type=Path, help="where the clusters' data goes (default: the temporary directory)")
    made.add_argument(
        "--write", action="store_true", help="into RESULTS.md and results/, one section for each choice of images"
    )
    return made


def main() -> None:
    options = parser().parse_args()
    if options.quick:
        options.rounds, options.links, options.images = 1, "0", "small"
    workloads = QUICK if options.quick else WORKLOADS
    if options.workloads:
        wanted = tuple(options.workloads.split(","))
        workloads = tuple(w for w in workloads if w.name.startswith(wanted))
    objects = 16 if options.quick else 256
    orderly()
    tool.check("rbd-mirror")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    results = []
    round_trips = []
    for link in map(float, options.links.split(",")):
        label = f"{link:g} ms each way" if link else "plain"
        contenders = tuple(c for c in CONTENDERS if not link or c not in options.far_without.split(","))
        with Sites(link, options.dir) as sites:
            a, b = Hand(sites.a), Hand(sites.b)
            round_trips.append(f"{label}: {sites.round_trip():.2f} ms")
            with Mirror(sites, a, b) as mirror:
                for image in options.images.split(","):
                    make = Shape.small if image == "small" else Shape.thin
                    for full in (True, False):
                        chosen = [w for w in workloads if w.full is full]
                        if not chosen:
                            continue
                        say(f"{label}, {image}:")
                        name = f"{image}-full" if full else image
                        field = Field(sites, a, b, mirror, make(objects if full else 2 * objects), name, contenders)
                        if not full:
                            field.prepare("")
                            for contender in contenders:
                                field.bring(contender, "", full=True)
                        for workload in chosen:
                            figures = measure(field, workload, options.rounds, say, check_last=options.check_last)
                            size = "1 TiB thin" if image == "thin" else f"{field.shape.size >> 30 or 1} GiB"
                            results.append({"link": label, "image": size, "workload": workload.name, **figures})
            a.close()
            b.close()
    names = ["link", "image", "change", *(f"{c}, s" for c in CONTENDERS)]
    names += ["export-diff / rbdtree", "rbd-mirror / rbdtree", "rbdtree / floor", "MiB received"]
    body = "Round trips: " + "; ".join(round_trips) + f". {options.rounds} rounds.\n\n"
    body += report.table(names, rows_of(results))
    section = "speed" if options.images == "small,thin" else f"speed-{options.images}"
    title = "Full copies and deltas" + ("" if section == "speed" else f", {options.images} image")
    report.put(section, title, body, {"rounds": options.rounds, "results": results}, options.write)


if __name__ == "__main__":
    main()
