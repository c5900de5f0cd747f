"""Claims between processes: the living are respected, the dead are not waited for."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rbdtree import errors, memory
from rbdtree.engine import claim
from rbdtree.engine.claim import SECONDS, Claim
from rbdtree.engine.node import Node
from rbdtree.model.document import Kind, NodeDocument, NodeRef, object_name
from rbdtree.ports import Layout


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def storage(clock: Clock) -> memory.Storage:
    return memory.Storage("f", [("p", "")], clock=clock)


def node_of(storage: memory.Storage) -> Node:
    """The node as a client of its own sees it."""
    return Node(memory.Sites({"a": storage}).cluster("a").pool("p"), "1", "t/n")


@pytest.fixture
def node(storage: memory.Storage) -> Node:
    made = node_of(storage)
    ref = NodeRef("1", "n", "a", "f", "p", "", "vol")
    made.create(NodeDocument("0123abcd", "t", Kind.ROOT, ref, "12", ref))
    return made


@pytest.fixture
def somebody() -> Iterator[subprocess.Popen[bytes]]:
    """Another process of this machine."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        yield process
        process.kill()


def owner_of(process: subprocess.Popen[bytes]) -> str:
    return json.dumps(
        {
            "worker": f"here:{process.pid}",
            "machine": claim._machine(),
            "pid": process.pid,
            "started": claim._started(process.pid),
            "doing": "sync",
        }
    )


