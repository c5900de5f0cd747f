"""The manager: which nodes there are, which of them are its own, when each is due; cycles on a few threads.

    wakes      a document that this manager listens to was written; a schedule; a failure's next try; the poll
    own        the lock on the edge (keeper), taken and given so that the load spreads (spread)
    safety     not the edge's lock: the claim that every cycle takes on its node, as commands do

One thread decides (``run``); whatever others find out reaches it through ``wake``.
"""

import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial

from rbdtree import errors
from rbdtree.engine import copy as copying
from rbdtree.engine.claim import worker_name
from rbdtree.engine.desk import Desk
from rbdtree.engine.forest import Forest, Member, look
from rbdtree.engine.pace import Paces
from rbdtree.manager import answer, notify, spread
from rbdtree.manager.cycle import Cycle, Cycles, Frozen
from rbdtree.manager.keeper import LEASE_SECONDS, Keeper, Place
from rbdtree.manager.unit import Unit
from rbdtree.manager.uplinks import Uplinks
from rbdtree.manager.watches import Listened, Watches
from rbdtree.model.document import DIRECTORY, Kind, NodeDocument, object_name
from rbdtree.ports import Reporter, Silent, Sites

_OTHERS_TURN = 2 * spread.MOMENT_SECONDS
_KEPT_SECONDS = 600.0
_ASK_SECONDS = 1.0
_MUTE_SECONDS = 30.0
"""Until a lock is asked for again that was not answered for: each such question keeps a thread waiting."""
_LOCKS = 8
_PERSON_SECONDS = 2.0
"""Between two looks at what waits for a person, however often the documents are written."""


@dataclass(frozen=True, slots=True)
class Wish:
    """What a manager is for. Empty: everything that its sites hold. Seconds.

    ``poll``: how often it looks at all documents, in case a notification was missed; ``whole``: how often at the images
    too; ``jobs``: cycles at a time.
    """

    trees: frozenset[str] = frozenset()
    sites: frozenset[str] = frozenset()
    poll: float = 60.0
    whole: float = 600.0
    jobs: int = 16
    expiry_seconds: float = 86400.0


class Listener:
    """Told what a manager does: for its log and its metrics. Called from several threads."""

    def cycle(self, unit: Unit, cycle: Cycle) -> None:
        return

    def edge(self, unit: Unit, what: str) -> None:
        """``taken``, ``given``, ``lost``"""

    def site(self, site: str, error: errors.Error | None) -> None:
        return

    def problem(self, error: errors.Error) -> None:
        return


