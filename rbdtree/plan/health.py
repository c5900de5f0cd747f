"""What is wrong with a tree, by its documents. Pure: the clock, who manages, and whose each edge is are arguments.

A dead edge is told by the absence of progress, whoever should have made it: also where no manager runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import pairwise
from types import MappingProxyType

from rbdtree.model.document import Kind, NodeDocument, PushState, Summary
from rbdtree.model.name import format_duration
from rbdtree.model.policy import Policy, effective
from rbdtree.model.position import Position
from rbdtree.model.schedule import Schedule
from rbdtree.plan.behind import behind

STUCK_SECONDS = 180.0
"""What is in flight and has not got on for so long is stuck; a worker notes its progress every second or two, of a push
at the root every half minute."""
IDLE_SECONDS = 600.0
"""A generation that nobody has begun to bring down for so long, where no rpo says what is too long."""
PUSH_SECONDS = 600.0
"""A push that was taken so long ago and is not published yet; documents do not tell how far its bytes are."""
_ON_THEIR_WAY = (PushState.TAKING, PushState.STAGED, PushState.SENT)
_NOT_ASKED: Mapping[str, str] = MappingProxyType({})
_FAILURES = 3
_PASS = 1.5


class Level(IntEnum):
    """Exit codes of monitoring plugins (Nagios and its kin)."""

    OK = 0
    WARNING = 1
    CRITICAL = 2
    UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """One sentence about one node (empty: the tree), and what to run next."""

    level: Level
    node: str
    kind: str
    text: str
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A node as it was found: its document, or what its parent was told of it (``kind`` counts there only)."""

    name: str
    parent_id: str
    document: NodeDocument | None
    told: Summary | None = None
    problem: str = ""
    kind: Kind = Kind.MIRROR


def findings(
    tree: str, nodes: list[Seen], now: float, managers: int | None, holders: Mapping[str, str] = _NOT_ASKED
) -> list[Finding]:
    """Worst first. ``managers``: how many run, None when that could not be asked. ``holders``: who has the edge to each
    node (or the root), by its name; empty for nobody. Nodes that could not be asked are not in it."""
    root = next((n.document for n in nodes if n.document and n.document.kind is Kind.ROOT), None)
    found: list[Finding] = []
    if root is None:
        found.append(
            Finding(
                Level.UNKNOWN,
                "",
                "no root",
                "the root was not found on the sites that answered",
                "Look at 'rbdtree site check'.",
            )
        )
    documents = {n.document.ref.node_id: n.document for n in nodes if n.document}
    wanted = ""
    for node in nodes:
        if node.document is None:
            found += _hearsay(tree, node, root, now)
            continue
        policy = effective(node.document.policy, node.document.tree_policy)
        wanted = wanted or _wants(policy)
        found += _trouble(tree, node.document, now)
        found += _lapsed(node.document)
        found += _stuck(tree, node.document, now)
        found += _progress(tree, node.document, documents, root, policy, now)
        found += _uncut(tree, node.document, root, now)
        found += _scrub(tree, node.document, policy, now)
        found += _pushes(tree, node.document, documents, now)
        if holders.get(node.name) == "":
            found += _unmanaged(tree, node.document, policy, managers)
    if managers == 0 and wanted:
        found.append(
            Finding(
                Level.CRITICAL,
                "",
                "no manager",
                f"no manager runs, and the policy has {wanted}",
                "Start one: 'systemctl start rbdtree-manager', or 'rbdtree manager'.",
            )
        )
    return sorted(found, key=lambda f: (-(f.level if f.level is not Level.UNKNOWN else Level.CRITICAL), f.node))


def worst(found: list[Finding]) -> Level:
    """What to exit with. What is known to be bad comes before what is not known."""
    levels = {f.level for f in found}
    for level in (Level.CRITICAL, Level.UNKNOWN, Level.WARNING):
        if level in levels:
            return level
    return Level.OK


