#!/usr/bin/env python3
"""What a host that writes notices, and how long its writes take to the root, next to rbd-mirror's journal mode.

The root is at site a, the writer at site b. rbd-mirror runs at site a and replays a twin that is primary at b.
Everything is looked at through librbd at site a: a write has arrived when the root has a generation that holds it, or
when the replayed twin has it.
"""

import argparse
import os
import random
import re
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import rbd
import report
import tool
from branched import Stage
from images import FEATURES, Hand
from sites import Sites, orderly

BLOCK = 4 << 10
TREE = "writing"
TWIN = "twin"
_WAIT = 60.0


def percentile(values: list[float], share: float) -> float:
    """The smallest value that ``share`` of all do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


@contextmanager
def running(argv: list[str], **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(argv, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class Root:
    """The newest generation of the root, as anybody with librbd sees it."""

    def __init__(self, hand: Hand, name: str) -> None:
        self._hand, self._name = hand, name
        self._head = hand.open(name)
        self._at: tuple[str, rbd.Image] | None = None

    def read(self, offset: int, length: int) -> bytes:
        if self._at and bytes(self._at[1].read(offset, length)) == bytes(self._head.read(offset, length)):
            return bytes(self._at[1].read(offset, length))
        # An image that is open read-only hears nothing of new snapshots.
        with self._hand.open(self._name) as fresh:
            snapshots = [s for s in fresh.list_snaps() if s["name"].startswith("rbdtree.")]
        newest = max(snapshots, key=lambda s: s["id"])["name"]
        if self._at is None or self._at[0] != newest:
            try:
                opened = self._hand.open(self._name, newest)
            except rbd.ImageNotFound:
                # It is being made: librbd lists a snapshot before its object map is there. The next look will do.
                return bytes(self._at[1].read(offset, length)) if self._at else b""
            if self._at:
                self._at[1].close()
            self._at = newest, opened
        return bytes(self._at[1].read(offset, length))

    def close(self) -> None:
        if self._at:
            self._at[1].close()
        self._head.close()


class Twin:
    """What rbd-mirror has replayed."""

    def __init__(self, hand: Hand, name: str) -> None:
        self._image = hand.open(name)

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self._image.read(offset, length))

    def close(self) -> None:
        self._image.close()


Seen = Root | Twin


def clock() -> bytes:
    """A block that tells when it was made."""
    return struct.pack("<d", time.monotonic()).ljust(BLOCK, b".")


def one_write(image: "rbd.Image", seen: Seen, offset: int, data: bytes = b"") -> float:
    """Seconds from handing a block (random bytes without ``data``) to librbd until it has arrived."""
    data = data or os.urandom(BLOCK)
    began = time.monotonic()
    image.write(data, offset)
    image.flush()
    while seen.read(offset, BLOCK) != data:
        if time.monotonic() - began > _WAIT:
            raise SystemExit("a write did not arrive within a minute")
        time.sleep(0.002)
    return time.monotonic() - began


def sustained(image: "rbd.Image", seen: Seen, seconds: float, rate: float) -> tuple[list[float], float]:
    """Ages of what is seen, sampled while blocks are written at a rate (per second); and the rate that was reached.

    Block 0 is a clock: one write in ten goes there."""
    one_write(image, seen, 0, clock())
    done = threading.Event()
    written = 0

    def write() -> None:
        nonlocal written
        size, began = image.size(), time.monotonic()
        while not done.is_set():
            if written % 10 == 0:
                image.write(clock(), 0)
            else:
                image.write(os.urandom(BLOCK), random.randrange(1, size // BLOCK) * BLOCK)
            written += 1
            if written % 50 == 0:
                image.flush()
            ahead = began + written / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
        image.flush()

    writer = threading.Thread(target=write)
    began = time.monotonic()
    writer.start()
    ages = []
    try:
        while time.monotonic() - began < seconds:
            time.sleep(0.05)
            (told,) = struct.unpack_from("<d", seen.read(0, 8))
            if time.monotonic() - began > min(5.0, seconds / 4):
                ages.append(time.monotonic() - told)
    finally:
        reached = written / (time.monotonic() - began)
        done.set()
        writer.join()
    return ages, reached


class Field(Stage):
    """With what takes the writes up, and the twin."""

    @contextmanager
    def uplink(self, name: str, interval: str) -> Iterator[None]:
        words = ("--format", "json", "uplink", f"{name}/m", "--interval", interval)
        with running(self.sites.b.inside(tool.argv(self.sites.config, *words)), stdout=subprocess.DEVNULL):
            yield

    @contextmanager
    def mirror(self) -> Iterator[None]:
        """rbd-mirror at site a, replaying the journal of the twin."""
        a, b = self.sites.a, self.sites.b
        for site in (a, b):
            enable = ["mirror", "pool", "enable", "--site-name", site.name, "rbd", "image"]
            site.run(["rbd", "-c", str(site.conf), *enable])
        create = ["mirror", "pool", "peer", "bootstrap", "create", "--site-name", "b", "rbd"]
        token = self.sites.directory / "token"
        token.write_bytes(b.run(["rbd", "-c", str(b.conf), *create], stdout=subprocess.PIPE).stdout)
        take = ["mirror", "pool", "peer", "bootstrap", "import", "--site-name", "a", "--direction", "rx-only", "rbd"]
        a.run(["rbd", "-c", str(a.conf), *take, str(token)])
        self.b.rbd.create(
            self.b.ioctx, TWIN, self.shape.size, old_format=False, features=FEATURES | rbd.RBD_FEATURE_JOURNALING
        )
        self.b.write([TWIN], self.shape.half())
        b.run(["rbd", "-c", str(b.conf), "mirror", "image", "enable", TWIN, "journal"], stdout=subprocess.DEVNULL)
        log = self.sites.directory / "rbd-mirror.log"
        argv = ["env", f"CEPH_CONF={a.conf}", "rbd-mirror", "-n", "client.admin", "-f", "--log-file", str(log)]
        with running(a.inside(argv), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            end = time.monotonic() + 120
            while TWIN not in self.a.names():
                if time.monotonic() > end:
                    raise SystemExit("rbd-mirror did not take the twin within two minutes")
                time.sleep(0.1)
            # `rbd mirror image status` would ask a manager, and there is none: it replays when a write arrives.
            seen = Twin(self.a, TWIN)
            with self.b.open(TWIN, read_only=False) as twin:
                one_write(twin, seen, 0)
            seen.close()
            yield


def latencies(stage: Field, image: str, seen: Seen, count: int) -> list[float]:
    found = []
    with stage.b.open(image, read_only=False) as branch:
        for _ in range(count):
            time.sleep(random.uniform(0.05, 0.5))
            found.append(one_write(branch, seen, random.randrange(stage.shape.size // BLOCK) * BLOCK))
    return found


def iops(stage: Field, image: str, mebibytes: int) -> float:
    """4 KiB random writes, 16 at a time, by `rbd bench`."""
    argv = ["rbd", "-c", str(stage.sites.b.conf), "--rbd_cache=false", "bench", "--io-type", "write", "--io-size", "4K"]
    argv += ["--io-threads", "16", "--io-total", f"{mebibytes}M", "--io-pattern", "rand", f"rbd/{image}"]
    said = stage.sites.b.run(argv, stdout=subprocess.PIPE).stdout.decode()
    return float(re.findall(r"ops/sec: ([\d.]+)", said)[-1])


def local_cost(stage: Field, rounds: int, mebibytes: int, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Of a branch to its writer."""
    stage.b.create("plain", stage.shape.size)
    stage.b.write(["plain"], [(slot * (4 << 20), 4 << 20) for slot in stage.shape.slots])
    images = {
        "no branch": "plain",
        "snapshot uplink": stage.tree("cost-s", "snapshot"),
        "journal, no uplink running": stage.tree("cost-j", "journal"),
        "journal, uplink running": stage.tree("cost-u", "journal"),
    }
    for name in list(images.values())[1:]:
        # What a clone copies up once, at the first write to an object, is not what is measured.
        stage.b.write([name], [(slot * (4 << 20), 4 << 10) for slot in stage.shape.slots])
    found: dict[str, list[float]] = {name: [] for name in images}
    with stage.uplink("cost-u", "1s"):
        time.sleep(5)
        for _ in range(rounds):
            for name, image in images.items():
                found[name].append(iops(stage, image, mebibytes))
            say("IOPS: " + ", ".join(f"{name} {values[-1]:.0f}" for name, values in found.items()))
    return found


