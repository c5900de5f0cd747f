"""Mounts: made over a map, moved to newer generations, taken away.

A switch is noted before it begins, and what is mounted at a directory can be seen. So one that died is finished or
taken back by whoever comes next.
"""

import os
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from rbdtree import errors
from rbdtree.host import device, filesystem, mounting, tools
from rbdtree.host.maps import Maps, Wish, difference
from rbdtree.host.source import Source
from rbdtree.host.state import MountRecord, Record

_HOOK_SECONDS = 60.0


class Mounts:
    """The mounts of this host."""

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self.state = maps.state

    # -- looking

    def shown(self, directory: str) -> Record | None:
        """The map that is mounted there now, on top."""
        there = [m for m in device.mounts() if m.directory == directory]
        if not there:
            return None
        for record in self.state.records():
            number = device.number(record.device) if record.device else None
            where = f"{os.major(number)}:{os.minor(number)}" if number is not None else ""
            if where and (there[-1].device == where or there[-1].source == record.device):
                return record
        return None

    # -- mounting

    def mount(self, source: Source, wish: Wish, record: MountRecord, *, exact: bool = False) -> MountRecord:
        """Idempotent: what is mounted there already stays, ``Busy`` when it is not what is asked for.

        ``exact``: this generation and no other; without, one that was the newest once will do."""
        directory = record.directory
        with self.state.locked(_lock(directory)):
            before = self.state.mount(directory)
            if before is not None:
                before = self._settle(before)
                if before is not None:
                    other = self._difference(before, source, wish, record, exact=exact)
                    if other:
                        raise errors.Busy(
                            f"{other} is mounted at {directory}", f"Run 'rbdtree umount {directory}' first."
                        )
                    kept = replace(
                        before,
                        follow=record.follow,
                        on_switch=record.on_switch,
                        follower=record.follower or before.follower,
                    )
                    self.state.write_mount(kept)
                    return kept
            if not os.path.isdir(directory):
                raise errors.NotFound(f"there is no directory {directory}", f"Make it: mkdir -p {directory}.")
            if any(m.directory == directory for m in device.mounts()):
                raise errors.Busy(f"something else is mounted at {directory}", "Unmount it, or take another directory.")
            key = self.maps.key(source, wish)
            self.state.write_mount(replace(record, key=key))
            try:
                mapped = self.maps.map(source, wish, for_mount=True)
                fstype = self._mount(mapped, directory, record.write, record.options)
            except BaseException:
                self.state.forget_mount(directory)
                with suppress(errors.Error):
                    self._drop(key)
                raise
            done = replace(record, key=key, told=key, fstype=fstype)
            self.state.write_mount(done)
            return done

    def _difference(self, there: MountRecord, source: Source, wish: Wish, asked: MountRecord, *, exact: bool) -> str:
        """What is mounted there instead of what is asked for, in a phrase; empty when it will do."""
        name = f"{there.tree}/{there.node}"
        if (there.tree, there.node, there.write) != (asked.tree, asked.node, asked.write):
            return name
        if asked.options and asked.options != there.options:
            return f"{name}, with other options ({there.options or 'none'}),"
        shown = self.state.record(there.key)
        if shown is None:
            return ""
        name = f"{shown.source.described} of {name}"
        if shown.source.key != source.key:
            return name if exact or asked.write else ""
        other = difference(shown, source, wish)
        return f"{name}, {other}," if other else ""

    def _mount(self, mapped: Record, directory: str, write: bool, options: str) -> str:
        """The file system's kind."""
        fstype = filesystem.kind(mapped.device)
        if not write and filesystem.unclean(mapped.device, fstype):
            self.maps.say(
                errors.Unsupported(
                    f"{mapped.source.full_name}: generation {mapped.source.position} was cut while its {fstype} was in "
                    "use: what its journal holds is not seen by a read-only mount",
                    "Cut with the root mapped with --quiesce; or mount a branch (--write), which replays the journal.",
                )
            )
        words = ["mount", "-t", fstype, "-o", filesystem.options(fstype, write, options), mapped.device, directory]
        tools.run(f"mount {mapped.source.full_name} at {directory}", *words)
        return fstype

    def _settle(self, record: MountRecord) -> MountRecord | None:
        """The record as things are after whatever died; None when nothing is mounted there any more."""
        side = self._side(record.directory)
        if any(m.directory == side for m in device.mounts()):
            mounting.detach(side)
        shown = self.shown(record.directory)
        if shown is None:
            self.state.forget_mount(record.directory)
            for key in (record.key, record.next, *record.leaving):
                self._drop(key)
            return None
        leaving = tuple(k for k in dict.fromkeys((record.key, record.next, *record.leaving)) if k and k != shown.key)
        settled = replace(record, key=shown.key, next="", leaving=leaving)
        self.state.write_mount(settled)
        return self._leave(settled)

    # -- following

    def switch(self, record: MountRecord, source: Source, wish: Wish) -> MountRecord:
        """The next generation, mounted beside and then put in place of what is there."""
        with self.state.locked(_lock(record.directory)):
            now = self.state.mount(record.directory)
            if now is None:
                raise errors.NotFound(
                    f"nothing of ours is mounted at {record.directory} any more", "See 'rbdtree mapped'."
                )
            settled = self._settle(now)
            if settled is None:
                raise errors.NotFound(f"nothing is mounted at {record.directory} any more", "Mount it again.")
            key = self.maps.key(source, wish)
            if key == settled.key:
                return settled
            if filesystem.alone(settled.fstype):
                raise errors.Unsupported(
                    f"{settled.fstype} cannot be mounted beside another generation of itself",
                    f"Unmount and mount {record.directory} to see the newer one.",
                )
            self.state.write_mount(replace(settled, next=key))
            side = self._side(record.directory)
            Path(side).mkdir(parents=True, exist_ok=True, mode=0o700)
            try:
                mapped = self.maps.map(source, wish, for_mount=True)
                fstype = self._mount(mapped, side, False, settled.options)
                mounting.replace(side, record.directory)
            except BaseException:
                # Whatever is on top at the directory now tells how far it came.
                self._settle(replace(settled, next=key))
                raise
            done = replace(
                settled,
                key=key,
                next="",
                fstype=fstype,
                leaving=(*settled.leaving, settled.key),
                switches=settled.switches + 1,
                trouble="",
            )
            self.state.write_mount(done)
        return self.tell(done)

    def tell(self, record: MountRecord) -> MountRecord:
        """Runs the operator's command for what is mounted now, unless it has been: that is noted after its end, so that
        of a follower that died in between the next one runs it."""
        shown = self.state.record(record.key)
        if record.told == record.key or shown is None:
            return record
        if record.on_switch:
            self._run_command(record, shown)
        with self.state.locked(_lock(record.directory)):
            now = self.state.mount(record.directory)
            if now is None:
                return record
            told = replace(now, told=record.key)
            self.state.write_mount(told)
            return told

    def _run_command(self, record: MountRecord, shown: Record) -> None:
        """One that fails or hangs is said, and changes nothing."""
        environment = {
            **os.environ,
            "RBDTREE_NODE": shown.source.full_name,
            "RBDTREE_GENERATION": shown.source.position,
            "RBDTREE_DIRECTORY": record.directory,
            "RBDTREE_DEVICE": shown.device,
        }
        try:
            done = subprocess.run(
                ["/bin/sh", "-c", record.on_switch],
                env=environment,
                stdin=subprocess.DEVNULL,
                timeout=_HOOK_SECONDS,
                check=False,
            )
            trouble = f"ended with {done.returncode}" if done.returncode else ""
        except subprocess.TimeoutExpired:
            trouble = f"did not end within {_HOOK_SECONDS:g} s and was killed"
        if trouble:
            self.maps.say(
                errors.HostFailed(
                    f"the command for a switch {trouble}: {record.on_switch}", "The switch itself is done."
                )
            )

    def leave(self, directory: str) -> MountRecord | None:
        """Unmaps what nobody has a file open in any more."""
        with self.state.locked(_lock(directory)):
            record = self.state.mount(directory)
            return self._leave(record) if record else None

    def _leave(self, record: MountRecord) -> MountRecord:
        left = tuple(key for key in record.leaving if not self._drop(key))
        if left != record.leaving:
            record = replace(record, leaving=left)
            self.state.write_mount(record)
        return record

    def tidy(self, directory: str) -> None:
        """Forgets a mount that has gone, and unmaps what was mapped for it."""
        with self.state.locked(_lock(directory)):
            record = self.state.mount(directory)
            if record:
                self._settle(record)

    def _drop(self, key: str) -> bool:
        """A map that was made for mounts goes when the last of them has gone; whether it is of no concern any more."""
        record = self.state.record(key) if key else None
        if record is None or not record.for_mount:
            return True
        if any(key in (m.key, m.next) for m in self.state.mounts()):
            return True
        try:
            self.maps.unmap(record)
        except errors.Busy:
            return False
        return True

    def _side(self, directory: str) -> str:
        name = directory.strip("/").replace("-", "--").replace("/", "-") or "root"
        return os.path.abspath(self.state.root / "side" / name)

    # -- unmounting

    def umount(self, directory: str, *, force: bool = False) -> tuple[str, ...]:
        """``Busy`` while files are open, unless forced: then they stay valid until they are closed. Maps that stay."""
        with self.state.locked(_lock(directory)):
            record = self.state.mount(directory)
            if record is None:
                raise errors.NotFound(
                    f"nothing of ours is mounted at {directory}", "See 'rbdtree mapped' and 'findmnt'."
                )
            settled = self._settle(record)
            if settled is None:
                return ()
            if force:
                mounting.detach(directory)
            else:
                users = openers(directory)
                if users:
                    raise errors.Busy(
                        f"{directory} is in use: {', '.join(users[:3])}",
                        "End that first, or give --force: open files stay valid until they are closed.",
                    )
                tools.run(f"unmount {directory}", "umount", directory, seconds=300)
            self.state.forget_mount(directory)
            with suppress(OSError):
                os.rmdir(self._side(directory))
            return tuple(key for key in dict.fromkeys((settled.key, *settled.leaving)) if not self._drop_soon(key))

    def _drop_soon(self, key: str) -> bool:
        """A moment for whoever still closes its files."""
        deadline = time.monotonic() + 3
        while not self._drop(key):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        return True


