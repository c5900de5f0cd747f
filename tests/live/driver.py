"""The command line with orders: ``driver.py '{"kill_after": 7}' COMMAND...`` runs the command and kills itself there.

Orders, all optional:
    kill_before, kill_after: N   SIGKILL to itself before/after the N-th call that changes something on a cluster
    kill_event: N                ... at the N-th thing a reporter is told
    stop_before, stop_after: N   SIGSTOP to itself there
    only: [..]                   count calls of these names only
    kill_copied: F               SIGKILL when this fraction of the delta's bytes is through
    touch_copied: [F, PATH]      a file is made when that fraction is through
    write_seconds: S             writes go out one by one, that far apart
    claim_seconds: S             how long claims of this process last
    record_seconds: S            how often progress is recorded
    clock_ahead: S               this host's clock is ahead by so much
    log: PATH                    every counted call, one a line

Without a kill the last line of stderr is ``calls N events M``.
"""

import importlib
import json
import os
import queue
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MUTATING = {
    "rbdtree.ceph.pool.Pool": (
        "create_image clone rename trash restore purge create_document swap_document remove_document add_entry "
        "remove_entry claim unclaim break_claim write_object remove_object"
    ),
    "rbdtree.ceph.image.Image": (
        "submit_write submit_zero flush resize create_snapshot remove_snapshot set_metadata remove_metadata break_lock"
    ),
    "rbdtree.ceph.cluster.Cluster": "fence",
    "rbdtree.ceph.journal.Journal": "register unregister commit",
}


class Driver:
    """Counts, and dies in time."""

    def __init__(self, orders: dict[str, Any]) -> None:
        self.orders = orders
        self.calls = 0
        self.events = 0
        self._guard = threading.RLock()
        self._slow: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        threading.Thread(target=self._crawl, daemon=True).start()

    def _signal(self, number: int) -> None:
        os.kill(os.getpid(), number)
        # SIGSTOP takes effect between two instructions of any thread.
        time.sleep(0.01)

    def wrap(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        only = self.orders.get("only")

        def counted(*args: Any, **kwargs: Any) -> Any:
            if only and name not in only:
                return call(*args, **kwargs)
            with self._guard:
                self.calls += 1
                number = self.calls
                self._at("before", number, name)
                result = call(*args, **kwargs)
                self._at("after", number, name)
            return result

        if self.orders.get("write_seconds") and name in ("submit_write", "submit_zero"):
            return lambda *args: self._slow.put((counted, args))
        return counted

    def _crawl(self) -> None:
        while True:
            call, args = self._slow.get()
            time.sleep(self.orders["write_seconds"])
            try:
                call(*args)
            except Exception as error:
                args[-1](error)

    def _at(self, when: str, number: int, name: str) -> None:
        if when == "after" and "log" in self.orders:
            with open(self.orders["log"], "a") as log:
                log.write(f"{number} {name}\n")
        if self.orders.get(f"kill_{when}") == number:
            self._signal(signal.SIGKILL)
        if self.orders.get(f"stop_{when}") == number:
            self._signal(signal.SIGSTOP)

    def event(self, *told: object) -> None:
        with self._guard:
            self.events += 1
            if self.orders.get("kill_event") == self.events:
                self._signal(signal.SIGKILL)

    def install(self) -> None:
        for path, names in MUTATING.items():
            module, _, owner = path.rpartition(".")
            found = getattr(importlib.import_module(module), owner)
            for name in names.split():
                setattr(found, name, self.wrap(name, getattr(found, name)))
        claim = importlib.import_module("rbdtree.engine.claim")
        seconds = self.orders.get("claim_seconds")
        if seconds:
            claim.SECONDS, claim._RENEW = seconds, seconds / 4
        now, ahead = time.time, self.orders.get("clock_ahead", 0)
        if ahead:
            time.time = lambda: now() + ahead
        desk = importlib.import_module("rbdtree.engine.desk")
        if "record_seconds" in self.orders:
            desk._RECORD_SECONDS = self.orders["record_seconds"]
        if "kill_recorded" in self.orders:
            record = desk.Desk._record

            def recorded(found: Any, group: Any, done_bytes: int) -> None:
                record(found, group, done_bytes)
                if done_bytes >= self.orders["kill_recorded"]:
                    self._signal(signal.SIGKILL)

            desk.Desk._record = recorded
        progress = importlib.import_module("rbdtree_cli.progress")
        driver = self

        class Told(progress.Notes):
            def step(self, node: str, text: str) -> None:
                driver.event(node, text)

            def copying(self, node: str, done_bytes: int, total_bytes: int | None) -> None:
                driver.event(node, done_bytes, total_bytes)
                fraction, path = driver.orders.get("touch_copied", (None, ""))
                if fraction is not None and total_bytes and done_bytes >= fraction * total_bytes:
                    Path(path).touch()
                fraction = driver.orders.get("kill_copied")
                if fraction and total_bytes and done_bytes >= fraction * total_bytes:
                    driver._signal(signal.SIGKILL)

            def finished(self, node: str, text: str) -> None:
                driver.event(node, text)

        progress.reporter = lambda session: Told()


def main() -> None:
    driver = Driver(json.loads(sys.argv[1]))
    driver.install()
    from rbdtree_cli.main import run

    code = run(sys.argv[2:])
    print(f"calls {driver.calls} events {driver.events}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
