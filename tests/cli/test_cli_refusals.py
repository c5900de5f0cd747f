"""Bad input: each with its exit code, a sentence, a hint, and nothing changed."""

import errno
from pathlib import Path
from typing import Any

import pytest
from terminal import check_refusal, inside, run, start

pytestmark = pytest.mark.ceph

NAMES = {
    "empty": "",
    "slash": "a/b/c",
    "unicode": "bäum",
    "too long": "n" * 64,
    "leading dash": "-x",
    "space": "a b",
    "dot first": ".a",
    "newline": "a\nb",
}


def words(room: Any, text: str) -> list[str]:
    """``@b/x`` is an image x of the room's pool at site b."""
    found = []
    for word in text.split(" "):
        site, slash, image = word.partition("/") if word.startswith("@") else ("", "", "")
        found.append(room.spec(site[1:], image) if slash else word.replace("POOL", room.pools.name))
    return found


@pytest.mark.parametrize(
    "command",
    [
        "status no",
        "log no",
        "log vol/no",
        "cut no",
        "sync no",
        "sync vol/no",
        "sync --cut no",
        "verify no",
        "verify vol/no",
        "verify vol/m --at 1.9",
        "diff no --since 1.0",
        "diff vol --since 1.9",
        "diff vol --since 1.0 --to 2.1",
        "diff new --since 1.0",
        "sync new",
        "remove no/m",
        "remove vol/no",
        "detach vol/no",
        "rollback vol/no",
        "rollback no/m",
        "portion ls no",
        "portion set vol/no 0..4M",
        "add no/x --parent root --kind mirror --image @b/x",
        "add vol/x --parent no --kind mirror --image @b/x",
        "add vol/x --parent root --kind mirror --image z:x",
        "add vol/x --parent root --kind mirror --image b:nopool/x",
        "add vol/x --parent root --kind mirror --image @b/nospace/x",
        "add vol/x --parent root --kind mirror --image @b/x --data-pool nopool",
        "init t --node r --image z:x --size 4M",
        "init t --node r --image a:nopool/x --size 4M",
        "init t --node r --image @a/nospace/x --size 4M",
        "init t --node r --image @a/x --size 4M --data-pool nopool",
        "init t --node r --image @a/x",
        "site check z",
        "retain no",
        "retain vol/no",
        "hold ls vol/no",
        "hold add vol/m h --at 1.9",
        "hold add new/root h",
        "hold rm vol/m h",
        "resync vol/no",
        "policy ls no",
        "policy set vol/no rpo=1h",
        "plan -f no.toml",
        "apply -f no.toml --yes",
        "export no",
    ],
)
def test_what_is_not_there(shared: Any, before: Any, command: str) -> None:
    shared.refused(*words(shared, command), code=errno.ENOENT, before=before)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_name_that_is_none(shared: Any, before: Any, name: str) -> None:
    commands = (
        ("init", "--node=r", "--image=a:x", "--size=4M", "--", name),
        ("init", "t", f"--node={name}", "--image=a:x", "--size=4M"),
        ("add", "--parent=root", "--kind=mirror", "--image=b:x", "--", f"vol/{name}"),
        ("add", "vol/x", f"--parent={name}", "--kind=mirror", "--image=b:x"),
        ("sync", "--", f"vol/{name}"),
        ("cut", "--", name),
    )
    for command in commands:
        done = inside("--config", shared.config, *command)
        assert done.code == errno.EINVAL, done
        check_refusal(done)
    assert shared.dump() == before


@pytest.mark.parametrize(
    "command",
    [
        # image specs
        "init t --node r --image x --size 4M",
        "init t --node r --image a: --size 4M",
        "init t --node r --image :x --size 4M",
        "init t --node r --image a:p/q/r/s --size 4M",
        "init t --node r --image a:x@y --size 4M",
        "init t --node r --image a://x --size 4M",
        "add vol/x --parent root --kind mirror --image x",
        # sizes
        "init t --node r --image @a/x --size 4X",
        "init t --node r --image @a/x --size=-4M",
        "init t --node r --image @a/x --size=",
        "init t --node r --image @a/x --size 0",
        "init t --node r --image @a/x --size 1.5B",
        "init t --node r --image @a/x --size 1000000P",
        f"init t --node r --image @a/x --size {'9' * 400}",
        "init t --node r --image @a/x --size 4M --object-size 3M",
        "init t --node r --image @a/x --size 4M --object-size 1K",
        "init t --node r --image @a/x --size 4M --stripe-unit 1M",
        "init t --node r --image @a/x --size 4M --stripe-unit 3M --stripe-count 2",
        # trees and nodes
        "add vol --parent root --kind mirror --image @b/x",
        "add vol/x --parent root --kind twin --image @b/x",
        "add vol/x --parent root",
        "add vol/x --parent root --kind clone --image @a/x --object-size 4M",
        "remove vol",
        "detach vol",
        "cut vol/m",
        "status vol/m",
        "marks vol/m",
        "diff vol/m --since 1.1",
        "diff vol --since yesterday",
        "diff vol --since 1.x",
        "diff vol",
        "verify vol --at 1",
        # the command line
        "no-such-command",
        "status --no-such-option",
        "--timeout 0 status",
        "--timeout x status",
        "--format xml status",
        "--id a -n client.a status",
        "--id client.a status",
        "--id= status",
        "-n a status",
        "--keyring /nonexistent status",
        "-c /nonexistent status",
        "caps emperor",
        "completion tcsh",
        "portion set vol/m 4M",
        "portion set vol/m 8M..4M",
        "portion set vol/m 0..8M,4M..6M",
        "portion set vol/m 0..1G",
        "portion set vol/m 0..1M",
        "portion set vol/root 0..4M",
        "add vol/x --parent root --kind mirror --image @b/x --portion 1M..4M",
        "site",
        "hold add vol h",
        "hold",
        "resync vol",
        "policy",
        "policy set vol",
        "plan",
        "apply --yes",
        "export vol/m",
    ],
)
def test_what_cannot_be_meant_at_all(shared: Any, command: str) -> None:
    done = inside("--config", shared.config, *words(shared, command))
    assert done.code == errno.EINVAL, done
    check_refusal(done)


