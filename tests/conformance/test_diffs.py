"""Diffs: never less than what differs, between any two points of any history.

A history is a list of changes; the truth is kept as plain bytes by the test.
"""

from dataclasses import dataclass, field

import pytest
from conformance.conftest import UNIT, World, write, zero
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rbdtree import errors
from rbdtree.engine import delta
from rbdtree.model.extent import Extents
from rbdtree.ports import Image

LARGEST = 6 * UNIT
Change = tuple[str, int, int]

spots = st.integers(0, LARGEST // 512).map(lambda n: n * 512)
lengths = st.sampled_from([512, 4096, 5000, UNIT, 2 * UNIT, 3 * UNIT])
changes = st.one_of(
    st.tuples(st.sampled_from(["write", "write", "write zeroes"]), spots, lengths),
    st.tuples(st.just("zero"), spots, lengths),
    st.tuples(st.just("resize"), spots, st.just(0)),
    st.tuples(st.just("snapshot"), st.just(0), st.just(0)),
)


@dataclass
class History:
    """An image, and what it should hold in its head and in every snapshot."""

    image: Image
    head: bytearray = field(default_factory=lambda: bytearray(LARGEST))
    kept: dict[str, bytes] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def do(self, change: Change) -> None:
        kind, offset, length = change
        if kind == "snapshot":
            name = f"s{len(self.kept)}"
            self.image.create_snapshot(name)
            self.kept[name] = bytes(self.head)
        elif kind == "resize":
            self.image.resize(offset)
            del self.head[offset:]
            self.head += bytes(offset - len(self.head))
        else:
            length = min(length, len(self.head) - offset)
            if length <= 0:
                return
            data = bytes([len(self.kept) + 1 + offset // 512 % 200]) * length if kind == "write" else bytes(length)
            self.head[offset : offset + length] = data
            if kind == "zero":
                zero(self.image, offset, length)
            else:
                write(self.image, offset, data)


def differing(before: bytes, after: bytes) -> set[int]:
    """The 512-byte blocks of ``after`` that differ; what ``before`` does not have is zero."""
    before = before[: len(after)].ljust(len(after), b"\0")
    return {at for at in range(0, len(after), 512) if before[at : at + 512] != after[at : at + 512]}


def check(spans: list[tuple[int, int, bool]], before: bytes, after: bytes, what: str) -> None:
    assert spans == sorted(spans), what
    covered = {at for offset, length, _ in spans for at in range(offset - offset % 512, offset + length, 512)}
    missed = differing(before, after) - covered
    assert not missed, f"{what} misses {sorted(missed)}; it has {spans}"
    for offset, length, exists in spans:
        if not exists:
            assert not any(after[offset : offset + length]), f"{what}: {offset}+{length} exists"


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=st.lists(changes, max_size=14))
def test_a_diff_covers_every_difference(world: World, history: list[Change]) -> None:
    made = History(world.image(LARGEST))
    for change in [*history, ("snapshot", 0, 0)]:
        made.do(change)
    image_id = made.image.image_id
    points = ["", *made.kept]
    for until in (*made.kept, None):
        after = made.kept[until] if until else bytes(made.head)
        open_at = world.pool.open(image_id, until)
        assert open_at.size() == len(after)
        assert open_at.read(0, len(after)) == after
        for since in points:
            if since and until and int(since[1:]) > int(until[1:]):
                continue
            before = made.kept.get(since, b"")
            exact = open_at.changed(since or None, 0, len(after), whole_object=False)
            check(exact, before, after, f"exact diff {since or None}..{until}")
            coarse = delta.coarse(open_at, since or None, until)
            check([(*p, True) for p in coarse], before, after, f"coarse diff {since or None}..{until}")
            found = delta.collect(open_at, since or None, until)
            check([(*p, True) for p in found], before, after, f"changes {since or None}..{until}")
        open_at.close()
    made.image.close()


def test_a_diff_has_only_the_range_asked_for(world: World) -> None:
    image = world.image()
    write(image, 0, b"a" * 8 * UNIT)
    image.create_snapshot("s")
    write(image, 0, b"b" * 8 * UNIT)
    for since in (None, "s"):
        for whole in (False, True):
            assert image.changed(since, UNIT, 2 * UNIT, whole_object=whole)[0][0] == UNIT
            spans = image.changed(since, UNIT + 1024, UNIT, whole_object=whole)
            assert list(Extents.of((at, n) for at, n, _ in spans)) == [(UNIT + 1024, UNIT)]


def test_an_empty_image_has_an_empty_diff(world: World) -> None:
    image = world.image(0)
    image.create_snapshot("s")
    for since in (None, "s"):
        for whole in (False, True):
            assert image.changed(since, 0, 0, whole_object=whole) == []
    assert not image.own_data()


def test_an_untouched_image_has_an_empty_diff(world: World) -> None:
    image = world.image()
    write(image, 0, b"x")
    image.create_snapshot("s")
    at = world.pool.open(image.image_id, "s")
    for opened in (image, at):
        for whole in (False, True):
            assert opened.changed("s", 0, 8 * UNIT, whole_object=whole) == []


def test_the_cheap_diff_has_whole_objects(world: World) -> None:
    image = world.image()
    image.create_snapshot("s")
    write(image, 2 * UNIT + 100, b"x")
    for since in (None, "s"):
        assert image.changed(since, 0, 8 * UNIT, whole_object=True) == [(2 * UNIT, UNIT, True)]


def test_an_exact_diff_of_an_old_object_is_exact(world: World) -> None:
    image = world.image()
    write(image, 0, b"x" * 8 * UNIT)
    image.create_snapshot("s")
    write(image, 2 * UNIT + 4096, b"y" * 4096)
    assert image.changed("s", 0, 8 * UNIT, whole_object=False) == [(2 * UNIT + 4096, 4096, True)]


def test_what_is_gone_is_told_as_gone(world: World) -> None:
    image = world.image()
    write(image, 0, b"x" * 2 * UNIT)
    image.create_snapshot("s")
    zero(image, 0, UNIT)
    for whole in (False, True):
        assert image.changed("s", 0, 8 * UNIT, whole_object=whole) == [(0, UNIT, False)]
        assert image.changed(None, 0, 8 * UNIT, whole_object=whole) == [(UNIT, UNIT, True)]


def test_the_cheap_diff_overlooks_a_shrink_below_a_snapshot(world: World) -> None:
    """Why ``engine.delta`` looks at the sizes in between; the exact diff sees it."""
    image = world.image()
    write(image, 0, b"x" * 8 * UNIT)
    image.create_snapshot("old")
    image.resize(4 * UNIT)
    image.create_snapshot("small")
    image.resize(8 * UNIT)
    image.create_snapshot("new")
    at = world.pool.open(image.image_id, "new")
    assert at.changed("old", 0, 8 * UNIT, whole_object=True) == []
    seen = at.changed("old", 0, 8 * UNIT, whole_object=False)
    assert list(Extents.of((offset, n) for offset, n, _ in seen)) == [(4 * UNIT, 4 * UNIT)]
    assert list(delta.coarse(at, "old", "new")) == [(4 * UNIT, 4 * UNIT)]
    assert list(delta.collect(at, "old", "new")) == [(4 * UNIT, 4 * UNIT)]


def test_a_diff_needs_a_snapshot_that_is_older(world: World) -> None:
    image = world.image()
    image.create_snapshot("one")
    image.create_snapshot("two")
    with pytest.raises(errors.NotFound):
        image.changed("none", 0, UNIT, whole_object=False)
    with pytest.raises(errors.Error):
        world.pool.open(image.image_id, "one").changed("two", 0, UNIT, whole_object=False)


def test_a_late_write_is_in_both_snapshots_and_told_by_its_object(world: World) -> None:
    image = world.image()
    for number in range(4):
        write(image, number * UNIT, b"x" * UNIT)
    world.pass_time(3.5)
    image.create_snapshot("s")
    image.close()
    world.write_late(image, 2 * UNIT + 100, b"late")
    world.write_late(image, 3 * UNIT, None)
    image = world.pool.open(image.image_id, read_only=False)
    write(image, UNIT, b"y" * 4096)
    image.create_snapshot("t")
    newer, older = world.pool.open(image.image_id, "t"), world.pool.open(image.image_id, "s")
    assert newer.read(2 * UNIT + 100, 4) == older.read(2 * UNIT + 100, 4) == b"late"
    assert newer.changed("s", 0, 8 * UNIT, whole_object=False) == [(UNIT, 4096, True)]
    assert Extents.of((at, n) for at, n, _ in newer.changed("s", 0, 8 * UNIT, whole_object=True)).total == 3 * UNIT
    for opened in (newer, image):
        assert opened.written_after("s", [0, 1, 2, 3, 7], 2.0) == [2]
    assert newer.read(3 * UNIT, UNIT) == bytes(UNIT)
    assert list(delta.collect(newer, "s", "t")) == [(UNIT, 4096), (2 * UNIT, 2 * UNIT)]
    with pytest.raises(errors.NotFound):
        newer.written_after("none", [1], 0.0)


def test_zeroes_where_nothing_was_are_no_late_write(world: World) -> None:
    """Ceph's maps count such an object as written to, and its exact diff does not; fstrim makes thousands."""
    image = world.image()
    write(image, 0, b"x" * 4096)
    world.pass_time(3.5)
    image.create_snapshot("s")
    zero(image, 8192, 4096)
    image.create_snapshot("t")
    newer = world.pool.open(image.image_id, "t")
    assert Extents.of((at, n) for at, n, _ in newer.changed("s", 0, 8 * UNIT, whole_object=True)).total == UNIT
    assert newer.written_after("s", [0], 2.0) == []
    assert delta.collect(newer, "s", "t").total <= 4096
