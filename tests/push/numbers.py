"""A host that writes numbered blocks: ``numbers.py '{"conf": ..., "pool": ..., "image": ..., "ack": PATH}'``.

Block n is 4 KiB that begin with n, at a place that n alone says (places are used again); one write at a time, flushed
now and then. ``ack`` holds the number of writes that librbd acknowledged. Ends with SIGTERM, or after ``count``.

    depth: N     that many writes in flight, which may overlap: no numbers, no order
"""

import json
import os
import random
import signal
import struct
import sys
import threading
import time
from typing import Any

import rados
import rbd

BLOCK = 4096


def place(number: int, size: int) -> int:
    """Offset of block ``number``: every place once, in some order, then again."""
    places = size // BLOCK
    return (number * 37) % places * BLOCK


def block(number: int) -> bytes:
    """What is written there; 0 is never written."""
    return struct.pack("<QQ", number, number ^ 0xA5A5A5A5) * (BLOCK // 16)


def prefix(content: bytes, base: bytes) -> int:
    """How many blocks had been written to ``content``; fails unless it is ``base`` and the first n of them."""
    size = len(content)
    newest = max(
        (
            struct.unpack_from("<Q", content, at)[0]
            for at in range(0, size, BLOCK)
            if content[at : at + BLOCK] != base[at : at + BLOCK]
        ),
        default=0,
    )
    expected = bytearray(base)
    for number in range(max(1, newest - size // BLOCK + 1), newest + 1):
        at = place(number, size)
        expected[at : at + BLOCK] = block(number)
    wrong = [at for at in range(0, size, BLOCK) if content[at : at + BLOCK] != expected[at : at + BLOCK]]
    assert not wrong, f"not the first {newest} writes: {len(wrong)} blocks are others, the first at {wrong[:3]}"
    return newest


def numbered(image: Any, orders: dict[str, Any], stop: threading.Event) -> None:
    low = orders.get("low", 0)
    size = orders.get("high", image.size()) - low
    number = orders.get("first", 0)
    last = number + orders.get("count", 1 << 60)
    while not stop.is_set() and number < last:
        number += 1
        image.write(block(number), low + place(number, size))
        if number % orders.get("flush", 16) == 0:
            image.flush()
        with open(orders["ack"], "w") as ack:
            ack.write(str(number))
        time.sleep(orders.get("pause", 0.004))
    image.flush()


def crowded(image: Any, orders: dict[str, Any], stop: threading.Event) -> None:
    chosen = random.Random(orders.get("seed", 0))
    free = threading.Semaphore(orders["depth"])
    count = 0
    while not stop.is_set() and count < orders.get("count", 1 << 60):
        free.acquire()
        offset = orders.get("low", 0) + chosen.randrange(16) * 512
        image.aio_write(chosen.randbytes(chosen.choice((512, 4096, 8192))), offset, lambda _: free.release())
        count += 1
        if count % 64 == 0:
            image.flush()
    for _ in range(orders["depth"]):
        free.acquire()
    image.flush()


def main() -> None:
    orders = json.loads(sys.argv[1])
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    client = rados.Rados(conffile=orders["conf"], name="client.admin")
    client.connect()
    ioctx = client.open_ioctx(orders["pool"])
    with rbd.Image(ioctx, orders["image"]) as image:
        (crowded if orders.get("depth") else numbered)(image, orders, stop)
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