def _wants(policy: Policy) -> str:
    if policy.schedule:
        return f"a schedule ({', '.join(map(str, policy.schedule))})"
    if policy.push is not None:
        return "pushes"
    return "scrubs" if policy.scrub is not None else ""


def _unmanaged(tree: str, document: NodeDocument, policy: Policy, managers: int | None) -> list[Finding]:
    """Of a node whose edge nobody has: what is done by managers alone, and waits for one."""
    found: list[Finding] = []
    name, branch = document.name, document.branch
    if managers != 0 and (wanted := _waits_for_manager(document, policy)):
        text = f"no manager has it, and its policy has {wanted}"
        hint = "See 'rbdtree managers' for which run: one of them has to be for this tree and reach its sites."
        found.append(Finding(Level.CRITICAL, name, "no manager", text, hint))
    if branch and branch.uplink == "journal" and branch.image_id:
        hint = f"Start a manager, or 'rbdtree uplink {tree}/{name}'."
        if branch.session:
            text = "no manager publishes what is written to its branch, and an uplink begun elsewhere may be gone"
            found.append(Finding(Level.WARNING, name, "uplink", text, hint))
        else:
            text = "nobody publishes what is written to its branch: no uplink of it runs"
            found.append(Finding(Level.CRITICAL, name, "uplink", text, hint))
    return found


def _waits_for_manager(document: NodeDocument, policy: Policy) -> str:
    """What its policy has that is done at this very node."""
    policy = replace(policy, scrub=None) if document.kind is Kind.ROOT else replace(policy, schedule=())
    return _wants(policy if document.branch else replace(policy, push=None))


def _pushes(tree: str, document: NodeDocument, documents: dict[str, NodeDocument], now: float) -> list[Finding]:
    """Pushes that do not come up: told by who made them or, where that cannot be reached, by the node they wait at."""
    own = document.ref.node_id
    old = [
        push
        for push in document.pushes
        if now - push.created > PUSH_SECONDS
        and (
            (push.owner == own and push.state in _ON_THEIR_WAY)
            or (push.owner not in documents and push.state is PushState.STAGED)
        )
    ]
    if not old:
        return []
    oldest = min(old, key=lambda push: push.created)
    age = format_duration(round(now - oldest.created))
    which = "a push" if len(old) == 1 else f"{len(old)} pushes, the oldest one"
    return [
        Finding(
            Level.WARNING,
            document.name,
            "push",
            f"{which} of {oldest.owner_name} was taken {age} ago, and is not published yet ({oldest.state})",
            f"'rbdtree push {tree}/{oldest.owner_name} --wait' goes on with it, and says what it waits for.",
        )
    ]


def _hearsay(tree: str, node: Seen, root: NodeDocument | None, now: float) -> list[Finding]:
    said = [Finding(Level.WARNING, node.name, "unreachable", node.problem or "it cannot be reached from here")]
    if node.told is None:
        return said
    if node.told.trouble:
        said.append(Finding(Level.WARNING, node.name, "trouble", f"its parent was told: {node.told.trouble}"))
    # Whether a clone stays for its branch's sake is not known from here; that it cannot be reached is said.
    if root and node.kind is not Kind.CLONE:
        lack = behind(node.told.position, root.generations)
        rpo = effective((), root.tree_policy).rpo
        if rpo is not None and lack.oldest and now - lack.oldest > rpo:
            said.append(_late(tree, node.name, node.told.position, now - lack.oldest, rpo))
    return said


def _lapsed(document: NodeDocument) -> list[Finding]:
    """Told by the node that let go of what they stood on: they may not be reached themselves."""
    return [
        Finding(
            Level.CRITICAL,
            resync.name.rpartition("/")[2],
            "resync",
            f"it needs a resync: {document.name} let go of {resync.position}, which it stood on ({resync.reason})",
            f"Run 'rbdtree resync {resync.name}'.",
        )
        for resync in document.resyncs
    ]


