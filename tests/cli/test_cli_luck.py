"""Bad luck: keys that may not, clusters that do not answer, documents that cannot be read; and leaving a tree."""

import errno
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from terminal import start

pytestmark = pytest.mark.ceph

DRIVER = Path(__file__).parents[1] / "live" / "driver.py"
SCRIPTS = Path(__file__).parents[2] / "ceph-dev"
MIB = 1 << 20


# -- keys


def test_a_key_that_only_reads(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.add("vol/k", "root", "clone", "a")
    room.write("a", "vol", b"one" * 1000)
    room.run("sync", "--cut", "vol")
    room.write("a", "vol", b"two" * 1000)
    room.run("cut", "vol")
    reader = room.key("reader", "allow r", f"profile rbd-read-only pool={room.pools.name}")
    before = room.dump()
    assert {n["state"] for n in room.get("status", config=reader)["trees"][0]["nodes"]} == {"up-to-date", "outdated"}
    assert len(room.get("log", "vol", config=reader)["generations"]) == 2
    assert room.get("diff", "vol", "--since", "1.1", config=reader)["count"]
    assert all(node["equal"] for node in room.get("verify", "vol", config=reader)["nodes"])
    assert room.get("marks", config=reader)["marks"]
    assert room.get("sync", "vol", "--dry-run", config=reader)["nodes"][0]["steps"]
    missing = room.get("site", "check", config=reader, code=errno.EPERM)["sites"][0]["missing"]
    assert "this key can look, not sync" in missing[0]
    assert room.dump() == before
    image = room.spec("b", "x")
    for words in (
        ("sync", "vol"),
        ("cut", "vol"),
        ("init", "t", "--node", "r", "--image", image, "--size", "4M"),
        ("add", "vol/x", "--parent", "root", "--kind", "mirror", "--image", image),
        ("remove", "vol/m"),
        ("detach", "vol/m"),
        ("rollback", "vol/m"),
    ):
        done = room.refused(*words, code=errno.EPERM, config=reader, before=before, says="key may not do that")
        assert "rbdtree site check" in done.err
        assert room.pools.name in done.err


def test_a_key_for_another_pool(room: Any) -> None:
    room.tree()
    other = room.key("other", "profile rbd", f"profile rbd pool={room.pools.name}-else")
    before = room.dump()
    room.refused("status", code=errno.EPERM, config=other, before=before)
    room.refused("cut", "vol", code=errno.EPERM, config=other, before=before)
    image = room.spec("a", "x")
    room.refused("init", "t", "--node", "r", "--image", image, code=errno.EPERM, config=other, before=before)
    room.run("marks", code=errno.EPERM, config=other)


def test_a_key_for_one_namespace(room: Any) -> None:
    room.tree()
    for site in ("a", "b"):
        room.pools.namespace(site, "n1")
    pool = room.pools.name
    key = room.key("n1", "profile rbd", f"profile rbd pool={pool} namespace=n1", pools=[f"{pool}/n1"])
    for site in ("c",):
        room.pools.namespace(site, "n1")
    before = room.dump()
    room.refused(
        "init", "t", "--node", "r", "--image", room.spec("a", "x"), "--size", "4M", code=1, config=key, before=before
    )
    room.run("init", "t", "--node", "r", "--image", room.spec("a", "x", "n1"), "--size", "4M", config=key)
    image = room.spec("b", "x", "n1")
    room.run("add", "t/m", "--parent", "r", "--kind", "mirror", "--image", image, config=key)
    room.run("sync", "--cut", "t", config=key)
    room.run("verify", "t", config=key)
    assert [tree["tree"] for tree in room.get("status", config=key)["trees"]] == ["t"]
    assert [tree["tree"] for tree in room.get("status")["trees"]] == ["t", "vol"]
    done = room.run("remove", "t/m", "--expiry", "1s", config=key)
    assert f"rbd trash restore {pool}/n1/" in done.out
    room.run("detach", "t/r", config=key)
    assert room.get("marks", config=key)["marks"] == []


# -- clusters


def nobody_there(room: Any, site: str) -> Path:
    """A configuration in which this site's monitor is a port at which nobody listens."""
    lines = room.pools.conf(site).read_text().splitlines()
    lines = ["mon host = [v2:127.0.0.1:1]" if line.startswith("mon host") else line for line in lines]
    conf = room.config.with_name("closed.conf")
    # Ceph wants the last line to end.
    conf.write_text("\n".join([*lines, ""]))
    return room.without(site, conf)


def test_a_cluster_that_is_not_there(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.add("vol/g", "m", "mirror", "c")
    room.tree("here", site="c")
    room.run("sync", "--cut", "vol")
    config = nobody_there(room, "b")
    before = room.dump()
    began = time.monotonic()
    done = room.run("--timeout", 1, "--format", "json", "status", config=config)
    assert time.monotonic() - began < 8
    trees = {tree["tree"]: tree for tree in done.json["trees"]}
    states = {node["name"]: node["state"] for node in trees["vol"]["nodes"]}
    assert states == {"root": "up-to-date", "m": "unreachable", "g": "up-to-date"}
    assert trees["here"]["nodes"][0]["state"] == "up-to-date"
    assert done.json["problems"][0]["exit_code"] == errno.ETIMEDOUT
    assert "site b did not answer within 1 s" in done.err
    image = room.spec("b", "x")
    for words in (
        ("sync", "vol"),
        ("remove", "vol/m"),
        ("rollback", "vol/m"),
        ("add", "vol/x", "--parent", "m", "--kind", "mirror", "--image", room.spec("c", "x")),
        ("add", "vol/x", "--parent", "root", "--kind", "mirror", "--image", image),
        ("init", "t", "--node", "r", "--image", image, "--size", "4M"),
        ("verify", "vol/m"),
        ("status", "nowhere"),
    ):
        done = room.refused("--timeout", 1, *words, code=errno.ETIMEDOUT, config=config, before=before)
        assert "site b did not answer within 1 s" in done.err
    room.refused("--timeout", 1, "remove", "vol/m", "--forget", code=errno.ENOTEMPTY, config=config, before=before)
    room.run("--timeout", 1, "site", "check", code=errno.ETIMEDOUT, config=config)
    room.run("--timeout", 1, "marks", code=errno.ETIMEDOUT, config=config)
    # Nothing keeps the rest of the world from going on.
    room.run("--timeout", 1, "cut", "vol", config=config)
    room.run("--timeout", 1, "cut", "here", config=config)


def test_forget(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.run("sync", "--cut", "vol")
    config = nobody_there(room, "b")
    before = room.dump()
    done = room.run("--timeout", 1, "remove", "vol/m", "--forget", "--dry-run", config=config)
    assert "would forget m" in done.out
    assert room.dump() == before
    room.run("--timeout", 1, "remove", "vol/m", "--forget", config=config)
    marks = room.get("--timeout", 1, "marks", "vol", config=config, code=errno.ETIMEDOUT)["marks"]
    assert not [mark for mark in marks if mark["kind"] == "hold" or mark["node"] == "m"]
    assert room.dump()["b"] == before["b"]
    assert "vol-m" in room.rbd("b", "ls")
    # The cluster is back: the node does not slip in again by itself.
    before = room.dump()
    node = next(n for n in room.get("status", "vol")["trees"][0]["nodes"] if n["name"] == "m")
    assert node["state"] == "diverged"
    assert "was forgotten" in node["problem"]
    done = room.refused("sync", "vol", code=errno.EUCLEAN, before=before)
    assert "rbdtree detach vol/m" in done.err
    room.run("remove", "vol/m")
    assert not [mark for mark in room.get("marks", "vol")["marks"] if mark["node"] != "root"]
    assert "vol-m" not in room.rbd("b", "ls")


def test_a_frozen_monitor(tmp_path: Path, room: Any) -> None:
    directory = tmp_path / "d"
    room.tree()
    try:
        subprocess.run([SCRIPTS / "up", "--dir", directory, "x"], check=True, capture_output=True, timeout=60)
        config = room.config.with_name("frozen.toml")
        config.write_text(f'{room.config.read_text()}\n[sites.x]\nconf = "{directory}/x/ceph.conf"\n')
        assert room.get("status", config=config)["problems"] == []
        subprocess.run([SCRIPTS / "daemon", "--dir", directory, "x", "mon.a", "pause"], check=True, timeout=30)
        began = time.monotonic()
        done = room.run("--timeout", 2, "status", config=config)
        assert time.monotonic() - began < 10
        assert "vol" in done.out
        assert "site x did not answer within 2 s" in done.err
        refused = ("init", "t", "--node", "r", "--image", "x:i", "--size", "4M")
        room.refused("--timeout", 2, *refused, code=errno.ETIMEDOUT, config=config)
    finally:
        subprocess.run([SCRIPTS / "down", "--dir", directory, "--purge"], check=False, capture_output=True, timeout=60)


# -- documents


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("newer", errno.EOPNOTSUPP, "has document format 999"),
        ("not { JSON", errno.EUCLEAN, "does not hold a node document"),
    ],
    ids=["newer", "garbage"],
)
def test_a_document_that_cannot_be_read(room: Any, text: str, code: int, says: str) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.tree("other")
    room.run("sync", "--cut", "vol")
    root, child = room.nodes()["root"]["id"], room.nodes()["m"]["id"]
    good = room.document("a", root)
    bad = json.dumps({**good, "format": 999}) if text == "newer" else text
    room.put_document("a", root, bad)
    before = room.dump()
    for words in (
        ("cut", "vol"),
        ("sync", "vol"),
        ("sync", "--cut", "vol"),
        ("verify", "vol"),
        ("detach", "vol/root"),
        ("add", "vol/x", "--parent", "root", "--kind", "mirror", "--image", room.spec("b", "x")),
    ):
        room.refused(*words, code=code, before=before, says=says)
    status = room.run("--format", "json", "status")
    assert {tree["tree"] for tree in status.json["trees"]} == {"other", "vol"}
    assert status.json["problems"][0]["exit_code"] == code
    room.run("cut", "other")
    init = ("init", "vol", "--node", "root", "--image", room.spec("c", "x"), "--size", "4M")
    room.refused(*init, code=errno.EEXIST, says="has a root already")
    taken = ("init", "mine", "--node", "root", "--image", room.spec("a", "vol"))
    room.refused(*taken, code=errno.EEXIST, says="belongs to a tree already")
    # The same at a child: the rest of the tree goes on.
    room.put_document("a", root, json.dumps(good))
    kept = room.document("b", child)
    room.put_document("b", child, json.dumps({**kept, "format": 999}) if text == "newer" else text)
    room.run("cut", "vol")
    before = room.dump()
    room.refused("sync", "vol", code=code, before=before, says=says)
    room.refused("remove", "vol/m", code=code, before=before, says=says)
    assert room.nodes()["m"]["state"] == "unreachable"
    room.put_document("b", child, json.dumps(kept))
    room.run("sync", "vol")
    room.run("verify", "vol")


# -- leaving


def marks_of(room: Any, site: str, image: str) -> list[str]:
    """What of ours is on an image, asked of RBD."""
    snapshots = [s["name"] for s in json.loads(room.rbd(site, "snap", "ls", "--all", "--format", "json", image))]
    metadata = json.loads(room.rbd(site, "image-meta", "list", "--format", "json", image) or "{}")
    return [text for text in (*snapshots, *metadata) if "rbdtree" in text]


def test_detach_keeps_every_byte_and_no_mark(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.add("vol/k", "root", "clone", "a")
    room.write("a", "vol", b"one" * 5000, 12345)
    room.run("sync", "--cut", "vol")
    room.write("a", "vol", b"two" * 5000, 3 * MIB)
    room.run("sync", "--cut", "vol")
    content = room.read("a", "vol")
    before = room.dump()
    for node in ("m", "k"):
        assert "would stay" in room.run("detach", f"vol/{node}", "--dry-run").out
    assert room.dump() == before
    done = room.get("detach", "vol/m")
    assert done["image"] == room.spec("b", "vol-m")
    room.run("detach", "vol/k")
    for site, image in (("b", "vol-m"), ("a", "vol-k")):
        assert room.read(site, image) == content
        assert marks_of(room, site, image) == []
    kinds = {mark["kind"] for mark in room.get("marks")["marks"]}
    assert "hold" not in kinds
    assert {mark["node"] for mark in room.get("marks")["marks"]} == {"root"}
    room.run("detach", "vol/root")
    assert room.read("a", "vol") == content
    assert json.loads(room.rbd("a", "snap", "ls", "--format", "json", "vol")) == []
    assert room.get("marks")["marks"] == []
    assert room.run("marks").out == "no marks on the sites that answered\n"
    left = {name for site in room.dump().values() for name in site["objects"] if "rbdtree" in name}
    assert left <= {"/rbdtree_directory"}
    room.refused("detach", "vol/root", code=errno.ENOENT)


def test_remove_trashes_and_the_trash_gives_back(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.add("vol/q", "root", "mirror", "b")
    room.add("vol/k", "root", "clone", "a")
    room.write("a", "vol", b"one" * 5000)
    room.run("sync", "--cut", "vol")
    content = room.read("a", "vol")
    before = room.dump()
    assert "would go to the trash for 7 d" in room.run("remove", "vol/m", "--expiry", "7d", "--dry-run").out
    assert room.dump() == before
    room.rbd("b", "snap", "create", "--no-progress", "vol-m@mine")
    said = room.get("remove", "vol/m", "--expiry", "7d")["result"]
    assert "for as long as it has the snapshots mine" in said
    trash = json.loads(room.rbd("b", "trash", "ls", "--long", "--format", "json"))
    assert [entry["name"] for entry in trash] == ["vol-m"]
    assert trash[0]["status"].startswith("protected until")
    assert trash[0]["id"] in said
    room.refused("remove", "vol/m", code=errno.ENOENT)
    room.rbd("b", "trash", "rm", trash[0]["id"], code=errno.EPERM)
    words = said.partition("'rbd ")[2].partition("'")[0].split()
    room.rbd("b", *words)
    assert room.read("b", "vol-m") == content
    assert marks_of(room, "b", "vol-m") == []
    # Past its expiry the trash lets go of it.
    room.run("rm", "vol/q", "--expiry", "1s")
    room.run("remove", "vol/k", "--expiry", "1s")
    time.sleep(1.1)
    for site in ("a", "b"):
        for entry in json.loads(room.rbd(site, "trash", "ls", "--format", "json")):
            room.rbd(site, "trash", "rm", entry["id"])
        assert json.loads(room.rbd(site, "trash", "ls", "--format", "json")) == []
    assert {mark["node"] for mark in room.get("marks")["marks"]} == {"root"}
    room.run("sync", "--cut", "vol")
    room.run("detach", "vol/root")
    assert room.get("marks")["marks"] == []


def test_a_seeding_node_is_not_detached(room: Any) -> None:
    room.tree(size="48M")
    room.add("vol/m", "root", "mirror", "b")
    room.write("a", "vol", bytes(range(1, 256)) * (40 * MIB // 255))
    room.run("cut", "vol")
    orders = json.dumps({"kill_copied": 0.3, "write_seconds": 0.02, "record_seconds": 0.05})
    words = [sys.executable, str(DRIVER), orders, "--config", str(room.config), "sync", "vol"]
    assert subprocess.run(words, capture_output=True, timeout=60, check=False).returncode == -9
    assert room.nodes()["m"]["state"] == "seeding"
    before = room.dump()
    done = room.refused("detach", "vol/m", code=errno.EBUSY, says="in the middle of generation 1.1")
    assert "rbdtree sync vol/m" in done.err
    assert "rbdtree rollback vol/m" in done.err
    assert room.dump() == before
    room.run("sync", "vol")
    room.run("detach", "vol/m")
    assert room.read("b", "vol-m") == room.read("a", "vol")


# -- going on


def test_rollback(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.add("vol/k", "root", "clone", "a")
    room.write("a", "vol", b"one" * 5000)
    room.run("sync", "--cut", "vol")
    before = room.dump()
    for node in ("m", "k"):
        assert "has not diverged: there is nothing to roll back" in room.run("rollback", f"vol/{node}").out
    content = room.read("a", "vol")
    assert room.dump() == before
    room.write("b", "vol-m", b"mine", 2 * MIB)
    room.write("a", "vol-k", b"mine", 2 * MIB)
    assert {name: node["state"] for name, node in room.nodes().items()} == {
        "root": "up-to-date",
        "m": "diverged",
        "k": "diverged",
    }
    before = room.dump()
    done = room.refused("sync", "vol", code=errno.EUCLEAN, before=before, says="has diverged")
    assert "rbdtree rollback vol/m" in done.err
    for node in ("m", "k"):
        assert "would" in room.run("rollback", f"vol/{node}", "--dry-run").out
    assert room.dump() == before
    kept = room.get("rollback", "vol/m")["result"].rpartition(" ")[2]
    assert room.read("b", "vol-m") == content
    with room.image("b", "vol-m", snapshot=kept) as image:
        assert image.read(2 * MIB, 4) == b"mine"
    assert "in the trash for 1 d" in room.run("rollback", "vol/k").out
    room.run("sync", "vol")
    room.run("verify", "vol")
    assert room.read("a", "vol-k") == content


def test_a_tree_without_generations(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    before = room.dump()
    done = room.refused("sync", "vol", code=errno.ENOENT, before=before, says="has no generation yet")
    assert "rbdtree sync --cut vol" in done.err
    room.refused("diff", "vol", "--since", "1.0", code=errno.ENOENT, before=before, says="has no generation yet")
    room.refused("verify", "vol", code=errno.ENOENT, before=before, says="no generation in common")
    assert "has no generation yet" in room.run("log", "vol").out
    assert room.nodes()["m"]["state"] == "absent"
    room.run("sync", "vol", "--cut", "--dry-run")
    assert room.dump() == before


def test_two_cuts_at_once_make_two_generations(room: Any) -> None:
    room.tree()
    begun = [start(("--config", room.config, "--format", "json", "cut", "vol")) for _ in range(2)]
    ended = [(p.communicate(timeout=60), p.returncode) for p in begun]
    assert [code for _, code in ended] == [0, 0], ended
    assert {json.loads(out)["generation"] for (out, _), _ in ended} == {"1.1", "1.2"}
    assert len(room.get("log", "vol")["generations"]) == 2


def test_ctrl_c_stops_in_good_order(room: Any) -> None:
    room.tree(size="64M")
    room.add("vol/m", "root", "mirror", "b")
    room.write("a", "vol", bytes(range(1, 256)) * (60 * MIB // 255))
    room.rbd("b", "config", "image", "set", "vol-m", "rbd_qos_bps_limit", 4 * MIB)
    process = start(("--config", room.config, "sync", "--cut", "vol"))
    deadline = time.monotonic() + 30
    while room.nodes()["m"]["state"] != "seeding" and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (out, err)
    assert "rbdtree: vol/m: interrupted\n  Run the sync again" in err
    assert room.nodes()["m"]["doing"] == ""
    room.rbd("b", "config", "image", "remove", "vol-m", "rbd_qos_bps_limit")
    done = room.run("sync", "vol")
    assert "takes over" not in done.err
    room.run("verify", "vol")
