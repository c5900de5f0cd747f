"""What is mapped and mounted here, in files below /run/rbdtree: gone at a reboot, as the devices are.

    maps/KEY/map.json    a map, written before its device is made and again when it is there
    maps/KEY/ceph.conf   the site's, with this map's cache; by its path the daemon of a map is found again
    maps/KEY/...         what its driver needs
    mounts/KEY.json      a mount
    dev/TREE/NODE@G      a link to the device, for /etc/fstab; .branch and .volume in place of @G for what is written to

Each is written as a whole or not at all.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rbdtree import errors
from rbdtree.host.source import Source

VARIABLE = "RBDTREE_RUN"
DEFAULT = "/run/rbdtree"
MAPPING, MAPPED, UNMAPPING = "mapping", "mapped", "unmapping"


@dataclass(frozen=True, slots=True)
class Record:
    """One map. ``base`` is the driver's device, ``device`` what was asked for: the same, or a loop over a portion.

    ``known``: devices of the driver that were there before. ``step``: where a command that died was. ``for_mount``: it
    goes with its last mount. ``boot``: what of the table of maps asked for it.
    """

    key: str
    source: Source
    driver: str
    step: str = MAPPING
    device: str = ""
    base: str = ""
    portion: tuple[int, int] | None = None
    exclusive: bool = False
    quiesce: bool = False
    hook: str = ""
    freeze_seconds: float = 10.0
    cache_bytes: int | None = None
    weight: float = 1.0
    copy_on_read: bool = False
    held: bool = False
    started: float = 0.0
    known: tuple[str, ...] = ()
    for_mount: bool = False
    boot: str = ""

    @property
    def link(self) -> str:
        """Below dev/."""
        of = self.source
        name = f"{of.tree}/{of.node}" + (f".{of.what}" if of.write else f"@{of.position}")
        return name + (f".{self.portion[0]}-{self.portion[1]}" if self.portion else "")

    @property
    def size_bytes(self) -> int:
        return self.portion[1] if self.portion else self.source.size_bytes


@dataclass(frozen=True, slots=True)
class MountRecord:
    """One mount. ``key``: of the map that is mounted; ``next``: of the one that a switch is under way to; ``leaving``:
    of maps whose files are still open; ``told``: of the one for which the command for a switch has been run, or need
    not be."""

    directory: str
    tree: str
    node: str
    key: str
    next: str = ""
    fstype: str = ""
    write: bool = False
    follow: bool = False
    on_switch: str = ""
    options: str = ""
    follower: int = 0
    leaving: tuple[str, ...] = ()
    switches: int = 0
    told: str = ""
    trouble: str = ""


@dataclass(frozen=True)
class State:
    """The state directory of this host."""

    root: Path = field(default_factory=lambda: Path(os.environ.get(VARIABLE) or DEFAULT))

    def place(self, key: str) -> Path:
        """Of a map; absolute, so that daemons are recognised by it."""
        return Path(os.path.abspath(self.root)) / "maps" / key

    @contextmanager
    def locked(self, name: str = "all") -> Iterator[None]:
        """One at a time for this name, until the block ends or its process dies."""
        with self._file(name) as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _file(self, name: str) -> Iterator[int]:
        try:
            (self.root / "locks").mkdir(parents=True, exist_ok=True, mode=0o755)
            handle = os.open(self.root / "locks" / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise errors.Denied(
                f"cannot write to {self.root}: {error.strerror}", f"Run it as root, or set {VARIABLE} to another place."
            ) from error
        try:
            yield handle
        finally:
            os.close(handle)

    # maps
    def records(self) -> list[Record]:
        """All maps, also half-made ones."""
        found = (self.record(path.parent.name) for path in sorted(self.root.glob("maps/*/map.json")))
        return [record for record in found if record]

    def record(self, key: str) -> Record | None:
        raw = _read(self.place(key) / "map.json")
        if raw is None:
            return None
        portion = raw.get("portion")
        raw |= {"source": Source(**raw["source"]), "known": tuple(raw["known"])}
        return Record(**{**raw, "portion": (portion[0], portion[1]) if portion else None})

    def write(self, record: Record) -> None:
        place = self.place(record.key)
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        _write(place / "map.json", {**asdict(record), "source": record.source.value()})
        if record.step == MAPPED:
            link = self.root / "dev" / record.link
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(record.device)

    def forget(self, key: str) -> None:
        """The files of a map that is gone."""
        place = self.place(key)
        with suppress(errors.Error):
            record = self.record(key)
            if record:
                (self.root / "dev" / record.link).unlink(missing_ok=True)
        (place / "map.json").unlink(missing_ok=True)
        for path in list(place.glob("*")):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):
            place.rmdir()

    # mounts
    def mounts(self) -> list[MountRecord]:
        found = (_read(path) for path in sorted(self.root.glob("mounts/*.json")))
        return [_mount(raw) for raw in found if raw]

    def mount(self, directory: str) -> MountRecord | None:
        raw = _read(self._mount_path(directory))
        return _mount(raw) if raw else None

    def write_mount(self, record: MountRecord) -> None:
        path = self._mount_path(record.directory)
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o755)
        _write(path, asdict(record))

    def forget_mount(self, directory: str) -> None:
        with suppress(FileNotFoundError):
            self._mount_path(directory).unlink()

    def _mount_path(self, directory: str) -> Path:
        name = directory.strip("/").replace("-", "--").replace("/", "-") or "root"
        return self.root / "mounts" / f"{name}.json"


def _mount(raw: dict[str, Any]) -> MountRecord:
    known = {f.name for f in fields(MountRecord)}
    return MountRecord(**{**{k: v for k, v in raw.items() if k in known}, "leaving": tuple(raw["leaving"])})


def _read(path: Path) -> dict[str, Any] | None:
    try:
        raw = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise errors.HostFailed(
            f"cannot read {path}: {error}", "See 'rbdtree doctor'; move the file away when the map is gone."
        ) from error
    return dict(raw)


def _write(path: Path, value: dict[str, Any]) -> None:
    """All of it or nothing, whenever this dies."""
    new = path.with_suffix(".new")
    new.write_text(json.dumps(value, indent=1))
    os.replace(new, path)
