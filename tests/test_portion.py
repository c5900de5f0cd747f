"""Portions: what may be written as one, who may have which, and what of a generation a node takes."""

from dataclasses import replace
from typing import Any

import pytest

from rbdtree import errors, memory
from rbdtree.engine import branch as branches
from rbdtree.engine import forest, lease, leave, membership, portion, push, resolve, scrub, sync, verify
from rbdtree.engine.cut import cut
from rbdtree.model.document import Intent, Kind, NodeDocument, PushState
from rbdtree.model.extent import Extents
from rbdtree.model.name import ImageSpec, NodeName
from rbdtree.model.portion import WHOLE, Portion, check, choose, common, contains, parse, text
from rbdtree.ports import Layout, Silent

G = 1 << 30
UNIT = 16384
SIZE = 8 * UNIT


# -- ranges


@pytest.mark.parametrize(
    ("written", "meant", "again"),
    [
        ("0..1G", ((0, G),), "0..1G"),
        ("..1G", ((0, G),), "0..1G"),
        ("4G..5G,0..1G", ((0, G), (4 * G, G)), "0..1G,4G..5G"),
        ("0..1G, 1G..2G", ((0, 2 * G),), "0..2G"),
        ("512..1K", ((512, 512),), "512..1K"),
        ("0..1536M", ((0, 1536 << 20),), "0..1536M"),
        ("whole", WHOLE, "whole"),
    ],
)
def test_what_is_a_portion(written: str, meant: Portion, again: str) -> None:
    assert parse(written) == meant
    assert text(meant) == again
    assert parse(again) == meant


@pytest.mark.parametrize(
    ("written", "said", "hint"),
    [
        ("1G", "'1G' is not a range", "A..B"),
        ("1G..", "'1G..' is not a range", "A..B"),
        ("", "'' is not a range", "A..B"),
        ("a..b", "'a' is not a size", "10G"),
        ("2G..1G", "ends before it begins", "A..B"),
        ("1G..1G", "ends before it begins", "A..B"),
        ("0..2G,1G..3G", "ranges 0..2G and 1G..3G overlap", "Write them as one: 0..3G."),
        ("0..4G,1G..2G", "ranges 0..4G and 1G..2G overlap", "Write them as one: 0..4G."),
    ],
)
def test_what_is_none(written: str, said: str, hint: str) -> None:
    with pytest.raises(errors.UsageError) as caught:
        parse(written)
    assert said in str(caught.value)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    ("wanted", "size", "said", "nearest"),
    [
        ("0..4M", 4 << 30, None, None),
        ("0..4M,1G..2G", 4 << 30, None, None),
        ("4M..10M", 10 << 20, None, None),
        ("whole", 10 << 20, None, None),
        ("0..5M", 4 << 30, "0..5M is not aligned to the image's objects of 4M", "0..8M"),
        ("1M..4M", 4 << 30, "1M..4M is not aligned to the image's objects of 4M", "0..4M"),
        ("0..4M,5M..6M", 4 << 30, "5M..6M is not aligned to the image's objects of 4M", "0..8M"),
        ("0..9M", 10 << 20, "0..9M is not aligned to the image's objects of 4M", "0..10M"),
        ("0..5G", 4 << 30, "0..5G ends beyond the volume, which is 4G long", "0..4G"),
        ("0..4M,5G..6G", 4 << 30, "5G..6G ends beyond the volume, which is 4G long", "0..4M"),
        ("5G..6G", 4 << 30, "5G..6G ends beyond the volume, which is 4G long", None),
    ],
)
def test_what_a_volume_allows(wanted: str, size: int, said: str | None, nearest: str | None) -> None:
    if said is None:
        check(parse(wanted), size, 4 << 20)
        return
    with pytest.raises(errors.UsageError) as caught:
        check(parse(wanted), size, 4 << 20)
    assert said in str(caught.value)
    if nearest:
        assert caught.value.hint == f"The nearest allowed is {nearest}."
        check(parse(nearest), size, 4 << 20)
    else:
        assert "whole" in str(caught.value.hint)


A, B, AB, WIDE = ((0, 4),), ((8, 4),), ((0, 4), (8, 4)), ((0, 12),)


