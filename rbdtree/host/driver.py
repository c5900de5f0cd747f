"""The ways in which an image becomes a block device.

rbd-nbd   librbd in a process, the kernel's nbd in front: cache, quiesce, everything librbd can
krbd      the kernel's own client: quickest; no journal, no cache but the page cache, no quiesce
fuse      librbd in qemu-storage-daemon, FUSE and a loop device in front: where the kernel has neither
"""

from pathlib import Path
from typing import Protocol

from rbdtree import errors
from rbdtree.host.state import Record

NAMES = ("rbd-nbd", "krbd", "fuse")


class Driver(Protocol):
    """Devices of one kind. ``place`` is the folder of the map."""

    name: str

    def missing(self) -> str:
        """What of the host it lacks, in a phrase; empty when it can be used."""

    def refuses(self, record: Record) -> str:
        """Why it cannot serve this map, in a phrase; empty when it can."""

    def present(self) -> tuple[str, ...]:
        """Devices of this kind, whoever made them."""

    def find(self, record: Record, place: Path) -> str:
        """The device of this map, when it is there; also of one whose command died."""

    def map(self, record: Record, place: Path, conf: Path) -> str:
        """Makes the device."""

    def unmap(self, record: Record, place: Path, *, force: bool) -> None:
        """Takes it away; nothing when it is gone."""


def all_drivers() -> dict[str, Driver]:
    """By name, the preferred one first."""
    from rbdtree.host.fuse import Fuse
    from rbdtree.host.krbd import Krbd
    from rbdtree.host.nbd import Nbd

    made: tuple[Driver, ...] = (Nbd(), Krbd(), Fuse())
    return {driver.name: driver for driver in made}


def choose(record: Record, wanted: str, drivers: dict[str, Driver]) -> tuple[list[Driver], list[str]]:
    """(drivers to try, in this order; why not others). ``HostFailed`` when there is none.

    A driver that was asked for and cannot serve this image (krbd and a journal) gives way to the next; one that the
    host lacks does not: that is for a person to install.
    """
    if wanted:
        missing = drivers[wanted].missing()
        if missing:
            raise errors.HostFailed(
                f"{wanted} cannot be used here: {missing}", "See 'rbdtree doctor', or leave --driver away."
            )
    order = ([drivers[wanted]] if wanted else []) + [d for d in drivers.values() if d.name != wanted]
    found: list[Driver] = []
    why: list[str] = []
    for driver in order:
        problem = driver.refuses(record)
        if problem and driver.name == wanted:
            why.append(f"{driver.name} {problem}")
        missing = "" if problem else driver.missing()
        if not problem and not missing:
            found.append(driver)
            if driver.name == wanted:
                return found, why
        elif not wanted:
            why.append(f"{driver.name} {problem}" if problem else f"{driver.name}: {missing}")
    if not found:
        raise errors.HostFailed(
            f"no driver can map {record.source.full_name} here ({'; '.join(why)})", "See 'rbdtree doctor'."
        )
    return found, why
