"""librbd in qemu-storage-daemon, its FUSE export as a file, a loop device over it: any kernel with FUSE and loop."""

import json
import signal
import time
from pathlib import Path

from rbdtree import errors
from rbdtree.host import device, loop, process, tools
from rbdtree.host.state import Record

_PROGRAM = "qemu-storage-daemon"


class Fuse:
    name = "fuse"

    def missing(self) -> str:
        if not tools.find(_PROGRAM):
            return "the program qemu-storage-daemon is not installed (Debian: qemu-system-common, qemu-block-extra)"
        if not Path("/dev/fuse").exists() and not tools.has_module("fuse"):
            return "the kernel has no FUSE"
        if not Path("/dev/loop-control").exists() and not tools.has_module("loop"):
            return "the kernel has no loop devices"
        return ""

    def refuses(self, record: Record) -> str:
        if record.exclusive:
            return "cannot keep the image's exclusive lock"
        if not record.source.client.startswith("client."):
            return f"cannot be {record.source.client}"
        return ""

    def present(self) -> tuple[str, ...]:
        return tuple(one.name for one in loop.listed())

    def find(self, record: Record, place: Path) -> str:
        if process.find(_PROGRAM, str(place / "disk")) is None:
            return ""
        return loop.find(str(place / "disk"), record.portion)

    def map(self, record: Record, place: Path, conf: Path) -> str:
        source, file = record.source, place / "disk"
        tools.load_module("fuse")
        if process.find(_PROGRAM, str(file)) is None:
            self._clean(file)
            file.touch(mode=0o600)
            image = {
                "driver": "rbd",
                "node-name": "image",
                "conf": str(conf),
                "user": source.client.removeprefix("client."),
                "pool": source.pool,
                "image": source.image,
                "read-only": not source.write,
                "discard": "unmap",
                # qemu sets librbd's cache by its own: on means that the settings of the conf are used.
                "cache": {"direct": record.cache_bytes is not None and record.cache_bytes < 1 << 20},
            }
            image |= {"namespace": source.namespace} if source.namespace else {}
            image |= {"snapshot": source.snapshot} if source.snapshot else {}
            export = {
                "type": "fuse",
                "id": "export",
                "node-name": "image",
                "mountpoint": str(file),
                "writable": source.write,
                "allow-other": "off",
            }
            tools.run(
                f"map {source.full_name}",
                *(_PROGRAM, "--daemonize", "--pidfile", str(place / "pid")),
                *("--blockdev", json.dumps(image), "--export", json.dumps(export)),
            )
        return loop.attach(str(file), record.portion, read_only=not source.write)

    def unmap(self, record: Record, place: Path, *, force: bool) -> None:
        file = place / "disk"
        found = loop.find(str(file), record.portion)
        if found and not force:
            loop.detach(found, str(file))
        # Whoever uses it by force gets errors from here on; the loop device goes with its last user.
        loop.let_go(str(file))
        pid = process.find(_PROGRAM, str(file))
        if pid is not None and not process.end(pid, _PROGRAM, str(file), signal.SIGTERM, 3.0 if force else 30.0):
            if not force:
                raise errors.Busy(f"qemu-storage-daemon (process {pid}) does not end", "Give --force to kill it.")
            process.end(pid, _PROGRAM, str(file), signal.SIGKILL, 5.0)
        self._clean(file)

    def _clean(self, file: Path) -> None:
        """The FUSE mount of a daemon that was killed stays, and answers nothing."""
        deadline = time.monotonic() + 5
        while any(mount.directory == str(file) for mount in device.mounts()):
            if time.monotonic() > deadline or process.find(_PROGRAM, str(file)) is None:
                loop.let_go(str(file))
                tools.run("take the export away", "umount", "--lazy", str(file))
                return
            time.sleep(0.02)
