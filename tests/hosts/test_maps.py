"""Maps and mounts in the state of a host, over a driver whose devices are files."""

from dataclasses import replace
from pathlib import Path

import pytest
from test_parts import source

from rbdtree import errors, memory
from rbdtree.config import Host
from rbdtree.host import doctor, krbd
from rbdtree.host.holds import Keeper
from rbdtree.host.maps import Maps, Wish, difference
from rbdtree.host.mounts import Mounts, follow
from rbdtree.host.source import VOLUME, Source
from rbdtree.host.state import MAPPED, MAPPING, MountRecord, Record, State


class Files:
    """Of every map a file in its folder."""

    name = "files"

    def missing(self) -> str:
        return ""

    def refuses(self, record: Record) -> str:
        return ""

    def present(self) -> tuple[str, ...]:
        return ()

    def find(self, record: Record, place: Path) -> str:
        return str(place / "disk") if (place / "disk").exists() else ""

    def map(self, record: Record, place: Path, conf: Path) -> str:
        (place / "disk").write_bytes(bytes(512))
        return str(place / "disk")

    def unmap(self, record: Record, place: Path, *, force: bool) -> None:
        (place / "disk").unlink(missing_ok=True)


@pytest.fixture
def maps(tmp_path: Path) -> Maps:
    conf = tmp_path / "a.conf"
    conf.write_text("[global]\n")
    said: list[errors.Error] = []
    made = Maps(State(tmp_path / "run"), Host(), Keeper(memory.Sites({})), said.append)
    made.drivers = {"files": Files()}
    return made


def conf(maps: Maps) -> str:
    return str(maps.state.root.parent / "a.conf")


# -- what is there, and what is asked for


@pytest.mark.parametrize(
    ("has", "wish", "expected"),
    [
        ({}, Wish(), ""),
        ({"quiesce": True, "hook": "x", "exclusive": True}, Wish(), ""),
        ({"quiesce": True, "hook": "x"}, Wish(quiesce=True, hook="x"), ""),
        ({}, Wish(exclusive=True), "without --exclusive"),
        ({"hook": "x"}, Wish(quiesce=True, hook="x"), "without --quiesce"),
        ({"quiesce": True, "hook": "x"}, Wish(quiesce=True, hook="y"), "with another --quiesce-hook, or none"),
        ({"quiesce": True}, Wish(quiesce=True, hook="y"), "with another --quiesce-hook, or none"),
    ],
)
def test_a_map_that_lacks_what_is_asked_for(has: dict[str, object], wish: Wish, expected: str) -> None:
    record = Record("k", source(what=VOLUME), "files", **has)  # type: ignore[arg-type]
    assert difference(record, record.source, wish) == expected


# -- doctor


def test_doctor_leaves_a_map_that_has_been_finished_meanwhile(maps: Maps) -> None:
    """It looked while another command was in the middle of it."""
    half = Record("k", source(), "files", step=MAPPING)
    maps.state.write(half)
    (finding,) = [f for f in doctor.maps_left(maps) if f.cure]
    disk = maps.drivers["files"].map(half, maps.state.place("k"), Path())
    maps.state.write(replace(half, step=MAPPED, base=disk, device=disk))
    assert finding.cure
    finding.cure()
    assert maps.find(half) == disk
    Path(disk).unlink()
    (finding,) = [f for f in doctor.maps_left(maps) if f.cure]
    assert finding.cure
    finding.cure()
    assert not maps.state.records()


# -- krbd


def test_the_device_is_the_one_that_rbd_names(maps: Maps, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process gave a number back after the look at what is there, and this map got it."""
    record = Record("k", source(image_id="i", snapshot="s"), "krbd", known=("/dev/rbd0",))
    devices = tmp_path / "devices"
    (devices / "0").mkdir(parents=True)
    for name, value in (("image_id", "i"), ("cluster_fsid", ""), ("current_snap", "s")):
        (devices / "0" / name).write_text(f"{value}\n")
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, line in (("rbd", "echo /dev/rbd0"), ("modprobe", "exit 1")):
        (programs / name).write_text(f"#!/bin/sh\n{line}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(krbd, "_DEVICES", devices)
    assert krbd.Krbd().map(record, tmp_path, tmp_path / "a.conf") == "/dev/rbd0"


# -- following


def test_a_command_that_a_dead_follower_did_not_run_is_run(maps: Maps, tmp_path: Path) -> None:
    """It died after the switch; the next one runs the command, once."""
    mounts, log = Mounts(maps), tmp_path / "log"
    maps.state.write(Record("new", source(position="1.8"), "files", step=MAPPED, device="/dev/x"))
    command = f"echo $RBDTREE_GENERATION $RBDTREE_DEVICE >>{log}"
    left = MountRecord("/srv", "x", "x", "new", follow=True, on_switch=command, told="old")
    maps.state.write_mount(left)

    def unreachable() -> tuple[Source, Wish]:
        raise errors.Unreachable("a cluster does not answer")

    for _ in range(2):
        follow(mounts, left, unreachable, lambda _: True, lambda *_: None)
        assert log.read_text() == "1.8 /dev/x\n"
    kept = maps.state.mount("/srv")
    assert kept is not None
    assert kept.told == "new"
