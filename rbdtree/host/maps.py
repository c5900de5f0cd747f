"""Maps: made, found again, listed, taken away.

A map is noted before its device is made, and the driver can tell whether the device of a note is there. So a command
that died leaves nothing unknown: the next one adopts what it made, or clears it away.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

from rbdtree import errors
from rbdtree.config import Host
from rbdtree.host import cache, cephconf, device, loop, quiesce
from rbdtree.host import portion as portions
from rbdtree.host.driver import Driver, all_drivers, choose
from rbdtree.host.holds import Keeper
from rbdtree.host.source import Source
from rbdtree.host.state import MAPPED, MAPPING, UNMAPPING, Record, State

_PATIENCE = 10.0
Say = Callable[[errors.Error], None]


@dataclass(frozen=True, slots=True)
class Wish:
    """How something is to be mapped. ``driver`` empty: the best that this host has. ``boot``: by what
    of the table."""

    driver: str = ""
    portion: tuple[int, int] | None = None
    exclusive: bool = False
    quiesce: bool = False
    hook: str = ""
    copy_on_read: bool = False
    boot: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A map as it is now. ``device`` is empty when it is not there (any more)."""

    record: Record
    device: str
    users: tuple[str, ...]
    hits: cache.Hits | None
    freeze: quiesce.Freeze | None