@pytest.mark.parametrize(
    "command",
    [
        "add vol/x --parent x --kind mirror --image @b/x",
        "add vol/x --parent root --kind clone --image @b/x",
        "add vol/x --parent g --kind clone --image @a/x",
        "remove vol/root",
        "remove vol/m --forget",
        "remove vol/k --expiry 3y",
        "rollback vol/root",
        "diff vol --since 1.2 --to 1.1",
        "diff vol --since 1.1 --to 1.1",
        "sync vol/root",
        "verify vol/root",
        "cut vol/m",
        "init t --node r --image @a/x --size 4X",
        "-c /nonexistent status",
        "resync vol/root",
        "resync vol/k",
        "hold add vol/k h",
        "hold add vol/m a/b",
        "policy set vol nonsense",
        "policy set vol keep=none",
        "policy set vol rpo=1h rpo=2h",
        "policy set vol colour=red",
        "policy set vol/m schedule=5m",
        "policy unset vol colour",
    ],
)
def test_what_cannot_be_meant(shared: Any, before: Any, command: str) -> None:
    shared.refused(*words(shared, command), code=errno.EINVAL, before=before)


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("init vol --node top --image @a/x --size 4M", "has a root already"),
        ("init vol --node root --image @a/vol", "has a root already"),
        ("init t --node r --image @a/vol", "belongs to tree vol already, as its node root"),
        ("init t --node r --image @b/vol-m", "belongs to tree vol already, as its node m"),
        ("init t --node r --image @a/vol-k", "belongs to tree vol already, as its node k"),
        ("init t --node r --image @b/data --size 8M", "exists"),
        ("add vol/m --parent root --kind mirror --image @b/x", "has a node m already"),
        ("add vol/root --parent m --kind mirror --image @b/x", "has a node root already"),
        ("add vol/x --parent root --kind mirror --image @a/vol", "belongs to tree vol already, as its node root"),
        ("add vol/x --parent g --kind mirror --image @b/vol-m", "belongs to tree vol already, as its node m"),
        ("add vol/x --parent root --kind mirror --image @b/new", "belongs to tree new already"),
        ("add new/x --parent root --kind mirror --image @a/vol", "belongs to tree vol already"),
        ("add vol/x --parent m --kind clone --image @b/vol-m", "belongs to tree vol already"),
        ("add vol/x --parent m --kind clone --image @b/empty", "exists"),
    ],
)
def test_what_is_taken(shared: Any, before: Any, command: str, says: str) -> None:
    shared.refused(*words(shared, command), code=errno.EEXIST, before=before, says=says)


def test_nodes_with_children_stay(shared: Any, before: Any) -> None:
    for command in ("remove", "detach"):
        shared.refused(command, "vol/m", code=errno.ENOTEMPTY, before=before, says="children: g")
    shared.refused("detach", "vol/root", code=errno.ENOTEMPTY, before=before, says="children: k, m")


def test_an_image_with_data_is_no_child(room: Any) -> None:
    room.tree()
    room.create("b", "data")
    room.write("b", "data", b"precious")
    room.create("b", "snapped")
    with room.image("b", "snapped") as image:
        image.create_snap("mine")
    room.rbd("b", "snap", "protect", "snapped@mine")
    room.rbd("b", "clone", "snapped@mine", f"{room.pools.name}/cloned")
    room.create("b", "open")
    room.create("b", "empty")
    before = room.dump()
    add = ("add", "vol/x", "--parent", "root", "--kind", "mirror", "--image")
    for image, says in (("data", "bytes of objects"), ("snapped", "snapshots (mine)"), ("cloned", "it is a clone")):
        room.refused(*add, room.spec("b", image), code=errno.ENOTEMPTY, before=before, says=says)
    with room.image("b", "open"):
        room.refused(*add, room.spec("b", "open"), code=errno.EBUSY, before=room.dump(), says="in use by 127.")
    room.run(*add, room.spec("b", "empty"))
    room.write("a", "vol", b"one" * 100)
    room.run("sync", "--cut", "vol")
    room.run("verify", "vol")
    assert room.read("b", "empty") == room.read("a", "vol")