@pytest.mark.parametrize(
    ("outer", "inner", "answer"),
    [
        (WHOLE, WHOLE, True),
        (WHOLE, A, True),
        (A, WHOLE, False),
        (AB, A, True),
        (A, AB, False),
        (WIDE, AB, True),
        (AB, WIDE, False),
        (A, B, False),
    ],
)
def test_what_lies_inside(outer: Portion, inner: Portion, answer: bool) -> None:
    assert contains(outer, inner) is answer
    assert (common(outer, inner) == inner) is answer


@pytest.mark.parametrize(
    ("wanted", "standing", "offered", "chosen"),
    [
        (A, WHOLE, WHOLE, A),
        (WHOLE, A, WHOLE, WHOLE),
        (AB, A, AB, AB),
        # The parent has not got it yet: go on with what is here.
        (AB, A, A, A),
        (WHOLE, A, AB, A),
        (B, A, A, A),
        # The parent went down meanwhile.
        (B, AB, A, A),
        (B, B, A, None),
        # A new node begins with all of it, or waits.
        (AB, None, WHOLE, AB),
        (AB, None, A, None),
        (WHOLE, None, A, None),
    ],
)
def test_what_a_node_takes_of_a_generation(
    wanted: Portion, standing: Portion | None, offered: Portion, chosen: Portion | None
) -> None:
    assert choose(wanted, standing, offered) == chosen
    assert chosen is None or contains(offered, chosen)


# -- nodes


class Chain:
    """root (a) -> m (b) -> far (a), k a clone below m; in memory, objects of 16 KiB."""

    def __init__(self) -> None:
        self.sites: Any = memory.Sites({name: memory.Storage(name, [("p", "")]) for name in "ab"})
        wish = membership.Wish(SIZE, Layout(UNIT, UNIT, 1))
        membership.init(self.sites, self.look(), "t", "root", ImageSpec("a", "p", "", "root"), wish)
        self.write("root", 0, b"r" * SIZE)
        self.add("m", "root", Kind.MIRROR, "b", "0..96K")
        self.add("far", "m", Kind.MIRROR, "a", "0..32K")
        self.add("k", "m", Kind.CLONE, "b", None)
        self.go()

    def look(self) -> forest.Forest:
        return forest.look(self.sites)

    def add(self, name: str, parent: str, kind: Kind, site: str, ranges: str | None) -> NodeDocument:
        wish = membership.Wish(portion=parse(ranges) if ranges else None)
        spec = ImageSpec(site, "p", "", name)
        return membership.add(self.sites, self.look(), NodeName("t", name), parent, kind, spec, wish)

    def set(self, name: str, ranges: str, *, dry_run: bool = False) -> portion.Change:
        tree = self.look().tree("t")
        return portion.change(self.sites, tree, tree.member(name), parse(ranges), dry_run=dry_run)

    def node(self, name: str) -> Any:
        return forest.document_of(self.look().tree("t").member(name))[0]

    def document(self, name: str) -> NodeDocument:
        found: NodeDocument = self.node(name).read()
        return found

    def image(self, name: str, snapshot: str | None = None) -> Any:
        node = self.node(name)
        return node.pool.open(node.pool.image_id(name), snapshot, read_only=snapshot is not None)

    def write(self, name: str, offset: int, data: bytes, image: str = "") -> None:
        pool = self.node(name).pool
        opened = pool.open(pool.image_id(image or name), read_only=False)
        opened.submit_write(offset, data, lambda error: None)
        opened.close()

    def content(self, name: str) -> bytes:
        image = self.image(name)
        data: bytes = image.read(0, image.size())
        image.close()
        return data

    def go(self) -> dict[str, sync.Outcome]:
        cut(self.node("root"))
        return self.sync()

    def sync(self) -> dict[str, sync.Outcome]:
        found = {o.node.partition("/")[2]: o for o in sync.Sync(self.sites).run(self.look().tree("t"))}
        for outcome in found.values():
            assert outcome.error is None, outcome.error
        return found


@pytest.fixture
def chain() -> Chain:
    return Chain()


def test_nodes_hold_their_portion(chain: Chain) -> None:
    whole = chain.content("root")
    assert chain.content("m") == whole[: 6 * UNIT] + bytes(2 * UNIT)
    assert chain.content("k") == chain.content("m")
    assert chain.content("far") == whole[: 2 * UNIT] + bytes(6 * UNIT)
    image = chain.image("far")
    assert [(at, n) for at, n, _ in image.changed(None, 0, SIZE, whole_object=True)] == [(0, 2 * UNIT)]
    image.close()


