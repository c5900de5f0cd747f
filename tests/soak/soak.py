"""Managers, a tree of seven nodes on three clusters, and everything that can happen to them, by a plan from a seed.

    python -m soak.soak --minutes 60 --seed 1       in tests/, inside a network namespace (ceph-dev/soak does that)

Nothing that happens may lose a write, leave a node unlike the root, or leave a mark: when the plan is over everything
is mended, and the tree must settle by itself. One manager lives through all of it: it may not grow. Exit code 0 when
all of that was so.
"""

import argparse
import faulthandler
import json
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any

from rbdtree import errors
from rbdtree.engine.marks import list_marks
from rbdtree.engine.node import Node
from rbdtree.model.document import NodeDocument, NodeRef, PushState
from soak.gauge import Gauge
from soak.stage import Manager, Stage, script, within

MIB = 1 << 20
SIZE = 64 * MIB
LEASE = 20
POLICY = {
    "schedule": "5s",
    "rpo": "10m",
    "scrub": "60s",
    "keep": "last 6, hourly 2",
    "push": "2s",
}
NODES = (
    ("m1", "root", "mirror", "b"),
    ("m2", "m1", "mirror", "c"),
    ("m3", "root", "mirror", "c"),
    ("c1", "root", "clone", "a"),
    ("c2", "m1", "clone", "b"),
    ("m4", "m3", "mirror", "b"),
)
WRITER = str(Path(__file__).with_name("writer.py"))
WRITERS = {"m2": 1, "c2": 2, "m4": 3}
"""Which nodes have a branch, and the quarter of the volume that each writes to: the first is the root's own."""
JOURNALED = "m4"
"""The one whose branch goes up by its journal."""