def body_of(options: argparse.Namespace, figures: dict[str, Any]) -> str:
    """Both tables."""
    rows = []
    for label, found in figures["latency_seconds"].items():
        ages = figures["age_seconds"][label]
        cells = [percentile(found, 0.5), percentile(found, 0.99), percentile(ages, 0.5), percentile(ages, 0.99)]
        rows.append([label, *(f"{cell:.2f}" for cell in cells), f"{figures['rate'][label]:.0f}"])
    head = ["", "a 4 KiB write arrives, s: p50", "p99", "age under load, s: p50", "p99", "writes/s"]
    body = (
        f"{options.writes} single writes; load of {options.rate:g} writes a second for {options.seconds:g} s. For "
        "`uplink` a write has arrived when a generation at the root holds it, for rbd-mirror when its replica does.\n\n"
        + report.table(head, rows)
    )
    plain = statistics.median(figures["iops"]["no branch"])
    body += "\n\nWhat a branch costs who writes to it (4 KiB random writes, 16 at a time, `rbd bench`):\n\n"
    body += report.table(
        ["", "IOPS", "of no branch"],
        [
            [name, f"{statistics.median(values):.0f}", f"{statistics.median(values) / plain:.0%}"]
            for name, values in figures["iops"].items()
        ],
    )
    return body


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--writes", type=int, default=60, help="single writes whose way is timed")
    parser.add_argument("--seconds", type=float, default=30, help="of sustained load")
    parser.add_argument("--rate", type=float, default=200, help="writes a second of the sustained load")
    parser.add_argument("--delay", type=float, default=0, help="milliseconds each way (0: a plain link)")
    parser.add_argument("--quick", action="store_true", help="a smoke run: few writes, one round")
    parser.add_argument("--write", action="store_true", help="into RESULTS.md and results/writing.json")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.writes, options.seconds = 1, 5, 6
    orderly()
    tool.check("rbd-mirror")

    def say(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    figures: dict[str, Any] = {"rounds": options.rounds, "latency_seconds": {}, "age_seconds": {}, "rate": {}}
    with Sites(options.delay) as sites:
        stage = Field(sites, 32 if options.quick else 128)
        with stage.mirror():
            ways: list[tuple[str, str, Callable[[], Seen], str]] = []
            for interval in ("1s", "100ms"):
                name = f"up{interval}"
                image = stage.tree(name, "journal")
                ways.append(
                    (f"uplink --interval {interval}", image, lambda n=name: Root(stage.a, f"{n}-vol"), interval)
                )
            ways.append(("rbd-mirror, journal mode", TWIN, lambda: Twin(stage.a, TWIN), ""))
            for label, image, look, interval in ways:
                name = image.removesuffix("-vol-branch")
                with stage.uplink(name, interval) if interval else stage.b.open(TWIN):
                    time.sleep(3)
                    seen = look()
                    figures["latency_seconds"][label] = latencies(stage, image, seen, options.writes)
                    with stage.b.open(image, read_only=False) as branch:
                        ages, reached = sustained(branch, seen, options.seconds, options.rate)
                    figures["age_seconds"][label], figures["rate"][label] = ages, reached
                    seen.close()
                say(
                    f"{label}: a write p50 {percentile(figures['latency_seconds'][label], 0.5):.2f} s, under load p50 "
                    f"{percentile(ages, 0.5):.2f} s, p99 {percentile(ages, 0.99):.2f} s at {reached:.0f}/s"
                )
        figures["iops"] = local_cost(stage, options.rounds, 2 if options.quick else 16, say)
        stage.close()
    report.put("writing", "Writes on their way up", body_of(options, figures), figures, options.write)


if __name__ == "__main__":
    main()
