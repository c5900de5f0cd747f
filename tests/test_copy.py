"""The shared copy over memory, with faults stacked on its images.

Images are pictures, one letter an object: ``copy("AB0-", into="A---")``; ``-`` is a hole, ``0`` written zeroes.
"""

import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from rbdtree import errors, memory
from rbdtree.engine import copy as copying
from rbdtree.engine.copy import Copied, Copy, Target, Window, chunks
from rbdtree.model.extent import Extents, Pair
from rbdtree.ports import Layout

UNIT = 16384


@pytest.fixture(autouse=True)
def one_object_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of one object, so that a picture is copied in as many steps as it has letters."""
    monkeypatch.setattr(copying.chunks, "__defaults__", (UNIT, 0))


def image(text: str) -> Any:
    storage = memory.Storage("f", [("p", "")])
    pool = memory.Sites({"a": storage}).cluster("a").pool("p")
    made = pool.open(pool.create_image("v", len(text) * UNIT, Layout(UNIT, UNIT, 1), None), read_only=False)
    for number, letter in enumerate(text):
        if letter != "-":
            made.submit_write(number * UNIT, (b"\0" if letter == "0" else letter.encode()) * UNIT, lambda _: None)
    return made


def show(found: Any) -> str:
    """The picture of an image; ``?`` for an object of several bytes."""
    shown = ""
    for number in range(found.size() // UNIT):
        data = set(found.read(number * UNIT, UNIT))
        hole = found.checksums([(number * UNIT, UNIT)]) == [None]
        shown += "-" if hole else "?" if len(data) > 1 else chr(min(data)) if min(data) else "0"
    return shown


def everything(text: str) -> list[list[Pair]]:
    """A plan: each object by itself, in batches of two."""
    pairs = [(n * UNIT, UNIT) for n in range(len(text))]
    return [pairs[n : n + 2] for n in range(0, len(pairs), 2)]


def existing(text: str) -> Extents:
    return Extents.of((n * UNIT, UNIT) for n, letter in enumerate(text) if letter != "-")


class Wrapped:
    """An image with something between it and its user."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class FailsAt(Wrapped):
    """Reads or writes of one object fail, ``at`` once called or when they are done."""

    def __init__(self, inner: Any, number: int, *, when: str = "done") -> None:
        super().__init__(inner)
        self.number = number
        self.when = when

    def _fail(self, offset: int, length: int, done: Callable[[Any], None]) -> bool:
        if not offset <= self.number * UNIT < offset + length:
            return False
        error = errors.NoSpace("pool f is full")
        if self.when == "called":
            raise error
        done(error)
        return True

    def submit_read(self, offset: int, length: int, done: Any) -> None:
        if not self._fail(offset, length, done):
            self.inner.submit_read(offset, length, done)

    def submit_write(self, offset: int, data: bytes, done: Any) -> None:
        if not self._fail(offset, len(data), done):
            self.inner.submit_write(offset, data, done)

    def submit_zero(self, offset: int, length: int, done: Any) -> None:
        if not self._fail(offset, length, done):
            self.inner.submit_zero(offset, length, done)


class Counts(Wrapped):
    """What was asked of it."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.reads: list[Pair] = []
        self.writes: list[Pair] = []
        self.zeroes: list[Pair] = []

    def submit_read(self, offset: int, length: int, done: Any) -> None:
        self.reads.append((offset, length))
        self.inner.submit_read(offset, length, done)

    def submit_write(self, offset: int, data: bytes, done: Any) -> None:
        self.writes.append((offset, len(data)))
        self.inner.submit_write(offset, data, done)

    def submit_zero(self, offset: int, length: int, done: Any) -> None:
        self.zeroes.append((offset, length))
        self.inner.submit_zero(offset, length, done)


class Gate(Wrapped):
    """Writes are kept back until ``open`` is called; they are carried out last first."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.kept: list[tuple[int, bytes, Any]] = []
        self.guard = threading.Lock()

    def submit_write(self, offset: int, data: bytes, done: Any) -> None:
        with self.guard:
            self.kept.append((offset, data, done))

    def open(self, number: int) -> None:
        """Carries out the youngest ``number`` of the writes kept back."""
        with self.guard:
            ready = [self.kept.pop() for _ in range(number)]
        for offset, data, done in ready:
            self.inner.submit_write(offset, data, done)

    def waits(self, number: int) -> None:
        deadline = time.monotonic() + 10
        while len(self.kept) < number:
            assert time.monotonic() < deadline, f"{len(self.kept)} writes, not {number}"
            time.sleep(0.005)


