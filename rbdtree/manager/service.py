"""The manager: which nodes there are, and what has happened to them; one thread decides what follows from that.

    wakes      a document that this manager listens to was written; a schedule; a failure's next try; the poll
    tenure     which of the nodes are its own, as the load spreads over all managers
    shifts     when each of those has its turn; cycles on a few threads

Whatever other threads find out waits until ``run`` looks at it, and ``kick`` has it look at once.
"""

import threading
import time
import uuid
from dataclasses import replace

from rbdtree import errors
from rbdtree.engine.claim import worker_name
from rbdtree.engine.forest import Forest, Member, look
from rbdtree.engine.pace import Paces
from rbdtree.manager import answer, notify
from rbdtree.manager.cycle import Cycles, Frozen
from rbdtree.manager.shifts import Shifts
from rbdtree.manager.tenure import Tenure
from rbdtree.manager.unit import Unit
from rbdtree.manager.uplinks import Uplinks
from rbdtree.manager.watches import Listened, Watches
from rbdtree.manager.wish import Listener, Wish
from rbdtree.model.document import DIRECTORY, NodeDocument
from rbdtree.ports import Reporter, Silent, Sites

_GOODBYE_SECONDS = 15.0
"""For cycles under way, which leave what they do in good order."""


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
        reporter = reporter or Silent()
        self._stopping = threading.Event()
        self._hurry = threading.Event()
        self._moved = threading.Condition()
        self._kicked = True
        self._told: set[Listened] = set()
        self._found: tuple[Forest, list[Listened], float] | None = None
        self._rescan = True
        self._scanning = False
        self._next_poll = 0.0
        self._site_of: dict[str, str] = {}
        self._paces = Paces()
        cycles = Cycles(
            sites,
            reporter,
            self._hurry,
            self.name,
            expiry_seconds=wish.expiry_seconds,
            frozen=frozen,
            paces=self._paces,
        )
        self.uplinks = Uplinks(sites, reporter, self._uplink_failed, paces=self._paces)
        self.tenure = Tenure(sites, self.name, wish, self.units, self._listener, self._stopping, self.kick)
        self._shifts = Shifts(cycles, wish, self._listener, reporter, self._hurry, self.kick)
        self._watches = Watches(sites, self._notified)

    # -- for others, on any thread

    def stop(self) -> None:
        """In good order; a signal handler may call it."""
        self._stopping.set()

    def kick(self) -> None:
        """Something changed: decide anew."""
        with self._moved:
            self._kicked = True
            self._moved.notify_all()

    def _notified(self, one: Listened) -> None:
        with self._moved:
            self._told.add(one)
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
        self.tenure.start()
        pause = notify.watchdog_seconds() or 5.0
        try:
            while not self._stopping.is_set():
                notify.tell("WATCHDOG=1")
                self._decide()
                with self._moved:
                    if not (self._kicked or self._told or self._stopping.is_set()):
                        self._moved.wait(min(pause, 0.5, self._shifts.pause(list(self.units.values()))))
        finally:
            self._close()

    def _decide(self) -> None:
        with self._moved:
            self._kicked = False
            told, self._told = self._told, set()
            found, self._found = self._found, None
        for unit, cycle in self._shifts.ended():
            self.documents[unit.ref.node_id] = unit.document
            if isinstance(cycle.error, errors.Fenced) and not unit.leave.is_set():
                # Another worker took the node from us: we stood still, and our client at either end may be fenced.
                self.tenure.look(unit.needs)
        # From here on: what is due at once after its cycle is due, and not idle.
        now = time.monotonic()
        if self.tenure.look_at_sites():
            self._rescan = True
        self.tenure.give_up_lost()
        if found:
            self._take_in(*found)
        self.tenure.heard(now)
        for one in told:
            self._wake(one, now)
        if self._rescan or now >= self._next_poll:
            self._scan(now)
        self.tenure.balance(now)
        units = list(self.units.values())
        self.uplinks.tend(units)
        self._shifts.begin(units, now)

    def _wake(self, one: Listened, now: float) -> None:
        if self._watches.gone(one):
            self._rescan = True
        if one.object == DIRECTORY:
            self._rescan = True
            return
        for unit in self.units.values():
            if one in unit.listens(self._site_of, self.units):
                if unit.held or unit.running:
                    self._shifts.wake(unit, now)
                else:
                    self.tenure.stir(unit, now)

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
            anew = self._watches.listen(wanted | self._directories(), frozenset(self.tenure.silent))
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
        self._complain(forest, began)
        now = time.monotonic()
        self._site_of = self.tenure.site_of()
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
        self.tenure.watch_over()
        for one in anew:
            self._wake(one, now)
        for unit in self.units.values():
            if unit.held and not unit.running:
                unit.fall_due(now)
        if set(self.units) != known:
            # Their watches come with the next look, which need not wait.
            self._rescan = True
        self.looked = time.time()
        self.ready.set()

    def _complain(self, forest: Forest, began: float) -> None:
        for problem in forest.problems:
            self._listener.problem(problem)
        for site, problem in forest.unread.items():
            if isinstance(problem, errors.Fenced):
                self.tenure.cut_off(site, began)
        there = {name for tree in forest.trees for name in (tree.name, tree.tree_id)}
        for name in self._wish.trees - there if not forest.problems else ():
            # It may come yet.
            self._listener.problem(
                errors.NotFound(f"there is no tree {name}", "See 'rbdtree status' for those there are.")
            )

    def _wanted(self, member: Member) -> bool:
        if member.document is None or not self.tenure.knows(member.ref.site):
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
            unit.fall_due(now)

    def _part(self, missing: set[str], forest: Forest) -> None:
        """From nodes that are gone: from their directories, not just out of reach."""
        for node_id in missing:
            unit = self.units[node_id]
            if not self._unreachable(unit, forest):
                self.tenure.drop(unit)
                del self.units[node_id]

    def _unreachable(self, unit: Unit, forest: Forest) -> bool:
        site = unit.ref.site
        silent = any(isinstance(p, errors.Unreachable) for p in forest.problems)
        return silent or site in forest.unread or not self.tenure.answers(site)

    # -- the end

    def _close(self) -> None:
        self._stopping.set()
        self._hurry.set()
        self.uplinks.close(10)
        self._shifts.close(_GOODBYE_SECONDS)
        closers = [*self.tenure.close(), threading.Thread(target=self._watches.close, daemon=True)]
        for closer in closers:
            closer.start()
        for closer in closers:
            closer.join(5)
