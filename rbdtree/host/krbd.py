"""krbd: the kernel's own RBD client."""

from pathlib import Path

from rbdtree import errors
from rbdtree.host import tools
from rbdtree.host.state import Record

_DEVICES = Path("/sys/bus/rbd/devices")


class Krbd:
    name = "krbd"

    def missing(self) -> str:
        if not tools.find("rbd"):
            return "the program rbd is not installed"
        return "" if tools.has_module("rbd") else "the kernel has no rbd"

    def refuses(self, record: Record) -> str:
        if record.source.journaled:
            return "cannot map an image with a journal"
        if record.copy_on_read:
            return "cannot fill a clone on read"
        return ""

    def present(self) -> tuple[str, ...]:
        if not _DEVICES.is_dir():
            return ()
        return tuple(f"/dev/rbd{entry.name}" for entry in sorted(_DEVICES.iterdir()))

    def find(self, record: Record, place: Path) -> str:
        if record.base:
            return record.base if self._is(record, record.base) else ""
        # A command died between the kernel's map and its note: a device of this image that was not there before.
        return next((d for d in self.present() if d not in record.known and self._is(record, d)), "")

    def _is(self, record: Record, device: str) -> bool:
        folder, source = _DEVICES / device.removeprefix("/dev/rbd"), record.source

        def told(name: str) -> str:
            return next(iter(tools.lines(folder / name)), "")

        return (
            told("image_id") == source.image_id
            and told("cluster_fsid") in (source.fsid, "")
            and told("current_snap") == (source.snapshot or "-")
        )

    def map(self, record: Record, place: Path, conf: Path) -> str:
        source = record.source
        tools.load_module("rbd", "single_major=Y")
        words = ["rbd", "device", "map", "-t", "krbd", source.path, "-c", str(conf), "-n", source.client, *_options()]
        if not source.write:
            words.append("--read-only")
        if record.exclusive:
            words.append("--exclusive")
        said = tools.run(f"map {source.full_name}", *words, seconds=90).split()
        # By its name: the number of a device that was there before may have become free, and this one's, meanwhile.
        found = said[-1] if said and self._is(record, said[-1]) else self.find(record, place)
        if not found:
            raise errors.HostFailed(
                f"map {source.full_name}: rbd said it was done, and there is no device", "See dmesg."
            )
        return found

    def unmap(self, record: Record, place: Path, *, force: bool) -> None:
        device = self.find(record, place)
        if not device:
            return
        words = ["rbd", "device", "unmap", "-t", "krbd", device, *_options("force" if force else "")]
        try:
            tools.run(f"unmap {device}", *words)
        except errors.HostFailed as error:
            if "busy" not in str(error):
                raise
            raise errors.Busy(f"{device} is in use", "End that first, or give --force.") from error


def _options(*more: str) -> list[str]:
    """Without udev 'rbd device map' would wait for it for ever."""
    told = [*([] if Path("/run/udev/control").exists() else ["noudev"]), *filter(None, more)]
    return ["-o", ",".join(told)] if told else []