def copy(text: str, *targets: Target, source: Any = None, **options: Any) -> Copied:
    return Copy(source or image(text), list(targets), everything(text), **options).run()


def target(text: str, wrapped: Callable[[Any], Any] = lambda i: i, name: str = "t") -> Target:
    return Target(name, wrapped(image(text)), existing(text))


@pytest.mark.parametrize(
    ("source", "before", "after"),
    [
        ("AB0-", "----", "AB--"),
        ("AB0-", "CCCC", "AB--"),
        ("----", "A0A-", "----"),
        ("ABCD", "ABCD", "ABCD"),
        ("0000", "----", "----"),
    ],
    ids=[
        "a hole stays a hole, written zeroes become one",
        "zeroes replace what was there",
        "what is gone at the source goes",
        "equal stays equal",
        "nothing is shipped for zeroes over nothing",
    ],
)
@pytest.mark.parametrize("compare", [False, True], ids=["writing", "comparing"])
def test_pictures(source: str, before: str, after: str, compare: bool) -> None:
    into = target(before)
    found = copy(source, into, compare=compare)
    assert show(into.image).replace("0", "-") == after
    assert into.failed is None
    assert found.done_bytes == found.passed_bytes == found.total_bytes == 4 * UNIT


def test_zeroes_over_nothing_are_not_shipped() -> None:
    into = target("----", Counts)
    copy("A00B", into)
    assert (into.image.zeroes, len(into.image.writes)) == ([], 2)
    assert (into.elided_bytes, into.copied_chunks, into.elided_chunks) == (2 * UNIT, 2, 2)
    assert (into.written_bytes, into.zeroed_bytes) == (2 * UNIT, 0)


def test_zeroes_inside_an_object_are_not_written() -> None:
    source = image("A")
    source.submit_zero(4096, 8192, lambda _: None)
    into = target("-", Counts)
    copy("A", into, source=source)
    assert into.image.writes == [(0, 4096), (12288, 4096)]
    assert into.image.read(0, UNIT) == source.read(0, UNIT)


@pytest.mark.parametrize(("end", "zeroed"), [(None, UNIT - 4096), (4096, 0), (8192, UNIT - 4096), (UNIT, UNIT - 4096)])
def test_zeroes_beyond_the_data_of_an_object_are_not_written(end: int | None, zeroed: int) -> None:
    """The source has data up to 4096, the target up to ``end``, which is asked for where zeroes are met only."""
    source = image("-A")
    source.submit_zero(UNIT + 4096, UNIT - 4096, lambda _: None)
    into = target("AA", Counts)
    asked = []
    into.end_of = lambda first, length: (asked.append((first, length)), None if end is None else first + end)[1]
    found = Copy(source, [into], [[(UNIT, UNIT)]]).run()
    assert asked == [(UNIT, UNIT)]
    assert into.image.writes == [(UNIT, 4096)]
    assert sum(length for _, length in into.image.zeroes) == into.zeroed_bytes == zeroed
    assert into.elided_bytes == UNIT - 4096 - zeroed
    assert (into.copied_chunks, into.elided_chunks) == (1, 0)
    assert found.done_bytes == 2 * UNIT


