"""Hosts that know the clusters of one edge only: a push goes from hand to hand, and its verdict comes back."""

from pathlib import Path
from typing import Any

import pytest
from live.world import TREE, Done, noise

from rbdtree.engine import push as pushing
from rbdtree.ports import Silent

from .volume import MIB, REFUSED, Volume

pytestmark = pytest.mark.ceph


class Hosts:
    """``at("bc", "push", ...)``: the command on a host that reaches clusters b and c."""

    def __init__(self, volume: Volume, directory: Path) -> None:
        self.volume = volume
        self.directory = directory

    def at(self, sites: str, *words: object, code: int | None = 0) -> Done:
        path = self.directory / f"{sites}.toml"
        pools = self.volume.pools
        path.write_text("\n".join(f'[sites.{s}]\nconf = "{pools.conf(s)}"\npools = ["{pools.name}"]\n' for s in sites))
        done: Done = self.volume.process("--config", path, *words, code=code)
        return done


@pytest.fixture
def hosts(volume: Volume, tmp_path: Path) -> Hosts:
    """root a - k (clone) a - m b - leaf c."""
    volume.init(size=16 * MIB)
    volume.add("k", "root", "clone", "a")
    volume.add("m", "k", "mirror", "b")
    volume.add("leaf", "m", "mirror", "c")
    volume.root_write({0: noise(MIB)})
    volume.step()
    volume.branch("leaf")
    return Hosts(volume, tmp_path)


def states(volume: Volume) -> dict[str, list[str]]:
    return {name: [str(p.state) for p in d.pushes] for name, d in volume.documents().items()}


def test_from_hand_to_hand(hosts: Hosts) -> None:
    volume = hosts.volume
    before = volume.newest()
    volume.put("leaf", {MIB: noise(3000, 1)})
    done = hosts.at("bc", "push", f"{TREE}/leaf")
    assert "on its way" in done.out, done
    assert states(volume) == {"root": [], "k": [], "m": ["staged"], "leaf": ["sent"]}
    # Again: nothing more happens, and a second push lines up behind it.
    hosts.at("bc", "push", f"{TREE}/leaf")
    assert states(volume)["m"] == ["staged"]
    volume.put("leaf", {MIB + 1000: noise(3000, 2)})
    hosts.at("bc", "push", f"{TREE}/leaf")
    assert states(volume) == {"root": [], "k": [], "m": ["staged", "staged"], "leaf": ["sent", "sent"]}
    assert volume.newest() == before
    # m has no branch of its own.
    hosts.at("ab", "push", f"{TREE}/m")
    assert volume.newest() == before + 2
    volume.check_model()
    # The verdict is at m; leaf hears it, and gets the bytes when m has them.
    hosts.at("bc", "sync", f"{TREE}/leaf")
    assert states(volume)["leaf"] == ["published", "published"]
    assert volume.branch_bytes("leaf") == bytes(volume.model), "the branch went back behind its own writes"
    hosts.at("ab", "sync", f"{TREE}/m")
    hosts.at("bc", "sync", f"{TREE}/leaf")
    assert volume.branch_bytes("leaf") == bytes(volume.model)
    volume.sync()
    volume.sync()
    volume.settled()


def test_a_verdict_against_it_comes_back(hosts: Hosts) -> None:
    volume = hosts.volume
    volume.put("leaf", {MIB: noise(512, 1)}, expect=False)
    hosts.at("bc", "push", f"{TREE}/leaf")
    volume.put("leaf", {2 * MIB: noise(512, 2)}, expect=False)
    volume.put("k", {MIB: noise(512, "k")})
    volume.push("k")
    before = volume.newest()
    hosts.at("ab", "push", f"{TREE}/m", code=None)
    assert volume.newest() == before
    done = hosts.at("bc", "push", f"{TREE}/leaf", code=REFUSED)
    assert "changed by k" in done.err
    hosts.at("bc", "resolve", f"{TREE}/leaf", "--take", "ours")
    hosts.at("bc", "push", f"{TREE}/leaf")
    hosts.at("ab", "push", f"{TREE}/m")
    volume.expect({MIB: noise(512, 1), 2 * MIB: noise(512, 2)})
    volume.check_model()
    volume.sync()
    volume.sync()
    volume.sync()
    volume.settled()


def test_a_push_taken_back_while_it_is_on_its_way(hosts: Hosts) -> None:
    """Refused behind a refused one that waits further up; forced; nothing old is published behind it."""
    volume = hosts.volume
    volume.put("k", {MIB: noise(512, "k")})
    volume.push("k")
    volume.put("leaf", {MIB: noise(512, 1)}, expect=False)
    hosts.at("bc", "push", f"{TREE}/leaf")
    hosts.at("ab", "push", f"{TREE}/m", code=None)
    # The verdict waits at m; leaf goes on without having asked.
    volume.put("leaf", {MIB: noise(512, 2), 3 * MIB: noise(512, 2)}, expect=False)
    pushing.stage(volume.sites, volume.node("leaf"))
    pushing.forward(volume.sites, volume.node("leaf"), Silent())
    hosts.at("bc", "push", f"{TREE}/leaf", code=REFUSED)
    hosts.at("bc", "resolve", f"{TREE}/leaf", "--take", "ours")
    hosts.at("bc", "push", f"{TREE}/leaf")
    hosts.at("ab", "push", f"{TREE}/m", code=None)
    volume.push("leaf", code=None)
    volume.expect({MIB: noise(512, 2), 3 * MIB: noise(512, 2)})
    volume.check_model()
    volume.sync()
    volume.sync()
    volume.sync()
    volume.settled()


def test_a_host_that_sees_no_parent(hosts: Hosts) -> None:
    volume = hosts.volume
    volume.put("leaf", {MIB: noise(512, 1)})
    done = hosts.at("c", "push", f"{TREE}/leaf")
    assert "on its way" in done.out
    assert states(volume)["leaf"] == ["staged"]
    said: Any = hosts.at("c", "push", f"{TREE}/leaf", "--wait", code=None)
    assert said.code != 0
    volume.push("leaf", "--wait")
    volume.sync()
    volume.sync()
    volume.settled()


def test_a_discard_takes_back_what_is_on_its_way(hosts: Hosts) -> None:
    """One push that waits at m, one at k; nothing of either is published, and nothing stays."""
    volume = hosts.volume
    before = volume.newest()
    volume.put("leaf", {MIB: noise(512, 1)}, expect=False)
    hosts.at("bc", "push", f"{TREE}/leaf")
    pushing.forward(volume.sites, volume.node("m"), Silent())
    volume.put("leaf", {2 * MIB: noise(512, 2)}, expect=False)
    hosts.at("bc", "push", f"{TREE}/leaf")
    assert states(volume) == {"root": [], "k": ["staged"], "m": ["sent", "staged"], "leaf": ["sent", "sent"]}
    volume.cli("discard", f"{TREE}/leaf", "--yes")
    volume.push("m", code=None)
    assert volume.newest() == before
    volume.put("leaf", {3 * MIB: noise(512, 3)})
    volume.push("leaf", "--wait")
    assert volume.newest() == before + 1
    volume.check_model()
    volume.sync()
    volume.at_rest(trash=True)


def test_a_discard_says_what_it_could_not_take_back(hosts: Hosts) -> None:
    volume = hosts.volume
    volume.put("leaf", {MIB: noise(512, 1)})
    hosts.at("bc", "push", f"{TREE}/leaf")
    done = hosts.at("c", "discard", f"{TREE}/leaf", "--yes")
    assert "what was sent to m may still be published" in done.out
    hosts.at("ab", "push", f"{TREE}/m")
    volume.check_model()