class Manager:
    """``run`` until ``stop``; any number of them, on any machines."""

    def __init__(
        self,
        sites: Sites,
        wish: Wish,
        listener: Listener | None = None,
        reporter: Reporter | None = None,
        frozen: Frozen | None = None,
    ) -> None:
        self.name = f"{worker_name()}:{uuid.uuid4().hex[:6]}"
        self.units: dict[str, Unit] = {}
        self.documents: dict[str, NodeDocument] = {}
        """What was seen last of every node of these trees, the manager's own or not."""
        self.began = time.time()
        self.looked = 0.0
        self.ready = threading.Event()
        self._sites = sites
        self._wish = wish
        self._listener = listener or Listener()
        self._reporter = reporter or Silent()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._moved = threading.Condition()
        self._told: set[Listened] = set()
        self._lost: set[str] = set()
        self._kicked = True
        self._rescan = True
        self._scanning = False
        self._found: tuple[Forest, list[Listened], float] | None = None
        self._taken: list[tuple[Unit, str | None, errors.Error | None]] = []
        self._site_of: dict[str, str] = {}
        self._window = copying.Window(copying.WINDOW)
        self._desks: dict[str, Desk] = {}
        self._paces = Paces()
        self._cycles = Cycles(
            sites,
            self._reporter,
            self._hurry,
            self.name,
            expiry_seconds=wish.expiry_seconds,
            frozen=frozen,
            paces=self._paces,
        )
        self.uplinks = Uplinks(sites, self._reporter, self._uplink_failed, paces=self._paces)
        self._watches = Watches(sites, self._notified)
        self._keepers = {site: Keeper(sites, site, self.peer, self._lock_lost, self.kick) for site in sites.names()}
        self._silent = set(self._keepers)
        self._locks = {site: ThreadPoolExecutor(_LOCKS, thread_name_prefix=f"locks-{site}") for site in self._keepers}
        """Where locks are asked for and given back: a site or a document that does not answer must stop no others."""
        self._workers = ThreadPoolExecutor(wish.jobs, thread_name_prefix="cycle")
        self._roots = ThreadPoolExecutor(wish.jobs, thread_name_prefix="root")
        self._weighed = 0.0
        self._asked = 0.0
        self._decided = 0.0
        self._next_poll = 0.0

    # -- for others

    def stop(self) -> None:
        """In good order; from any thread or a signal handler's."""
        self._stopping.set()

    def kick(self) -> None:
        """Something changed: decide anew."""
        with self._moved:
            self._kicked = True
            self._moved.notify_all()

    def peer(self) -> spread.Peer:
        """This manager, for the list."""
        fsids = frozenset(k.fsid for k in self._keepers.values() if k.fsid and k.answers())
        held = sum(unit.held for unit in list(self.units.values()))
        return spread.Peer(self.name, fsids, held, time.monotonic())

    def site_errors(self) -> dict[str, errors.Error | None]:
        """By site: why it does not answer."""
        return {name: keeper.error for name, keeper in self._keepers.items()}

    def peers(self) -> set[str]:
        """The managers seen anywhere, this one among them."""
        found = {self.name}
        for keeper in self._keepers.values():
            for unit in list(self.units.values()):
                found |= {peer.manager for peer in keeper.peers(unit.place)}
        return found

    # -- what other threads find out

    def _notified(self, one: Listened) -> None:
        with self._moved:
            self._told.add(one)
            self._moved.notify_all()

    def _lock_lost(self, name: str) -> None:
        with self._moved:
            self._lost.add(name)
            self._moved.notify_all()

    def _uplink_failed(self, unit: Unit, error: errors.Error | None) -> None:
        """Its next cycle, which begins at once, writes it down, or that it is over."""
        found = None
        if error is not None:
            self._listener.problem(error)
            if answer.answer(error) is answer.Answer.STOP:
                return
            found = answer.trouble(unit.uplink_trouble, error, time.time(), self.name)
        if found != unit.uplink_trouble:
            unit.uplink_trouble = found
            site = self._site_of.get(unit.ref.fsid, unit.ref.site)
            self._notified(replace(Listened.node(unit.ref), site=site))

    # -- the loop

    def run(self) -> None:
        """Returns when stopped, everything let go."""
        for keeper in self._keepers.values():
            keeper.start()
        pause = notify.watchdog_seconds() or 5.0
        try:
            while not self._stopping.is_set():
                notify.tell("WATCHDOG=1")
                self._decide()
                with self._moved:
                    if not (self._kicked or self._told or self._lost or self._stopping.is_set()):
                        self._moved.wait(min(pause, 0.5, self._pause()))
        finally:
            self._close()

    def _pause(self) -> float:
        """Until a unit falls due. What was due already has no slot, and waits for the end of a cycle, which kicks."""
        now = time.monotonic()
        dues = [max(u.due, u.not_before) for u in self.units.values() if u.held and not u.running]
        return max(0.01, min([due - now for due in dues if due > self._decided], default=1.0))

    def _decide(self) -> None:
        with self._moved:
            told, self._told = self._told, set()
            lost, self._lost = self._lost, set()
            self._kicked = False
            found, self._found = self._found, None
            taken, self._taken = self._taken, []
        now = self._decided = time.monotonic()
        self._look_at_sites()
        for name in lost:
            self._give_up(name)
        if found:
            self._take_in(*found)
        for unit, holder, error in taken:
            self._answered(unit, holder, error, now)
        for one in told:
            self._wake(one, now)
        if self._rescan or now >= self._next_poll:
            self._scan(now)
        self._spread(now)
        self.uplinks.tend(list(self.units.values()))
        self._dispatch(now)

    # -- what there is

    def _scan(self, now: float) -> None:
        """On a thread of its own: a cluster that does not answer must not stop the others' edges."""
        if self._scanning:
            return
        self._scanning, self._rescan = True, False
        self._next_poll = now + self._wish.poll
        threading.Thread(target=self._look, name="look", daemon=True).start()

    def _look(self) -> None:
        try:
            # On a thread of its own: to end a connection may take as long as its cluster does not answer.
            threading.Thread(target=self._sites.end_retired, name="retire", daemon=True).start()
            began = time.monotonic()
            forest = look(self._sites)
            wanted = {one for unit in list(self.units.values()) for one in unit.listens(self._site_of, self.units)}
            # Silent ones are listened to by the look that follows their answer.
            anew = self._watches.listen(wanted | self._directories(), frozenset(self._silent))
            with self._moved:
                self._found = forest, anew, began
        except errors.Error as error:
            self._listener.problem(error)
        except Exception as error:
            self._listener.problem(errors.Bug(f"looking at the sites: {type(error).__name__}: {error}"))
        finally:
            self._scanning = False
            self.kick()

    def _directories(self) -> set[Listened]:
        places = {(self._site_of[u.ref.fsid], *u.place) for u in self.units.values() if u.ref.fsid in self._site_of}
        return {Listened(*place, DIRECTORY) for place in places}

    def _take_in(self, forest: Forest, anew: list[Listened], began: float) -> None:
        for problem in forest.problems:
            self._listener.problem(problem)
        for site, problem in forest.unread.items():
            if isinstance(problem, errors.Fenced):
                self._keepers[site].cut_off(began)
        there = {name for tree in forest.trees for name in (tree.name, tree.tree_id)}
        for name in self._wish.trees - there if not forest.problems else ():
            # It may come yet.
            self._listener.problem(
                errors.NotFound(f"there is no tree {name}", "See 'rbdtree status' for those there are.")
            )
        now = time.monotonic()
        self._site_of = {k.fsid: site for site, k in self._keepers.items() if k.fsid}
        known = set(self.units)
        found = [m for tree in forest.trees for m in tree.members.values() if m.document]
        self.documents = {m.ref.node_id: m.document for m in found if m.document}
        for document in self.documents.values():
            # What is under way goes on with the limit of now.
            self._paces.of(document)
        wanted = {m.ref.node_id: m for m in found if self._wanted(m)}
        for node_id, member in wanted.items():
            self._meet(node_id, member, now)
        self._part(known - set(wanted), forest)
        places: dict[str, set[Place]] = {site: set() for site in self._keepers}
        for unit in self.units.values():
            places[unit.ref.site].add(unit.place)
        for site, keeper in self._keepers.items():
            keeper.watch_over(places[site])
        for one in anew:
            self._wake(one, now)
        for unit in self.units.values():
            if unit.held and not unit.running:
                self._due(unit, now)
        if set(self.units) != known:
            # Their watches come with the next look, which need not wait.
            self._rescan = True
        self.looked = time.time()
        self.ready.set()

    def _wanted(self, member: Member) -> bool:
        if member.document is None or member.ref.site not in self._keepers:
            return False
        trees, sites = self._wish.trees, self._wish.sites
        mine = not trees or bool(trees & {member.document.tree, member.document.tree_id})
        return mine and (not sites or member.ref.site in sites)

    def _meet(self, node_id: str, member: Member, now: float) -> None:
        assert member.document is not None
        unit = self.units.get(node_id)
        if unit is None:
            self.units[node_id] = Unit(member.ref, member.document, free_since=now)
        elif not unit.running and unit.document != member.document:
            unit.document = member.document
            self._due(unit, now)

    def _part(self, missing: set[str], forest: Forest) -> None:
        """From nodes that are gone: from their directories, not just out of reach."""
        for node_id in missing:
            unit = self.units[node_id]
            if not self._unreachable(unit, forest):
                self._drop(unit)
                del self.units[node_id]

    def _unreachable(self, unit: Unit, forest: Forest) -> bool:
        site = unit.ref.site
        silent = any(isinstance(p, errors.Unreachable) for p in forest.problems)
        return silent or site in forest.unread or not self._keepers[site].answers()

    # -- whose it is

    def _look_at_sites(self) -> None:
        for keeper in self._keepers.values():
            keeper.forget()
        silent = {site for site, keeper in self._keepers.items() if not keeper.answers()}
        for site in silent - self._silent:
            keeper = self._keepers[site]
            self._listener.site(site, keeper.error or errors.Unreachable(f"site {site} does not answer"))
            self._leave(keeper.fsid)
        for site in self._silent - silent:
            self._listener.site(site, None)
            self._rescan = True
        self._silent = silent

    def _leave(self, fsid: str) -> None:
        """The edges that need a cluster which does not answer are others', if those reach it."""
        for unit in self.units.values():
            if unit.held and fsid in unit.needs:
                self._drop(unit)

    def _give_up(self, name: str) -> None:
        for unit in self.units.values():
            if unit.held and object_name(unit.ref.node_id) == name:
                unit.held = False
                unit.free_since = time.monotonic()
                unit.leave.set()
                self._listener.edge(unit, "lost")

    def _drop(self, unit: Unit) -> None:
        if unit.held:
            unit.held = False
            unit.free_since = time.monotonic()
            unit.leave.set()
            self._unlock(unit)
            self._listener.edge(unit, "given")

    def _unlock(self, unit: Unit) -> None:
        keeper = self._keepers[unit.ref.site]
        lock = keeper.lock(object_name(unit.ref.node_id))
        if lock:
            self._locks[unit.ref.site].submit(keeper.drop, lock)

    def _spread(self, now: float) -> None:
        me = self.peer()
        hoped = me.load + sum(unit.taking for unit in self.units.values())
        for unit in self.units.values():
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
        if now - self._weighed < spread.MOMENT_SECONDS:
            return
        self._weighed = now
        if any(not u.held and not u.holder and now < u.given + LEASE_SECONDS for u in self.units.values()):
            # One at a time: who has taken what was given last is told when it is asked for.
            return
        # Where the list is not heard nobody would take it.
        heard = [u for u in self.units.values() if u.held and self._keepers[u.ref.site].hears(u.place)]
        idle = {u.edge: u for u in heard if not u.running and u.kept < now < u.due}
        keepers = [keeper for keeper in self._keepers.values() if keeper.answers()]
        peers = spread.newest(p for k in keepers for u in idle.values() for p in k.peers(u.place))
        given = spread.gives(me, peers, {edge: unit.needs for edge, unit in idle.items()})
        if not given:
            self._asked = 0.0
        elif not self._asked:
            # By what the others say from now on: whoever took what was given last has more since.
            self._asked = now
            self._tell()
        elif all(keeper.answered >= self._asked for keeper in keepers):
            unit = idle[given]
            self._drop(unit)
            unit.given, self._asked = now, 0.0
            self._tell()

    def _tell(self) -> None:
        """How many edges this manager has, in all lists, and hears of the others'."""
        for keeper in self._keepers.values():
            keeper.look()

    def _ask(self, unit: Unit, keeper: Keeper) -> None:
        holder: str | None = ""
        failed = None
        try:
            if not self._stopping.is_set():
                holder = keeper.take(unit.place, object_name(unit.ref.node_id))
            lock = keeper.lock(object_name(unit.ref.node_id))
            if holder is None and lock and self._stopping.is_set():
                # The others need not wait until it lapses.
                keeper.drop(lock)
        except errors.Error as error:
            failed = error
        except Exception as error:
            failed = errors.Bug(f"{unit.name}: lock: {type(error).__name__}: {error}")
        with self._moved:
            self._taken.append((unit, holder, failed))
            self._kicked = True
            self._moved.notify_all()

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
        elif self.units.get(unit.ref.node_id) is not unit:
            self._unlock(unit)
        else:
            unit.held, unit.leave, unit.uplink_trouble = True, threading.Event(), None
            unit.not_before, unit.waits_since, unit.whole_due = 0.0, 0.0, 0.0
            self._due(unit, now)
            if now < unit.given + LEASE_SECONDS:
                # Nobody wanted it: who is listed with less stands still, for one. The list forgets it before long.
                self._weighed, unit.kept = now + LEASE_SECONDS, now + _KEPT_SECONDS
            self._tell()
            self._listener.edge(unit, "taken")

    # -- when

    def _due(self, unit: Unit, now: float) -> None:
        unit.due = min(unit.due, now) if unit.due else now

    def _wake(self, one: Listened, now: float) -> None:
        if self._watches.gone(one):
            self._rescan = True
        if one.object == DIRECTORY:
            self._rescan = True
            return
        for unit in self.units.values():
            if one in unit.listens(self._site_of, self.units):
                if unit.running:
                    unit.again = True
                elif unit.held:
                    self._due(unit, now)
                    if unit.waits_since:
                        unit.not_before = min(unit.not_before, max(now, unit.waits_since + _PERSON_SECONDS))
                else:
                    # It may have been let go.
                    unit.holder = ""
                    unit.free_since = min(unit.free_since, max(now, unit.tried + spread.MOMENT_SECONDS))

    def _dispatch(self, now: float) -> None:
        due = [u for u in self.units.values() if u.held and not u.running and max(u.due, u.not_before) <= now]
        due.sort(key=lambda u: (-u.policy.priority, u.due))
        # A root cuts and publishes on time, however many edges copy.
        chosen = [u for u in due if u.is_root]
        busy = [u for u in self.units.values() if u.running and not u.is_root]
        for unit in due:
            beside = [u.policy.priority for u in busy if u.document.tree_id == unit.document.tree_id]
            # One that matters more than all of its tree at work does not wait for a copy that may take days.
            place = len(beside) < unit.policy.parallel or unit.policy.priority > max(beside)
            if not unit.is_root and len(busy) < self._wish.jobs and place:
                busy.append(unit)
                chosen.append(unit)
        for unit in chosen:
            # All of them before any begins: siblings that need the same delta share one read of it.
            unit.desk = self._desk(unit)
            if unit.document.kind is Kind.MIRROR:
                unit.desk.enter()
        for unit in chosen:
            unit.running, unit.again = True, False
            unit.due = now + self._wish.poll
            work = (self._roots if unit.is_root else self._workers).submit(self._work, unit)
            work.add_done_callback(partial(self._cancelled, unit))

    @staticmethod
    def _cancelled(unit: Unit, work: "Future[None]") -> None:
        """The manager ended before its turn came."""
        if work.cancelled():
            unit.running = False

    def _desk(self, unit: Unit) -> Desk:
        upstream = unit.document.parent.node_id if unit.document.parent else unit.ref.node_id
        return self._desks.setdefault(upstream, Desk(0, self._reporter, self._hurry, self._window))

    def _work(self, unit: Unit) -> None:
        now = time.monotonic()
        whole = now >= unit.whole_due
        if whole:
            unit.whole_due = now + self._wish.whole
        assert unit.desk is not None
        cycle = self._cycles.run(unit, unit.desk, whole=whole)
        with suppress(Exception):
            self._listener.cycle(unit, cycle)
        self._ended(unit, cycle)
        with self._moved:
            unit.running = False
            self._kicked = True
            self._moved.notify_all()

    def _ended(self, unit: Unit, cycle: Cycle) -> None:
        now = time.monotonic()
        self.documents[unit.ref.node_id] = unit.document
        unit.not_before, unit.waits_since = 0.0, 0.0
        if cycle.error:
            kind = answer.answer(cycle.error)
            if kind is answer.Answer.STOP:
                if isinstance(cycle.error, errors.Fenced) and not unit.leave.is_set():
                    self._fenced(unit)
                unit.not_before = now + 1.0
            elif cycle.trouble:
                # As it was said, where it was said: everybody who looks sees the same.
                said = cycle.trouble.next_try
                unit.not_before = now + (said - cycle.trouble.seen if said else answer.LOOK_AGAIN_SECONDS)
                if kind is answer.Answer.PERSON:
                    unit.waits_since = now
            unit.whole_due = 0.0
            if unit.is_root and unit.policy.schedule:
                # Whatever else fails there, a cut may be possible.
                unit.not_before = min(unit.not_before, now + max(_PERSON_SECONDS, self._next_cut(unit)))
            unit.due = unit.not_before
            if unit.again and unit.waits_since:
                unit.not_before = unit.due = now + _PERSON_SECONDS
            return
        soon = [now + self._wish.poll]
        if unit.again:
            soon.append(now)
        if cycle.edge and cycle.edge.waits:
            soon.append(now + 1.0)
        policy = unit.policy
        if unit.is_root and policy.schedule:
            soon.append(now + self._next_cut(unit))
        if policy.push and unit.document.branch:
            soon.append(max(unit.pushed + policy.push, now + 0.1))
        if policy.scrub and not unit.is_root:
            soon.append(max(unit.scrub_due, now + 0.1))
        unit.due = min(soon)

    def _fenced(self, unit: Unit) -> None:
        """Another worker took the node from us: we stood still, and our client at either end may have been fenced."""
        for keeper in self._keepers.values():
            if keeper.fsid in unit.needs:
                keeper.look()

    @staticmethod
    def _next_cut(unit: Unit) -> float:
        """Seconds until its schedule wants one."""
        clock = time.time()
        return min(schedule.next(clock) - clock for schedule in unit.policy.schedule)

    # -- the end

    def _close(self) -> None:
        self._hurry.set()
        self.uplinks.close(10)
        for pool in (self._workers, self._roots, *self._locks.values()):
            pool.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + 15
        while any(unit.running for unit in self.units.values()) and time.monotonic() < until:
            time.sleep(0.05)
        for unit in self.units.values():
            unit.held = False
        closers = [threading.Thread(target=keeper.close, daemon=True) for keeper in self._keepers.values()]
        closers.append(threading.Thread(target=self._watches.close, daemon=True))
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(5)
