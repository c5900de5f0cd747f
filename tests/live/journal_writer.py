"""A host that writes to an image through librbd: ``journal_writer.py '{"conf": ..., "pool": ..., "image": ...}'``.

    namespace: NAME     seconds: S    seed: N    depth: N (requests in flight, no two of them overlap)
    mix: true           discards, zeroes, resizes, snapshots and flushes as well; else writes of ``length`` bytes
    low, high: bytes    writes only in between
    count: N            so many requests and no more

Prints one JSON line at its end: requests, snapshots, seconds.
"""

import json
import random
import sys
import threading
import time
from typing import Any

import rados
import rbd

MIB = 1 << 20


class Ranges:
    """Lets a request in once it overlaps none in flight."""

    def __init__(self, depth: int) -> None:
        self.depth = depth
        self.changed = threading.Condition()
        self.held: dict[int, tuple[int, int]] = {}
        self.count = 0

    def submit(self, call: Any, offset: int, length: int, *arguments: Any) -> None:
        with self.changed:
            self.changed.wait_for(
                lambda: (
                    len(self.held) < self.depth
                    and not any(low < offset + length and offset < high for low, high in self.held.values())
                )
            )
            self.count += 1
            number = self.count
            self.held[number] = (offset, offset + length)

        def done(completion: Any) -> None:
            assert completion.get_return_value() >= 0, completion.get_return_value()
            with self.changed:
                del self.held[number]
                self.changed.notify_all()

        call(*arguments, done)

    def drain(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: not self.held)


def step(image: Any, ranges: Ranges, chosen: random.Random, orders: dict[str, Any], names: list[str]) -> None:
    size = min(image.size(), orders.get("high", 1 << 60))
    low = orders.get("low", 0)
    what = chosen.random() if orders.get("mix") else 0.0
    if not orders.get("mix"):
        length = orders.get("length", 4096)
        offset = low + chosen.randrange((size - low) // length) * length
        ranges.submit(image.aio_write, offset, length, chosen.randbytes(length), offset)
        return
    offset = chosen.randrange(low, size - MIB) & ~511
    length = chosen.randrange(512, 300_000)
    if what < 0.70:
        length = chosen.choice((512, 4096, 4096, 8192, 65536, length))
        ranges.submit(image.aio_write, offset, length, chosen.randbytes(length), offset)
    elif what < 0.80:
        ranges.submit(image.aio_discard, offset, length, offset, length)
    elif what < 0.88:
        ranges.submit(image.aio_write_zeroes, offset, length, offset, length)
    elif what < 0.89:
        ranges.drain()
        image.write_zeroes(offset, 65536, rbd.RBD_WRITE_ZEROES_FLAG_THICK_PROVISION)
    elif what < 0.96:
        image.flush()
    elif what < 0.97 and len(names) < 8:
        names.append(f"w{orders.get('seed', 0)}-{len(names)}")
        image.create_snap(names[-1])
    elif what < 0.98 and "high" not in orders:
        ranges.drain()
        image.resize(chosen.choice((12, 16, 20, 24)) * MIB + chosen.choice((0, 4096, 512)))
    elif what < 0.99:
        image.metadata_set("written", str(offset))


def main() -> None:
    orders = json.loads(sys.argv[1])
    client = rados.Rados(conffile=orders["conf"], name="client.admin", conf=orders.get("options", {}))
    client.connect()
    ioctx = client.open_ioctx(orders["pool"])
    ioctx.set_namespace(orders.get("namespace", ""))
    chosen = random.Random(orders.get("seed", 0))
    ranges = Ranges(orders.get("depth", 16))
    began = time.monotonic()
    names: list[str] = []
    with rbd.Image(ioctx, orders["image"]) as image:
        while time.monotonic() - began < orders.get("seconds", 60) and ranges.count < orders.get("count", 1 << 60):
            step(image, ranges, chosen, orders, names)
        ranges.drain()
        image.flush()
    print(json.dumps({"requests": ranges.count, "snapshots": names, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
