"""Nodes that hold ranges of the volume: a chain of them on three clusters, read and written with librbd."""

from typing import Any

import pytest
from live.world import TREE, noise

from rbdtree.model.portion import inside
from rbdtree.model.position import snapshot_name

from .volume import MIB, MISUSED, REFUSED, Volume

pytestmark = pytest.mark.ceph

SIZE = 32 * MIB


def check_portions(volume: Volume, *, current: bool = True) -> None:
    """Every generation, wherever it is, holds the root's bytes in its portion and zeroes elsewhere."""
    documents = volume.documents()
    root = documents["root"]
    truth: dict[str, bytes] = {}
    for generation in root.generations:
        name = snapshot_name(root.tree_id, generation.position)
        with volume.image("root", name, read_only=True) as image:
            truth[name] = bytes(image.read(0, image.size()))
    for document in documents.values():
        if current:
            assert document.newest_position == root.newest_position, document.name
        for generation in document.generations:
            name = snapshot_name(root.tree_id, generation.position)
            wanted = bytearray(len(truth[name]))
            for offset, length in inside(generation.portion, len(wanted)):
                wanted[offset : offset + length] = truth[name][offset : offset + length]
            with volume.image(document.name, None if document.kind == "clone" else name, read_only=True) as image:
                assert bytes(image.read(0, image.size())) == bytes(wanted), f"{document.name} at {generation.position}"


def written(volume: Volume, *more: object) -> dict[str, int]:
    """A generation, brought everywhere: bytes written by node."""
    return {node["node"]: node["written_bytes"] for node in volume.get("sync", TREE, "--cut", *more)["nodes"]}


@pytest.fixture
def chain(volume: Volume) -> Any:
    """root (a) -> m (b) -> far (c), and k, a clone of m. Everything is written."""
    volume.init(size=SIZE)
    volume.add("m", "root", "mirror", "b", "--portion", "0..24M")
    volume.add("far", "m", "mirror", "c", "--portion", "0..4M,12M..16M")
    volume.add("k", "m", "clone", "b")
    volume.root_write({0: noise(SIZE, "all")})
    assert written(volume) == {"m": 24 * MIB, "far": 8 * MIB, "k": 0}
    return volume


@pytest.mark.release
def test_a_chain_of_portions(chain: Volume) -> None:
    check_portions(chain)
    assert (chain.used("m"), chain.used("far")) == (24 * MIB, 8 * MIB)
    with chain.image("root") as image:
        image.discard(0, 8 * MIB)
        image.write(noise(MIB, 1), 13 * MIB)
        image.write(noise(MIB, 2), 26 * MIB)
    # An object of zeroes, and the write inside.
    assert written(chain)["far"] == 5 * MIB
    with chain.image("root") as image:
        image.resize(14 * MIB)
    written(chain)
    check_portions(chain)
    with chain.image("root") as image:
        image.resize(40 * MIB)
        image.write(noise(26 * MIB, 3), 14 * MIB)
    assert written(chain) == {"m": 10 * MIB, "far": 2 * MIB, "k": 0}
    check_portions(chain)
    assert chain.used("far") <= 8 * MIB
    for against in ((), ("far",), ("m",), ("k",)):
        found = chain.get("verify", "/".join((TREE, *against)))
        assert all(node["equal"] for node in found["nodes"]), found
        assert sum(node["read_bytes"] + node["checksummed_bytes"] for node in found["nodes"]) <= 40 * MIB
    assert {n["portion_pending"] for n in chain.status().values()} == {False}


def test_only_the_difference_moves(chain: Volume) -> None:
    chain.cli("portion", "set", f"{TREE}/far", "0..4M,8M..16M")
    chain.cli("sync", TREE)
    assert chain.status()["far"]["portion_pending"] is True
    assert written(chain) == {"m": 0, "far": 4 * MIB, "k": 0}
    check_portions(chain)
    chain.cli("portion", "set", f"{TREE}/far", "8M..12M")
    # Zeroes take the place of what went, and nothing is sent.
    assert written(chain) == {"m": 0, "far": 0, "k": 0}
    check_portions(chain)
    assert chain.used("far") == 4 * MIB
    chain.cli("portion", "set", f"{TREE}/m", "whole")
    chain.cli("portion", "set", f"{TREE}/far", "8M..12M,28M..32M")
    assert written(chain) == {"m": 8 * MIB, "far": 4 * MIB, "k": 0}
    check_portions(chain)
    assert written(chain) == {"m": 0, "far": 0, "k": 0}


@pytest.mark.parametrize("node", ["far", "k"])
def test_pushes_inside_and_outside(chain: Volume, node: str) -> None:
    chain.put(node, {MIB: noise(MIB, node)})
    assert chain.pushed(node)["published"] == ["1.2"]
    chain.sync()
    check_portions(chain)
    chain.check_model()
    chain.put(node, {2 * MIB: noise(4096, "in"), 25 * MIB: noise(4096, "out")}, expect=False)
    done = chain.push(node, code=REFUSED)
    assert f"4096 bytes ({25 * MIB}+4096) are outside the portion that {node} holds" in done.err
    refused = chain.conflict(node)
    assert [(e["reason"], e["total_bytes"]) for e in refused["evidence"]] == [("portion", 4096)]
    assert all(push.position for push in chain.document("root").pushes)
    assert chain.newest() == 2
    chain.cli("resolve", f"{TREE}/{node}", "--take", "ours", "--yes", code=MISUSED)
    chain.cli("resolve", f"{TREE}/{node}", "--park", "kept")
    chain.sync()
    check_portions(chain)
    chain.check_model()


def test_a_journal_uplink_stops_at_what_is_outside(chain: Volume) -> None:
    chain.branch("far", "--uplink", "journal")
    chain.put("far", {MIB: noise(4096, "in")})
    chain.cli("uplink", f"{TREE}/far", "--once")
    chain.check_model()
    chain.put("far", {20 * MIB: noise(4096, "out")}, expect=False)
    done = chain.cli("uplink", f"{TREE}/far", "--once", code=REFUSED)
    assert "outside the portion" in done.err
    chain.cli("resolve", f"{TREE}/far", "--take", "theirs", "--yes")
    chain.sync()
    check_portions(chain)
    chain.check_model()