def _trouble(tree: str, document: NodeDocument, now: float) -> list[Finding]:
    found: list[Finding] = []
    name = document.name
    if document.distrust:
        found.append(
            Finding(
                Level.CRITICAL,
                name,
                "distrusted",
                document.distrust,
                f"The next generation compares everything; 'rbdtree verify {tree}/{name}' shows what differs.",
            )
        )
    if document.phase:
        found.append(
            Finding(
                Level.WARNING,
                name,
                document.phase,
                f"it is {document.phase}, and that was not finished",
                "Run that command again: it goes on where it stopped.",
            )
        )
    trouble = document.trouble
    if trouble:
        person = not trouble.next_try
        if person or trouble.count >= _FAILURES:
            level = Level.CRITICAL if person else Level.WARNING
            found.append(Finding(level, name, "trouble", f"{trouble.message} ({trouble.again(now)})", trouble.hint))
    refused = sum(
        p.state is PushState.CONFLICT and p.owner == document.ref.node_id and not person_said(document)
        for p in document.pushes
    )
    if refused:
        hint = f"'rbdtree resolve {tree}/{name}' with --take ours, --take theirs or --park IMAGE ends it."
        found.append(Finding(Level.CRITICAL, name, "conflict", f"{refused} of its pushes were refused", hint))
    return found


def person_said(document: NodeDocument) -> bool:
    """Whether its trouble is about the refused push already."""
    return document.trouble is not None and document.trouble.kind == "Conflict"


def still_seconds(document: NodeDocument, now: float) -> float:
    """For how long what is in flight has not got on: a delta; at the root a cut, or a push that becomes one."""
    intent = document.intent
    return max(0.0, now - max(intent.moved, intent.started)) if intent else 0.0


def _stuck(tree: str, document: NodeDocument, now: float) -> list[Finding]:
    intent, name, still = document.intent, document.name, still_seconds(document, now)
    if intent is None or still <= STUCK_SECONDS:
        return []
    what, command = f"its delta to {intent.target}", f"sync {tree}/{name}"
    if document.kind is Kind.ROOT:
        what, command = f"generation {intent.target} is being made and", f"cut {tree}"
    text = f"{what} has not got on for {format_duration(round(still))} ({intent.worker})"
    hint = f"'rbdtree {command}' goes on with it; see 'rbdtree managers' for who should have."
    return [Finding(Level.CRITICAL, name, "stuck", text, hint)]


def _uncut(tree: str, document: NodeDocument, root: NodeDocument | None, now: float) -> list[Finding]:
    """An rpo that promises too much: what was written since the newest generation is in none, and is missed by nobody.
    The tree's is told at the root, a node's own there."""
    if root is None:
        return []
    shared = effective((), root.tree_policy)
    rpo = shared.rpo if document is root else effective((), document.policy).rpo
    if rpo is None or (document is not root and rpo == shared.rpo):
        return []
    where = tree if document is root else f"{tree}/{document.name}"
    if shared.schedule:
        gap = _longest_gap(shared.schedule)
        fits = gap <= rpo
        cut, other = f"is cut every {format_duration(gap)} only", f"set {where} rpo={_setting(gap)}"
    else:
        # By hand, or by pushes of branches.
        lately = root.newest is not None and now - root.newest.created <= rpo
        fits = lately or any(hold.branch for hold in root.holds)
        cut, other = "is cut by no schedule", f"unset {where} rpo"
    if fits:
        return []
    text = f"the rpo is {format_duration(rpo)}, but the root {cut}: what was written there since counts for no rpo"
    hint = f"Run 'rbdtree policy set {tree} schedule={_setting(rpo)}', or 'rbdtree policy {other}'."
    return [Finding(Level.WARNING, document.name, "schedule", text, hint)]


def _longest_gap(schedules: tuple[Schedule, ...]) -> float:
    """Seconds between two cuts, by the schedules with the shortest interval."""
    shortest = min(s.interval_seconds for s in schedules)
    starts = sorted(s.start_seconds for s in schedules if s.interval_seconds == shortest)
    return max(b - a for a, b in pairwise([*starts, starts[0] + shortest]))


