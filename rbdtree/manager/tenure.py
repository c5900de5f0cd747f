"""Which edges are this manager's: their locks are asked for, given back and lost, so that the load spreads.

    keeper     holds and renews the locks at one site, and hears there of the other managers
    spread     who takes and who gives, by what all managers see alike
    safety     not these locks: the claim that every cycle takes on its node, as commands do

The manager's one thread calls all of this; locks are asked for on others, whose answers it takes up with ``heard``.
"""

import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from queue import Empty, SimpleQueue
from typing import TypeVar

from rbdtree import errors
from rbdtree.manager import spread
from rbdtree.manager.keeper import LEASE_SECONDS, Keeper, Place
from rbdtree.manager.unit import Unit
from rbdtree.manager.wish import Listener, Wish
from rbdtree.model.document import object_name
from rbdtree.ports import Sites

_OTHERS_TURN = 2 * spread.MOMENT_SECONDS
_KEPT_SECONDS = 600.0
_ASK_SECONDS = 1.0
_MUTE_SECONDS = 30.0
"""Until a lock is asked for again that was not answered for: each such question keeps a thread waiting."""
_LOCKS = 8

T = TypeVar("T")


def drained(queue: "SimpleQueue[T]") -> list[T]:
    """What others have left there."""
    found = []
    while True:
        try:
            found.append(queue.get_nowait())
        except Empty:
            return found