def test_an_end_that_cannot_be_asked_for_fails_the_target() -> None:
    def end_of(first: int, length: int) -> int:
        raise errors.Unreachable("site b does not answer")

    bad, good = target("AAAA", name="bad"), target("AAAA", name="good")
    bad.end_of = end_of
    copy("A0-B", bad, good)
    assert isinstance(bad.failed, errors.Unreachable)
    assert good.failed is None
    assert show(good.image).replace("0", "-") == "A--B"


def test_comparing_writes_only_what_differs() -> None:
    one, two = target("ABXD", Counts), target("XBCX", Counts)
    copy("ABCD", one, two, compare=True)
    assert one.image.writes == [(2 * UNIT, UNIT)]
    assert two.image.writes == [(0, UNIT), (3 * UNIT, UNIT)]
    assert (one.copied_chunks, one.elided_chunks) == (1, 3)
    assert (two.copied_chunks, two.elided_chunks) == (2, 2)
    assert show(one.image) == show(two.image) == "ABCD"


def test_several_targets_share_one_read() -> None:
    source = Counts(image("ABCD"))
    targets = [target("----", name=str(n)) for n in range(3)]
    found = copy("ABCD", *targets, source=source)
    assert sum(length for _, length in source.reads) == found.read_bytes == 4 * UNIT
    assert [show(t.image) for t in targets] == ["ABCD"] * 3


@pytest.mark.parametrize("when", ["called", "done"])
@pytest.mark.parametrize("compare", [False, True], ids=["writing", "comparing"])
def test_a_target_that_fails_leaves_the_others_complete(when: str, compare: bool) -> None:
    bad = target("----", lambda i: FailsAt(i, 1, when=when), "bad")
    good = target("----", name="good")
    copy("ABCD", bad, good, compare=compare)
    assert isinstance(bad.failed, errors.NoSpace)
    assert good.failed is None
    assert show(good.image) == "ABCD"


def test_when_the_last_target_has_failed_the_copy_ends() -> None:
    bad = target("----" * 50, lambda i: FailsAt(i, 0))
    source = Counts(image("ABCD" * 50))
    with pytest.raises(errors.NoSpace):
        copy("ABCD" * 50, bad, source=source, window=Window(2 * UNIT))
    assert len(source.reads) < 100


