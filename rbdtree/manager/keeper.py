"""A manager's presence at one site: its entries in the lists of managers, its locks on edges, who else is there.

One thread a site, so that a cluster that does not answer keeps no other waiting. What it renews lasts
``LEASE_SECONDS``; who has not been answered for more than half of that counts the site as out of reach and gives up
what it holds there, before others may take it.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from rbdtree import errors
from rbdtree.engine.claim import identity, is_dead
from rbdtree.manager.spread import Peer
from rbdtree.ports import EDGE, ClaimInfo, Cluster, Pool, Sites

LEASE_SECONDS = 20.0
_RENEW = LEASE_SECONDS / 4
_SILENT = LEASE_SECONDS * 0.6
_PURPOSE = "manager "

Place = tuple[str, str]
"""(pool, namespace)"""


@dataclass(frozen=True, slots=True)
class Held:
    """The lock on an edge: on its child's document."""

    place: Place
    object: str
    cookie: str


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
        self._sites = sites
        self._me = me
        self._lost = lost
        self._moved = moved
        self._cookie = uuid.uuid4().hex
        self._guard = threading.Lock()
        self._held: dict[str, Held] = {}
        self._places: set[Place] = set()
        self._peers: dict[Place, tuple[Peer, ...]] = {}
        self._heard: dict[str, Heard] = {}
        self.answered = 0.0
        """When the lists were read last, by the monotonic clock."""
        self._renewed = 0.0
        self._wake = threading.Event()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name=f"keeper-{site}", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def answers(self) -> bool:
        """Whether the site has answered lately."""
        return bool(self.answered) and time.monotonic() - self.answered < _SILENT

    def peers(self, place: Place) -> tuple[Peer, ...]:
        """The managers listed there; this one among them, once it is."""
        return self._peers.get(place, ())

    def watch_over(self, places: set[Place]) -> None:
        """Where nodes are that this manager may work on."""
        if places != self._places:
            self._places = set(places)
            self._wake.set()

    def look(self) -> None:
        """Tells and lists at once, as after a change of load."""
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
                self._held[name] = Held(place, name, cookie)
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
        with self._guard:
            return name in self._held

    def drop(self, name: str) -> None:
        """Lets an edge go, for others to take at once."""
        with self._guard:
            held = self._held.pop(name, None)
        if held:
            with suppress(errors.Error):
                pool = self._pool(held.place)
                pool.unclaim(name, held.cookie, EDGE)
                pool.notify(name)

    def _owner(self, cluster: Cluster) -> str:
        return identity(_PURPOSE + self._me().manager, cluster.address())

    def _pool(self, place: Place) -> Pool:
        return self._sites.cluster(self.site).pool(*place)

    # -- the thread

    def _keep(self) -> None:
        while not self._ending.is_set():
            self._wake.clear()
            began = time.monotonic()
            answered = self.answers()
            try:
                self._renew()
                self.error = None
                self.answered = began
            except errors.Fenced as error:
                # Somebody took over from us while we stood still: this connection can do nothing any more.
                self.error = error
                self._lose_all()
                self._sites.renew(self.site)
            except errors.Error as error:
                self.error = error
            if answered != self.answers():
                self._moved()
            self._wake.wait(_RENEW)

    def _renew(self) -> None:
        cluster = self._sites.cluster(self.site)
        self.fsid = cluster.fsid
        began = time.monotonic()
        if began - self._renewed > _RENEW / 2:
            with self._guard:
                held = list(self._held.values())
            for lock in held:
                self._renew_lock(lock)
            self._renewed = began
        text = self._me().text(identity("manager", cluster.address()))
        for place in list(self._places):
            try:
                pool = cluster.pool(*place)
                pool.enlist(self._cookie, text, LEASE_SECONDS)
                found = self._list(pool)
            except (errors.Denied, errors.NotFound):
                # A key that may only read there, or a pool that is gone: none of ours.
                continue
            before = self._peers.get(place)
            self._peers[place] = found
            if found != before:
                self._moved()
        for place in set(self._peers) - self._places:
            self._peers.pop(place, None)
            with suppress(errors.Error):
                cluster.pool(*place).delist(self._cookie)
        for gone in [name for name, heard in self._heard.items() if began - heard.known > 2 * LEASE_SECONDS]:
            del self._heard[gone]
        if not self._places:
            # Nothing to renew: does it answer?
            cluster.places()

    def _list(self, pool: Pool) -> tuple[Peer, ...]:
        found = []
        for info in pool.enlisted():
            peer = Peer.parse(info.owner)
            if peer and not is_dead(info.owner):
                found.append(peer)
                heard, now = self._heard.get(peer.manager), time.monotonic()
                # Of the first entry nobody knows how old it is.
                seen = 0.0 if heard is None else now if peer.told > heard.told else heard.seen
                self._heard[peer.manager] = Heard(peer.told, seen, now, info.owner)
        return tuple(sorted(found, key=lambda p: p.manager))

    def _renew_lock(self, lock: Held) -> None:
        """While it is held: a pass may take long, and another lock on the same edge have been taken since it began."""
        with self._guard:
            if self._held.get(lock.object) is not lock:
                return
        owner = self._owner(self._sites.cluster(self.site))
        try:
            self._pool(lock.place).renew_claim(lock.object, lock.cookie, owner, LEASE_SECONDS, EDGE)
        except (errors.NotFound, errors.Busy):
            with self._guard:
                known = self._held.get(lock.object) is lock
                if known:
                    del self._held[lock.object]
            if known:
                self._lost(lock.object)

    def _lose_all(self) -> None:
        with self._guard:
            lost = list(self._held)
            self._held.clear()
        for name in lost:
            self._lost(name)

    def forget(self) -> None:
        """The site has been silent for too long: what was held there may be another's."""
        self._lose_all()

    def close(self) -> None:
        """Leaves the lists and lets everything go."""
        self._ending.set()
        self._wake.set()
        self._thread.join(2)
        if not self.answers():
            return
        with self._guard:
            names = list(self._held)
        for name in names:
            self.drop(name)
        for place in self._places:
            with suppress(errors.Error):
                self._pool(place).delist(self._cookie)