def _lock(directory: str) -> str:
    return f"mount{directory.replace('/', '-')}"


def openers(directory: str) -> list[str]:
    """Processes that have something open on the file system mounted there, in phrases."""
    try:
        wanted = os.stat(directory).st_dev
    except OSError:
        return []
    said = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid() and _is_in(folder, wanted):
            name = (tools.lines(folder / "comm") or ["?"])[0]
            said.append(f"{name} ({folder.name})")
    return said


def _is_in(folder: Path, wanted: int) -> bool:
    with suppress(OSError):
        for path in (folder / "cwd", folder / "root", *(folder / "fd").iterdir()):
            with suppress(OSError):
                if path.stat().st_dev == wanted:
                    return True
    return False


def follow(
    mounts: Mounts,
    record: MountRecord,
    newest: Callable[[], tuple[Source, Wish]],
    wait: Callable[[float], bool],
    switched: Callable[[MountRecord, Source], None],
    *,
    every: float = 5.0,
) -> None:
    """Until ``wait`` says stop (True) or it is unmounted. A cluster that does not answer is asked again."""
    while True:
        current = mounts.leave(record.directory)
        if current is None:
            return
        current = mounts.tell(current)
        try:
            source, wish = newest()
            if mounts.maps.key(source, wish) != current.key:
                done = mounts.switch(current, source, wish)
                switched(done, source)
        except errors.Unsupported:
            raise
        except errors.Error as error:
            if mounts.state.mount(record.directory) is None:
                return
            mounts.maps.say(error)
        # Files that are still open are looked at more often than the cluster needs to be asked.
        if wait(1.0 if current.leaving else every):
            return