@pytest.mark.parametrize(
    ("node", "ranges", "kind", "said"),
    [
        ("m", "0..256K", errors.UsageError, "ends beyond the volume, which is 128K long"),
        ("m", "0..17K", errors.UsageError, "not aligned to the image's objects of 16K"),
        ("m", "0..16K", errors.NotEmpty, "t/m cannot go down to 0..16K: t/far below it holds 0..32K"),
        ("far", "0..112K", errors.UsageError, "t/far cannot hold 0..112K: its parent t/m holds 0..96K only"),
        ("far", "whole", errors.UsageError, "t/far cannot hold whole: its parent t/m holds 0..96K only"),
        ("k", "0..112K", errors.UsageError, "t/k cannot hold 0..112K: its parent t/m holds 0..96K only"),
        ("root", "0..16K", errors.UsageError, "t/root is the root"),
    ],
)
def test_what_is_refused(chain: Chain, node: str, ranges: str, kind: type[errors.Error], said: str) -> None:
    before = {name: chain.document(name) for name in ("root", "m", "far", "k")}
    for dry_run in (True, False):
        with pytest.raises(kind) as caught:
            chain.set(node, ranges, dry_run=dry_run)
        assert said in str(caught.value)
        assert caught.value.hint
    assert {name: chain.document(name) for name in before} == before


def test_a_new_node_lies_within_its_parent(chain: Chain) -> None:
    with pytest.raises(errors.UsageError, match=r"its parent t/m holds 0..96K only"):
        chain.add("x", "m", Kind.MIRROR, "a", "0..112K")
    with pytest.raises(errors.UsageError, match=r"its parent t/k holds 0..96K only"):
        chain.add("x", "k", Kind.MIRROR, "a", "0..112K")
    assert chain.node("root").pool.image_id("x") is None
    # What the parent holds, where nothing is said.
    assert chain.add("x", "k", Kind.MIRROR, "a", None).portion == ((0, 6 * UNIT),)


def test_a_portion_that_ended_with_the_volume_is_passed_on_when_that_has_grown(chain: Chain) -> None:
    root = chain.image("root")
    root.resize(SIZE - 4096)
    root.close()
    chain.set("m", "0..124K")
    root = chain.image("root")
    root.resize(SIZE)
    root.close()
    assert chain.add("x", "m", Kind.MIRROR, "a", None).portion == ((0, SIZE - 4096),)
    chain.write("root", SIZE - 8192, b"e" * 8192)
    chain.go()
    assert chain.content("x") == b"r" * (SIZE - 8192) + b"e" * 4096 + bytes(4096)
    assert verified(chain, "x", "root").equal


def test_a_clone_may_be_given_less(chain: Chain) -> None:
    chain.set("k", "0..32K")
    with pytest.raises(errors.UsageError, match=r"its parent t/k holds 0..32K only"):
        chain.add("x", "k", Kind.MIRROR, "a", "0..48K")
    chain.add("x", "k", Kind.MIRROR, "a", "16K..32K")
    with pytest.raises(errors.NotEmpty, match=r"t/x below it holds 16K..32K"):
        chain.set("k", "0..16K")
    assert chain.set("k", "whole").after == WHOLE


def test_only_the_difference_moves(chain: Chain) -> None:
    told = chain.set("far", "16K..48K")
    assert (told.before, told.holds, told.pending) == (((0, 2 * UNIT),), ((0, 2 * UNIT),), True)
    # Nothing until there is another generation.
    assert chain.sync()["far"].written_bytes == 0
    assert chain.document("far").newest.portion == ((0, 2 * UNIT),)  # type: ignore[union-attr]
    outcome = chain.go()["far"]
    assert outcome.written_bytes == UNIT
    assert outcome.read_bytes == UNIT
    assert chain.content("far") == bytes(UNIT) + b"r" * (2 * UNIT) + bytes(5 * UNIT)
    assert [g.portion for g in chain.document("far").generations] == [((0, 2 * UNIT),), ((UNIT, 2 * UNIT),)]
    # Narrower: nothing is read. And what is written outside never comes.
    chain.write("root", 5 * UNIT, b"x" * UNIT)
    chain.set("far", "16K..32K")
    outcome = chain.go()["far"]
    assert (outcome.written_bytes, outcome.read_bytes) == (0, 0)
    assert chain.content("far") == bytes(UNIT) + b"r" * UNIT + bytes(6 * UNIT)


