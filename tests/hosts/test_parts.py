"""What a host decides, without a device: shares of the cache, ranges, the table of maps, options of file systems."""

import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from rbdtree import config, errors
from rbdtree.host import cache, cephconf, filesystem, portion, process, table
from rbdtree.host.cache import Share
from rbdtree.host.driver import choose
from rbdtree.host.source import BRANCH, GENERATION, Source
from rbdtree.host.state import MountRecord, Record, State

MIB, GIB = 1 << 20, 1 << 30


def source(**more: object) -> Source:
    values = {
        **dict.fromkeys(("tree", "node", "site", "pool", "image"), "x"),
        **{
            "tree_id": "t" * 36,
            "node_id": "n" * 36,
            "what": GENERATION,
            "position": "1.7",
            "fsid": "",
            "conf": "/c/a.conf",
        },
        **{"client": "client.me", "keyring": "", "namespace": "", "image_id": "i", "snapshot": "s", "size_bytes": GIB},
        **{"journaled": False, "holder": ""},
        **more,
    }
    return Source(**values)  # type: ignore[arg-type]


# -- cache


def test_without_a_budget_ceph_decides() -> None:
    assert cache.share(None, 4, 1, []) is None


def test_equal_shares_of_the_planned_number() -> None:
    assert cache.share(4 * GIB, 4, 1, []) == GIB
    assert cache.share(4 * GIB, 4, 1, [Share(1, GIB)] * 3) == GIB


def test_weights_count() -> None:
    assert cache.share(4 * GIB, 4, 2, []) == 2 * GIB
    assert cache.share(4 * GIB, 1, 3, []) == 4 * GIB


def test_more_volumes_than_planned_share_what_is_left() -> None:
    given: list[Share] = []
    for _ in range(40):
        found = cache.share(GIB, 4, 1, given)
        assert found is not None
        given.append(Share(1, found))
        assert sum(one.cache_bytes for one in given) <= GIB
    assert given[4].cache_bytes == 0


def test_crumbs_are_no_cache() -> None:
    assert cache.share(3 * MIB, 4, 1, []) == 0


def test_the_rate_of_nothing_is_not_known() -> None:
    assert cache.Hits(0, 0).rate is None
    assert cache.Hits(3, 1).rate == 0.75


@pytest.mark.parametrize(
    ("share", "what", "expected"),
    [
        (None, GENERATION, {}),
        (0, GENERATION, {"rbd cache": "false"}),
        (
            64 * MIB,
            GENERATION,
            {"rbd cache": "true", "rbd cache policy": "writethrough", "rbd cache size": str(64 * MIB)},
        ),
        (64 * MIB, BRANCH, {"rbd cache policy": "writeback", "rbd cache max dirty": str(48 * MIB)}),
    ],
)
def test_settings_of_librbd(share: int | None, what: str, expected: dict[str, str]) -> None:
    found = cephconf.settings(source(what=what), share, copy_on_read=False)
    assert expected.items() <= found.items()
    assert bool(found) == bool(expected)


def test_the_section_of_a_map_wins(tmp_path: Path) -> None:
    conf = tmp_path / "a.conf"
    conf.write_text("[global]\nmon host = 1.2.3.4\n[client.me]\nrbd cache = false\n")
    place = tmp_path / "map"
    place.mkdir()
    made = cephconf.write(place, source(conf=str(conf)), None, copy_on_read=True)
    text = made.read_text()
    assert made.name == "a.conf"
    assert text.rindex("[client.me]") < text.index("rbd clone copy on read = true")


def test_config_of_a_host(tmp_path: Path) -> None:
    path = tmp_path / "rbdtree.toml"
    path.write_text(
        '[sites.a]\nconf = "a.conf"\n[host]\ncache = "2GiB"\nvolumes = 2\nweights = { vol = 2, "vol/x" = 0.5 }\n'
    )
    found = config.load(path).host
    assert found.cache_bytes == 2 * GIB
    assert (found.weight("vol/x"), found.weight("vol/y"), found.weight("other/x")) == (0.5, 2, 1)