def test_two_inits_at_once_make_one_tree(room: Any) -> None:
    room.create("a", "one")
    for number, size in ((1, ()), (2, ("--size", "4M"))):
        image = room.spec("a", "one" if number == 1 else "two")
        begun = [
            start(("--config", room.config, "init", f"t{number}{i}", "--node", "r", "--image", image, *size))
            for i in range(4)
        ]
        ended = [(p.communicate(timeout=60), p.returncode) for p in begun]
        codes = sorted(code for _, code in ended)
        assert codes == [0, errno.EEXIST, errno.EEXIST, errno.EEXIST], ended
    trees = room.get("status")["trees"]
    assert len(trees) == 2
    owners = [mark for mark in room.get("marks")["marks"] if mark["kind"] == "directory"]
    assert len(owners) == 4, owners


def test_no_configuration_at_all(tmp_path: Path) -> None:
    done = run("status", HOME=str(tmp_path), code=None)
    if Path("/etc/ceph/ceph.conf").exists() or Path("/etc/rbdtree/rbdtree.toml").exists():
        pytest.skip("this machine has a configuration")
    assert done.code == errno.ENOENT
    check_refusal(done)


CONFIGURATIONS = {
    "not TOML": ("[sites.a\nconf=3", ("is not TOML", "line 1")),
    "not UTF-8": ("[sites.a]\nconf = '\udcff'", ("is not TOML",)),
    "empty": ("", ("sites: is missing",)),
    "no sites": ("[sites]", ("sites: there is none",)),
    "everything at once": (
        '[sites."a b"]\nconf = 3\nkeyrnig = "x"\n[sites.b]\nid = "x"\nname = "client.x"\n'
        'conf = "b.conf"\n[sites.c]\nname = "admin"\nconf = "c"\npools = ["a/b/c", "ok"]\n'
        '[sites.d]\n[trash]\nexpiry = "soon"\n[tresh]\n',
        (
            "sites: 'a b' is not a site name",
            "sites.a b.conf: should be a string",
            "sites.a b.keyrnig: unknown key",
            "sites.b: give 'id' or 'name', not both",
            "'name' is the full name",
            "'a/b/c' is neither POOL nor POOL/NAMESPACE",
            "sites.d.conf: is missing",
            "'soon' is not a duration",
            "tresh: unknown key",
        ),
    ),
}


@pytest.mark.parametrize(("text", "says"), CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_a_wrong_configuration(tmp_path: Path, text: str, says: tuple[str, ...]) -> None:
    path = tmp_path / "rbdtree.toml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    done = run("--config", path, "status", code=errno.EINVAL)
    check_refusal(done)
    for mistake in says:
        assert mistake in done.err, done.err


def test_wrong_paths(shared: Any, tmp_path: Path) -> None:
    conf = shared.pools.conf("a")
    bad = tmp_path / "bad.conf"
    bad.write_text("hello {{{\n = 3")
    silent = tmp_path / "nomon.conf"
    silent.write_text("[global]\nfsid = 00000000-0000-4000-8000-000000000000\n")
    keyring = tmp_path / "bad.keyring"
    keyring.write_text("[client.admin]\nkey = abc\n")
    cases = (
        (("--config", "/nonexistent"), errno.ENOENT, "/nonexistent"),
        (("-c", "/nonexistent"), errno.ENOENT, "there is no /nonexistent"),
        (("-c", conf, "--keyring", "/nonexistent"), errno.ENOENT, "there is no /nonexistent"),
        (("-c", bad), errno.EINVAL, str(bad)),
        (("-c", silent), errno.EINVAL, "names no monitors"),
        (("-c", conf, "--keyring", keyring), errno.EINVAL, str(keyring)),
        (("-c", conf, "-n", "client.nobody"), errno.EPERM, "client.nobody"),
    )
    for options, code, says in cases:
        for command in (("cut", "vol"), ("site", "check")):
            if command[0] == "site" and options[0] == "--config":
                continue
            done = run(*options, *command, code=code)
            assert says in done.err + done.out, done
            if command[0] != "site":
                check_refusal(done)
        done = run(*options, "status", code=code)
        assert "no trees" not in done.out


def test_errors_in_json(shared: Any) -> None:
    for command, code in (("cut no", 2), ("no-such-command", 22), ("remove vol/m", 39)):
        for options in (("--format", "json"), ("--format=json",)):
            done = shared.run(*options, *command.split(), code=code)
            assert done.json.keys() == {"version", "error"}
            assert done.json["error"].keys() == {"message", "hint", "exit_code"}
            assert done.json["error"]["exit_code"] == code
            assert done.err.startswith(f"rbdtree: {done.json['error']['message']}\n  {done.json['error']['hint']}")