def test_a_child_widened_before_its_parent_has_it_goes_on_with_what_it_has(chain: Chain) -> None:
    chain.set("m", "whole")
    chain.set("far", "64K..128K")
    chain.write("root", UNIT, b"o" * UNIT)
    found = chain.sync()["far"]
    assert found.waits == "holds 64K..128K when its parent does: m holds 0..96K of 1.1"
    assert chain.content("far") == b"r" * (2 * UNIT) + bytes(6 * UNIT)
    assert chain.go()["far"].waits == ""
    assert chain.content("far") == bytes(4 * UNIT) + b"r" * (4 * UNIT)


def test_a_new_child_waits_until_its_parent_has_it(chain: Chain) -> None:
    chain.set("m", "whole")
    chain.add("x", "m", Kind.MIRROR, "a", "64K..128K")
    found = chain.sync()["x"]
    assert found.waits == "holds 64K..128K when its parent does: m holds 0..96K of 1.1"
    assert chain.document("x").newest is None
    assert chain.go()["x"].waits == ""
    assert chain.content("x") == bytes(4 * UNIT) + b"r" * (4 * UNIT)


def test_a_wish_in_the_middle_of_a_copy_is_for_the_next(chain: Chain) -> None:
    chain.write("root", 0, b"n" * SIZE)
    cut(chain.node("root"))
    node = chain.node("far")
    document = node.read()
    assert document.newest is not None
    sync.Sync(chain.sites, only=frozenset(["m"])).run(chain.look().tree("t"))
    target = replace(document.newest.position, sequence=2)
    # Of a run that died before it copied anything.
    held = Intent(target, document.newest.position, SIZE, 1.0, "w", "", portion=document.portion)
    node.update(lambda d: replace(d, intent=held))
    chain.set("far", "16K..48K")
    chain.sync()
    assert chain.document("far").newest.portion == ((0, 2 * UNIT),)  # type: ignore[union-attr]
    assert chain.content("far") == b"n" * (2 * UNIT) + bytes(6 * UNIT)


def test_detach_tells_of_the_holes(chain: Chain) -> None:
    tree = chain.look().tree("t")
    said = leave.leave(chain.sites, tree, tree.member("far"), keep=True, expiry_seconds=0)
    assert said == "a:p/far is an ordinary image now; it holds 0..32K of the volume and zeroes elsewhere"


# -- writing


def pushed(chain: Chain, name: str, *writes: tuple[int, bytes]) -> push.PushOutcome:
    _, branch = branches.ensure(chain.sites, chain.node(name), None, None)
    for offset, data in writes:
        chain.write(name, offset, data, branch.image)
    return push.push(chain.sites, chain.node(name), Silent())


def test_a_push_inside_passes_everywhere(chain: Chain) -> None:
    outcome = pushed(chain, "far", (UNIT, b"far" * 100))
    assert [str(p) for p in outcome.published] == ["1.2"]
    chain.sync()
    assert chain.content("root")[UNIT : UNIT + 300] == b"far" * 100
    assert chain.content("m")[: 6 * UNIT] == chain.content("root")[: 6 * UNIT]
    assert chain.content("far")[: 2 * UNIT] == chain.content("root")[: 2 * UNIT]


@pytest.mark.parametrize("node", ["far", "k"])
def test_a_push_outside_is_refused_before_anything_moves(chain: Chain, node: str) -> None:
    outcome = pushed(chain, node, (UNIT, b"in" * 256), (6 * UNIT, b"out!" * 128))
    assert (outcome.published, outcome.sent_bytes) == ([], 0)
    refused = outcome.refused[0]
    assert refused.state is PushState.CONFLICT
    assert [(e.reason, e.author, e.extents) for e in refused.evidence] == [("portion", node, ((6 * UNIT, 512),))]
    assert not chain.document("m").pushes or node == "m"
    said = push.conflict(chain.document(node), refused)
    assert f"512 bytes ({6 * UNIT}+512) are outside the portion that {node} holds" in str(said)
    assert "ours" not in str(said.hint)
    with pytest.raises(errors.UsageError, match=r"outside the portion"):
        resolve.take_ours(chain.node(node))
    with pytest.raises(errors.NotEmpty if node == "k" else errors.UsageError):
        chain.set(node, "whole" if node == "far" else "0..16K")
    resolve.take_theirs(chain.sites, chain.node(node), 0)
    assert chain.document(node).branch is None


