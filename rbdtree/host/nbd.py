"""rbd-nbd: librbd in a process of its own, behind the kernel's network block device."""

import json
import signal
from pathlib import Path

from rbdtree import errors
from rbdtree.host import cephconf, process, quiesce, tools
from rbdtree.host.state import Record

_PROGRAM = "rbd-nbd"
_DEVICES = 64
"""The module's own 16 are few for a host with many mounts that follow."""


class Nbd:
    name = "rbd-nbd"

    def missing(self) -> str:
        if not tools.find(_PROGRAM):
            return "the program rbd-nbd is not installed"
        return "" if tools.has_module("nbd") else "the kernel has no nbd"

    def refuses(self, record: Record) -> str:
        return ""

    def present(self) -> tuple[str, ...]:
        return tuple(device for _, device in _mapped())

    def find(self, record: Record, place: Path) -> str:
        pid = process.find(_PROGRAM, str(cephconf.path_of(place, record.source)))
        return next((device for owner, device in _mapped() if owner == pid), "") if pid else ""

    def map(self, record: Record, place: Path, conf: Path) -> str:
        source = record.source
        tools.load_module("nbd", f"nbds_max={_DEVICES}")
        words = [_PROGRAM, "map", source.path, "-c", str(conf), "-n", source.client]
        if not source.write:
            words.append("--read-only")
        if record.exclusive:
            words.append("--exclusive")
        if record.quiesce:
            words += ["--quiesce", "--quiesce-hook", str(quiesce.write_hook(place))]
        said = tools.run(f"map {source.full_name}", *words, seconds=90)
        device = said.strip().splitlines()[-1] if said.strip() else ""
        return device or self.find(record, place)

    def unmap(self, record: Record, place: Path, *, force: bool) -> None:
        word = str(cephconf.path_of(place, record.source))
        pid = process.find(_PROGRAM, word)
        if pid is None:
            return
        device = record.base or self.find(record, place)
        if device:
            try:
                tools.run(f"unmap {device}", _PROGRAM, "unmap", device)
            except errors.HostFailed:
                if not force:
                    raise
        if process.wait_gone(pid, _PROGRAM, word, 10.0):
            return
        if not device or force:
            # Without a device it never came so far; with --force it is wanted gone.
            process.end(pid, _PROGRAM, word, signal.SIGKILL, 10.0)
            return
        raise errors.Busy(f"{device}: rbd-nbd (process {pid}) does not end", "Look why it is in use, or give --force.")


def _mapped() -> list[tuple[int, str]]:
    """(process, device) of all maps."""
    if not tools.find(_PROGRAM):
        return []
    said = tools.run("list nbd devices", _PROGRAM, "list-mapped", "--format", "json")
    rows = json.loads(said) if said.strip() else []
    return [(int(row["id"]), str(row["device"])) for row in rows]
