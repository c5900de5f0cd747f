"""Every command: plain, as JSON with exactly the keys of docs/json.md, with the common options on either side of its
name, and with --dry-run, which changes nothing."""

import argparse
import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from rbdtree_cli import main, options
from terminal import Done, inside, run

PAGE = Path(__file__).parents[2] / "docs" / "json.md"
MIB = 1 << 20
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


# -- docs/json.md


def schema(command: str) -> dict[str, str]:
    """Path -> type, of the section whose heading names the command."""
    for heading, text in re.findall(r"^## (.*?)$(.*?)(?=^## |\Z)", PAGE.read_text(), flags=re.M | re.S):
        if f"`{command}`" in heading or heading == command:
            found = dict(re.findall(r"^\| `([^`]+)` \| ([a-z ]+?) \|", text, flags=re.M))
            # A list of objects without keys here: those of a push.
            pushes = [path for path, kind in found.items() if path.endswith("[]") and kind == "object"]
            for path in pushes:
                del found[path]
                found |= {f"{path}.{key}": kind for key, kind in schema("A push").items()}
            return found
    raise AssertionError(f"docs/json.md has no section of {command}")


def paths(value: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """(path, type) of everything in a JSON value."""
    if isinstance(value, dict):
        if at and not at.endswith("[]"):
            yield at, "object"
        for key, below in value.items():
            name = "*" if at.endswith("caps") else key
            yield from paths(below, f"{at}.{name}" if at else name)
    elif isinstance(value, list):
        for below in value:
            yield from paths(below, f"{at}[]")
    else:
        names = {bool: "boolean", int: "integer", float: "number", str: "string", type(None): "null"}
        yield at, names[type(value)]


def check_json(command: str, value: Any, absent: tuple[str, ...] = ()) -> None:
    """Exactly the documented keys; ``absent``: paths of lists (or of objects that may be null) that are empty here."""
    documented = schema(command)
    seen: set[str] = set()
    for path, kind in paths(value):
        if kind == "object" and path not in documented:
            continue
        assert path in documented, f"{command}: {path} is not in docs/json.md"
        allowed = documented[path].split(" or ")
        assert kind in allowed or (kind == "integer" and "number" in allowed), (command, path, kind, documented[path])
        seen.add(path)
    missing = {path for path in documented if path not in seen and not path.startswith(absent)}
    assert not missing, f"{command}: documented and not written: {missing}"
    assert value["version"] == 1


NO_ERROR = ("nodes[].error.", "nodes[].differences[]", "repaired[]")


# -- looking


@pytest.mark.ceph
def test_site_ls(shared: Any) -> None:
    found = shared.get("site", "ls")
    check_json("site ls", found)
    assert [site["site"] for site in found["sites"]] == ["a", "b", "c"]
    lines = shared.run("site", "ls").out.splitlines()
    assert lines[0].split() == ["SITE", "CONF", "CLIENT", "KEYRING", "POOLS"]
    assert lines[1].split() == ["a", str(shared.pools.conf("a")), "client.admin", shared.pools.name]


@pytest.mark.ceph
def test_site_check(shared: Any) -> None:
    found = shared.get("site", "check")
    check_json("site check", found, ("sites[].missing[]", "sites[].error."))
    check_json("site check", shared.get("site", "check", "b"), ("sites[].missing[]", "sites[].error."))
    failed = shared.run("--format", "json", "--id", "nobody", "site", "check", code=errno.EPERM).json
    check_json("site check", failed, ("sites[].missing[]", "sites[].places[]", "sites[].caps"))
    plain = shared.run("site", "check", "c", "a").out
    assert re.findall(r"^(\w): Ceph [\d.]+ \w+, HEALTH_\w+, fsid", plain, flags=re.M) == ["c", "a"]
    assert f"pool  {shared.pools.name}: reads and writes" in plain


def test_caps() -> None:
    for role in ("reader", "child", "parent", "root"):
        found = inside("--format", "json", "caps", role, "--pool", "p/n", "--client", "client.x")
        check_json("caps", found.json)
        plain = inside("caps", role, "--pool", "p/n", "--client", "client.x").out
        assert plain.startswith("ceph auth get-or-create client.x mon ")
        assert "pool=p namespace=n" in plain


@pytest.mark.ceph
def test_status(shared: Any) -> None:
    found = shared.get("status")
    nothing = ("branch.", "pushes[]", "portion[]")
    check_json("status", found, ("problems[]", *(f"trees[].nodes[].{key}" for key in nothing)))
    trees = {tree["tree"]: tree for tree in found["trees"]}
    assert list(trees) == ["new", "vol"]
    vol = trees["vol"]
    assert (vol["size_bytes"], vol["epoch"], vol["sequence"]) == (8 * MIB, 1, 3)
    assert UUID.fullmatch(vol["id"])
    nodes = {node["name"]: node for node in vol["nodes"]}
    assert [node["name"] for node in vol["nodes"]] == ["root", "k", "m", "g"]
    assert {name: node["parent"] for name, node in nodes.items()} == {"root": None, "k": "root", "m": "root", "g": "m"}
    assert {name: node["kind"] for name, node in nodes.items()} == {
        "root": "root",
        "k": "clone",
        "m": "mirror",
        "g": "mirror",
    }
    for name, node in nodes.items():
        assert UUID.fullmatch(node["id"])
        assert node["image"] == shared.spec(node["site"], "vol" if name == "root" else f"vol-{name}")
        if name != "root":
            assert (node["state"], node["sequence"], node["lag_generations"]) == ("outdated", 2, 1)
            assert node["lag_seconds"] > 0
            assert 3000 <= node["lag_bytes"] <= 8 * MIB
    root = nodes["root"]
    assert (root["state"], root["lag_generations"], root["lag_bytes"]) == ("up-to-date", 0, 0)
    assert shared.get("status", "vol")["trees"] == [vol]
    assert shared.get("status", vol["id"][:8])["trees"] == [vol]
    assert shared.get("status", "--quick", "vol")["trees"] == [vol]
    lines = shared.run("status", "vol").out.splitlines()
    assert re.match(rf"vol  8 MiB, generation 1\.3, id {vol['id'][:8]}$", lines[0])
    assert lines[1].split() == ["NODE", "KIND", "STATE", "GENERATION", "LAG", "SIZE", "IMAGE"]
    drawn = [re.split(r" (?=root|mirror|clone)", line)[0].rstrip() for line in lines[2:]]
    assert drawn == ["root", "├─ k", "└─ m", "   └─ g"]
    assert "1 gen, " in lines[3]
    assert all(line == line.rstrip() for line in lines)


@pytest.mark.ceph
def test_check_and_managers(shared: Any) -> None:
    done = shared.run("check", "vol", code=None)
    assert re.match(r"RBDTREE (OK|WARNING|CRITICAL|UNKNOWN) - .* \| (managers=\d+ )?vol_nodes=\d+", done.out), done.out
    found = shared.get("check", "vol", code=done.code)
    check_json("check", found, absent=() if found["findings"] else ("findings",))
    assert found["status"] == ("ok", "warning", "critical", "unknown")[done.code]
    unknown = shared.get("check", "nothing", code=3)
    assert unknown["findings"][0]["kind"] == "unknown"
    seen = shared.get("managers")
    check_json("managers", seen, absent=("managers",))
    assert seen["managers"] == []
    assert "no manager runs" in shared.run("managers").out


@pytest.mark.ceph
def test_status_again_and_again(shared: Any) -> None:
    """A pipe gets a line a look; without a terminal nothing can be drawn."""
    command = ["--config", str(shared.config), "--format", "json", "status", "vol", "--watch", "0.2"]
    watching = subprocess.Popen(
        [sys.executable, "-m", "rbdtree_cli.main", *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert watching.stdout
    try:
        looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
    finally:
        watching.kill()
        watching.communicate()
    times = [look["time_seconds"] for look in looks]
    assert times == sorted(set(times))
    plain = {key: value for key, value in shared.get("status", "vol")["trees"][0].items() if key != "nodes"}
    assert {key: value for key, value in looks[0]["trees"][0].items() if key != "nodes"} == plain
    assert "draws on a terminal" in shared.run("status", "--watch", code=22).err


@pytest.mark.ceph
def test_log(shared: Any) -> None:
    found = shared.get("log", "vol")
    check_json("log", found)
    assert [g["generation"] for g in found["generations"]] == ["1.3", "1.2", "1.1"]
    assert sorted(found["generations"][0]["nodes"]) == ["root"]
    assert sorted(found["generations"][1]["nodes"]) == ["g", "k", "m", "root"]
    assert [g["generation"] for g in shared.get("log", "vol/m")["generations"]] == ["1.2", "1.1"]
    lines = shared.run("log", "vol").out.splitlines()
    assert lines[0].split() == ["GENERATION", "CUT", "SIZE", "DELTA", "NODES"]
    assert re.match(r"1\.2 +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d +8 MiB +.* root, k, m, g$", lines[2])
    assert "has no generation yet" in shared.run("log", "new").out


@pytest.mark.ceph
def test_diff(shared: Any) -> None:
    found = shared.get("diff", "vol", "--since", "1.1", "--to", "1.2")
    check_json("diff", found)
    assert any(e["offset_bytes"] <= MIB < e["offset_bytes"] + e["length_bytes"] for e in found["extents"])
    assert found["count"] == len(found["extents"])
    assert found["total_bytes"] == sum(e["length_bytes"] for e in found["extents"])
    totals = shared.get("diff", "vol", "--since", "1.0", "--totals")
    check_json("diff", totals, ("extents[]",))
    assert (totals["since"], totals["to"]) == ("1.0", "1.3")
    plain = shared.run("diff", "vol", "--since", "1.1", "--to", "1.2").out.splitlines()
    assert plain[0].split() == ["OFFSET", "LENGTH"]
    assert re.match(r"1\.1 -> 1\.2: .* in 1 extent$", plain[-1])
    assert shared.run("diff", "vol", "--since", "1.2", "--totals").out.count("\n") == 1


@pytest.mark.ceph
def test_verify(shared: Any) -> None:
    found = shared.get("verify", "vol")
    check_json("verify", found, NO_ERROR)
    assert {n["node"]: (n["against"], n["generation"], n["equal"]) for n in found["nodes"]} == {
        "g": ("root", "1.2", True),
        "k": ("root", "1.2", True),
        "m": ("root", "1.2", True),
    }
    one = shared.get("verify", "vol/g", "--at", "1.1")["nodes"]
    assert [(n["node"], n["against"], n["generation"]) for n in one] == [("g", "m", "1.1")]
    plain = shared.run("verify", "vol").out.splitlines()
    assert re.fullmatch(r"vol/g = vol/root at 1\.2: .*B by checksums of the OSDs, .*B by reading", plain[0])
    assert "vol/k = vol/root at 1.2: a clean clone of that very snapshot" in plain
    failed = shared.get("verify", "vol", "--at", "1.3", code=errno.ENOENT)
    check_json("verify", failed, ("nodes[].differences[]", "repaired[]"))
    assert "nothing to compare" in shared.run("verify", "new").out


@pytest.mark.ceph
def test_verify_tells_what_differs(room: Any) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.write("a", "vol", b"one" * 5000)
    room.run("sync", "--cut", "vol")
    # Behind RBD's back, in the object: a bad disk.
    with room.image("b", "vol-m", read_only=True) as image:
        prefix = image.block_name_prefix()
    with room.ioctx("b") as ioctx:
        assert ioctx.read(f"{prefix}.{0:016x}", 3, 4096) == b"neo"
        ioctx.write(f"{prefix}.{0:016x}", b"BAD", 4096)
        # The snapshot shares the object with the head until the head is written through RBD.
        snapshots = ioctx.read(f"{prefix}.{0:016x}", 3, 4096)
        assert snapshots == b"BAD"
    found = room.get("verify", "vol", code=None)
    if found["nodes"][0]["equal"]:
        pytest.skip("the write made a clone of the object: the snapshot is as it was")
    check_json("verify", found, ("nodes[].error.", "repaired[]"))
    assert found["nodes"][0]["differences"][0]["object"] == 0
    done = room.run("verify", "vol", code=errno.EBADMSG)
    assert re.search(r"vol/m DIFFERS from vol/root at 1\.1 in 1 object:\n  object 0: \d+\+\d+", done.out)


def rot(room: Any, site: str, name: str, data: bytes, number: int, offset: int) -> None:
    """Behind RBD's back, in the head's object and so in the snapshot that shares it: a bad disk."""
    with room.image(site, name, read_only=True) as image:
        prefix = image.block_name_prefix()
    with room.ioctx(site) as ioctx:
        ioctx.write(f"{prefix}.{number:016x}", data, offset)


@pytest.mark.ceph
def test_verify_repairs(room: Any) -> None:
    """A mirror, and a mirror of it: each is compared whole with its parent, parents first. A clone cannot be mended."""
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.add("vol/g", "m", "mirror", "c")
    room.write("a", "vol", b"one" * 5000)
    room.write("a", "vol", b"two" * 5000, 4 << 20)
    room.run("sync", "--cut", "vol")
    rot(room, "b", "vol-m", b"BAD", 0, 4096)
    rot(room, "c", "vol-g", b"EVIL", 1, 8192)
    before = room.dump()
    planned = room.get("verify", "vol", "--repair", "--dry-run", code=errno.EBADMSG)
    check_json("verify", planned, ("nodes[].error.",))
    assert (planned["repaired"], planned["dry_run"]) == (["g", "m"], True)
    assert "would cut a generation" in room.run("verify", "vol", "--repair", "--dry-run", code=errno.EBADMSG).out
    room.refused("verify", "vol", "--repair", "--at", "1.1", code=errno.EINVAL, before=before, says="never written to")

    found = room.get("verify", "vol", "--repair")
    assert found["repaired"] == ["g", "m"]
    assert [(n["node"], n["generation"], n["equal"]) for n in found["nodes"]] == [
        ("g", "1.2", True),
        ("m", "1.2", True),
    ]
    wanted = room.read("a", "vol")
    assert room.read("b", "vol-m") == wanted
    assert room.read("c", "vol-g") == wanted
    assert room.get("verify", "vol", "--repair")["repaired"] == []
    assert "1.3" not in room.run("log", "vol").out

    rot(room, "b", "vol-m", b"AGAIN", 1, 4096)
    done = room.run("verify", "vol/m", "--repair").out
    assert "vol/m DIFFERS from vol/root at 1.2 in 1 object:" in done
    assert "vol: cut generation 1.3; with it compared whole: m" in done
    assert "vol/m = vol/root at 1.3" in done
    assert room.read("b", "vol-m") == wanted

    room.add("vol/k", "root", "clone", "a")
    room.run("sync", "vol/k")
    room.write("a", "vol-k", b"mine")
    done = room.run("verify", "vol/k", "--repair", code=errno.EBADMSG)
    assert "rbdtree rollback vol/k" in done.err
    assert "1.4" not in room.run("log", "vol").out
    room.run("rollback", "vol/k")
    room.run("sync", "vol/k")
    assert "vol/k = vol/root at 1.3" in room.run("verify", "vol/k").out


@pytest.mark.ceph
def test_marks(shared: Any) -> None:
    found = shared.get("marks")
    check_json("marks", found, ("problems[]",))
    kinds = {(m["tree"], m["node"], m["kind"]) for m in found["marks"]}
    for node in ("root", "m", "g"):
        for kind in ("directory", "object", "metadata", "snapshot"):
            assert ("vol", node, kind) in kinds
    assert ("vol", "root", "hold") in kinds
    assert all(m["tree"] == "new" for m in shared.get("marks", "new")["marks"])
    assert shared.run("marks", "vol").out.splitlines()[0].split() == ["SITE", "KIND", "WHOSE", "WHERE", "WHAT"]
    assert shared.run("marks", "no").out == "no marks of no on the sites that answered\n"


# -- changing

EMPTY = ("leases[]", "nodes[].steps[]", "nodes[].removed[]", "nodes[].leftover[]", "nodes[].resync[]", "policy[]")


@pytest.mark.ceph
def test_dry_runs_change_nothing(shared: Any, before: Any) -> None:
    x, image = ("--size", "4M"), shared.spec("b", "x")
    for command, name, words, said in (
        ("init", "t", ("--node", "r", "--image", image, *x), "t/r would be the root of t"),
        ("init", "t", ("--node", "r", "--image", shared.spec("b", "data")), "t/r would be the root of t"),
        ("add", "vol/x", ("--parent", "m", "--kind", "mirror", "--image", image), "vol/x would be a mirror below m"),
        ("add", "vol/x", ("--parent", "m", "--kind", "clone", "--image", image), "vol/x would be a clone below m"),
        (
            "add",
            "vol/x",
            ("--parent", "m", "--kind", "mirror", "--image", image, "--portion", "0..4M"),
            "vol/x would be a mirror below m, on b:",
        ),
        ("portion set", "vol/g", ("0..4M",), "vol/g would hold 0..4M from the next generation on, and holds whole"),
        ("cut", "vol", (), "vol: would cut generation 1.4"),
        ("sync", "vol", (), "vol/m: hold 1.3 upstream; intend 1.2 -> 1.3"),
        ("sync", "vol", ("--cut",), "vol/g: then follow to 1.4"),
        ("remove", "vol/g", (), "vol/g would leave; "),
        ("detach", "vol/g", (), "vol/g would leave; "),
        ("rollback", "vol/g", (), "has not diverged"),
        ("branch", "vol/g", (), "vol/g would get a branch"),
        ("discard", "vol/g", (), "vol/g has no branch"),
        ("lease acquire", "vol/g", ("--portion", "0..1M"), "would acquire a lease for vol/g"),
        ("lease release", "vol/g", (), "would release a lease for vol/g"),
        ("retain", "vol", (), "vol/root: 0 generations would be removed, 3 stay"),
        ("hold add", "vol/root", ("h", "--at", "1.1"), "vol/root: 1.1 would stay until hold h is removed"),
        ("resync", "vol/m", (), "vol/m needs no resync"),
        ("policy set", "vol", ("rpo=15m",), "vol: + rpo = 15m"),
        ("policy unset", "vol/m", ("rpo",), "vol/m: that is so already"),
    ):
        plain = shared.run(*command.split(), name, *words, "--dry-run")
        assert said in plain.out, plain
        found = shared.get(*command.split(), name, *words, "--dry-run")
        given = bool(found.get("portion"))
        check_json(command, found, (*NO_ERROR, *EMPTY, "portion" if given else "portion[]"))
        assert found["dry_run"] is True
    assert shared.dump() == before


@pytest.mark.ceph
def test_changes_in_json(room: Any) -> None:
    made = room.get("init", "vol", "--node", "root", "--image", room.spec("a", "vol"), "--size", "8M")
    check_json("init", made)
    assert made["id"] == room.get("status")["trees"][0]["id"]
    for name, kind, site in (("m", "mirror", "b"), ("k", "clone", "a"), ("g", "mirror", "c")):
        words = ("--parent", "vol/root", "--kind", kind, "--image", room.spec(site, name))
        added = room.get("add", f"vol/{name}", *words)
        check_json("add", added, ("portion[]",))
        assert (added["parent"], added["dry_run"]) == ("root", False)
    room.write("a", "vol", b"one" * 1000)
    cut = room.get("cut", "vol")
    check_json("cut", cut)
    assert (cut["generation"], cut["size_bytes"]) == ("1.1", 8 * MIB)
    synced = room.get("sync", "vol")
    check_json("sync", synced, NO_ERROR)
    assert {n["node"] for n in synced["nodes"]} == {"m", "k", "g"}
    assert all(n["changed"] for n in synced["nodes"])
    again = room.get("sync", "vol/m")
    check_json("sync", again, (*NO_ERROR, "nodes[].steps[]"))
    assert [(n["node"], n["changed"]) for n in again["nodes"]] == [("m", False)]
    room.write("b", "m", b"mine")
    failed = room.run("--format", "json", "sync", "--cut", "vol", code=errno.EUCLEAN)
    check_json("sync", failed.json)
    check_json("rollback", room.get("rollback", "vol/m"))
    check_json("remove", room.get("remove", "vol/m"))
    check_json("detach", room.get("detach", "vol/k"))
    check_json("remove", room.get("rm", "vol/g"))
    check_json("detach", room.get("detach", "vol/root"))
    assert (room.rbd("a", "ls") + room.rbd("b", "ls")).split() == ["k", "vol"]


@pytest.mark.ceph
def test_keeping_in_json(room: Any, tmp_path: Path) -> None:
    room.tree()
    room.add("vol/m", "root", "mirror", "b")
    room.write("a", "vol", b"one" * 1000)
    room.run("sync", "--cut", "vol")
    for text in (b"two", b"six"):
        room.write("a", "vol", text * 1000)
        room.run("cut", "vol")
    set_ = room.get("policy", "set", "vol", "keep=last  1", "max_pinned_bytes=1")
    check_json("policy set", set_)
    assert set_["policy"][0] == {"setting": "keep", "value": "last 1"}
    room.run("policy", "set", "vol/m", "keep=all")
    listed = room.get("policy", "ls", "vol")
    check_json("policy ls", listed)
    assert listed["not_told"] == ["m"]
    assert listed["nodes"] == [{"node": "m", "setting": "keep", "value": "all"}]
    force = room.get("policy", "ls", "vol/root")
    check_json("policy ls TREE/NODE", force)
    assert {"setting": "keep", "value": "last 1", "from": "tree"} in force["policy"]
    assert {"setting": "parallel", "value": "4", "from": "default"} in force["policy"]
    check_json("policy unset", room.get("policy", "unset", "vol/m", "keep"), ("policy[]",))

    file = tmp_path / "vol.toml"
    exported = room.get("export", "vol")
    check_json("export", exported)
    assert exported["toml"] == room.run("export", "vol").out
    file.write_text(exported["toml"].replace("last 1", "last 2"))
    planned = room.get("plan", "-f", file)
    check_json("plan", planned)
    assert [c["text"] for c in planned["changes"]] == ["~ keep = last 1 -> last 2"]
    check_json("apply", room.get("apply", "-f", file, "--yes"))
    assert room.run("plan", "-f", file).out == "vol: nothing to change\n"
    room.run("policy", "set", "vol", "keep=last 1")

    check_json("hold add", room.get("hold", "add", "vol/root", "audit", "--at", "1.2", "--reason", "for the audit"))
    told = room.get("retain", "vol/root")
    check_json("retain", told, ("nodes[].error.", "nodes[].leftover[]"))
    (node,) = told["nodes"]
    assert [(g["generation"], g["stays"]) for g in node["generations"]] == [
        ("1.1", False),
        ("1.2", True),
        ("1.3", True),
    ]
    assert node["resync"] == ["m"]
    holds = room.get("hold", "ls", "vol")
    check_json("hold ls", holds)
    assert [(h["generation"], h["kind"], h["name"]) for h in holds["holds"]] == [("1.2", "user", "audit")]
    quick = room.get("hold", "ls", "vol", "--quick")
    assert [h["pinned_bytes"] for h in quick["holds"]] == [None]
    assert "m needs a resync: 1.1 was let go at root" in room.run("hold", "ls", "vol").out
    synced = room.get("resync", "vol/m")
    check_json("sync", synced, NO_ERROR)
    check_json("hold rm", room.get("hold", "rm", "vol/root", "audit"))
    said = room.run("retain", "vol").out
    assert "vol/root: 1 generation removed, 1 stay" in said


@pytest.mark.ceph
def test_portions_in_words_and_in_json(room: Any) -> None:
    room.tree()
    room.add("vol/w", "root", "mirror", "c")
    made = room.get(
        *("add", "vol/m", "--parent", "root", "--kind", "mirror", "--image", room.spec("b", "m")),
        *("--portion", "0..4M"),
    )
    check_json("add", made, ("portion",))
    assert made["portion"] == [{"offset_bytes": 0, "length_bytes": 4 * MIB}]
    room.write("a", "vol", b"one" * 1000)
    room.write("a", "vol", b"two" * 1000, 4 * MIB)
    room.run("sync", "--cut", "vol")
    check_json("portion ls", room.get("portion", "ls", "vol"))
    room.write("a", "vol", b"not here" * 1000, 5 * MIB)
    room.run("cut", "vol")
    found = room.get("status", "vol")
    check_json("status", found, ("problems[]", "trees[].nodes[].branch.", "trees[].nodes[].pushes[]"))
    nodes = {node["name"]: node for node in found["trees"][0]["nodes"]}
    assert (nodes["m"]["lag_bytes"], nodes["m"]["lag_generations"]) == (0, 1)
    assert nodes["w"]["lag_bytes"] >= 8000
    assert nodes["m"]["portion"] == made["portion"]
    assert nodes["w"]["portion"] is None
    wider = room.get("portion", "set", "vol/m", "0..8M")
    check_json("portion set", wider, ("portion",))
    assert wider["portion_pending"] is True
    plain = room.run("portion", "set", "vol/m", "whole").out
    assert plain == (
        "vol/m is to hold whole from the next generation on, and holds 0..4M until then; 'rbdtree sync --cut vol' "
        "brings one\n"
    )
    drawn = room.run("status", "vol").out
    assert re.search(r"^. m +mirror .* whole from the next generation on", drawn.replace("├─", "-"), flags=re.M), drawn
    lines = room.run("portion", "ls", "vol").out.splitlines()
    assert [line.split() for line in lines] == [
        ["NODE", "PORTION", "HOLDS", "GENERATION"],
        ["m", "whole", "0..4M", "1.1"],
        ["root", "whole", "whole", "1.2"],
        ["w", "whole", "whole", "1.1"],
    ]
    assert len(room.get("portion", "ls", "vol/m")["nodes"]) == 1
    room.run("sync", "vol")
    assert room.read("b", "m") == room.read("a", "vol")


@pytest.mark.ceph
def test_writing_in_json(room: Any) -> None:
    room.tree()
    room.write("a", "vol", b"one" * 1000)
    for name, site in (("m", "b"), ("n", "c")):
        room.add(f"vol/{name}", "root", "mirror", site)
    room.run("sync", "--cut", "vol")
    for name, site in (("m", "b"), ("n", "c")):
        made = room.get("branch", f"vol/{name}")
        check_json("branch", made)
        assert (made["image"], made["base"]) == (room.spec(site, f"vol-{name}-branch"), "1.1")
        room.write(site, f"vol-{name}-branch", name.encode() * 600)
    check_json("diff TREE/NODE", room.get("diff", "vol/m"), ("pushes[]",))
    nothing = ("refused[]", "published[]", "error.")
    planned = room.get("push", "vol/m", "--dry-run")
    check_json("push", planned, nothing)
    assert (planned["total_bytes"], planned["dry_run"]) == (600, True)
    done = room.get("push", "vol/m")
    check_json("push", done, ("refused[]", "error."))
    assert done["published"] == ["1.2"]
    # Refused: still one object, with the evidence and the error.
    failed = room.get("push", "vol/n", code=errno.EREMCHG)
    check_json("push", failed, ("published[]",))
    assert failed["refused"][0]["evidence"][0]["node"] == "m"
    assert failed["error"]["exit_code"] == errno.EREMCHG
    check_json("diff TREE/NODE", room.get("diff", "vol/n", "--totals"), ("extents[]",))
    check_json("status", room.get("status"), ("problems[]", "trees[].nodes[].portion[]"))
    for words in (("discard", "vol/n", "--dry-run"), ("resolve", "vol/n", "--take", "theirs", "--yes")):
        check_json(words[0], room.get(*words))
    check_json("lease acquire", room.get("lease", "acquire", "vol/n", "--portion", "0..1M,2M..3M"))
    told = room.get("lease", "renew", "vol/n", "--dry-run")
    check_json("lease renew", told, ("leases[]",))
    assert told["dry_run"] is True
    check_json("lease renew", room.get("lease", "renew", "vol/n"))
    check_json("lease ls", room.get("lease", "ls", "vol"))
    released = room.get("lease", "release", "vol/n")
    check_json("lease release", released)
    assert released["released"] == 1
    check_json("lease ls", room.get("lease", "ls", "vol"), ("leases[]",))
    room.run("branch", "vol/m", "--uplink", "journal")
    room.write("b", "vol-m-branch", b"more" * 100)
    lines = room.run("--format", "json", "uplink", "vol/m", "--once").out.splitlines()
    for line in lines:
        check_json("uplink", json.loads(line))
    assert room.get("log", "vol")["generations"][0]["generation"] == "1.3"


@pytest.mark.ceph
def test_plain_words_of_changes(room: Any) -> None:
    spec = room.spec
    done = room.run("init", "vol", "--node", "root", "--image", spec("a", "vol"), "--size", "8M")
    assert done.out == f"vol/root is the root of vol, on {spec('a', 'vol')}\n"
    done = room.run("add", "vol/m", "--parent", "root", "--kind", "mirror", "--image", spec("b", "m"))
    assert done.out == f"vol/m is a mirror below root, on {spec('b', 'm')}; 'rbdtree sync vol/m' fills it\n"
    assert room.run("cut", "vol").out == "vol: generation 1.1, 8 MiB, 0 B changed\n"
    done = room.run("sync", "vol", "--cut")
    assert re.fullmatch(r"vol: cut generation 1\.2\nvol/m: up to date, 0 B written in [\d.]+ s\n", done.out)
    assert done.err == ""
    assert room.run("sync", "vol").out == "vol/m: up to date already\n"
    assert room.run("detach", "vol/m").out == f"{spec('b', 'm')} is an ordinary image now\n"
    assert room.run("sync", "vol").out == "vol: nothing to sync: the root has no children yet\n"


# -- options


COMMON = ("--config", "--conf", "-c", "--id", "-n", "--name", "--keyring", "--timeout", "--format", "--no-progress")


def test_every_command_takes_the_common_options() -> None:
    assert {text for action in options.common()._actions for text in action.option_strings} == set(COMMON)
    for words in [
        "site ls",
        "site check",
        "caps reader",
        "status",
        "status t",
        "log t",
        "log t/n",
        "diff t --since 1.0",
        "verify t",
        "marks",
        "completion bash",
        "init t --node n --image a:i",
        "add t/n --parent p --kind clone --image a:i",
        "cut t",
        "sync t",
        "remove t/n",
        "detach t/n",
        "rollback t/n",
        "branch t/n",
        "push t/n",
        "discard t/n",
        "resolve t/n --take ours",
        "lease acquire t/n",
        "lease renew t/n",
        "lease release t/n",
        "lease ls t",
        "uplink t/n",
        "retain t",
        "hold ls t",
        "hold add t/n h",
        "hold rm t/n h",
        "resync t/n",
        "policy set t rpo=1h",
        "policy unset t rpo",
        "policy ls t",
        "plan -f tree.toml",
        "apply -f tree.toml",
        "export t",
    ]:
        changing = "init add cut sync remove detach rollback branch push discard resolve lease"
        changing += " retain hold resync policy apply"
        changes = words.split()[0] in changing.split() and "ls" not in words.split()
        given = (
            [
                "--config",
                "f",
                "--conf",
                "c",
                "--id",
                "i",
                "--keyring",
                "k",
                "--timeout",
                "3",
                "--format",
                "json",
                "--no-progress",
            ],
            ["--config=f", "-c", "c", "-n", "client.n", "--timeout=3", "--format=json"],
        )
        for some in given:
            early = vars(main.parser().parse_args([*some, *words.split()]))
            late = vars(main.parser().parse_args([*words.split(), *some, *(["--dry-run"] if changes else [])]))
            assert late.pop("dry_run", None) is (True if changes else None)
            assert early == late
            assert (early["config"], early["conf"], early["timeout"], early["format"]) == ("f", "c", 3.0, "json")


def test_each_module_registers_the_commands_it_is_said_to() -> None:
    for module, words in main.MODULES.items():
        commands = argparse.ArgumentParser().add_subparsers()
        import_module(f"rbdtree_cli.{module}").register(commands)
        assert tuple(commands.choices) == words, module


def test_an_option_may_be_spelt_as_a_command(tmp_path: Path) -> None:
    config = tmp_path / "sync"
    config.write_text('[sites.a]\nconf = "a.conf"\n')
    done = run("--config", str(config), "--format", "json", "site", "ls")
    assert [site["site"] for site in done.json["sites"]] == ["a"]


@pytest.mark.ceph
def test_common_options_at_work(shared: Any) -> None:
    conf = shared.pools.conf("a")
    keyring = conf.parent / "keyring"

    def trees(done: Done) -> list[str]:
        return [tree["tree"] for tree in done.json["trees"]]

    for words in (
        ("--config", shared.config, "--format", "json", "status"),
        ("status", "--format", "json", "--config", shared.config),
        ("--config", shared.config, "status", "--format=json", "--no-progress"),
        ("--timeout", 5, "--format", "json", "status", "--config", shared.config, "--id", "admin"),
        ("-n", "client.admin", "status", "--format", "json", "--config", shared.config),
    ):
        assert trees(run(*words)) == ["new", "vol"], words
    # All pools of the cluster are looked at then; others may have a tree of that name.
    vol = shared.get("status", "vol")["trees"][0]["id"]
    for words in (
        ("-c", conf, "--format", "json", "status", vol),
        ("status", vol, "--conf", conf, "--format", "json"),
        ("status", vol, "-c", conf, "--id", "admin", "--keyring", keyring, "--format", "json"),
        ("-c", conf, "-n", "client.admin", "status", vol, "--format", "json"),
    ):
        found = run(*words).json["trees"][0]["nodes"]
        assert {n["name"]: (n["site"], n["state"]) for n in found} == {
            "root": ("ceph", "up-to-date"),
            "k": ("ceph", "outdated"),
            "m": ("b", "unreachable"),
            "g": ("c", "unreachable"),
        }
    assert trees(run("status", "--format", "json", RBDTREE_CONFIG=str(shared.config))) == ["new", "vol"]
    assert run("--id", "nobody", "--config", shared.config, "status", code=errno.EPERM).out == ""


@pytest.mark.ceph
def test_a_pipe_that_closes_is_no_error(shared: Any) -> None:
    command = [sys.executable, "-m", "rbdtree_cli.main", "--config", str(shared.config), "marks"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ) as process:
        assert process.stdout is not None
        process.stdout.close()
        process.stdout = None
        assert process.stderr is not None
        assert process.stderr.read() == b""
        assert process.wait(30) == 0


def test_help_of_everything() -> None:
    assert "COMMAND" in run("--help").out
    assert run("--version").out.startswith("rbdtree ")
    for command in ("site ls", "caps", "init", "rm", "sync", "status", "push", "lease acquire"):
        assert run(*command.split(), "--help").out.startswith("usage: rbdtree ")