def test_what_a_branch_shows_beyond_its_base_is_not_its_to_write(chain: Chain) -> None:
    """Widened since, but the branch stands on a generation without it: the zeroes there are no data."""
    branches.ensure(chain.sites, chain.node("far"), None, None)
    chain.set("far", "0..48K")
    assert pushed(chain, "far", (2 * UNIT, b"z" * 512)).refused[0].evidence[0].reason == "portion"


def test_no_narrower_than_what_is_not_published(chain: Chain) -> None:
    _, branch = branches.ensure(chain.sites, chain.node("far"), None, None)
    chain.write("far", UNIT, b"w" * 512, branch.image)
    with pytest.raises(errors.NotEmpty, match=r"512 bytes in 1 extents .* on the branch .* are not published"):
        chain.set("far", "0..16K")
    push.push(chain.sites, chain.node("far"), Silent())
    assert chain.set("far", "0..16K").pending


def test_no_narrower_than_a_lease(chain: Chain) -> None:
    lease.acquire(chain.node("root"), chain.document("far"), Extents.of([(UNIT, 512)]), 60)
    with pytest.raises(errors.Busy, match=r"t/far has leased 512 bytes"):
        chain.set("far", "0..16K")
    assert chain.set("far", "16K..32K").pending


def test_a_lease_is_for_what_a_node_holds(chain: Chain) -> None:
    assert lease.acquire(chain.node("root"), chain.document("far"), None, 60).extents == ((0, 2 * UNIT),)
    lease.release(chain.node("root"), chain.document("far"), None)
    assert lease.acquire(chain.node("root"), chain.document("k"), None, 60).extents == ((0, 6 * UNIT),)
    with pytest.raises(errors.UsageError, match=r"512 bytes .* are outside the portion that t/k holds: 0..96K"):
        lease.acquire(chain.node("root"), chain.document("k"), Extents.of([(6 * UNIT, 512)]), 60)


# -- comparing


def spoil(chain: Chain, name: str, offset: int) -> None:
    """A bad disk: a byte of every snapshot and of the head."""
    image = chain.image(name)
    volume = image._volume
    image.close()
    number, at = divmod(offset, UNIT)
    for kept in (volume, *volume.snapshots):
        data = bytearray(kept.objects.get(number, bytes(UNIT)))
        data[at] ^= 1
        kept.objects[number] = bytes(data)


def verified(chain: Chain, name: str, against: str) -> verify.Verdict:
    tree = chain.look().tree("t")
    verdict = verify.verify(chain.sites, tree, tree.member(name), tree.member(against), None, Silent())
    assert verdict.error is None
    return verdict


def scrubbed(chain: Chain, name: str) -> list[scrub.Piece]:
    """A whole pass, three objects at a time."""
    pieces = []
    while not pieces or not pieces[-1].finished:
        piece = scrub.scrub(chain.sites, chain.node(name), 3 * UNIT, Silent())
        assert piece
        pieces.append(piece)
    return pieces


def test_what_is_compared_lies_inside(chain: Chain) -> None:
    for name, against in (("far", "m"), ("far", "root"), ("m", "root"), ("k", "m"), ("k", "root")):
        found = verified(chain, name, against)
        assert found.equal, (name, against)
        held = 2 * UNIT if name == "far" else 6 * UNIT
        assert found.checksummed_bytes + found.read_bytes == (0 if (name, against) == ("k", "m") else held)
    spoil(chain, "far", 3 * UNIT)
    assert verified(chain, "far", "root").equal
    assert sum(piece.length for piece in scrubbed(chain, "far")) == SIZE
    spoil(chain, "far", UNIT + 5)
    assert [d.extents for d in verified(chain, "far", "root").differences] == [((UNIT, 4096),)]
    with pytest.raises(errors.Integrity, match="1 object unlike"):
        scrubbed(chain, "far")
    # Whatever does not belong there goes with the next generation, as it compares everything now.
    assert chain.go()["far"].error is None
    assert chain.content("far") == b"r" * (2 * UNIT) + bytes(6 * UNIT)