@pytest.mark.parametrize(
    "text", ['cache = "lots"', "volumes = 0", 'weights = { "a b" = 1 }', "weights = { vol = 0 }", "x = 1"]
)
def test_mistakes_of_a_host_section(tmp_path: Path, text: str) -> None:
    path = tmp_path / "rbdtree.toml"
    path.write_text(f'[sites.a]\nconf = "a.conf"\n[host]\n{text}\n')
    with pytest.raises(errors.UsageError, match="host"):
        config.load(path)


# -- portions


def test_a_portion() -> None:
    assert portion.parse("4K..1M") == (4096, MIB - 4096)
    assert portion.parse("..1M") == (0, MIB)
    portion.check((4096, MIB), GIB)


@pytest.mark.parametrize("text", ["1M", "1M..1M", "2M..1M", "0..1M,2M..3M", "0..x"])
def test_no_portion(text: str) -> None:
    with pytest.raises(errors.UsageError):
        portion.parse(text)


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [((0, 2 * GIB), f"0..{GIB}"), ((2 * GIB, GIB), f"0..{GIB}"), ((100, 1000), "0..1536"), ((512, 1000), "512..1536")],
)
def test_the_nearest_portion_is_named(asked: tuple[int, int], nearest: str) -> None:
    with pytest.raises(errors.UsageError) as raised:
        portion.check(asked, GIB)
    assert nearest in str(raised.value.hint)


# -- the table


def test_a_table(tmp_path: Path) -> None:
    path = tmp_path / "maps"
    path.write_text(
        "# comment\n\nvol/a\nvol/b - driver=krbd,at=1.7   # why\n"
        "vol/c /srv/c/ follow,on-switch='systemctl reload a, b'\nvol/d\t/home/d\twrite,quiesce\n"
    )
    a, b, c, d = table.load(path)
    assert (a.node, a.directory, a.flags, a.values) == ("vol/a", "", (), ())
    assert b.values == (("driver", "krbd"), ("at", "1.7"))
    assert (c.directory, c.follow, c.values) == ("/srv/c", True, (("on-switch", "systemctl reload a, b"),))
    assert d.flags == ("write", "quiesce")


def test_no_table_is_an_empty_one(tmp_path: Path) -> None:
    assert table.load(tmp_path / "none") == []


@pytest.mark.parametrize(
    "text",
    [
        *("vol", "vol/a srv", "vol/a - colour=red", "vol/a - follow", "vol/a /x follow,write", "vol/a - quiesce"),
        *("vol/a /x portion=0..1M", "vol/a /x on-switch=y", "vol/a - 'open", "vol/a /x\nvol/b /x/", "vol/a - at="),
        *("vol/a - driver=nbd", "vol/a - at=1.x", "vol/a - portion=1M..0"),
    ],
)
def test_mistakes_of_a_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "maps"
    path.write_text(text)
    with pytest.raises(errors.UsageError, match=r"line|times"):
        table.load(path)


def test_every_mistake_of_a_table_is_named(tmp_path: Path) -> None:
    path = tmp_path / "maps"
    path.write_text("vol\nvol/a -\nvol/b srv\n")
    with pytest.raises(errors.UsageError, match=r"line 1: .*line 3: "):
        table.load(path)


def test_a_mistake_keeps_no_other_line_from_its_device(tmp_path: Path) -> None:
    path = tmp_path / "maps"
    path.write_text("vol/a - driver=nbd\nvol/b -\n")
    found, mistakes = table.read(path)
    assert [entry.node for entry in found] == ["vol/b"]
    assert "'nbd' is no driver" in str(mistakes)


# -- file systems


def test_no_journal_is_replayed_onto_a_generation() -> None:
    assert filesystem.options("ext4", False, "") == "ro,noload"
    assert filesystem.options("xfs", False, "noatime") == "ro,norecovery,nouuid,noatime"
    assert filesystem.options("vfat", False, "") == "ro"