class Tenure:
    """``units`` is the manager's own, by node id; ``ending`` is set when it is to stop, ``kick`` has it decide anew."""

    def __init__(
        self,
        sites: Sites,
        name: str,
        wish: Wish,
        units: dict[str, Unit],
        listener: Listener,
        ending: threading.Event,
        kick: Callable[[], None],
    ) -> None:
        self._name = name
        self._wish = wish
        self._units = units
        self._listener = listener
        self._ending = ending
        self._kick = kick
        self._keepers = {site: Keeper(sites, site, self.me, self.lock_lost, kick) for site in sites.names()}
        self._locks = {site: ThreadPoolExecutor(_LOCKS, thread_name_prefix=f"locks-{site}") for site in self._keepers}
        """Where locks are asked for and given back: a site or a document that does not answer must stop no others."""
        self._lost: SimpleQueue[str] = SimpleQueue()
        self._answers: SimpleQueue[tuple[Unit, str | None, errors.Error | None]] = SimpleQueue()
        self._weighed = 0.0
        self._asked = 0.0
        self.silent = set(self._keepers)
        """The sites that do not answer."""

    def start(self) -> None:
        for keeper in self._keepers.values():
            keeper.start()

    # -- who and where, for others

    def me(self) -> spread.Peer:
        """This manager, for the list."""
        fsids = frozenset(k.fsid for k in self._keepers.values() if k.fsid and k.answers())
        held = sum(unit.held for unit in list(self._units.values()))
        return spread.Peer(self._name, fsids, held, time.monotonic())

    def peers(self) -> set[str]:
        """The managers seen anywhere, this one among them."""
        found = {self._name}
        for keeper in self._keepers.values():
            for unit in list(self._units.values()):
                found |= {peer.manager for peer in keeper.peers(unit.place)}
        return found

    def site_errors(self) -> dict[str, errors.Error | None]:
        """By site: why it does not answer."""
        return {name: keeper.error for name, keeper in self._keepers.items()}

    def knows(self, site: str) -> bool:
        return site in self._keepers

    def answers(self, site: str) -> bool:
        return self._keepers[site].answers()

    def site_of(self) -> dict[str, str]:
        """Site by fsid, of those that have answered."""
        return {keeper.fsid: site for site, keeper in self._keepers.items() if keeper.fsid}

    def watch_over(self) -> None:
        """Wherever units are by now."""
        places: dict[str, set[Place]] = {site: set() for site in self._keepers}
        for unit in self._units.values():
            places[unit.ref.site].add(unit.place)
        for site, keeper in self._keepers.items():
            keeper.watch_over(places[site])

    # -- sites

    def look_at_sites(self) -> bool:
        """Whether one answers that did not. The edges that need a cluster which does not are others', if those reach
        it."""
        for keeper in self._keepers.values():
            keeper.forget()
        silent = {site for site, keeper in self._keepers.items() if not keeper.answers()}
        for site in silent - self.silent:
            keeper = self._keepers[site]
            self._listener.site(site, keeper.error or errors.Unreachable(f"site {site} does not answer"))
            for unit in self._units.values():
                if keeper.fsid in unit.needs:
                    self.drop(unit)
        back = self.silent - silent
        for site in back:
            self._listener.site(site, None)
        self.silent = silent
        return bool(back)

    def cut_off(self, site: str, when: float) -> None:
        """Our client was found fenced there, by what began at this time of the monotonic clock."""
        self._keepers[site].cut_off(when)

    def look(self, fsids: Iterable[str] | None = None) -> None:
        """Tells, in the lists of these clusters or of all, how many edges this manager has, and hears of the others'
        and whether its connection holds."""
        for keeper in self._keepers.values():
            if fsids is None or keeper.fsid in fsids:
                keeper.look()

    # -- locks lost and let go

    def lock_lost(self, name: str) -> None:
        """By any thread: the lock on the edge to the node with this document is another's."""
        self._lost.put(name)
        self._kick()

    def give_up_lost(self) -> None:
        for name in drained(self._lost):
            for unit in self._units.values():
                if unit.held and object_name(unit.ref.node_id) == name:
                    self._end(unit, "lost")

    def drop(self, unit: Unit) -> None:
        """For others to take at once; nothing if it is not ours."""
        if unit.held:
            self._end(unit, "given")
            self._unlock(unit)

    def _end(self, unit: Unit, how: str) -> None:
        unit.held = False
        unit.free_since = time.monotonic()
        unit.leave.set()
        self._listener.edge(unit, how)

    def _unlock(self, unit: Unit) -> None:
        keeper = self._keepers[unit.ref.site]
        lock = keeper.lock(object_name(unit.ref.node_id))
        if lock:
            self._locks[unit.ref.site].submit(keeper.drop, lock)

    # -- locks taken

    def stir(self, unit: Unit, now: float) -> None:
        """Something was written there: it may have been let go."""
        unit.holder = ""
        unit.free_since = min(unit.free_since, max(now, unit.tried + spread.MOMENT_SECONDS))

    def heard(self, now: float) -> None:
        """What came of the locks that were asked for."""
        for unit, holder, error in drained(self._answers):
            self._answered(unit, holder, error, now)

    def _answered(self, unit: Unit, holder: str | None, error: errors.Error | None, now: float) -> None:
        """``holder``: the manager that has it; None when it is this one."""
        unit.taking, unit.holder = False, holder or ""
        if error:
            self._listener.problem(error)
            if isinstance(error, errors.Unreachable):
                unit.mute_until = now + _MUTE_SECONDS
            unit.free_since = now + 5.0
        elif holder is not None or not self._keepers[unit.ref.site].holds(object_name(unit.ref.node_id)):
            # Asked again when its holder may have gone; a notification comes sooner.
            unit.free_since = max(unit.free_since, now + _ASK_SECONDS)
        elif self._units.get(unit.ref.node_id) is not unit:
            self._unlock(unit)
        else:
            unit.held, unit.leave, unit.uplink_trouble = True, threading.Event(), None
            unit.not_before, unit.waits_since, unit.whole_due = 0.0, 0.0, 0.0
            unit.fall_due(now)
            if now < unit.given + LEASE_SECONDS:
                # Nobody wanted it: who is listed with less stands still, for one. The list forgets it before long.
                self._weighed, unit.kept = now + LEASE_SECONDS, now + _KEPT_SECONDS
            self.look()
            self._listener.edge(unit, "taken")

    def _ask(self, unit: Unit, keeper: Keeper) -> None:
        """On a thread of its site's."""
        name = object_name(unit.ref.node_id)
        holder: str | None = ""
        failed = None
        try:
            if not self._ending.is_set():
                holder = keeper.take(unit.place, name)
            lock = keeper.lock(name)
            if holder is None and lock and self._ending.is_set():
                # The others need not wait until it lapses.
                keeper.drop(lock)
        except errors.Error as error:
            failed = error
        except Exception as error:
            failed = errors.Bug(f"{unit.name}: lock: {type(error).__name__}: {error}")
        self._answers.put((unit, holder, failed))
        self._kick()

    # -- the load

    def balance(self, now: float) -> None:
        """Asks for edges that are free, and gives one away where others have less to do."""
        me = self.me()
        self._take_free(me, now)
        if now - self._weighed >= spread.MOMENT_SECONDS and (idle := self._idle(now)):
            self._weighed = now
            self._give_one(me, idle, now)

    def _idle(self, now: float) -> dict[str, Unit]:
        """By edge. Where the list is not heard nobody would take it."""
        heard = [u for u in self._units.values() if u.held and self._keepers[u.ref.site].hears(u.place)]
        return {u.edge: u for u in heard if not u.running and u.kept < now < u.due}

    def _take_free(self, me: spread.Peer, now: float) -> None:
        hoped = me.load + sum(unit.taking for unit in self._units.values())
        for unit in self._units.values():
            keeper = self._keepers[unit.ref.site]
            if not (keeper.answers() and keeper.hears(unit.place)):
                # Asked for when these answer, and then at once.
                unit.mute_until = 0.0
                continue
            soonest = max(unit.free_since, unit.given + _OTHERS_TURN, unit.mute_until)
            if unit.held or unit.taking or unit.running or now < soonest:
                continue
            mine, free = replace(me, load=hoped), now - unit.free_since
            if not spread.takes(mine, keeper.peers(unit.place), unit.edge, unit.needs, free):
                continue
            if now < unit.tried + min(self._wish.poll, LEASE_SECONDS) and keeper.stirs(unit.holder):
                # To ask would tell the same.
                unit.free_since = now + _ASK_SECONDS
                continue
            unit.tried, unit.taking = now, True
            hoped += 1
            self._locks[unit.ref.site].submit(self._ask, unit, keeper)

    def _give_one(self, me: spread.Peer, idle: dict[str, Unit], now: float) -> None:
        if any(not u.held and not u.holder and now < u.given + LEASE_SECONDS for u in self._units.values()):
            # One at a time: who has taken what was given last is told when it is asked for.
            return
        keepers = [keeper for keeper in self._keepers.values() if keeper.answers()]
        peers = spread.newest(p for k in keepers for u in idle.values() for p in k.peers(u.place))
        given = spread.gives(me, peers, {edge: unit.needs for edge, unit in idle.items()})
        if not given:
            self._asked = 0.0
        elif not self._asked or now - self._asked > LEASE_SECONDS / 2:
            # By what the others say from now on: whoever took what was given last has more since.
            self._asked = now
            self.look()
        elif all(keeper.answered >= self._asked for keeper in keepers):
            unit = idle[given]
            self.drop(unit)
            unit.given, self._asked = now, 0.0
            self.look()

    # -- the end

    def close(self) -> list[threading.Thread]:
        """No more is asked for. The threads, to be started, let everything go."""
        for pool in self._locks.values():
            pool.shutdown(wait=False, cancel_futures=True)
        for unit in self._units.values():
            unit.held = False
        return [threading.Thread(target=keeper.close, daemon=True) for keeper in self._keepers.values()]
