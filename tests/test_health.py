"""``check``: what documents alone tell."""

import json
from argparse import Namespace
from dataclasses import replace
from typing import Any

import pytest
from manager.forest import Grove
from rbdtree_cli import health, options
from rbdtree_cli.session import Session

from rbdtree import errors, memory
from rbdtree.engine import branch as branches
from rbdtree.engine import cut, landing, push
from rbdtree.engine.claim import identity
from rbdtree.model.codec import decode
from rbdtree.model.document import (
    MAP,
    USER,
    Branch,
    Hold,
    Intent,
    Kind,
    NodeDocument,
    NodeRef,
    Push,
    PushState,
    Resync,
    Scrub,
    State,
    Summary,
    Trouble,
)
from rbdtree.model.policy import settings
from rbdtree.model.position import Generation, Position
from rbdtree.plan.behind import Pinned, pinned
from rbdtree.plan.health import IDLE_SECONDS, PUSH_SECONDS, STUCK_SECONDS, Finding, Level, Seen, findings, worst
from rbdtree.ports import Silent

NOW = 1_800_000_000.0


def generation(sequence: int, age: float) -> Generation:
    return Generation(Position(1, sequence), sequence, 1 << 30, NOW - age, 4096)


def ref(name: str) -> NodeRef:
    return NodeRef(f"id-{name}", name, "a", "fsid", "rbd", "", name)


def node(name: str, *generations: Generation, parent: str = "root", **more: object) -> NodeDocument:
    kind = Kind.ROOT if name == "root" else Kind.MIRROR
    made = NodeDocument(
        tree_id="tree-id",
        tree="t",
        kind=kind,
        ref=ref(name),
        image_id=name,
        replica=ref(name),
        parent=None if kind is Kind.ROOT else ref(parent),
        edge="" if kind is Kind.ROOT else f"edge-{name}",
        generations=generations,
    )
    return replace(made, **more)  # type: ignore[arg-type]


def found(*documents: NodeDocument, managers: int | None = 1, **holders: str) -> list[Finding]:
    seen = [Seen(d.name, d.parent.node_id if d.parent else "", d) for d in documents]
    return findings("t", seen, NOW, managers, holders)


OLD, NEW = generation(1, 5000), generation(2, 700)
ROOT = node("root", OLD, NEW)
LEVEL = node("m", OLD, NEW)
PLANNED = replace(ROOT, tree_policy=settings({"schedule": "5m"}))


def test_all_is_well() -> None:
    assert found(ROOT, LEVEL) == []
    assert worst([]) is Level.OK


INTENT = Intent(NEW.position, OLD.position, 1 << 30, NOW - 1000, "host:1", "", moved=NOW - 1000)
PERSON = Trouble("Diverged", "t/m has diverged", "Run this.", 1, NOW, NOW, 0.0, "m1")
AGAIN = Trouble("Unreachable", "no answer", "", 3, NOW, NOW, NOW + 5, "m1")
WAITING = Push("id-m", "m", 7, OLD.position, PushState.STAGED, NOW - PUSH_SECONDS - 1)
REFUSED = Push("id-m", "m", 7, OLD.position, PushState.CONFLICT, NOW)