@pytest.mark.parametrize("when", ["called", "done"])
def test_a_source_that_fails_ends_the_copy(when: str) -> None:
    into = target("----")
    made = Copy(FailsAt(image("ABCD"), 2, when=when), [into], everything("ABCD"), window=Window(1))
    with pytest.raises(errors.NoSpace):
        made.run()
    assert into.failed is None
    assert made.copied.done_bytes <= 2 * UNIT
    assert show(into.image)[: made.copied.done_bytes // UNIT] == "ABCD"[: made.copied.done_bytes // UNIT]


@pytest.mark.parametrize("compare", [False, True], ids=["writing", "comparing"])
def test_an_interrupted_copy_goes_on_where_it_says(compare: bool) -> None:
    """Whatever was read and not written any more when the end came is not done."""
    text = "ABCDEFGH"
    for calls in range(40):
        left = iter(range(calls))

        def check(left: Any = left) -> None:
            if next(left, None) is None:
                raise errors.Interrupted("interrupted")

        into = target("-" * len(text))
        made = Copy(image(text), [into], everything(text), check=check, compare=compare, window=Window(3 * UNIT))
        try:
            made.run()
        except errors.Interrupted:
            done = made.copied.done_bytes // UNIT
            assert show(into.image)[:done] == text[:done]
            rest = [[(at, n) for at, n in batch if at >= made.copied.done_bytes] for batch in everything(text)]
            Copy(image(text), [into], rest, compare=compare).run()
        assert show(into.image) == text


def test_a_plan_that_fails_ends_the_copy() -> None:
    def plan() -> Any:
        yield [(0, UNIT)]
        raise errors.Unreachable("site a did not answer")

    into = target("----")
    with pytest.raises(errors.Unreachable):
        Copy(image("ABCD"), [into], plan()).run()


def test_a_check_that_fails_ends_the_copy() -> None:
    def check() -> None:
        raise errors.Fenced("the claim was lost")

    into = target("----" * 20)
    with pytest.raises(errors.Fenced):
        copy("ABCD" * 20, into, check=check, window=Window(1))
    assert show(into.image) != "ABCD" * 20


def test_a_byte_that_flips_in_memory_is_found() -> None:
    class Flips(Copy):
        def _write(self, chunk: Any) -> None:
            chunk.data = chunk.data[:5] + b"!" + chunk.data[6:]
            super()._write(chunk)

    into = target("----")
    with pytest.raises(errors.Integrity) as caught:
        Flips(image("ABCD"), [into], everything("ABCD")).run()
    assert "changed in memory" in str(caught.value)
    assert "!" not in show(into.image)
    assert show(into.image) == "----"


def test_a_short_read_is_found() -> None:
    class Short(Wrapped):
        def submit_read(self, offset: int, length: int, done: Any) -> None:
            self.inner.submit_read(offset, length - 1, done)

    with pytest.raises(errors.Integrity):
        copy("ABCD", target("----"), source=Short(image("ABCD")))


def test_bytes_in_flight_stay_below_the_window() -> None:
    class Held(Wrapped):
        """Counts bytes read whose writes are not done."""

        in_flight = most = 0

        def submit_read(self, offset: int, length: int, done: Any) -> None:
            self.in_flight += length
            self.most = max(self.most, self.in_flight)
            self.inner.submit_read(offset, length, done)

    class Done(Wrapped):
        def submit_write(self, offset: int, data: bytes, done: Any) -> None:
            source.in_flight -= len(data)
            self.inner.submit_write(offset, data, done)

    text = "ABCD" * 64
    source = Held(image(text))
    into = target("-" * len(text), Done)
    # A chunk is one object here, counted twice: read, and written once.
    pairs = [[(n * 4 * UNIT, UNIT)] for n in range(len(text) // 4)]
    Copy(source, [into], pairs, window=Window(8 * UNIT)).run()
    assert source.most <= 9 * UNIT


def test_progress_never_overstates_what_is_done() -> None:
    """Writes end in any order; ``done_bytes`` is what a restart begins from."""
    text = "ABCDEFGH"
    gate = Gate(image("-" * len(text)))
    into = Target("t", gate, Extents())
    seen: list[int] = []

    def progress(copied: Copied) -> None:
        shown = show(gate.inner)
        whole = len(shown) - len(shown.lstrip(text))
        assert copied.done_bytes <= whole * UNIT, f"{copied.done_bytes} of {shown}"
        seen.append(copied.done_bytes)

    # Far apart, so that each is a chunk of its own.
    made = Copy(image(text), [into], [[(n * UNIT, UNIT)] for n in range(len(text))], progress=progress)
    run = threading.Thread(target=made.run, daemon=True)
    run.start()
    gate.waits(len(text))
    for _ in text:
        gate.open(1)
    run.join(10)
    assert not run.is_alive()
    assert seen == sorted(seen)
    assert made.copied.done_bytes == len(text) * UNIT
    assert show(gate.inner) == text


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0, 10)], [(0, 10)]),
        ([(0, 10), (15, 5)], [(0, 20)]),
        ([(0, 10), (40, 5)], [(0, 10), (40, 5)]),
        ([(90, 20)], [(90, 10), (100, 10)]),
        ([(95, 5), (100, 5)], [(95, 5), (100, 5)]),
        ([(50, 300)], [(50, 50), (100, 100), (200, 100), (300, 50)]),
        ([], []),
    ],
    ids=[
        "one",
        "near ones are read together",
        "far ones are not",
        "no read crosses the grid",
        "nor do two that touch there",
        "long ones are cut",
        "none",
    ],
)
def test_chunks(pairs: list[Pair], expected: list[Pair]) -> None:
    found = list(chunks(pairs, chunk=100, near=10))
    assert [(start, end - start) for start, end, _ in found] == expected
    assert Extents.of(p for _, _, pieces in found for p in pieces) == Extents.of(pairs)