def test_two_branches_of_one_xfs_can_be_mounted() -> None:
    assert filesystem.options("xfs", True, "") == "rw,nouuid"
    assert filesystem.options("ext4", True, "") == "rw"


def test_an_unclean_journal_is_seen(tmp_path: Path) -> None:
    block = bytearray(4096)
    path = tmp_path / "disk"
    struct.pack_into("<H", block, 1024 + 0x38, 0xEF53)
    path.write_bytes(block)
    assert not filesystem.unclean(str(path), "ext4")
    struct.pack_into("<I", block, 1024 + 0x60, 0x4)
    path.write_bytes(block)
    assert filesystem.unclean(str(path), "ext4")
    assert not filesystem.unclean(str(path), "xfs")


# -- drivers


class Driver:
    """One that maps nothing."""

    def __init__(self, name: str, missing: str = "", refuses: str = "") -> None:
        self.name, self._missing, self._refuses = name, missing, refuses

    def missing(self) -> str:
        return self._missing

    def refuses(self, record: Record) -> str:
        return self._refuses


def chosen(wanted: str, *drivers: Driver) -> tuple[list[str], list[str]]:
    found, why = choose(Record("k", source(), ""), wanted, {d.name: d for d in drivers})  # type: ignore[misc, arg-type]
    return [driver.name for driver in found], why


def test_the_first_driver_that_there_is() -> None:
    assert chosen("", Driver("x", missing="no x"), Driver("y"), Driver("z"))[0] == ["y", "z"]


def test_a_driver_that_is_asked_for_is_the_only_one() -> None:
    assert chosen("z", Driver("x"), Driver("y"), Driver("z")) == (["z"], [])


def test_one_that_cannot_serve_the_image_gives_way_and_says_so() -> None:
    assert chosen("y", Driver("x"), Driver("y", refuses="cannot"), Driver("z")) == (["x", "z"], ["y cannot"])


def test_one_that_is_asked_for_and_missing_is_an_error() -> None:
    with pytest.raises(errors.HostFailed, match="no y"):
        chosen("y", Driver("x"), Driver("y", missing="no y"))


def test_no_driver_at_all_says_why() -> None:
    with pytest.raises(errors.HostFailed, match=r"no x.*cannot"):
        chosen("", Driver("x", missing="no x"), Driver("y", refuses="cannot"))


# -- the state


def test_state_comes_back_as_it_was_written(tmp_path: Path) -> None:
    state = State(tmp_path)
    record = Record("k", source(), "krbd", portion=(512, 1024), known=("/dev/rbd0",))
    state.write(record)
    assert state.records() == [record]
    mount = MountRecord("/srv/a-b/c", "vol", "m", "k", leaving=("x", "y"))
    state.write_mount(mount)
    state.write_mount(MountRecord("/srv/a/b-c", "vol", "m", "k"))
    assert state.mount("/srv/a-b/c") == mount
    assert len(state.mounts()) == 2
    state.forget("k")
    assert state.records() == []


def test_a_record_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    state = State(tmp_path)
    state.write(Record("k", source(), "krbd"))
    (state.place("k") / "map.json").write_text("{")
    with pytest.raises(errors.HostFailed, match=r"map\.json"):
        state.records()


def test_a_process_is_known_by_its_words() -> None:
    assert not process.serves(1, "no-such-program", "x")


UNITS = Path(__file__).parents[2] / "deploy" / "systemd"


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """As installed, where the command is where they look for it."""
    for unit in UNITS.glob("*.service"):
        (tmp_path / unit.name).write_text(
            unit.read_text().replace("/usr/local/bin/rbdtree", shutil.which("true") or "")
        )
    for unit in sorted(tmp_path.iterdir()):
        done = subprocess.run(
            ["systemd-analyze", "verify", unit], capture_output=True, text=True, timeout=60, check=False
        )
        about = [line for line in done.stderr.splitlines() if "rbdtree" in line]
        assert (done.returncode, about) == (0, []), done.stderr