ROWS = [
    ("an rpo missed", node("m", OLD, policy=settings({"rpo": "10m"})), Level.CRITICAL, "rpo"),
    ("an rpo almost used up", node("m", OLD, policy=settings({"rpo": "14m"})), Level.WARNING, "late"),
    ("an rpo that is kept", node("m", OLD, policy=settings({"rpo": "1h"})), None, ""),
    ("nothing at all there yet", node("m", policy=settings({"rpo": "10m"})), Level.CRITICAL, "rpo"),
    ("a delta that does not get on", node("m", OLD, intent=INTENT), Level.CRITICAL, "stuck"),
    ("a delta that does", node("m", OLD, intent=replace(INTENT, moved=NOW - STUCK_SECONDS / 2)), None, ""),
    ("nobody began to bring it down", node("m", OLD), Level.WARNING, "idle"),
    ("a person is waited for", replace(LEVEL, trouble=PERSON), Level.CRITICAL, "trouble"),
    ("it failed again and again", replace(LEVEL, trouble=AGAIN), Level.WARNING, "trouble"),
    ("it failed once", replace(LEVEL, trouble=replace(AGAIN, count=1)), None, ""),
    ("distrusted", replace(LEVEL, distrust="a scrub found 1 object"), Level.CRITICAL, "distrusted"),
    ("a scrub found something", replace(LEVEL, scrub=Scrub(0, NOW, NOW, 2)), Level.CRITICAL, "scrub"),
    (
        "a scrub is overdue",
        replace(LEVEL, scrub=Scrub(0, NOW - 900, NOW - 900), policy=settings({"scrub": "5m"})),
        Level.WARNING,
        "scrub",
    ),
    ("a scrub never began", replace(LEVEL, policy=settings({"scrub": "5m"})), Level.WARNING, "scrub"),
    ("a scrub has not begun yet", replace(LEVEL, policy=settings({"scrub": "1d"})), None, ""),
    ("a push that waits", replace(LEVEL, pushes=(WAITING,)), Level.WARNING, "push"),
    ("a push that was sent", replace(LEVEL, pushes=(replace(WAITING, state=PushState.SENT),)), Level.WARNING, "push"),
    ("a fresh push", replace(LEVEL, pushes=(replace(WAITING, created=NOW - 60),)), None, ""),
    ("a push that is published", replace(LEVEL, pushes=(replace(WAITING, state=PushState.PUBLISHED),)), None, ""),
    ("another's push that waits here", replace(LEVEL, pushes=(replace(WAITING, owner="x"),)), Level.WARNING, "push"),
    (
        "another's push that went on",
        replace(LEVEL, pushes=(replace(WAITING, owner="x", state=PushState.SENT),)),
        None,
        "",
    ),
    ("a refused push", replace(LEVEL, pushes=(REFUSED,)), Level.CRITICAL, "conflict"),
    ("somebody else's refused push", replace(LEVEL, pushes=(replace(REFUSED, owner="x"),)), None, ""),
    ("half removed", replace(LEVEL, phase="removing"), Level.WARNING, "removing"),
]


