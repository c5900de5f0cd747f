"""A manager's presence at one site: its entries in the lists of managers, its locks on edges, who else is there.

One thread a site, so that a cluster that does not answer keeps no other waiting, and some a place, so that no pool and
no object does: each lock and each list is asked for by itself, and not again while there is no answer. What is renewed
lasts ``LEASE_SECONDS``; a lock that was not renewed for more than half of that is given up, before others may take it.
A site that has answered nothing for as long is out of reach.
"""

import json
import math
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine.claim import identity, is_dead
from rbdtree.manager.spread import Peer
from rbdtree.ports import EDGE, ClaimInfo, Cluster, Pool, Sites

LEASE_SECONDS = 20.0
_RENEW = LEASE_SECONDS / 4
_SILENT = LEASE_SECONDS * 0.6
_ABREAST = 16
"""Threads a place, made as they are needed: one waits for each object that does not answer, the others get on."""
_GOODBYE_SECONDS = 3.0
_PURPOSE = "manager "

Place = tuple[str, str]
"""(pool, namespace)"""


@dataclass(eq=False, slots=True)
class Held:
    """The lock on an edge: on its child's document. ``renewed``: when what it lasts by was asked for, by the monotonic
    clock."""

    place: Place
    object: str
    cookie: str
    renewed: float


@dataclass(frozen=True, slots=True)
class Heard:
    """The last that a manager told: when by its own clock; when that was new here (0: nobody knows), and last in the
    list, by ours; ``owner`` is its process."""

    told: float
    seen: float
    known: float
    owner: str


def _manager_of(owner: str) -> str:
    """Which manager holds a lock; empty where that cannot be told."""
    with suppress(ValueError, KeyError, TypeError):
        doing = str(json.loads(owner)["doing"])
        if doing.startswith(_PURPOSE):
            return doing.removeprefix(_PURPOSE)
    return ""


