"""Random writers, pushes, syncs, cuts, crashes and resolutions against a model of what may be published.

RBDTREE_TEST_ROUNDS and RBDTREE_TEST_SEED choose how many rounds (default 20) and which.
"""

import os
import random
import signal
from typing import Any

import pytest
from live.world import TREE, noise

from rbdtree.model.position import Position

from .volume import KIB, MIB, REFUSED, Volume

pytestmark = pytest.mark.ceph

ROUNDS = int(os.environ.get("RBDTREE_TEST_ROUNDS", "20"))
SEED = int(os.environ.get("RBDTREE_TEST_SEED", "1"))
SIZE = 2 * MIB
SECTOR = 512
NAMES = ("root", "m", "leaf", "k")


class Writer:
    """What one node's branch holds, and since when."""

    def __init__(self, name: str, bytes_now: bytes, base: Position) -> None:
        self.name = name
        self.start = bytes_now
        self.now = bytearray(bytes_now)
        self.base = base


class Model:
    """Plays with a volume, and knows what each generation must be."""

    def __init__(self, volume: Volume, seed: int) -> None:
        self.volume = volume
        self.chosen = random.Random(seed)
        self.writers: dict[str, Writer] = {}
        self.generations: dict[int, bytes] = {}
        self.authors: dict[int, str] = {}
        self.log: list[str] = []
        self.killed = 0
        self.refused = 0
        self.published = 0

    def offset(self) -> int:
        """Near places that others like too."""
        area = self.chosen.choice((0, MIB, SIZE - 64 * KIB))
        return area + self.chosen.randrange(0, 48 * KIB // 256) * 256

    def pieces(self) -> dict[int, bytes]:
        found = {}
        for _ in range(self.chosen.randint(1, 4)):
            offset, length = self.offset(), self.chosen.choice((1, 256, 512, 1000, 4096))
            zero = self.chosen.random() < 0.15
            found[offset] = bytes(length) if zero else noise(length, self.chosen.random())
        return found

    # -- what may happen

    def write(self, name: str) -> None:
        volume = self.volume
        document = volume.document(name)
        if document.branch is None or not document.branch.image_id:
            if not document.generations:
                return
            volume.branch(name)
        document = volume.document(name)
        assert document.branch
        writer = self.writers.get(name)
        if writer is None or writer.base != document.branch.base:
            now = volume.branch_bytes(name)
            assert now == self.generations[document.branch.base.sequence], f"{name} is not its base"
            writer = self.writers[name] = Writer(name, now, document.branch.base)
        pieces = self.pieces()
        volume.put(name, pieces, expect=False)
        for offset, data in pieces.items():
            writer.now[offset : offset + len(data)] = data

    def root_write(self) -> None:
        self.volume.root_write(self.pieces())

    def cut(self) -> None:
        self.volume.cut()
        self.learn()

    def sync(self) -> None:
        self.volume.sync(self.chosen.choice(("", "m", "leaf", "k")))

    def learn(self) -> list[int]:
        """Generations that are new at the root; those without a push are what its host wrote."""
        found = []
        for generation in self.volume.document("root").generations:
            number = generation.position.sequence
            if number in self.generations:
                continue
            self.generations[number] = self.volume.at_root(number)
            self.authors[number] = generation.author
            if not generation.author:
                assert self.generations[number] == bytes(self.volume.model), f"{number} is not what the root wrote"
            found.append(number)
        return found

    def push(self, name: str, *, kill: bool = False, lately: int = 0) -> None:
        volume, writer = self.volume, self.writers.get(name)
        document = volume.document(name)
        if document.branch is None or writer is None:
            return
        if kill:
            number = self.chosen.randint(1, 40)
            done = volume.driven("push", f"{TREE}/{name}", kill_after=number)
            self.killed += done.returncode == -signal.SIGKILL
            self.log.append(f"  killed after {number}: {done.returncode}")
        ended = volume.push(name, code=None)
        assert ended.code in (0, REFUSED), ended
        fresh = self.learn()
        mine = [n for n in fresh if self.authors[n] == name]
        assert len(mine) <= 1 + lately, (name, fresh)
        changed = self.differing(bytes(writer.now), writer.start)
        if ended.code == REFUSED:
            assert not mine
            assert self.clash(writer, changed, max(self.generations)), f"{name} was refused for nothing: {ended.err}"
            self.refused += 1
            self.resolve(name)
        elif changed:
            assert mine, f"{name} changed {len(changed)} sectors, and was not published: {ended}"
            self.expect_published(writer, changed, mine[-1])
            assert not self.clash(writer, changed, mine[-1] - 1), f"{name} was published over a conflict"
        else:
            assert not mine

    def expect_published(self, writer: Writer, changed: list[int], number: int) -> None:
        """The generation is the one before it, with the writer's sectors."""
        wanted = bytearray(self.generations[number - 1])
        for at in changed:
            wanted[at : at + SECTOR] = writer.now[at : at + SECTOR]
        wrong = self.differing(self.generations[number], bytes(wanted))
        assert not wrong, f"{writer.name} in {number}: {len(wrong)} sectors are wrong, {wrong[:4]}"
        self.volume.model[:] = self.generations[number]
        writer.start = bytes(writer.now)
        self.published += 1

    def resolve(self, name: str) -> None:
        volume, writer = self.volume, self.writers[name]
        self.log.append(f"  {name} was refused")
        if self.chosen.random() < 0.5:
            volume.cli("resolve", f"{TREE}/{name}", "--take", "theirs", "--yes")
            del self.writers[name]
            return
        volume.cli("resolve", f"{TREE}/{name}", "--take", "ours")
        volume.push(name)
        (number,) = [n for n in self.learn() if self.authors[n] == name]
        self.expect_published(writer, self.differing(bytes(writer.now), writer.start), number)

    @staticmethod
    def differing(one: bytes, other: bytes) -> list[int]:
        if one == other:
            return []
        return [at for at in range(0, SIZE, SECTOR) if one[at : at + SECTOR] != other[at : at + SECTOR]]

    def clash(self, writer: Writer, changed: list[int], until: int) -> list[int]:
        """Sectors of ``changed`` that others changed to other bytes since the writer's base or its own last word."""
        settled: set[int] = set()
        found = []
        for number in range(until, writer.base.sequence, -1):
            before, after = self.generations[number - 1], self.generations[number]
            here = [at for at in changed if before[at : at + SECTOR] != after[at : at + SECTOR]]
            if self.authors[number] == writer.name:
                settled.update(here)
                continue
            newest = self.generations[until]
            found += [
                at for at in here if at not in settled and newest[at : at + SECTOR] != writer.now[at : at + SECTOR]
            ]
        return found


@pytest.mark.release
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("seed", [SEED])
def test_random_writers(volume: Volume, seed: int) -> None:
    volume.init(size=SIZE)
    volume.add("m", "root", "mirror", "b")
    volume.add("leaf", "m", "mirror", "c")
    volume.add("k", "root", "clone", "a")
    volume.root_write({0: noise(MIB, seed)})
    volume.step()
    model = Model(volume, seed)
    model.learn()
    try:
        for number in range(ROUNDS):
            play(model, number)
    except AssertionError as error:
        raise AssertionError("\n".join([f"seed {seed}", *model.log[-30:], str(error)])) from error
    for name in NAMES:
        model.log.append(f"at the end: push {name}")
        model.push(name)
    for _ in range(3):
        volume.sync()
    empty_trash(volume)
    volume.settled()
    assert model.published >= ROUNDS // 4, model.published


def play(model: Model, number: int) -> None:
    chosen = model.chosen
    for name in chosen.sample(NAMES, chosen.randint(1, 3)):
        model.log.append(f"{number}: write {name}")
        model.write(name)
    action = chosen.choices(("root", "cut", "sync", "push", "push", "kill"), (1, 1, 2, 3, 3, 2))[0]
    name: Any = chosen.choice(NAMES)
    model.log.append(f"{number}: {action} {name}")
    if action == "root":
        model.root_write()
    elif action == "cut":
        model.cut()
    elif action == "sync":
        model.sync()
    else:
        model.push(name, kill=action == "kill")
    if number % 8 == 7:
        model.volume.check()


def empty_trash(volume: Volume) -> None:
    import rbd

    for site in "abc":
        with volume.ioctx(site) as ioctx:
            for entry in rbd.RBD().trash_list(ioctx):
                rbd.RBD().trash_remove(ioctx, entry["id"], True)
