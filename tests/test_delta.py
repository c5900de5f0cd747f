"""Deltas over memory: never less than the truth, and not much more."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from rbdtree import memory
from rbdtree.engine import delta
from rbdtree.model.extent import Extents
from rbdtree.ports import Image, Layout

UNIT = 16384
OBJECTS = 200
BLOCK = 4096


@dataclass
class Volume:
    """A volume of many objects, fully written, and its bytes in every snapshot, by block."""

    image: Image
    head: dict[int, int] = field(default_factory=dict)
    kept: dict[str, dict[int, int]] = field(default_factory=dict)
    writes: int = 0

    def write(self, block: int, count: int) -> None:
        self.writes += 1
        length = min(count * BLOCK, self.image.size() - block * BLOCK)
        if length > 0:
            self.image.submit_write(block * BLOCK, bytes([self.writes % 250 + 1]) * length, lambda _: None)
            self.head.update(dict.fromkeys(range(block, block + length // BLOCK), self.writes))

    def resize(self, objects: int) -> None:
        self.image.resize(objects * UNIT)
        self.head = {b: v for b, v in self.head.items() if b < objects * UNIT // BLOCK}

    def snapshot(self) -> str:
        name = f"s{len(self.kept)}"
        self.image.create_snapshot(name)
        self.kept[name] = dict(self.head)
        return name


def volume(objects: int = OBJECTS) -> Volume:
    storage = memory.Storage("f", [("p", "")])
    pool = memory.Sites({"a": storage}).cluster("a").pool("p")
    image_id = pool.create_image("v", objects * UNIT, Layout(UNIT, UNIT, 1), None)
    return Volume(pool.open(image_id, read_only=False))


def changed(one: dict[int, int], two: dict[int, int]) -> set[int]:
    return {block for block in one.keys() | two.keys() if one.get(block) != two.get(block)}


def blocks(extents: Extents) -> set[int]:
    return {b for at, n in extents for b in range(at // BLOCK, -(-(at + n) // BLOCK))}


steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, OBJECTS * 4 - 1), st.integers(1, 40)),
        st.tuples(st.just("resize"), st.integers(1, OBJECTS), st.just(0)),
        st.tuples(st.just("snapshot"), st.just(0), st.just(0)),
    ),
    max_size=12,
)


@given(before=steps, after=steps, start=st.integers(0, OBJECTS * UNIT))
def test_a_delta_covers_what_changed(
    before: list[tuple[str, int, int]], after: list[tuple[str, int, int]], start: int
) -> None:
    made = volume()
    since = until = ""
    for part in (before, after):
        for kind, where, count in part:
            if kind == "write":
                made.write(where, count)
            elif kind == "resize":
                made.resize(where)
            else:
                made.snapshot()
        since, until = until, made.snapshot()
    found = delta.collect(made.image, since, until)
    size = made.image.size()
    truth = {b for b in changed(made.kept[since], made.kept[until]) if b * BLOCK < size}
    assert truth <= blocks(found)
    assert not found or found.pairs[-1][0] + found.pairs[-1][1] <= size
    rest = Extents.of(pair for batch in delta.changes(made.image, since, until, start) for pair in batch)
    assert rest.clip(start, size) == found.clip(start, size)
    assert not rest or rest.pairs[0][0] >= start - start % UNIT


@given(st.lists(st.tuples(st.integers(0, OBJECTS * 4 - 1), st.integers(1, 9)), max_size=20))
def test_a_delta_of_old_objects_is_exact(writes: list[tuple[int, int]]) -> None:
    made = volume()
    made.write(0, OBJECTS * 4)
    made.snapshot()
    for block, count in writes:
        made.write(block, count)
    made.snapshot()
    assert blocks(delta.collect(made.image, "s0", "s1")) == changed(made.kept["s0"], made.kept["s1"])


def test_a_delta_comes_in_ascending_batches() -> None:
    made = volume()
    made.write(0, OBJECTS * 4)
    made.snapshot()
    for block in range(0, OBJECTS * 4, 40):
        made.write(block, 1)
    made.snapshot()
    found = [pair for batch in delta.changes(made.image, "s0", "s1") for pair in batch]
    assert found == sorted(found)
    assert [at // BLOCK for at, _ in found] == list(range(0, OBJECTS * 4, 40))


def test_a_snapshot_below_a_shrink_does_not_hide_it() -> None:
    made = volume(8)
    made.write(0, 32)
    made.snapshot()
    made.resize(3)
    made.snapshot()
    made.resize(8)
    made.snapshot()
    lost = Extents.of([(3 * UNIT, 5 * UNIT)])
    assert delta.coarse(made.image, "s0", "s2") == lost
    assert delta.collect(made.image, "s0", "s2") == lost
    # One by one there is nothing to overlook: each generation's size is applied.
    assert delta.collect(made.image, "s1", "s2").subtract(lost) == Extents()


def test_from_nothing_it_is_what_exists() -> None:
    made = volume()
    made.write(8, 4)
    made.write(400, 1)
    made.snapshot()
    assert list(delta.collect(made.image, None, "s0")) == [(2 * UNIT, UNIT), (100 * UNIT, UNIT)]


def test_neighbouring_objects_are_asked_for_together() -> None:
    near = Extents.of((n * UNIT, UNIT) for n in range(0, 40, 2))
    assert runs(near) == [(0, 39 * UNIT)]
    far = Extents.of([(0, 100), (100 * UNIT + 5, 10)])
    assert runs(far) == [(0, 100), (100 * UNIT, 15)]
    long = Extents.of([(0, 1000 * UNIT)])
    assert all(length <= 64 * UNIT for _, length in runs(long))
    assert Extents.of(runs(long)) == long
    for wanted in (near, far, long):
        assert Extents.of(part for run in delta._runs(wanted, UNIT) for part in run.parts) == wanted


def runs(extents: Extents) -> list[tuple[int, int]]:
    return [(run.start, run.end - run.start) for run in delta._runs(extents, UNIT)]


def late(made: Volume, storage: memory.Storage, offset: int, data: bytes = b"late") -> None:
    memory.write_late(storage, made.image.image_id, offset, data)


def test_objects_that_were_written_to_late_count_whole() -> None:
    """A host that opened the image while s1 was made does not know of it: what it writes is in s1 as well."""
    made, storage = written()
    late(made, storage, 3 * UNIT + 100)
    late(made, storage, 7 * UNIT)
    made.write(50, 1)
    made.snapshot()
    newer = reopened(made, "s2")
    assert Extents.of((at, n) for at, n, _ in newer.changed("s1", 0, newer.size(), whole_object=False)).total == BLOCK
    assert list(delta.collect(newer, "s1", "s2")) == [(3 * UNIT, UNIT), (7 * UNIT, UNIT), (50 * BLOCK, BLOCK)]
    # Over the snapshot before it everything is exact; and of the next one it knows.
    assert delta.collect(newer, "s0", "s2").total < 3 * UNIT
    made.write(1, 1)
    made.snapshot()
    assert list(delta.collect(reopened(made, "s3"), "s2", "s3")) == [(BLOCK, BLOCK)]


def test_late_objects_are_handed_out_apart_to_whoever_asks() -> None:
    made, storage = written()
    late(made, storage, 3 * UNIT + 100)
    made.write(50, 1)
    made.snapshot()
    told: list[Extents] = []
    assert list(delta.collect(reopened(made, "s2"), "s1", "s2", told.append)) == [(50 * BLOCK, BLOCK)]
    assert [list(extents) for extents in told] == [[(3 * UNIT, UNIT)]]


def test_a_change_beside_what_was_asked_for_makes_no_object_late() -> None:
    made, storage = written()
    made.write(4 * UNIT // BLOCK - 1, 1)
    late(made, storage, 30 * UNIT + 9)
    made.snapshot()
    newer = reopened(made, "s2")
    half = Extents.of([(3 * UNIT, BLOCK), (30 * UNIT + 5000, 100)])
    assert [pair for batch in delta.exact(newer, "s1", half) for pair in batch] == [(30 * UNIT + 5000, 100)]


def test_what_a_shrink_took_away_is_not_late() -> None:
    made, _ = written()
    made.resize(20)
    made.snapshot()
    made.resize(OBJECTS)
    made.snapshot()
    told: list[Extents] = []
    delta.collect(reopened(made, "s3"), "s1", "s3", told.append)
    assert told == []


def written() -> tuple[Volume, memory.Storage]:
    """Two snapshots of a volume that holds data everywhere."""
    storage = memory.Storage("f", [("p", "")])
    pool = memory.Sites({"a": storage}).cluster("a").pool("p")
    image_id = pool.create_image("v", OBJECTS * UNIT, Layout(UNIT, UNIT, 1), None)
    made = Volume(pool.open(image_id, read_only=False))
    made.write(0, OBJECTS * UNIT // BLOCK)
    made.snapshot()
    made.write(100, 1)
    made.snapshot()
    return made, storage


def reopened(made: Volume, snapshot: str) -> Image:
    image = made.image
    assert isinstance(image, memory.Image)
    return memory.Image(image._pool, image._volume, snapshot, True)