class Maps:
    """The maps of this host."""

    def __init__(self, state: State, host: Host, keeper: Keeper, say: Say) -> None:
        self.state = state
        self.host = host
        self.keeper = keeper
        self.say = say
        self.drivers: dict[str, Driver] = all_drivers()

    # -- looking

    def seen(self) -> list[Seen]:
        return [self.look(record) for record in self.state.records()]

    def look(self, record: Record) -> Seen:
        place = self.state.place(record.key)
        found = self.find(record)
        return Seen(record, found, tuple(device.users(found)) if found else (), cache.hits(place), quiesce.last(place))

    def find(self, record: Record) -> str:
        """The device of a record, whoever made it; empty when it is not there."""
        base = self.drivers[record.driver].find(record, self.state.place(record.key))
        if not base or not record.portion or record.driver == "fuse":
            return base
        return loop.find(base, record.portion)

    # -- mapping

    def key(self, source: Source, wish: Wish) -> str:
        """What it is called in this host's state."""
        return source.key + (f".{wish.portion[0]}-{wish.portion[1]}" if wish.portion else "")

    def map(self, source: Source, wish: Wish, *, for_mount: bool = False) -> Record:
        """The device; the one that is there when it is mapped already. ``for_mount``: it goes with its last mount."""
        if wish.portion:
            portions.check(wish.portion, source.size_bytes)
        key = self.key(source, wish)
        with self.state.locked(key):
            before = self.state.record(key)
            if before is not None:
                found = self._again(before, source, wish)
                if found is not None:
                    return self._asked_for(found, wish) if not for_mount else found
            made = Record(
                key=key,
                source=source,
                driver="",
                portion=wish.portion,
                exclusive=wish.exclusive,
                quiesce=wish.quiesce,
                hook=wish.hook,
                freeze_seconds=self.host.freeze_seconds,
                weight=self.host.weight(source.full_name),
                copy_on_read=wish.copy_on_read,
                started=time.time(),
                for_mount=for_mount,
                boot="" if for_mount else wish.boot,
            )
            return self._map(made, wish)

    def _asked_for(self, record: Record, wish: Wish) -> Record:
        """Somebody wants the device itself: it stays when its mounts have gone."""
        kept = replace(record, for_mount=False, boot=record.boot or wish.boot)
        if kept != record:
            self.state.write(kept)
        return kept

    def foreseen(self, source: Source, wish: Wish) -> Record:
        """What ``map`` would give, as far as that is known without trying."""
        if wish.portion:
            portions.check(wish.portion, source.size_bytes)
        record = Record(
            self.key(source, wish), source, "", portion=wish.portion, exclusive=wish.exclusive, quiesce=wish.quiesce
        )
        record = replace(record, copy_on_read=wish.copy_on_read)
        return replace(record, driver=choose(record, wish.driver, self.drivers)[0][0].name)

    def _again(self, record: Record, source: Source, wish: Wish) -> Record | None:
        """What a former command left; None when it is cleared away and nothing is there."""
        found = self.find(record) if record.step != UNMAPPING else ""
        if record.step == MAPPED and found:
            self._check_same(record, source, wish)
            return record
        if record.step != MAPPED and self._adoptable(record, source, wish):
            with suppress(errors.HostFailed):
                return self._finish(record)
        # A daemon that died, or a map or an unmap that was not finished.
        with self._to_itself(record, self.find(record), force=False):
            self._take_down(record, force=True)
        return None

    def _adoptable(self, record: Record, source: Source, wish: Wish) -> bool:
        same = replace(record.source, size_bytes=source.size_bytes) == source
        base = self.drivers[record.driver].find(record, self.state.place(record.key))
        asked, has = ((one.exclusive, one.quiesce, one.hook) for one in (wish, record))
        return bool(base) and same and asked == has

    def _check_same(self, record: Record, source: Source, wish: Wish) -> None:
        name, what = source.full_name, source.described
        other = difference(record, source, wish)
        if other:
            raise errors.Busy(
                f"{name}: {what} is mapped here as {record.device}, {other}",
                f"Run 'rbdtree unmap {record.device}' first.",
            )
        if wish.driver and wish.driver != record.driver:
            self.say(errors.Busy(f"{name} is mapped here already, with {record.driver}: {record.device}"))

    def _map(self, record: Record, wish: Wish) -> Record:
        candidates, why = choose(record, wish.driver, self.drivers)
        if why and wish.driver:
            self.say(
                errors.Unsupported(f"{'; '.join(why)}: {record.source.full_name} is mapped with {candidates[0].name}")
            )
        failed: errors.Error | None = None
        for driver in candidates:
            if failed:
                self.say(errors.HostFailed(f"{failed}; trying {driver.name}", failed.hint))
            noted = self._note(record, driver)
            try:
                return self._make(noted, driver)
            except errors.Error as error:
                failed = error
                with suppress(errors.Error):
                    self._take_down(noted, force=True)
                if not isinstance(error, errors.HostFailed):
                    raise
        assert failed is not None
        raise failed

    def _note(self, record: Record, driver: Driver) -> Record:
        """Written down before anything is done; with the cache that this map gets."""
        with self.state.locked("cache"):
            there = [cache.Share(r.weight, r.cache_bytes or 0) for r in self.state.records() if r.driver != "krbd"]
            budget = None if driver.name == "krbd" else self.host.cache_bytes
            share = cache.share(budget, self.host.volumes, record.weight, there)
            noted = replace(
                record, driver=driver.name, step=MAPPING, cache_bytes=share, known=driver.present(), base="", device=""
            )
            self.state.write(noted)
        if share == 0:
            self.say(
                errors.NoSpace(
                    f"nothing is left of this host's cache budget: {record.source.full_name} is mapped without a cache",
                    "Raise 'cache' or 'volumes' of [host] in the configuration; 'rbdtree mapped' shows the shares.",
                )
            )
        return noted

    def _make(self, record: Record, driver: Driver) -> Record:
        problem = self.keeper.hold(record.source, record.key)
        if problem:
            self.say(problem)
        record = replace(record, held=not problem and bool(record.source.holder))
        self.state.write(record)
        place = self.state.place(record.key)
        conf = cephconf.write(place, record.source, record.cache_bytes, copy_on_read=record.copy_on_read)
        base = driver.map(record, place, conf)
        record = replace(record, base=base)
        self.state.write(record)
        return self._finish(record)

    def _finish(self, record: Record) -> Record:
        """From the driver's device on."""
        base = record.base or self.drivers[record.driver].find(record, self.state.place(record.key))
        found = base
        if record.portion and record.driver != "fuse":
            found = loop.attach(base, record.portion, read_only=not record.source.write)
        deadline = time.monotonic() + _PATIENCE
        while not device.size(found):
            if time.monotonic() > deadline:
                raise errors.HostFailed(f"{found} has no size after {_PATIENCE:g} s", "See the kernel's log (dmesg).")
            time.sleep(0.02)
        self.keeper.remind(record.source)
        done = replace(record, step=MAPPED, base=base, device=found)
        self.state.write(done)
        return done

    # -- unmapping

    def unmap(self, record: Record, *, force: bool = False) -> None:
        """``Busy`` when it is in use, unless forced: then whoever uses it gets errors."""
        with self.state.locked(record.key):
            now = self.state.record(record.key)
            if now is None:
                return
            found = self.find(now)
            with self._to_itself(now, found, force=force):
                self.state.write(replace(now, step=UNMAPPING))
            try:
                self._take_down(now, force=force)
            except errors.Busy:
                if self.find(now):
                    self.state.write(now)
                raise

    def clear(self, record: Record) -> None:
        """What a former command left of it; nothing when it is whole by now, or gone. ``Busy`` when it is in use."""
        with self.state.locked(record.key):
            now = self.state.record(record.key)
            found = self.find(now) if now else ""
            if now is None or (now.step == MAPPED and found):
                return
            with self._to_itself(now, found, force=False):
                self._take_down(now, force=True)

    @contextmanager
    def _to_itself(self, record: Record, found: str, *, force: bool) -> Iterator[None]:
        """Refuses while others use it."""
        used = device.users(found) if found and not force else []
        if used:
            raise errors.Busy(
                f"{found} ({record.source.full_name}) is in use: {', '.join(used[:3])}",
                "End that first ('rbdtree umount', 'fuser -v'), or give --force: its users get I/O errors then.",
            )
        yield

    def _take_down(self, record: Record, *, force: bool) -> None:
        """Idempotent: whatever of it is there."""
        place, driver = self.state.place(record.key), self.drivers[record.driver]
        base = driver.find(record, place)
        if base:
            # The others refuse by themselves what is in use.
            with _claim(base if record.driver == "rbd-nbd" and not record.portion else "", force=force):
                (device.flush_soon if force else device.flush)(record.device or base)
                if record.portion and record.driver != "fuse":
                    self._drop_loop(base, record.portion, force=force)
                driver.unmap(replace(record, base=base), place, force=force)
        else:
            driver.unmap(replace(record, base=""), place, force=force)
        if record.held or record.step == MAPPING:
            problem = self.keeper.release(record.source, record.key)
            if problem:
                self.say(problem)
        self.state.forget(record.key)

    def _drop_loop(self, base: str, portion: tuple[int, int], *, force: bool) -> None:
        found = loop.find(base, portion)
        if found:
            try:
                loop.detach(found, base, seconds=1.0 if force else 10.0)
            except errors.Busy:
                if not force:
                    raise


def difference(record: Record, source: Source, wish: Wish) -> str:
    """What a map lacks of what is asked for now, in a phrase; empty when it will do."""
    if record.source.image_id != source.image_id:
        return f"over another image ({record.source.described})"
    for asked, has, option in (
        (wish.exclusive, record.exclusive, "--exclusive"),
        (wish.quiesce, record.quiesce, "--quiesce"),
    ):
        if asked and not has:
            return f"without {option}"
    return "with another --quiesce-hook, or none" if wish.hook and wish.hook != record.hook else ""


@contextmanager
def _claim(name: str, *, force: bool) -> Iterator[None]:
    """Nobody mounts it between the look and the unmap."""
    handle = -1
    if name and not force:
        try:
            handle = os.open(name, os.O_RDONLY | os.O_EXCL | os.O_CLOEXEC)
        except OSError as error:
            if error.errno == 16:
                raise errors.Busy(f"{name} has just been taken into use", "End that first, or give --force.") from error
    try:
        yield
    finally:
        if handle >= 0:
            os.close(handle)
