"""Tails a journal onto another image and dies: ``journal_reader.py '{"config": ..., "pool": ..., ...}'``.

    source, target: image ids    batches: N    die: "before" or "after" the commit of the last of them; else at the end

Prints one JSON line a batch, before its commit: [first, last] as (tag, entry).
"""

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from rbdtree import config, errors
from rbdtree.ceph.sites import Sites
from rbdtree.engine.batch import Batch, Batcher
from rbdtree.engine.tail import Tail
from rbdtree.model import record
from rbdtree.ports import Image


def apply(image: Image, batch: Batch) -> None:
    left = threading.Semaphore(0)
    failed: list[Exception] = []

    def done(error: Exception | None) -> None:
        if error is not None:
            failed.append(error)
        left.release()

    for offset, length, data in batch.pieces:
        if data is None:
            image.submit_zero(offset, length, done)
        else:
            image.submit_write(offset, data, done)
    for _ in batch.pieces:
        left.acquire()
    assert not failed, failed
    if isinstance(batch.event, record.Resize):
        image.resize(batch.event.size)
    if isinstance(batch.event, record.SnapCreate):
        with suppress(errors.Exists):
            image.create_snapshot(batch.event.name)
    image.flush()


def batches(tail: Tail, batcher: Batcher) -> Any:
    while True:
        count = batcher.pending
        came = False
        for entry in tail.poll():
            came = True
            yield from batcher.add(entry)
        if not came:
            yield from batcher.cut()
            if not count:
                return


def main() -> None:
    orders = json.loads(sys.argv[1])
    sites = Sites(config.load(Path(orders["config"])).sites, 30)
    pool = sites.cluster("a").pool(orders["pool"])
    journal = pool.journal(orders["source"])
    image = pool.open(orders["target"], read_only=False)
    tail = Tail(journal, "uplink", chunk=orders.get("chunk", 1 << 20))
    batcher = Batcher(journal.splay_width, tail.committed, limit=orders.get("limit", 1 << 20), seconds=0.2)
    for number, batch in enumerate(batches(tail, batcher), 1):
        apply(image, batch)
        print(json.dumps([batch.first[:2], batch.last[:2]]), flush=True)
        last = number == orders.get("batches")
        if last and orders.get("die") == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        tail.commit(batch.positions)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
    image.close()
    sites.close()
    print("drained", flush=True)


if __name__ == "__main__":
    main()