def _setting(seconds: float) -> str:
    return format_duration(max(1, int(seconds))).replace(" ", "")


def _progress(
    tree: str,
    document: NodeDocument,
    documents: dict[str, NodeDocument],
    root: NodeDocument | None,
    policy: Policy,
    now: float,
) -> list[Finding]:
    found: list[Finding] = []
    name = document.name
    above = documents.get(document.parent.node_id) if document.parent else None
    line = root or above
    if line is None or document.kind is Kind.ROOT or may_stay(document):
        return found
    lack = behind(document.newest_position, line.generations)
    age = now - lack.oldest if lack.oldest else 0.0
    if policy.rpo is not None:
        if age > policy.rpo:
            found.append(_late(tree, name, document.newest_position, age, policy.rpo))
        elif age > 0.8 * policy.rpo:
            text = f"what it lacks is {format_duration(round(age))} old, its rpo {format_duration(policy.rpo)}"
            found.append(Finding(Level.WARNING, name, "late", text))
    elif document.intent is None and above and _waiting(document, above, now) > IDLE_SECONDS:
        still = format_duration(round(_waiting(document, above, now)))
        found.append(
            Finding(
                Level.WARNING,
                name,
                "idle",
                f"{above.name} has had a newer generation for {still}, and nobody has begun to bring it down",
                f"'rbdtree sync {tree}/{name}' does; a manager does it by itself.",
            )
        )
    return found


def may_stay(document: NodeDocument) -> bool:
    """Whether it is a clone with a branch: in use, or with writes that are not published, that stays over its base by
    design. Nothing of it is at risk for that: a clone holds no copy. Documents do not tell whether it does stay."""
    return document.kind is Kind.CLONE and document.branch is not None


def _waiting(document: NodeDocument, above: NodeDocument, now: float) -> float:
    """Since when the parent has something newer. A generation's time is when it was cut; it cannot have come before."""
    lack = behind(document.newest_position, above.generations)
    return now - lack.oldest if lack.oldest else 0.0


def _late(tree: str, name: str, position: Position | None, age: float, rpo: float) -> Finding:
    where = f"it is at {position}" if position else "it has nothing yet"
    return Finding(
        Level.CRITICAL,
        name,
        "rpo",
        f"{where}; what it lacks is {format_duration(round(age))} old, its rpo {format_duration(rpo)}",
        f"See 'rbdtree status {tree}' for what it is doing.",
    )


def _scrub(tree: str, document: NodeDocument, policy: Policy, now: float) -> list[Finding]:
    found: list[Finding] = []
    scrub, name = document.scrub, document.name
    if scrub and scrub.found:
        found.append(
            Finding(
                Level.CRITICAL,
                name,
                "scrub",
                f"{scrub.found} objects differed from its parent's",
                f"'rbdtree verify {tree}/{name}' shows what differs now.",
            )
        )
    if policy.scrub is None or document.kind is Kind.ROOT:
        return found
    since = unscrubbed_since(document)
    if since and now - since > _PASS * policy.scrub:
        age, wanted = format_duration(round(now - since)), format_duration(policy.scrub)
        said = f"the last whole comparison ended {age} ago"
        if scrub is None:
            said = f"it was never compared with its parent, and has been here for {age} at least"
        elif not scrub.finished:
            said = f"the first comparison began {age} ago, and has not ended"
        found.append(
            Finding(
                Level.WARNING,
                name,
                "scrub",
                f"{said}, wanted every {wanted}",
                "Raise scrub_rate, or see whether a manager runs ('rbdtree managers').",
            )
        )
    return found


def unscrubbed_since(document: NodeDocument) -> float:
    """When the last whole comparison with its parent ended; where none has, when the first began; where none did that
    either, when the node had the oldest generation that it still has. 0: it has none."""
    scrub = document.scrub
    if scrub:
        return scrub.finished or scrub.started
    return min((g.arrived or g.created for g in document.generations), default=0.0)