@pytest.mark.parametrize(("document", "level", "kind"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_findings(document: NodeDocument, level: Level | None, kind: str) -> None:
    seen = found(PLANNED, document)
    if level is None:
        assert seen == []
    else:
        assert [(f.level, f.node, f.kind) for f in seen] == [(level, "m", kind)]
        assert worst(seen) is level


def test_a_root_whose_cut_or_push_stands_still() -> None:
    (finding,) = found(replace(ROOT, intent=INTENT), LEVEL)
    assert (finding.level, finding.node, finding.kind) == (Level.CRITICAL, "root", "stuck")
    assert "'rbdtree cut t'" in finding.hint
    for young in (replace(INTENT, moved=NOW - STUCK_SECONDS / 2), replace(INTENT, started=NOW - 1, moved=0.0)):
        assert found(replace(ROOT, intent=young), LEVEL) == []


CUTS = [
    ("seldom", {"rpo": "5m", "schedule": "1h"}, (), "every 1 h", "'rbdtree policy set t rpo=1h'"),
    ("often", {"rpo": "5m", "schedule": "5m"}, (), "", ""),
    ("seldom, and often as well", {"rpo": "5m", "schedule": "1d 03:30; 1m"}, (), "", ""),
    ("in turns", {"rpo": "30m", "schedule": "1h; 1h 00:30"}, (), "", ""),
    (
        "in turns, and too seldom",
        {"rpo": "30m", "schedule": "1h; 1h 00:20"},
        (),
        "every 40 m",
        "'rbdtree policy set t rpo=40m'",
    ),
    ("never", {"rpo": "5m"}, (), "no schedule", "'rbdtree policy unset t rpo'"),
    ("by hand, lately", {"rpo": "15m"}, (), "", ""),
    ("by pushes", {"rpo": "5m"}, (Hold("edge-m", OLD.position, "branch at or below t/m", True),), "", ""),
    (
        "never, whoever stands on it",
        {"rpo": "5m"},
        (Hold("edge-m", OLD.position, "base of t/m"),),
        "no schedule",
        "unset",
    ),
    ("never, and nothing is wanted", {}, (), "", ""),
]


@pytest.mark.parametrize(("policy", "holds", "text", "hint"), [row[1:] for row in CUTS], ids=[row[0] for row in CUTS])
def test_an_rpo_that_cuts_cannot_keep(policy: dict[str, str], holds: tuple[Hold, ...], text: str, hint: str) -> None:
    """All is level, but what was written since the newest generation."""
    root = replace(ROOT, tree_policy=settings(policy), holds=holds)
    seen = found(root, replace(LEVEL, tree_policy=root.tree_policy))
    assert [(f.level, f.node, f.kind) for f in seen] == ([(Level.WARNING, "root", "schedule")] if text else [])
    assert all(text in f.text and hint in f.hint and f"schedule={policy['rpo']}" in f.hint for f in seen)
    own = {"rpo": policy["rpo"]} if "rpo" in policy else {}
    root = replace(root, tree_policy=settings({k: v for k, v in policy.items() if k != "rpo"}))
    seen = found(root, replace(LEVEL, policy=settings(own)))
    assert [(f.level, f.node, f.kind) for f in seen] == ([(Level.WARNING, "m", "schedule")] if text else [])


def test_a_fresh_generation_is_not_late() -> None:
    root = node("root", OLD, generation(2, IDLE_SECONDS / 2))
    assert found(root, node("m", OLD)) == []


def test_a_policy_that_nobody_carries_out() -> None:
    wanted = settings({"schedule": "5m"})
    planned = replace(ROOT, tree_policy=wanted), replace(LEVEL, tree_policy=wanted)
    assert [f.kind for f in found(*planned, managers=0)] == ["no manager"]
    assert found(*planned, managers=1) == []
    assert found(*planned, managers=None) == [], "who cannot be asked is not missing"
    assert found(ROOT, LEVEL, managers=0) == [], "a tree that is brought on by hand needs none"


def test_a_push_is_told_once() -> None:
    """By who made it, wherever else it waits."""
    upper = replace(LEVEL, pushes=(WAITING,))
    seen = found(replace(ROOT, pushes=(WAITING,)), upper)
    assert [(f.node, f.kind) for f in seen] == [("m", "push")]


def test_a_policy_that_no_manager_of_this_tree_carries_out() -> None:
    """Managers run, for other trees."""
    wanted = settings({"schedule": "5m"})
    planned = replace(ROOT, tree_policy=wanted), replace(LEVEL, tree_policy=wanted)
    (finding,) = found(*planned, root="", m="")
    assert (finding.level, finding.node, finding.kind) == (Level.CRITICAL, "root", "no manager")
    assert found(*planned, root="host:1 (manager m1)", m="") == []
    assert found(*planned) == [], "who cannot be asked is not missing"
    assert [f.node for f in found(*planned, managers=0, root="", m="")] == [""], "told once"
    scrubbed = replace(LEVEL, tree_policy=settings({"scrub": "1d"}))
    assert [f.node for f in found(ROOT, scrubbed, root="", m="")] == ["m"], "a root has nothing to be compared with"


def test_a_journal_branch_that_nobody_publishes() -> None:
    branch = Branch("m-branch", "image", OLD.position, "journal", "since")
    assert [(f.level, f.kind) for f in found(ROOT, replace(LEVEL, branch=branch), m="")] == [(Level.CRITICAL, "uplink")]
    assert found(ROOT, replace(LEVEL, branch=branch), m="host:1 (manager m1)") == []
    begun = replace(LEVEL, branch=replace(branch, session="somebody"))
    assert [(f.level, f.kind) for f in found(ROOT, begun, m="")] == [(Level.WARNING, "uplink")]
    assert found(ROOT, replace(LEVEL, branch=replace(branch, uplink="snapshot")), m="") == []


def test_an_uplink_that_died_on_this_machine_is_none() -> None:
    alive = identity("uplink 1", "")
    dead = json.dumps({**json.loads(alive), "started": "long ago"})
    for session, left in ((alive, alive), (dead, "")):
        branch = Branch("m-branch", "image", OLD.position, "journal", "since", session=session)
        seen = health.without_dead_uplink(replace(LEVEL, branch=branch))
        assert seen
        assert seen.branch == replace(branch, session=left)


def test_what_cannot_be_reached_is_told_from_hearsay() -> None:
    told = Summary(State.OUTDATED, OLD.position, 1 << 30, (), "pool is full", NOW - 60)
    root = replace(ROOT, tree_policy=settings({"rpo": "10m", "schedule": "5m"}))
    seen = [Seen("root", "", root), Seen("m", "id-root", None, told, "site b does not answer")]
    kinds = [(f.level, f.kind) for f in findings("t", seen, NOW, 1)]
    assert kinds == [(Level.CRITICAL, "rpo"), (Level.WARNING, "unreachable"), (Level.WARNING, "trouble")]


@pytest.mark.parametrize("rpo", ["10m", "14m", "off"])
def test_a_clone_may_stay_over_its_base_for_its_branch(rpo: str) -> None:
    """In use, or with writes that are not published. Without a branch it has to move on."""
    bare = node("k", OLD, kind=Kind.CLONE, policy=settings({"rpo": rpo}))
    used = replace(bare, branch=Branch("k", "k", OLD.position, "snapshot", "since"))
    mirror = replace(used, kind=Kind.MIRROR)
    assert [f.node for f in found(PLANNED, bare)] == [f.node for f in found(PLANNED, mirror)] == ["k"]
    assert found(PLANNED, used) == []
    assert [f.kind for f in found(PLANNED, replace(used, intent=INTENT))] == ["stuck"]


def test_a_clone_that_cannot_be_reached_may_stay() -> None:
    told = Summary(State.OUTDATED, OLD.position, 1 << 30, (), "", NOW - 60)
    root = replace(ROOT, tree_policy=settings({"rpo": "10m", "schedule": "5m"}))
    seen = [Seen("root", "", root), Seen("k", "id-root", None, told, "site b does not answer", Kind.CLONE)]
    assert [f.kind for f in findings("t", seen, NOW, 1)] == ["unreachable"]


def test_without_the_root_it_is_not_known() -> None:
    seen = found(node("leaf", OLD, parent="m"))
    assert [f.kind for f in seen] == ["no root"]
    assert worst(seen) is Level.UNKNOWN
    bad = found(node("leaf", OLD, parent="m", trouble=PERSON))
    assert worst(bad) is Level.CRITICAL


def test_who_needs_a_resync_is_told_by_its_parent() -> None:
    """The child cannot be reached; that is how it came to be slow."""
    lapsed = Resync("edge-m", "t/m", OLD.position, "pinned for 4 d, max_pinned_age is 3 d", NOW)
    (finding,) = found(node("root", NEW, resyncs=(lapsed,)))
    assert (finding.level, finding.node, finding.kind) == (Level.CRITICAL, "m", "resync")
    assert "max_pinned_age" in finding.text
    assert "rbdtree resync t/m" in finding.hint


class Reach(memory.Sites):
    """Some sites answer nobody."""

    def __init__(self, grove: Grove, *silent: str) -> None:
        super().__init__(grove.storages)
        self._silent = silent

    def cluster(self, site: str) -> memory.Cluster:
        if site in self._silent:
            raise errors.Unreachable(f"site {site} did not answer within 2 s", f"Look at 'rbdtree site check {site}'.")
        return super().cluster(site)


@pytest.fixture
def checked(capsys: pytest.CaptureFixture[str]) -> Any:
    """``checked(grove, tree, *silent)``: the exit code, and (level, node, message) of all findings."""

    def check(grove: Grove, tree: str | None, *silent: str) -> tuple[int, list[tuple[str, str | None, str]]]:
        session = Session(options.completed(Namespace(format="json", command="check"), tree=tree))
        session.__dict__["sites"] = Reach(grove, *silent)
        code = health.run_check(session)
        found = json.loads(capsys.readouterr().out)
        assert found["status"] == Level(code).name.lower()
        return code, [(f["level"], f["node"], f["message"]) for f in found["findings"]]

    return check


def gone(site: str) -> str:
    return f"site {site} did not answer within 2 s"


def test_a_silent_site_may_hide_a_tree(checked: Any) -> None:
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    assert checked(grove, None) == (0, [])
    assert checked(grove, None, "c") == (3, [("unknown", None, gone("c"))])
    assert checked(grove, "t", "c") == (0, []), "all of this one is seen"
    both = [("unknown", None, gone("b")), ("unknown", None, gone("c"))]
    assert checked(grove, None, "b", "c") == (3, [("warning", "m", gone("b")), *both])
    assert checked(grove, "t", "b", "c") == (1, [("warning", "m", gone("b"))]), "told once"
    assert checked(grove, None, "a", "b", "c") == (3, [("unknown", None, gone("a")), *both])
    grove.node("m").update(lambda d: replace(d, distrust="a scrub found 1 object"))
    assert checked(grove, None, "c")[0] == 2, "what is known to be bad comes first"


def test_a_silent_site_may_hide_a_node(checked: Any) -> None:
    """Nobody told the root of the one between its mirror and the leaf."""
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "a")
    grove.add("twig", "m", Kind.MIRROR, "b")
    grove.add("leaf", "twig", Kind.MIRROR, "c")
    assert checked(grove, "t", "b") == (1, [("warning", "twig", gone("b"))])
    grove.node("m").update(lambda d: replace(d, children=()))
    assert checked(grove, "t", "b") == (3, [("unknown", None, gone("b"))])


def test_a_document_that_cannot_be_read_is_told_once(checked: Any) -> None:
    grove = Grove()
    grove.add("m", "root", Kind.MIRROR, "b")
    documents = grove.storages["b"].places["p", ""].documents
    documents.update({name: (revision, "{}") for name, (revision, _) in documents.items()})
    for tree in (None, "t"):
        code, found = checked(grove, tree)
        assert (code, [(level, node) for level, node, _ in found]) == (2, [("critical", "m"), ("warning", "m")])


@pytest.mark.parametrize("resumed", [False, True], ids=["at once", "by a second worker"])
def test_a_push_at_the_root_notes_that_it_gets_on(resumed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is applied, and while what became of it is compared."""
    grove = Grove()
    grove.write(0, b"one" * 1000)
    grove.cut()
    _, branch = branches.ensure(grove.sites, grove.node("root"), None, None)
    image = grove.sites.cluster("a").pool("p").open(branch.image_id, read_only=False)
    image.submit_write(0, b"two" * 1000, lambda _: None)
    image.close()
    if resumed:

        def die(*_: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(landing, "apply", die)
            with pytest.raises(KeyboardInterrupt):
                push.push(grove.sites, grove.node("root"), Silent())
        assert grove.document("root").intent
    noted: list[float] = []
    swap = memory.Pool.swap_document

    def swapped(self: memory.Pool, name: str, revision: int, text: str, claim: str | None = None) -> None:
        swap(self, name, revision, text, claim)
        intent = decode(text, name).intent
        noted.append(intent.moved if intent else 0.0)

    monkeypatch.setattr(memory.Pool, "swap_document", swapped)
    monkeypatch.setattr(cut, "_NOTED_SECONDS", 0.0)
    push.push(grove.sites, grove.node("root"), Silent())
    assert grove.document("root").newest_position == Position(1, 2)
    assert len(set(noted) - {0.0}) >= 2, noted


def test_what_is_pinned() -> None:
    """By children, branches and maps; since the generation after it was there. What a person holds is to stay."""
    line = [generation(number, age) for number, age in ((1, 900.0), (2, 800.0), (3, 20.0))]
    user, map_, edge = (
        Hold(owner, Position(1, number), "") for owner, number in ((f"{USER}audit", 1), (f"{MAP}h", 2), ("edge-m", 3))
    )
    assert pinned(node("m", *line)) == Pinned()
    assert pinned(replace(node("m", *line), holds=(user, edge))) == Pinned()
    assert pinned(replace(node("m", *line), holds=(user, map_, edge))) == Pinned(4096, NOW - 20)
    assert pinned(replace(node("m", *line), holds=(replace(edge, position=Position(1, 1)),))) == Pinned(8192, NOW - 800)
    # It arrived here later than it was cut; or was followed by one that is gone.
    line[1] = replace(line[1], arrived=NOW - 500)
    assert pinned(replace(node("m", *line), holds=(replace(user, owner="edge-m"),))).since == NOW - 500
    line[0] = replace(line[0], followed=NOW - 600)
    assert pinned(replace(node("m", *line), holds=(replace(user, owner="edge-m"),))).since == NOW - 600
