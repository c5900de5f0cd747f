#!/usr/bin/env python3
"""The floor: given extents read from one image and written to another by librbd, with no tool around.

    pump.py CONF IMAGE@SNAPSHOT CONF IMAGE EXTENTS.json [WINDOW]

Nothing is planned, checked, recorded or snapshotted. Both sites are connected at once, and reads and writes are bounded
by the same window of bytes that the tool has.
"""

import json
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import rados
import rbd

WINDOW = 48 << 20


def main() -> None:
    source_conf, source_name, target_conf, target_name, extents_file = sys.argv[1:6]
    window = int(sys.argv[6]) if len(sys.argv) > 6 else WINDOW
    extents = json.loads(Path(extents_file).read_text())
    name, _, snapshot = source_name.partition("@")

    def connect(conf: str, image: str, snapshot: str | None) -> "tuple[rados.Rados, rados.Ioctx, rbd.Image]":
        cluster = rados.Rados(conffile=conf)
        cluster.conf_set("rbd_cache", "false")
        cluster.conf_set("objecter_inflight_ops", "24576")
        cluster.connect(timeout=20)
        ioctx = cluster.open_ioctx("rbd")
        return cluster, ioctx, rbd.Image(ioctx, image, snapshot=snapshot, read_only=snapshot is not None)

    with ThreadPoolExecutor(2) as threads:
        far = threads.submit(connect, source_conf, name, snapshot)
        near = threads.submit(connect, target_conf, target_name, None)
        # Kept until the end: an image needs its ioctx, an ioctx its cluster.
        ends = far.result(), near.result()
    source, target = ends[0][2], ends[1][2]
    changed = threading.Condition()
    in_flight = 0
    failed: list[int] = []

    def wrote(length: int, completion: rbd.Completion) -> None:
        nonlocal in_flight
        with changed:
            in_flight -= length
            if completion.get_return_value() < 0:
                failed.append(completion.get_return_value())
            changed.notify()

    def read(offset: int, length: int, completion: rbd.Completion, data: bytes | None) -> None:
        if data is None:
            wrote(length, completion)
        else:
            target.aio_write(data, offset, lambda done: wrote(length, done))

    for offset, length in extents:
        with changed:
            while in_flight and in_flight + length > window:
                changed.wait()
            in_flight += length
        source.aio_read(offset, length, lambda done, data, o=offset, n=length: read(o, n, done, data))
    with changed:
        changed.wait_for(lambda: in_flight == 0)
    if failed:
        raise SystemExit(f"errors: {failed[:3]}")
    target.flush()
    target.close()
    source.close()


if __name__ == "__main__":
    main()
