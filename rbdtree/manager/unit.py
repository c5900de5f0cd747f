"""One node in a manager's care: what is known of it, whether its edge is this manager's, when it is due."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field

from rbdtree.engine.desk import Desk
from rbdtree.manager.keeper import Place
from rbdtree.manager.watches import Listened
from rbdtree.model.document import Kind, NodeDocument, NodeRef, Trouble
from rbdtree.model.policy import Policy, effective
from rbdtree.plan.retain import Stock


@dataclass(eq=False)
class Unit:
    """Times are of the monotonic clock, but for ``ticked``. The manager's own thread alone changes it, except for what
    a cycle, while it runs, finds: ``document``, ``ticked``, ``pushed``, ``scrub_due``, ``retained``, ``retain_looked``,
    ``trouble``, ``weighed``, ``unpublished_bytes``, ``whole_due``."""

    ref: NodeRef
    document: NodeDocument
    held: bool = False
    taking: bool = False
    """Its lock is being asked for."""
    free_since: float = 0.0
    tried: float = 0.0
    mute_until: float = 0.0
    """Its lock was asked for in vain: not again before, whatever is heard of others."""
    holder: str = ""
    """The manager that had it when its lock was asked for last."""
    given: float = 0.0
    """When it was let go for another manager to take."""
    kept: float = 0.0
    """Until then it is not let go so: nobody took it, who may be one that works on other trees only."""
    running: bool = False
    again: bool = False
    due: float = 0.0
    whole_due: float = 0.0
    """When the images are looked at too, whatever the documents say."""
    ticked: float = 0.0
    """The time of the schedule (since 1970) that was attended to last."""
    pushed: float = 0.0
    scrub_due: float = 0.0
    retained: Stock | None = None
    """What there was, and who needed it, when retention looked last."""
    retain_looked: float = 0.0
    not_before: float = 0.0
    """A failure keeps it waiting until then, whoever wakes it."""
    trouble: Trouble | None = None
    uplink_trouble: Trouble | None = None
    """What its journal uplink failed of, until one goes on. By the uplink's thread."""
    waits_since: float = 0.0
    """When a person was called for; whatever happens to the documents then may be what that person did."""
    weighed: float = 0.0
    unpublished_bytes: int | None = None
    """Of a branch that snapshots push, as it was weighed last: at most so many."""
    leave: threading.Event = field(default_factory=threading.Event)
    desk: Desk | None = None

    @property
    def name(self) -> str:
        return self.document.full_name

    @property
    def edge(self) -> str:
        """What is spread over managers: the edge, or the root itself."""
        return self.document.edge or self.ref.node_id

    @property
    def place(self) -> Place:
        return self.ref.pool, self.ref.namespace

    @property
    def needs(self) -> frozenset[str]:
        """The clusters that its worker has to reach."""
        parent = self.document.parent
        return frozenset({self.ref.fsid} | ({parent.fsid} if parent else set()))

    @property
    def policy(self) -> Policy:
        return effective(self.document.policy, self.document.tree_policy)

    def fall_due(self, now: float) -> None:
        self.due = min(self.due, now) if self.due else now

    @property
    def is_root(self) -> bool:
        return self.document.kind is Kind.ROOT

    def listens(self, site_of: dict[str, str], units: Mapping[str, "Unit"]) -> set[Listened]:
        """The documents whose change may make it due: its own, its parent's, and that of the replica it is fed from,
        which a clone in between may not follow for long. ``site_of``: fsid to site here; ``units``: by node id."""
        parent = self.document.parent
        refs = [self.ref, parent]
        if self.document.kind is Kind.CLONE:
            refs.append(self.document.replica)
        elif parent and parent.node_id in units:
            refs.append(units[parent.node_id].document.replica)
        found = set()
        for ref in refs:
            if ref and ref.fsid in site_of:
                one = Listened.node(ref)
                found.add(Listened(site_of[ref.fsid], one.pool, one.namespace, one.object))
        return found