class Keeper:
    """``me`` says what to tell the others; ``lost`` is called with the object of a lock that is another's now;
    ``moved`` whenever who is there, or whether the site answers, has changed."""

    def __init__(
        self,
        sites: Sites,
        site: str,
        me: Callable[[], Peer],
        lost: Callable[[str], None],
        moved: Callable[[], None],
    ) -> None:
        self.site = site
        self.fsid = ""
        self.error: errors.Error | None = None
        """Why the site does not answer."""
        self._sites = sites
        self._me = me
        self._lost = lost
        self._moved = moved
        self._cookie = uuid.uuid4().hex
        self._guard = threading.Lock()
        self._held: dict[str, Held] = {}
        self._places: set[Place] = set()
        self._peers: dict[Place, tuple[Peer, ...]] = {}
        self._listed: dict[Place, float] = {}
        """When it was last told there, and then read, who is there: the beginning of that."""
        self._heard: dict[str, Heard] = {}
        self._spoke = 0.0
        self._fenced = False
        self._renewed = -math.inf
        """When the connection was replaced last."""
        self._asking: dict[Place | Held, Future[None]] = {}
        self._threads: dict[Place, ThreadPoolExecutor] = {}
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keeper-{site}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def answers(self) -> bool:
        """Whether the site has answered anything lately."""
        return bool(self._spoke) and time.monotonic() - self._spoke < _SILENT

    def hears(self, place: Place) -> bool:
        """Whether the list there was read lately."""
        return place in self._listed and time.monotonic() - self._listed[place] < _SILENT

    @property
    def answered(self) -> float:
        """Since when all lists that answer were told, and read, anew; by the monotonic clock."""
        return min((self._listed[place] for place in self._places if self.hears(place)), default=math.inf)

    def peers(self, place: Place) -> tuple[Peer, ...]:
        """The managers listed there, as far as is known lately; this one among them, once it is."""
        return self._peers.get(place, ()) if self.hears(place) else ()

    def watch_over(self, places: set[Place]) -> None:
        """Where nodes are that this manager may work on."""
        if places != self._places:
            self._places = set(places)
            self._wake.set()

    def look(self) -> None:
        """Tells and lists at once, as after a change of load."""
        self._wake.set()

    def cut_off(self, when: float) -> None:
        """This client was found fenced there, at this time or later: where nothing is held nobody would hear of it."""
        if when > self._renewed:
            self._fenced = True
            self._wake.set()

    # -- locks on edges

    def take(self, place: Place, name: str) -> str | None:
        """Takes the lock on the edge to the node with this document; None when it is ours now, else the manager that
        has it (empty where that cannot be told).

        What a process of this machine held that is gone is nobody's."""
        pool = self._pool(place)
        cookie = uuid.uuid4().hex
        owner = self._owner(pool.cluster)
        for _ in range(2):
            began = time.monotonic()
            try:
                pool.claim(name, cookie, owner, LEASE_SECONDS, EDGE)
            except errors.Busy:
                info = pool.claimed(name, EDGE)
                if info is None or is_dead(info.owner) or self._forgotten(name, info):
                    if info:
                        pool.break_claim(name, info, EDGE)
                    continue
                return _manager_of(info.owner)
            with self._guard:
                self._held[name] = Held(place, name, cookie, began)
            return None
        return ""

    def _forgotten(self, name: str, info: ClaimInfo) -> bool:
        """Whether it is a lock of this very manager, which it gave up while the site was silent, or never heard of."""
        return _manager_of(info.owner) == self._me().manager and not self.holds(name)

    def stirs(self, manager: str) -> bool:
        """Whether this manager, another than this one, has renewed what it holds lately, as far as the lists tell."""
        heard = self._heard.get(manager)
        if heard is None or manager == self._me().manager:
            return False
        return time.monotonic() - heard.seen <= _SILENT and not is_dead(heard.owner)

    def holds(self, name: str) -> bool:
        """Whether it was taken, and not lost since."""
        return self.lock(name) is not None

    def lock(self, name: str) -> Held | None:
        """The lock on the edge to the node with this document, while it is ours."""
        with self._guard:
            return self._held.get(name)

    def drop(self, lock: Held) -> None:
        """Lets an edge go, for others to take at once; nothing if that is so, whoever has it since."""
        if self._gone(lock):
            with suppress(errors.Error):
                pool = self._pool(lock.place)
                pool.unclaim(lock.object, lock.cookie, EDGE)
                pool.notify(lock.object)

    def _gone(self, lock: Held) -> bool:
        """It is ours no more; whether it was."""
        with self._guard:
            known = self._held.get(lock.object) is lock
            if known:
                del self._held[lock.object]
        return known

    def _owner(self, cluster: Cluster) -> str:
        return identity(_PURPOSE + self._me().manager, cluster.address())

    def _pool(self, place: Place) -> Pool:
        return self._sites.cluster(self.site).pool(*place)

    # -- the thread

    def _keep(self) -> None:
        while not self._ending.is_set():
            self._wake.clear()
            began = time.monotonic()
            try:
                if self._fenced:
                    raise errors.Fenced(f"this client was fenced at site {self.site}")
                self._renew()
            except errors.Fenced as error:
                # Somebody took over from us while we stood still: this connection can do nothing any more.
                self.error = error
                self._lose(math.inf)
                self._sites.renew(self.site)
                self._fenced, self._renewed = False, time.monotonic()
            except errors.Error as error:
                self.error = error
            self._wake.wait(began + _RENEW - time.monotonic())

    def _renew(self) -> None:
        """Waits for what it asks, but not for what does not answer: that is heard of on its thread."""
        cluster = self._sites.cluster(self.site)
        if self._ending.is_set():
            return
        self.fsid = cluster.fsid
        places, now = self._places, time.monotonic()
        with self._guard:
            due = [lock for lock in self._held.values() if now - lock.renewed > _RENEW / 2]
            for gone in [name for name, heard in self._heard.items() if now - heard.known > 2 * LEASE_SECONDS]:
                del self._heard[gone]
        self._asking = {what: asked for what, asked in self._asking.items() if not asked.done()}
        asked: dict[Place | Held, Future[None]] = {}
        for place in places - set(self._asking):
            asked[place] = self._submit(place, self._visit, cluster, place)
        for lock in set(due) - set(self._asking):
            asked[lock] = self._submit(lock.place, self._renew_lock, cluster, lock)
        self._asking.update(asked)
        for place in set(self._threads) - places:
            self._submit(place, self._delist, place)
            self._threads.pop(place).shutdown(wait=False)
        if not places:
            # Nothing to renew: does it answer?
            self._ask(cluster.places)
        for one in wait(asked.values(), _RENEW).done:
            one.result()

    def _submit(self, place: Place, work: Callable[..., object], *words: object) -> "Future[None]":
        threads = self._threads.get(place)
        if threads is None:
            threads = ThreadPoolExecutor(_ABREAST, thread_name_prefix=f"keeper-{self.site}")
            self._threads[place] = threads
        return threads.submit(self._ask, work, *words)

    def _ask(self, work: Callable[..., object], *words: object) -> None:
        """Whatever the answer is, the site has given one. Without any, only what was asked for is lost, by and by."""
        try:
            work(*words)
        except errors.Fenced:
            raise
        except errors.Unreachable as error:
            if not self.answers():
                self.error = error
            return
        except errors.Error:
            pass
        silent, self.error, self._spoke = not self.answers(), None, time.monotonic()
        if silent:
            self._moved()

    def _visit(self, cluster: Cluster, place: Place) -> None:
        began, found = time.monotonic(), tuple[Peer, ...]()
        # A key that may only read there, or a pool that is gone: none of ours.
        with suppress(errors.Denied, errors.NotFound):
            pool = cluster.pool(*place)
            pool.enlist(self._cookie, self._me().text(identity("manager", cluster.address())), LEASE_SECONDS)
            found = self._list(pool)
        before = self.peers(place)
        self._peers[place], self._listed[place] = found, began
        if found != before:
            self._moved()

    def _delist(self, place: Place) -> None:
        self._pool(place).delist(self._cookie)

    def _list(self, pool: Pool) -> tuple[Peer, ...]:
        found = []
        for info in pool.enlisted():
            peer = Peer.parse(info.owner)
            if peer and not is_dead(info.owner):
                found.append(peer)
                with self._guard:
                    heard, now = self._heard.get(peer.manager), time.monotonic()
                    # Of the first entry nobody knows how old it is.
                    seen = 0.0 if heard is None else now if peer.told > heard.told else heard.seen
                    self._heard[peer.manager] = Heard(peer.told, seen, now, info.owner)
        return tuple(sorted(found, key=lambda p: p.manager))

    def _renew_lock(self, cluster: Cluster, lock: Held) -> None:
        """While it is held: its turn may come late, and another lock on the same edge have been taken meanwhile."""
        if self.lock(lock.object) is not lock:
            return
        began = time.monotonic()
        try:
            pool = cluster.pool(*lock.place)
            pool.renew_claim(lock.object, lock.cookie, self._owner(cluster), LEASE_SECONDS, EDGE)
            lock.renewed = began
        except (errors.NotFound, errors.Busy):
            if self._gone(lock):
                self._lost(lock.object)

    def _lose(self, before: float) -> None:
        """The locks that were not renewed since then."""
        with self._guard:
            lost = [lock for lock in self._held.values() if lock.renewed <= before]
        for lock in lost:
            if self._gone(lock):
                self._lost(lock.object)

    def forget(self) -> None:
        """What was not renewed for too long may be another's soon. To be called at least every second or two."""
        self._lose(time.monotonic() - _SILENT)

    def close(self) -> None:
        """Leaves the lists and lets everything go, as far as that answers soon."""
        self._ending.set()
        self._wake.set()
        self._thread.join(2)
        if self.answers():
            with self._guard:
                held = list(self._held.values())
            leaving = [self._submit(lock.place, self.drop, lock) for lock in held]
            leaving += [self._submit(place, self._delist, place) for place in self._places]
            wait(leaving, _GOODBYE_SECONDS)
        for threads in self._threads.values():
            threads.shutdown(wait=False, cancel_futures=True)