class Soak:
    """The stage, the tree on it, and what happens."""

    def __init__(self, stage: Stage, seed: int, say: Callable[[str], None]) -> None:
        from live.world import World

        self.stage = stage
        self.world = World(stage.pools)
        self.world._sites = stage.pools.sites(timeout=8)
        self.refs: dict[str, NodeRef] = {}
        self.dice = random.Random(seed)
        self.say = say
        self.done: Counter[str] = Counter()
        self.wrote: dict[str, dict[int, bytes]] = {name: {} for name in ("root", *WRITERS)}
        """Acknowledged writes, by who wrote: offset -> bytes."""
        self._later: list[tuple[float, str, Callable[[], None]]] = []
        self._guard = threading.Lock()
        self._failed: list[BaseException] = []
        self._over = threading.Event()
        self._mender = threading.Thread(target=self._mend, name="mender", daemon=True)
        self._began = time.monotonic()
        self._counter = 0
        self._noted = 0
        self._killed: list[tuple[str, float]] = []
        self.gauge = Gauge(stage.managers[0])
        """Of the manager that is never ended, only stopped and cut off."""

    # -- the tree

    def build(self) -> None:
        self.world.init(size=SIZE)
        for name, parent, kind, site in NODES:
            self.world.add(name, parent, kind, site)
        self.refs = {name: document.ref for name, document in self.documents().items()}
        self._write("root")
        self.world.cli("policy", "set", "vol", *(f"{key}={text}" for key, text in POLICY.items()))
        for manager in self.stage.managers:
            manager.start()
        within(60, "the managers bring the tree to its first generation", self.level)
        for name in WRITERS:
            uplink = "journal" if name == JOURNALED else "snapshot"
            self.world.cli("branch", f"vol/{name}", "--uplink", uplink)

    def documents(self) -> dict[str, NodeDocument]:
        return self.world.documents()

    def level(self) -> bool:
        try:
            found = self.documents()
        except (errors.Error, AssertionError):
            return False
        root = found.get("root")
        return (
            root is not None
            and len(found) == 1 + len(NODES)
            and bool(root.generations)
            and all(d.newest_position == root.newest_position for d in found.values())
        )

    # -- what happens

    def _write(self, node: str) -> None:
        """Some blocks, in the writer's own quarter: nobody else's bytes are met."""
        quarter = SIZE // 4
        low = WRITERS.get(node, 0) * quarter
        pieces = {}
        for _ in range(self.dice.randint(1, 12)):
            self._counter += 1
            offset = low + self.dice.randrange(quarter // 4096) * 4096
            pieces[offset] = random.Random(f"{node} {self._counter}").randbytes(4096)
        document = Node.at(self.world.sites, self.refs[node]).read()
        ref, image = document.ref, document.ref.image
        if node != "root":
            if document.branch is None or not document.branch.image_id:
                return
            image = document.branch.image
        from rbdtree.engine.branch import swapping

        if node != "root" and swapping(document):
            return
        told = {
            "conf": str(self.stage.pools.conf(ref.site)),
            "pool": ref.pool,
            "image": image,
            "pieces": [[offset, data.hex()] for offset, data in pieces.items()],
        }
        for offset in pieces:
            # Until it is acknowledged nobody knows what is there.
            self.wrote[node].pop(offset, None)
        try:
            done = subprocess.run(
                [sys.executable, WRITER],
                input=json.dumps(told),
                text=True,
                capture_output=True,
                timeout=20,
                check=False,
            )
        except subprocess.TimeoutExpired:
            self.done["a writer that waited too long"] += 1
            return
        if done.returncode == 0:
            self.wrote[node].update(pieces)
        else:
            self.done["a write refused"] += 1

    def happen(self) -> None:
        """One thing, and its end put down for later."""
        kinds: list[tuple[int, str, Callable[[], None]]] = [
            (30, "write at the root", lambda: self._try(lambda: self._write("root"))),
            (20, "write at a branch", lambda: self._try(lambda: self._write(self.dice.choice(list(WRITERS))))),
            (4, "cut by hand", lambda: self._try(lambda: self.world.cli("--timeout", "10", "cut", "vol", code=None))),
            (4, "sync by hand", lambda: self._try(lambda: self.world.cli("--timeout", "10", "sync", "vol", code=None))),
            (4, "kill -9 of a manager", self._kill),
            (3, "SIGTERM of a manager", self._terminate),
            (3, "SIGSTOP of a manager", self._freeze),
            (4, "a link cut", self._cut_link),
            (3, "kill -9 of an OSD", self._kill_osd),
            (2, "SIGSTOP of an OSD", self._freeze_osd),
            (2, "SIGSTOP of a mon", self._freeze_mon),
            (2, "kill -9 of a mon", self._kill_mon),
            (2, "a pool filled", self._fill),
        ]
        weights = [weight for weight, _, _ in kinds]
        _, name, what = self.dice.choices(kinds, weights)[0]
        noted = self._noted
        what()
        # What is done to somebody who is busy or gone does not happen. The first four are tried in any case.
        if self._noted > noted or name in [kind[1] for kind in kinds[:4]]:
            self.done[name] += 1

    def _try(self, call: Callable[[], Any]) -> None:
        """A cluster may be down just now: then it did not happen."""
        import rados
        import rbd

        with suppress(errors.Error, rados.Error, rbd.Error):
            call()

    def later(self, seconds: float, name: str, call: Callable[[], None]) -> None:
        """The end of what happened. On a thread of its own: a write may wait for a daemon that is to come back."""
        with self._guard:
            self._later.append((time.monotonic() + seconds, name, call))

    def _mend(self) -> None:
        while not self._over.wait(0.1):
            self.settle_dues()

    def settle_dues(self, everything: bool = False) -> None:
        now = time.monotonic()
        with self._guard:
            due = [entry for entry in self._later if everything or entry[0] <= now]
        for entry in sorted(due, key=lambda entry: entry[0]):
            self.say(f"           {entry[1]}")
            try:
                entry[2]()
            except BaseException as error:
                self._failed.append(error)
            with self._guard:
                self._later.remove(entry)

    def _manager(self) -> Manager:
        return self.dice.choice(self.stage.managers)

    def _mortal(self) -> Manager:
        return self.dice.choice(self.stage.managers[1:] or self.stage.managers)

    def _note(self, text: str) -> None:
        self._noted += 1
        self.say(f"{time.monotonic() - self._began:7.1f}  {text}")

    def _busy(self, manager: Manager) -> bool:
        """Whether something is to happen to it yet: one thing at a time."""
        with self._guard:
            return any(manager.name in name.split() for _, name, _ in self._later)

    def _kill(self) -> None:
        manager, pause = self._mortal(), self.dice.uniform(1, 30)
        if manager.alive() and not self._busy(manager):
            self._note(f"kill -9 {manager.name}, started again after {pause:.0f} s")
            manager.signal(signal.SIGKILL)
            manager.wait(10)
            self._killed.append((manager.name, time.time()))
            self.later(pause, f"start {manager.name}", manager.start)

    def _terminate(self) -> None:
        manager, pause = self._mortal(), self.dice.uniform(1, 20)
        if manager.alive() and not self._busy(manager):
            self._note(f"SIGTERM {manager.name}, started again after {pause:.0f} s")
            # Whoever sleeps does not hear it.
            manager.signal(signal.SIGCONT)
            within(45, f"{manager.name} has begun", manager.listens)
            manager.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                manager.wait(45)
            assert not manager.alive(), f"{manager.name} did not stop within 45 s of SIGTERM"
            self.later(pause, f"start {manager.name}", manager.start)

    def _freeze(self) -> None:
        manager, pause = self._manager(), self.dice.uniform(2, 1.5 * LEASE)
        if manager.alive() and not self._busy(manager):
            self._note(f"SIGSTOP {manager.name} for {pause:.0f} s")
            manager.signal(signal.SIGSTOP)
            self.later(pause, f"SIGCONT {manager.name}", lambda: manager.signal(signal.SIGCONT))

    def _cut_link(self) -> None:
        manager, site, pause = self._manager(), self.dice.choice("abc"), self.dice.uniform(2, 2 * LEASE)
        if not self._busy(manager):
            self._note(f"{manager.name} cut off from {site} for {pause:.0f} s")
            manager.cut_off(site)
            self.later(pause, f"{manager.name} reaches {site} again", lambda: manager.mend(site))

    def _daemon(self, site: str, daemon: str, action: str) -> None:
        script("daemon", "--dir", self.stage.directory, site, daemon, action)

    def _down(self, site: str) -> bool:
        with self._guard:
            return any(name.endswith(f" of {site}") for _, name, _ in self._later)

    def _kill_osd(self) -> None:
        site, pause = self.dice.choice("abc"), self.dice.uniform(1, 12)
        if not self._down(site):
            self._note(f"kill -9 osd.0 of {site}, started again after {pause:.0f} s")
            self._daemon(site, "osd.0", "kill")
            self.later(pause, f"start osd.0 of {site}", lambda: self._daemon(site, "osd.0", "start"))

    def _freeze_osd(self) -> None:
        site, pause = self.dice.choice("abc"), self.dice.uniform(1, 15)
        if not self._down(site):
            self._note(f"SIGSTOP osd.0 of {site} for {pause:.0f} s")
            self._daemon(site, "osd.0", "pause")
            self.later(pause, f"resume osd.0 of {site}", lambda: self._daemon(site, "osd.0", "resume"))

    def _freeze_mon(self) -> None:
        site, pause = self.dice.choice("abc"), self.dice.uniform(1, 15)
        if not self._down(site):
            self._note(f"SIGSTOP mon.a of {site} for {pause:.0f} s")
            self._daemon(site, "mon.a", "pause")
            self.later(pause, f"resume mon.a of {site}", lambda: self._daemon(site, "mon.a", "resume"))

    def _kill_mon(self) -> None:
        site, pause = self.dice.choice("abc"), self.dice.uniform(1, 12)
        if not self._down(site):
            self._note(f"kill -9 mon.a of {site}, started again after {pause:.0f} s")
            self._daemon(site, "mon.a", "kill")
            self.later(pause, f"start mon.a of {site}", lambda: self._daemon(site, "mon.a", "start"))

    def _fill(self) -> None:
        site, pause = self.dice.choice("bc"), self.dice.uniform(8, 20)
        if not self._down(site):
            self._note(f"the pool of {site} is full for {pause:.0f} s")
            self._try(lambda: self.stage.quota(site, 1 * MIB))
            self.later(pause, f"free the pool of {site}", lambda: self.stage.quota(site, 0))

    # -- the run

    def run(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        self._mender.start()
        while time.monotonic() < end:
            self.happen()
            self.gauge.look()
            if self._failed:
                raise self._failed[0]
            time.sleep(self.dice.uniform(0.2, 1.2))
        self._over.set()
        self._mender.join()
        self._note("everything is mended")
        self.settle_dues(everything=True)
        if self._failed:
            raise self._failed[0]
        for site in "abc":
            for daemon in ("mon.a", "osd.0"):
                for action in ("resume", "start"):
                    # As an operator's systemd would: also one that did not survive what was done to it.
                    with suppress(AssertionError):
                        self._daemon(site, daemon, action)
        for manager in self.stage.managers:
            for site in "abc":
                manager.mend(site)
            manager.signal(signal.SIGCONT)
            if not manager.alive():
                manager.start()

    def settled(self) -> bool:
        """Everybody has everything, and nothing is on its way."""
        try:
            found = self.documents()
        except (errors.Error, AssertionError):
            return False
        quiet = all(not d.intent and not d.distrust and not d.discarding and not d.phase for d in found.values())
        pushed = all(p.state is PushState.PUBLISHED for d in found.values() for p in d.pushes)
        return quiet and pushed and self.level() and not self._missing(found["root"])

    def _missing(self, root: NodeDocument) -> list[str]:
        """Acknowledged writes that the root's newest generation has not."""
        from rbdtree.model.position import snapshot_name

        assert root.newest_position is not None
        name = snapshot_name(root.tree_id, root.newest_position)
        with self.world.image("root", name, read_only=True) as image:
            return [
                f"{node} at {offset}"
                for node, pieces in self.wrote.items()
                for offset, data in pieces.items()
                if image.read(offset, len(data)) != data
            ]

    def verify(self, seconds: float) -> None:
        """The invariants, when all has come to rest."""
        began = time.monotonic()
        try:
            within(seconds, "the tree settles by itself", self.settled)
        except AssertionError:
            found = self.documents()
            for name, d in found.items():
                state = [(p.owner_name, p.number, str(p.state)) for p in d.pushes]
                self.say(f"  {name}: {d.newest_position} intent {d.intent} pushes {state} trouble {d.trouble}")
            root = found["root"]
            if root.newest_position:
                self.say(f"  missing at the root: {self._missing(root)[:5]}")
            raise
        self._note(f"settled after {time.monotonic() - began:.1f} s")
        self.gauge.check()
        for manager in self.stage.managers:
            within(45, f"{manager.name} has begun", manager.listens)
        within(60, "no manager has any trouble left", self._untroubled)
        for manager in self.stage.managers:
            manager.signal(signal.SIGTERM)
        for manager in self.stage.managers:
            code = manager.wait(60)
            assert code == 0, f"{manager.name} ended with {code}"
        documents = self.documents()
        for name in WRITERS:
            if documents[name].branch:
                self.world.cli("discard", f"vol/{name}", "--yes", code=None)
        self.world.cli("sync", "vol")
        self.world.forget_hashes()
        self.world.check(current=True)
        verdict = self.world.get("verify", "vol", seconds=120)
        assert all(node["equal"] for node in verdict["nodes"]), verdict
        assert not self._missing(self.documents()["root"])
        self.world.check_settled(strays=False)

    def _untroubled(self) -> bool:
        """Two looks of every manager, and whatever it did meanwhile, met no error."""
        since = time.time() - 12
        for manager in self.stage.managers:
            for event in reversed(manager.events()):
                if datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00")).timestamp() < since:
                    break
                if event.get("error"):
                    return False
        return True

    def take_apart(self) -> None:
        """The tree goes: nothing of ours may be left on any cluster but images in the trash, which expire."""
        for name in ("m2", "c2", "m4", "c1", "m1", "m3"):
            self.world.cli("remove", f"vol/{name}")
        self.world.cli("detach", "vol/root")
        marks, failed = list_marks(self.world.sites)
        assert not failed, failed
        left = [mark for mark in marks if "(trash " not in mark.where]
        assert not left, left
        for site in "abc":
            with self.stage.clusters.admin(site).open_ioctx("soak") as ioctx:
                found = [entry.key for entry in ioctx.list_objects() if entry.key.startswith("rbdtree.")]
            assert not found, f"{site}: {found}"

    def _takeovers(self) -> dict[str, Any]:
        """How long the edges of managers that were killed were nobody's."""
        moves: list[tuple[float, str, str, bool]] = []
        for manager in self.stage.managers:
            for event in manager.events():
                if event.get("event") == "edge":
                    at = datetime.fromisoformat(event["timestamp"].replace("Z", "+00:00")).timestamp()
                    moves.append((at, manager.name, event["node"], event["what"] == "taken"))
        moves.sort()
        waits = []
        for name, died in self._killed:
            holder: dict[str, str] = {}
            for _, who, node, taken in (move for move in moves if move[0] <= died):
                # Who stood still tells that an edge is lost after another has taken it, or never.
                if taken:
                    holder[node] = who
                elif holder.get(node) == who:
                    del holder[node]
            for node in (node for node, who in holder.items() if who == name):
                again = (at for at, _, other, taken in moves if at > died and taken and other == node)
                waits += [at - died for at in islice(again, 1)]
        waits.sort()
        found: dict[str, Any] = {"edges": len(waits)}
        if waits:
            found |= {"median_seconds": round(statistics.median(waits), 1), "longest_seconds": round(waits[-1], 1)}
        return found

    def summary(self) -> dict[str, Any]:
        """What happened, in figures."""
        cycles: Counter[str] = Counter()
        bugs = []
        for manager in self.stage.managers:
            for event in manager.events():
                if event.get("event") == "cycle":
                    cycles[event.get("error_kind", "changed" if event.get("steps") else "other")] += 1
                    if event.get("error_kind") == "Bug":
                        bugs.append(event)
        root = self.documents()["root"]
        return {
            "events": dict(self.done),
            "cycles": dict(cycles),
            "generations": root.last_sequence,
            "pushes": dict(root.landed),
            "writes": sum(len(pieces) for pieces in self.wrote.values()),
            "manager": self.gauge.summary(),
            "takeovers": self._takeovers(),
            "bugs": bugs[:3],
        }


def keep_logs(stage: Stage) -> Path:
    """The folder they are copied to: the stage's own goes with it."""
    logs = Path(tempfile.mkdtemp(prefix="rbdtree-soak-logs."))
    for manager in stage.managers:
        with suppress(OSError):
            (logs / manager.log.name).write_bytes(manager.log.read_bytes())
    for path in stage.directory.glob("?/log/*.log"):
        with suppress(OSError):
            (logs / f"{path.parents[1].name}-{path.name}").write_bytes(path.read_bytes())
    return logs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--managers", type=int, default=3)
    parser.add_argument("--settle", type=float, default=180, metavar="SECONDS", help="how long coming to rest may take")
    parser.add_argument("--keep", action="store_true", help="keep the logs when all went well, too")
    options = parser.parse_args()
    # kill -USR1 shows where it hangs.
    faulthandler.register(signal.SIGUSR1)
    say = lambda text: print(text, flush=True)  # noqa: E731
    say(f"seed {options.seed}, {options.minutes:g} minutes, {options.managers} managers")
    directory = Path(tempfile.mkdtemp(prefix="rbdtree-soak."))
    stage = Stage(directory, options.managers)
    try:
        soak = Soak(stage, options.seed, say)
        soak.build()
        soak.run(60 * options.minutes)
        soak.verify(options.settle)
        found = soak.summary()
        say(json.dumps(found, indent=2))
        soak.take_apart()
        assert not found["bugs"], "a manager met a defect of its own"
        say("all is well")
        if options.keep:
            say(f"the logs of managers and daemons are in {keep_logs(stage)}")
        return 0
    except BaseException:
        say(f"the logs of managers and daemons are in {keep_logs(stage)}")
        raise
    finally:
        stage.close()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
