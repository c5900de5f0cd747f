"""Random histories of a volume; all nodes equal after each round.

``RBDTREE_FUZZ_ROUNDS`` (default 30) rounds of ``RBDTREE_FUZZ_SEED`` (default: by the clock; pytest shows it when the
test fails).
"""

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any

import pytest

from rbdtree.engine.forest import look
from rbdtree.engine.sync import Sync

from .world import MIB, TREE, World, noise

pytestmark = pytest.mark.ceph

ROUNDS = int(os.environ.get("RBDTREE_FUZZ_ROUNDS", "30"))
SEED = int(os.environ.get("RBDTREE_FUZZ_SEED", str(int(time.time()))))
LARGEST = 24 * MIB
SHAPES = {
    "plain": {"order": 20},
    "striped": {"order": 18, "stripe_unit": 32 << 10, "stripe_count": 3},
    "maps-off": {"order": 20, "features": 1},
}


class Fuzz:
    """One tree and one source of chance."""

    def __init__(self, world: World, chosen: random.Random) -> None:
        self.world = world
        self.chosen = chosen
        self.users: list[str] = []
        self.made = 0
        self.said: list[str] = []

    def change(self) -> None:
        """A few things a host may do to its volume."""
        with self.world.image("root") as image:
            for _ in range(self.chosen.randrange(1, 9)):
                act: Callable[[Any], None] = self.chosen.choices(
                    [self.write, self.zeroes, self.discard, self.snapshot, self.unsnapshot, self.resize],
                    weights=[8, 4, 4, 2, 1, 2],
                )[0]
                self.said.append(act.__name__)
                act(image)

    def _place(self, image: Any) -> tuple[int, int]:
        size = image.size()
        offset = self.chosen.randrange(size + 1) if size else 0
        if self.chosen.random() < 0.6:
            offset -= offset % 4096
        length = self.chosen.choice([1, 512, 4096, 4096, 40000, 65536, MIB, 3 * MIB])
        return offset, min(length, size - offset)

    def write(self, image: Any) -> None:
        offset, length = self._place(image)
        if length:
            data = noise(length, self.chosen.random()) if self.chosen.random() < 0.8 else bytes(length)
            image.write(data, offset)

    def zeroes(self, image: Any) -> None:
        offset, length = self._place(image)
        if length:
            image.write_zeroes(offset, length)

    def discard(self, image: Any) -> None:
        offset, length = self._place(image)
        if length:
            image.discard(offset, length)

    def snapshot(self, image: Any) -> None:
        self.made += 1
        self.users.append(f"user{self.made}")
        image.create_snap(self.users[-1])

    def unsnapshot(self, image: Any) -> None:
        if self.users:
            image.remove_snap(self.users.pop(self.chosen.randrange(len(self.users))))

    def resize(self, image: Any) -> None:
        # There is no clone of 0 bytes.
        size = self.chosen.randrange(MIB, LARGEST)
        image.resize(size - size % self.chosen.choice([1, 512, MIB]))

    def sync(self) -> None:
        """All of the tree, a part of it, or a run that is killed somewhere."""
        chance = self.chosen.random()
        if chance < 0.15:
            done = self.world.driven("sync", TREE, kill_after=self.chosen.randrange(1, 40), record_seconds=0.05)
            self.said.append(f"driven {done.returncode}")
            assert done.returncode in (0, -signal.SIGKILL), done.stderr
        elif chance < 0.3:
            self._run(frozenset(self.chosen.choice([["m1"], ["m1", "m2"], ["k1"]])))
        else:
            self._run(None)

    def _run(self, only: frozenset[str] | None) -> None:
        outcomes = Sync(self.world.sites, only=only).run(look(self.world.sites, TREE).tree(TREE))
        assert not [o.error for o in outcomes if o.error], outcomes

    def equal(self) -> None:
        """Whoever is up to date has the root's bytes; whoever is not has those of an older generation."""
        self.world.check()
        documents = self.world.documents()
        for name, document in documents.items():
            if document.position == documents["root"].position and not document.intent and name != "root":
                assert document.newest.size_bytes == documents["root"].newest.size_bytes


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shape", SHAPES)
def test_random_histories(world: World, shape: str) -> None:
    rounds = max(1, ROUNDS // len(SHAPES))
    print(f"RBDTREE_FUZZ_SEED={SEED} shape {shape}, {rounds} rounds")
    fuzz = Fuzz(world, random.Random(f"{SEED} {shape}"))
    features = SHAPES[shape].get("features", 61)
    striped = 2 if "stripe_unit" in SHAPES[shape] else 0
    world.create("a", "vol", 16 * MIB, **{**SHAPES[shape], "features": features | striped})
    world.init(size=None)
    world.add("m1", "root", "mirror", "b")
    world.add("m2", "m1", "mirror", "c", "--object-size", "2M")
    world.add("m3", "root", "mirror", "c", "--object-size", "64K")
    world.add("k1", "m1", "clone", "b")
    for number in range(rounds):
        fuzz.said = [f"round {number}:"]
        try:
            for _ in range(fuzz.chosen.choice([1, 1, 1, 2, 3])):
                fuzz.change()
                world.quick_cut()
            fuzz.sync()
            fuzz.equal()
        except BaseException:
            print(*fuzz.said)
            raise
    fuzz._run(None)
    world.forget_hashes()
    world.check(current=True)
    world.check_settled()
