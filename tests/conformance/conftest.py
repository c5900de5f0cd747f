"""The same tests over both implementations of ``rbdtree.ports``: what holds in memory holds on Ceph."""

import itertools
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from live import latecomer

from rbdtree import memory
from rbdtree.ports import Image, Layout, Pool, Sites

UNIT = 16384
SMALL = Layout(UNIT, UNIT, 1)
_names = itertools.count(1)


def wait_until(question: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true answer."""
    deadline = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return answer


def settled(submit: Callable[..., None], *arguments: Any) -> Any:
    """What a ``submit_*`` call hands to its callback; raises the error it hands over."""
    done = threading.Event()
    answers: list[Any] = []

    def callback(answer: Any) -> None:
        answers.append(answer)
        done.set()

    submit(*arguments, callback)
    assert done.wait(15), "the callback was never called"
    if isinstance(answers[0], Exception):
        raise answers[0]
    return answers[0]


def write(image: Image, offset: int, data: bytes | None) -> None:
    settled(image.submit_write, offset, data)


def zero(image: Image, offset: int, length: int) -> None:
    settled(image.submit_zero, offset, length)


class World:
    """One cluster and a fresh pool in it, seen by two clients: ``pool`` and ``other``; ``aside`` is a namespace."""

    sites: Sites
    pool: Pool
    other: Pool
    aside: Pool

    def __init__(self) -> None:
        self.sites, pool, self.aside = self.client()
        self.pool = pool
        self.other_sites, other, _ = self.client()
        self.other = other

    def client(self) -> tuple[Any, Pool, Pool]:
        """A new client with an address of its own."""
        raise NotImplementedError

    def pass_time(self, seconds: float) -> None:
        """Lets that much time pass for claims."""
        raise NotImplementedError

    def time(self) -> float:
        """By the cluster's clock, to some seconds."""
        raise NotImplementedError

    def fill(self) -> None:
        """No space is left."""
        raise NotImplementedError

    def empty(self) -> None:
        """There is space again."""
        raise NotImplementedError

    def protect(self, image: Image, snapshot: str) -> None:
        """``rbd snap protect``"""
        raise NotImplementedError

    def write_late(self, image: Image, offset: int, data: bytes | None) -> None:
        """Into the head and the newest snapshot, which its writer does not know of; None removes the object. The image
        is closed."""
        raise NotImplementedError

    @property
    def cluster(self) -> Any:
        return self.sites.cluster("a")

    def image(self, size: int = 8 * UNIT, pool: Pool | None = None) -> Image:
        """A new image, open for writing."""
        at = pool or self.pool
        return at.open(at.create_image(f"i{next(_names)}", size, SMALL, None), read_only=False)

    def name_of(self, image: Image) -> str:
        return next(e.name for e in self.pool.images() if e.image_id == image.image_id)

    def name(self) -> str:
        """One never used before."""
        return f"n{next(_names)}"


class InMemory(World):
    def __init__(self) -> None:
        self._now = 1000.0
        self._storage = memory.Storage("f", [("p", ""), ("p", "ns")], clock=lambda: self._now)
        super().__init__()

    def client(self) -> tuple[Any, Pool, Pool]:
        sites = memory.Sites({"a": self._storage})
        return sites, sites.cluster("a").pool("p"), sites.cluster("a").pool("p", "ns")

    def pass_time(self, seconds: float) -> None:
        self._now += seconds

    def time(self) -> float:
        return self._now

    def protect(self, image: Image, snapshot: str) -> None:
        memory.protect(self._storage, image.image_id, snapshot)

    def write_late(self, image: Image, offset: int, data: bytes | None) -> None:
        memory.write_late(self._storage, image.image_id, offset, data)

    def fill(self) -> None:
        self._storage.limit("p", 0)

    def empty(self) -> None:
        self._storage.limit("p", None)


class OnCeph(World):
    def __init__(self, pools: Any) -> None:
        self._pools = pools
        pools.namespace("a", "ns")
        super().__init__()

    def client(self) -> tuple[Any, Pool, Pool]:
        sites = self._pools.sites()
        return sites, sites.cluster("a").pool(self._pools.name), sites.cluster("a").pool(self._pools.name, "ns")

    def pass_time(self, seconds: float) -> None:
        # The OSD's clock is not ours to turn: what is tested is the expiry itself.
        deadline = time.monotonic() + seconds
        wait_until(lambda: time.monotonic() >= deadline, seconds + 1)

    def time(self) -> float:
        # The cluster runs on this machine.
        return time.time()

    def protect(self, image: Image, snapshot: str) -> None:
        import rbd

        with (
            self._pools.clusters.admin("a").open_ioctx(self._pools.name) as ioctx,
            rbd.Image(ioctx, image_id=image.image_id) as opened,
        ):
            opened.protect_snap(snapshot)

    def write_late(self, image: Image, offset: int, data: bytes | None) -> None:
        import rbd

        with (
            self._pools.clusters.admin("a").open_ioctx(self._pools.name) as ioctx,
            rbd.Image(ioctx, image_id=image.image_id, read_only=True) as opened,
        ):
            latecomer.write(ioctx, opened, offset, data)

    def fill(self) -> None:
        self._ratios(0.00001, 0.00002, 0.00003)

    def empty(self) -> None:
        self._ratios(0.85, 0.9, 0.95)

    def _ratios(self, *ratios: float) -> None:
        for which, ratio in zip(("nearfull", "backfillfull", "full"), ratios, strict=True):
            self._pools.clusters.mon("a", prefix=f"osd set-{which}-ratio", ratio=ratio)


CEPH = pytest.param("ceph", marks=[pytest.mark.ceph, pytest.mark.release])


@pytest.fixture(params=["memory", CEPH])
def world(request: pytest.FixtureRequest) -> World:
    return InMemory() if request.param == "memory" else OnCeph(request.getfixturevalue("pools"))