def check_for(held: Claim, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        held.check()
        time.sleep(0.01)


def test_a_claim_is_held_and_given_back(node: Node) -> None:
    with Claim(node, "sync") as held:
        found = node.pool.claimed(node.object)
        assert found is not None
        assert found.cookie == held.cookie
        assert f":{os.getpid()} (sync)" in claim.describe(found)
        held.check()
    assert node.pool.claimed(node.object) is None


def test_the_holder_writes_and_a_stranger_does_not(node: Node, storage: memory.Storage) -> None:
    with Claim(node, "sync") as held:
        node.update(lambda d: replace(d, epoch=2), held.cookie)
        with pytest.raises(errors.Fenced):
            node_of(storage).update(lambda d: replace(d, epoch=3), "stranger")
    with pytest.raises(errors.Fenced):
        node.update(lambda d: replace(d, epoch=4), held.cookie)
    assert node.read().epoch == 2


def test_a_dead_process_is_not_waited_for(
    node: Node, storage: memory.Storage, somebody: subprocess.Popen[bytes]
) -> None:
    theirs = node_of(storage)
    theirs.pool.claim(node.object, "theirs", owner_of(somebody), SECONDS)
    somebody.kill()
    somebody.wait(10)
    began = time.monotonic()
    with Claim(node, "sync"), pytest.raises(errors.Error):
        theirs.update(lambda d: replace(d, epoch=2), "theirs")
    assert time.monotonic() - began < 5


def test_a_reused_pid_is_not_the_process_that_died(node: Node, somebody: subprocess.Popen[bytes]) -> None:
    owner = {**json.loads(owner_of(somebody)), "started": "1"}
    node.pool.claim(node.object, "theirs", json.dumps(owner), SECONDS)
    found = node.pool.claimed(node.object)
    assert found is not None
    assert claim.is_dead(found.owner)


def test_a_process_that_proc_does_not_show_is_not_dead(
    node: Node, somebody: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with the mount option hidepid, of another user's."""
    owner = owner_of(somebody)
    read = Path.read_text

    def hidden(path: Path, *words: Any) -> str:
        if path.match("/proc/*/stat"):
            raise FileNotFoundError(path)
        return read(path, *words)

    monkeypatch.setattr(Path, "read_text", hidden)
    assert not claim.is_dead(owner)
    somebody.kill()
    somebody.wait(10)
    assert claim.is_dead(owner)


def test_a_process_of_another_machine_is_never_taken_for_dead(node: Node) -> None:
    for owner in ('{"worker": "x:1", "machine": "elsewhere", "pid": 1, "started": "0", "doing": "y"}', "", "nonsense"):
        node.pool.claim(node.object, "theirs", owner, SECONDS)
        found = node.pool.claimed(node.object)
        assert found is not None
        assert not claim.is_dead(found.owner)
        node.pool.unclaim(node.object, "theirs")


def test_one_that_renews_is_alive_and_the_newcomer_gives_way(
    node: Node, storage: memory.Storage, clock: Clock, somebody: subprocess.Popen[bytes]
) -> None:
    theirs = node_of(storage)
    owner, stop = owner_of(somebody), threading.Event()
    theirs.pool.claim(node.object, "theirs", owner, SECONDS)

    def renew() -> None:
        while not stop.wait(0.02):
            clock.now += 1
            theirs.pool.claim(node.object, "theirs", owner, SECONDS)

    keeper = threading.Thread(target=renew)
    keeper.start()
    try:
        with pytest.raises(errors.Busy) as caught, Claim(node, "cut"):
            pass
    finally:
        stop.set()
        keeper.join()
    assert f"here:{somebody.pid} (sync) is at work on t/n" in str(caught.value)
    assert theirs.pool.claimed(node.object) is not None


def test_one_that_waits_waits_for_the_living(
    node: Node, storage: memory.Storage, somebody: subprocess.Popen[bytes]
) -> None:
    theirs = node_of(storage)
    theirs.pool.claim(node.object, "theirs", owner_of(somebody), SECONDS)
    done = threading.Timer(0.5, theirs.pool.unclaim, (node.object, "theirs"))
    done.start()
    with Claim(node, "cut", wait=True) as held:
        held.check()
    done.join()


def test_a_silent_claim_is_waited_out(
    node: Node, storage: memory.Storage, clock: Clock, somebody: subprocess.Popen[bytes]
) -> None:
    theirs = node_of(storage)
    theirs.pool.claim(node.object, "theirs", owner_of(somebody), SECONDS)
    later = threading.Timer(0.3, lambda: setattr(clock, "now", clock.now + SECONDS + 1))
    later.start()
    with Claim(node, "sync"), pytest.raises(errors.Fenced):
        theirs.update(lambda d: replace(d, epoch=2), "theirs")
    later.join()


@pytest.mark.parametrize("end", ["given back", "ran out"])
def test_the_one_before_is_fenced_only_when_its_claim_ran_out(
    storage: memory.Storage, clock: Clock, node: Node, end: str
) -> None:
    """One that gave it back lives, and may have the image open to read from it, as for another edge."""
    image_id = node.pool.create_image("n", 1 << 20, Layout(), None)
    theirs = node_of(storage)
    owner = claim.identity("sync", theirs.pool.cluster.address())
    theirs.pool.claim(node.object, "theirs", owner, SECONDS)
    opened = theirs.pool.open(image_id, read_only=False)
    done = {
        "given back": lambda: theirs.pool.unclaim(node.object, "theirs"),
        "ran out": lambda: setattr(clock, "now", clock.now + SECONDS + 1),
    }
    later = threading.Timer(0.3, done[end])
    later.start()
    image = node.pool.open(image_id)
    with Claim(node, "retain", wait=True) as held:
        held.free(image)
    later.join()
    image.close()
    if end == "given back":
        opened.close()
        theirs.pool.claim(node.object, "again", owner, SECONDS)
    else:
        with pytest.raises(errors.Fenced):
            theirs.pool.claim(node.object, "again", owner, SECONDS)


def test_a_claim_that_was_taken_away_stops_the_work(
    node: Node, storage: memory.Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_RENEW", 0.05)
    other = node_of(storage)
    with Claim(node, "sync") as held:
        found = other.pool.claimed(node.object)
        assert found is not None
        other.pool.break_claim(node.object, found)
        other.pool.claim(node.object, "theirs", "somebody", SECONDS)
        with pytest.raises(errors.Fenced):
            check_for(held, 10)
    assert other.pool.claimed(node.object) is not None


def test_a_claim_tells_the_clusters_time(
    node: Node, storage: memory.Storage, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Claim(node, "retain") as held:
        assert held.cluster_time() == pytest.approx(1000.0, abs=5)
        monkeypatch.setattr(held, "_asked", held._asked - 15.0)
        assert held.cluster_time() == pytest.approx(1015.0, abs=5)
        clock.now += SECONDS + 1
        with pytest.raises(errors.Fenced):
            held.cluster_time()
        node_of(storage).pool.claim(node.object, "theirs", "somebody", SECONDS)
        with pytest.raises(errors.Fenced):
            held.cluster_time()


def test_a_claim_needs_a_document(node: Node) -> None:
    node.remove()
    with pytest.raises(errors.NotFound), Claim(node, "sync"):
        pass
    assert node.pool.read_document(object_name("1")) is None
