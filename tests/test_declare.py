"""A tree's file: what it may say, what would change, and once more nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rbdtree import declaration, errors, memory
from rbdtree.engine import declare, forest, membership
from rbdtree.engine import policy as policies
from rbdtree.model.declaration import Declaration, DeclaredNode
from rbdtree.model.document import Kind
from rbdtree.plan.declare import (
    NOTHING,
    Change,
    Differs,
    Existing,
    Standing,
    blocking,
    doable,
    plan_declare,
)

FILE = """
tree = "vol"

[policy]
keep = "last 5,  daily 7"
priority = 3

[nodes.far]
kind = "mirror"
parent = "paris"
image = "a:p/far"

[nodes.root]
kind = "root"
image = "a:p/vol"
size = "16M"
object_size = "4M"

[nodes.paris]
kind = "mirror"
parent = "root"
image = "b:p/vol"
history = true
policy.rpo = "15m"
policy.cut_through = false

[nodes."c.1"]
kind = "clone"
parent = "paris"
image = "b:p/c"
"""


def load(tmp_path: Path, text: str) -> Declaration:
    path = tmp_path / "tree.toml"
    path.write_text(text)
    return declaration.load(path)


def test_a_file_is_read(tmp_path: Path) -> None:
    found = load(tmp_path, FILE)
    assert found.tree == "vol"
    assert found.policy == (("keep", "last 5, daily 7"), ("priority", "3"))
    assert [node.name for node in found.nodes] == ["root", "paris", "far", "c.1"]
    paris = found.nodes[1]
    assert (paris.kind, paris.parent, paris.image, paris.history) == (Kind.MIRROR, "root", "b:p/vol", True)
    assert paris.policy == (("cut_through", "off"), ("rpo", "15m"))
    assert found.nodes[0].look.size == "16M"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('kind = "root"', 'kind = "mirror"', "a tree has one root, declared are 0"),
        ('parent = "root"', "", "nodes.paris: its parent is missing"),
        ('parent = "root"', 'parent = "rot"', "its parent rot is not declared"),
        ('parent = "root"', 'parent = "far"', "the parents of c.1, far, paris go in a circle"),
        ('image = "a:p/far"', 'image = "far"', "'far' is not an image spec"),
        ('image = "a:p/far"', 'image = "b:p/vol"', "b:p/vol is the image of"),
        ('image = "a:p/far"', "", "nodes.far.image: is missing"),
        ('rpo = "15m"', 'rpo = "soon"', "rpo: 'soon' is not a duration"),
        ('rpo = "15m"', 'schedule = "5m"', "nodes.paris.policy.schedule: is a setting of the whole tree"),
        ("priority = 3", "colour = 3", "there is no setting 'colour'"),
        ("priority = 3", "priority = [3]", "policy.priority: should be a string, a number, true or false"),
        ("history = true", 'history = "yes"', "nodes.paris.history: should be true or false"),
        ('size = "16M"', 'size = "some"', "nodes.root.size: 'some' is not a size"),
        ('size = "16M"', 'sise = "16M"', "nodes.root.sise: unknown key"),
        ('tree = "vol"', 'tree = "a/b"', "'a/b' is not a tree name"),
        ('image = "b:p/c"', 'image = "b:p/c"\nhistory = true', "a clone takes its layout and history"),
        ('kind = "clone"', 'kind = "copy"', "nodes.c.1.kind"),
        ("[policy]", "[policy", "is not TOML"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert FILE.count(old) >= 1
    with pytest.raises(errors.UsageError) as caught:
        load(tmp_path, FILE.replace(old, new, 1))
    assert said in str(caught.value)
    assert "docs/policy.md" in str(caught.value.hint)


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError) as caught:
        load(tmp_path, FILE.replace('"15m"', '"soon"').replace('"a:p/far"', '"far"').replace("priority = 3", "x = 1"))
    assert all(word in str(caught.value) for word in ("soon", "far", "'x'"))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound):
        declaration.load(tmp_path / "no.toml")


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=8)


@given(
    rpo=st.sampled_from(["15m", "off"]), image=texts.filter(lambda t: not set(t) & set("/@: \n") and t.isprintable())
)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, rpo: str, image: str) -> None:
    nodes = (
        DeclaredNode("root", Kind.ROOT, f"a:p/{image}"),
        DeclaredNode("x.y", Kind.MIRROR, f"b:p/n/{image}", "root", (("rpo", rpo),), True, portion=((0, 1 << 30),)),
        DeclaredNode("k", Kind.CLONE, "b:p/k", "x.y", portion=()),
    )
    wanted = Declaration("vol", (("bandwidth", "08:00 20M; 18:00 off"),), nodes)
    assert load(tmp_path_factory.mktemp("toml"), declaration.text_of(wanted)) == wanted


DECLARED = Declaration(
    "vol",
    (("keep", "last 5"),),
    (
        DeclaredNode("root", Kind.ROOT, "a:p/vol"),
        DeclaredNode("paris", Kind.MIRROR, "b:p/vol", "root", (("rpo", "15m"),)),
    ),
)
ROOT = Standing("root", Kind.ROOT, "a:p/vol", "", ())
PARIS = Standing("paris", Kind.MIRROR, "b:p/vol", "root", (("rpo", "15m"),))
OSLO = Standing("oslo", Kind.MIRROR, "c:p/vol", "paris", ())


@pytest.mark.parametrize(
    ("declared", "there", "expected"),
    [
        (None, ((0, 4096),), ()),
        (((0, 4096),), ((0, 4096),), ()),
        ((), ((0, 4096),), (Differs("paris", "the portion", "whole", "0..4K"),)),
        (((0, 4096),), (), (Differs("paris", "the portion", "0..4K", "whole"),)),
    ],
)
def test_a_portion_is_compared_where_it_is_declared(declared: Any, there: Any, expected: tuple[Change, ...]) -> None:
    wanted = replace(DECLARED, nodes=(DECLARED.nodes[0], replace(DECLARED.nodes[1], portion=declared)))
    existing = Existing(DECLARED.policy, (ROOT, replace(PARIS, portion=there)))
    assert plan_declare(wanted, existing) == expected


@pytest.mark.parametrize(
    ("existing", "prune", "expected"),
    [
        pytest.param(
            NOTHING,
            False,
            [
                "+ root: root, on a:p/vol",
                "+ paris: mirror below root, on b:p/vol",
                "+ keep = last 5",
                "+ paris: rpo = 15m",
            ],
            id="nothing is there",
        ),
        pytest.param(Existing((("keep", "last 5"),), (ROOT, PARIS)), False, [], id="it is so already"),
        pytest.param(
            Existing((("keep", "last 6"), ("rpo", "1h")), (ROOT, replace(PARIS, policy=()))),
            False,
            ["~ keep = last 6 -> last 5", "- rpo = 1h", "+ paris: rpo = 15m"],
            id="settings differ",
        ),
        pytest.param(
            Existing((("keep", "last 5"),), (ROOT, PARIS, OSLO)),
            False,
            ["? oslo: mirror on c:p/vol is there and not declared (--prune removes it)"],
            id="drift",
        ),
        pytest.param(
            Existing((("keep", "last 5"),), (ROOT, PARIS, OSLO, replace(OSLO, name="bergen", parent="oslo"))),
            True,
            ["- bergen: c:p/vol to the trash", "- oslo: c:p/vol to the trash"],
            id="drift that is removed, leaves first",
        ),
        pytest.param(
            Existing((("keep", "last 5"),), (ROOT, replace(PARIS, image="b:p/other", parent="oslo"), OSLO)),
            False,
            [
                "! paris: the parent is oslo, declared is root",
                "! paris: the image is b:p/other, declared is b:p/vol",
                "? oslo: mirror on c:p/vol is there and not declared (--prune removes it)",
            ],
            id="what cannot be changed in place",
        ),
        pytest.param(
            Existing((("keep", "last 5"),), (ROOT, replace(PARIS, policy=(), joining=True))),
            False,
            ["+ paris: mirror below root, on b:p/vol", "+ paris: rpo = 15m"],
            id="a node that died while it joined is made again",
        ),
        pytest.param(
            Existing((("keep", "last 5"),), (ROOT, replace(PARIS, leaving="removing"))),
            False,
            ["! paris: the node is removing, which was not finished, declared is there"],
            id="a node that died while it left",
        ),
        pytest.param(
            Existing((("keep", "last 5"),), (ROOT, replace(PARIS, policy=None))),
            False,
            ["! paris: its policy is not to be read, declared is known"],
            id="a node that cannot be reached",
        ),
    ],
)
def test_what_would_change(existing: Existing, prune: bool, expected: list[str]) -> None:
    assert [str(change) for change in plan_declare(DECLARED, existing, prune=prune)] == expected


class Room:
    """Two clusters in memory."""

    def __init__(self) -> None:
        self.storages = {name: memory.Storage(name, [("p", "")]) for name in "ab"}
        self.sites: Any = memory.Sites(self.storages)

    def plan(self, wanted: Declaration, *, prune: bool = False) -> Any:
        return plan_declare(wanted, declare.observe(self.sites, forest.look(self.sites), wanted), prune=prune)

    def apply(self, wanted: Declaration, *, prune: bool = False) -> list[str]:
        changes = self.plan(wanted, prune=prune)
        assert not blocking(changes)
        return [
            declare.carry_out(self.sites, lambda: forest.look(self.sites), wanted, change, 0)
            for change in doable(changes)
        ]

    def documents(self) -> dict[str, Any]:
        return {site: dict(s.places["p", ""].documents) for site, s in self.storages.items()}


def test_applied_twice_changes_nothing(tmp_path: Path) -> None:
    room = Room()
    wanted = load(tmp_path, FILE)
    done = room.apply(wanted)
    assert len(done) == 4 + 4
    before = room.documents()
    assert room.plan(wanted) == ()
    assert room.apply(wanted) == []
    assert room.documents() == before
    exported = declare.declaration_of(forest.look(room.sites).tree("vol"))
    assert room.plan(exported) == ()
    # Once more through text.
    assert room.plan(load(tmp_path, declaration.text_of(exported))) == ()


def test_an_apply_that_died_goes_on(tmp_path: Path) -> None:
    wanted = load(tmp_path, FILE)
    for number in range(8):
        room = Room()
        for change in doable(room.plan(wanted))[:number]:
            declare.carry_out(room.sites, lambda room=room: forest.look(room.sites), wanted, change, 0)
        room.apply(wanted)
        assert room.plan(wanted) == ()


def test_drift_by_command_is_shown_and_put_back(tmp_path: Path) -> None:
    room = Room()
    wanted = load(tmp_path, FILE)
    room.apply(wanted)
    tree = forest.look(room.sites).tree("vol")
    policies.change(forest.document_of(tree.member("paris"))[0], {"rpo": "1h"}, ["cut_through"], tree=False)
    policies.change(forest.document_of(tree.member("root"))[0], {"scrub": "7d"}, tree=True)
    assert [str(c) for c in room.plan(wanted)] == [
        "- scrub = 7d",
        "+ paris: cut_through = off",
        "~ paris: rpo = 1h -> 15m",
    ]
    room.apply(wanted)
    assert room.plan(wanted) == ()


def test_undeclared_nodes_go_only_when_told(tmp_path: Path) -> None:
    room = Room()
    wanted = load(tmp_path, FILE)
    room.apply(wanted)
    fewer = replace(wanted, nodes=wanted.nodes[:2])
    assert room.apply(fewer) == []
    assert len(forest.look(room.sites).tree("vol").members) == 4
    room.apply(fewer, prune=True)
    assert {m.ref.name for m in forest.look(room.sites).tree("vol").members.values()} == {"root", "paris"}
    assert room.plan(fewer) == ()


def test_two_names_of_one_cluster_are_the_same(tmp_path: Path) -> None:
    room = Room()
    wanted = load(tmp_path, FILE)
    room.apply(wanted)
    room.sites = memory.Sites({"a": room.storages["a"], "b": room.storages["b"], "b2": room.storages["b"]})
    other = replace(wanted, nodes=tuple(replace(n, image=n.image.replace("b:", "b2:")) for n in wanted.nodes))
    assert room.plan(other) == ()


def test_settings_are_refused_with_a_reason() -> None:
    room = Room()
    spec = membership.ImageSpec("a", "p", "", "v")
    membership.init(room.sites, forest.look(room.sites), "t", "root", spec, membership.Wish(4 << 20))
    node, _ = forest.document_of(forest.look(room.sites).tree("t").member("root"))
    for wanted, unwanted, said in (
        ({"schedule": "5m"}, [], "setting of the whole tree"),
        ({"colour": "red"}, [], "no setting 'colour'"),
        ({}, ["colour"], "no setting 'colour'"),
        ({"keep": "some"}, [], "keep"),
    ):
        before = room.documents()
        with pytest.raises(errors.UsageError, match=said):
            policies.change(node, wanted, unwanted, tree=False)
        assert room.documents() == before
    policies.change(node, {"keep": "last 1"}, tree=False, dry_run=True)
    assert not node.read().policy
    policies.change(node, {"keep": "last 1"}, tree=False)
    force = {s.key: (s.text, s.source) for s in policies.in_force(node.read())}
    assert force["keep"] == ("last 1", "node")
    assert force["parallel"] == ("4", "default")
