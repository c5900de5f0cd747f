"""Questions to a cluster's monitor through librados, much quicker than the `ceph` command, with deadlines."""

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cephdev import Failure
from cephdev.address import Address
from cephdev.daemon import Daemon

PATIENCE = 60.0  # seconds; a boot takes about one
TIMEOUTS = {"client_mount_timeout": "20", "rados_mon_op_timeout": "20", "rados_osd_op_timeout": "30"}


def wait_for(question: Callable[[], bool], what: str, started: list[tuple[Daemon, subprocess.Popen[bytes]]]) -> None:
    """Ask until yes; give up at once when one of the started daemons ends."""
    deadline = time.monotonic() + PATIENCE
    while not question():
        for daemon, process in started:
            if process.poll() is not None:
                code = process.returncode
                raise Failure(f"{daemon.directory.name}: {daemon.name} ended ({code}){daemon.last_words()}")
        if time.monotonic() > deadline:
            words = "".join(daemon.last_words() for daemon, _ in started)
            raise Failure(f"{what}: not within {PATIENCE:.0f} s{words}")
        time.sleep(0.01)


def listens(at: Address) -> bool:
    try:
        with socket.create_connection((at.ip, at.port), timeout=1):
            return True
    except OSError:
        return False


class Monitor:
    """An open connection as client.admin; a context manager."""

    def __init__(self, conf: Path) -> None:
        self.conf = conf
        try:
            import rados
            import rbd
        except ImportError as error:
            raise Failure(f"{error}; run ceph-dev/install, and run these scripts with /usr/bin/python3") from None
        self._rados, self._rbd = rados, rbd
        self.client = rados.Rados(conffile=str(conf), rados_id="admin", conf=TIMEOUTS)

    def __enter__(self) -> "Monitor":
        try:
            self.client.connect()
        except self._rados.Error as error:
            self.client.shutdown()
            raise Failure(
                f"{self.conf.parent.name}: the monitor does not answer ({error}); "
                f"see ceph-dev/status --dir {self.conf.parent.parent}"
            ) from None
        return self

    def __exit__(self, *_: object) -> None:
        self.client.shutdown()

    def ask(self, prefix: str, **arguments: object) -> Any:
        question = json.dumps({"prefix": prefix, "format": "json", **arguments})
        try:
            code, answer, words = self.client.mon_command(question, b"")
        except self._rados.Error as error:
            raise Failure(f"{self.conf.parent.name}: ceph {prefix}: {error}") from None
        if code:
            raise Failure(f"{self.conf.parent.name}: ceph {prefix}: error {-code}: {words}")
        return json.loads(answer) if answer.strip() else {}

    def osds_up(self) -> dict[str, int]:
        """For every OSD the map calls up: since which epoch. A restart shows as a later epoch."""
        return {str(osd["osd"]): osd["up_from"] for osd in self.ask("osd dump")["osds"] if osd["up"]}

    def manager(self) -> int:
        """Which manager serves, 0 for none. A restart shows as another number."""
        found = self.ask("mgr dump")
        return int(found["active_gid"]) if found.get("available") else 0

    def init_pool(self, pool: str) -> None:
        with self.client.open_ioctx(pool) as images:
            images.application_enable("rbd", True)
            self._rbd.RBD().pool_init(images, True)
            # Proves that the OSD finds its classes; a wrong `osd class dir` shows only here.
            self._rbd.RBD().create(images, "ceph-dev-probe", 1 << 22)
            self._rbd.RBD().remove(images, "ceph-dev-probe")

    def read_pool(self, pool: str) -> None:
        """Returns once the pool answers; somebody's test may have removed it."""
        # With a map from before a restart librados would talk to the old address for up to 15 s.
        self.client.wait_for_latest_osdmap()
        if self.client.pool_exists(pool):
            with self.client.open_ioctx(pool) as images:
                images.stat("rbd_info")

    def check_pool(self, pool: str, *, new: bool) -> None:
        try:
            (self.init_pool if new else self.read_pool)(pool)
        except (self._rados.Error, self._rbd.Error) as error:
            raise Failure(f"{self.conf.parent.name}: pool {pool} is not usable: {error}") from None
