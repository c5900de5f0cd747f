"""A device that is made while a generation is cut writes into no generation (``engine.delta``, late writes)."""

import os
import shutil
from pathlib import Path

import pytest
from ground import MIB, Here, until
from live import latecomer

pytestmark = [pytest.mark.ceph, pytest.mark.timeout(240)]


def test_a_map_while_a_generation_is_cut(here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rbd

    shim, daemon = latecomer.build(tmp_path), shutil.which("qemu-storage-daemon")
    if shim is None:
        pytest.skip("there is no C compiler to hold up librbd with")
    here.tree("late")
    with here.clusters.admin("a").open_ioctx(here.pools.name) as ioctx, rbd.Image(ioctx, "late") as image:
        image.write(b"before" * MIB, 0)
    here("cut", "late")

    sign, go, programs = tmp_path / "sign", tmp_path / "go", tmp_path / "bin"
    programs.mkdir()
    held_up = programs / "qemu-storage-daemon"
    held_up.write_text(f'#!/bin/sh\nLD_PRELOAD={shim} LATE_SIGN={sign} LATE_GO={go} exec {daemon} "$@"\n')
    held_up.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    mapping = here.start("map", "late/root", "--write", "--driver", "fuse")
    until("the daemon is held up", sign.exists, 30)
    generation = here.get("cut", "late")["generation"]
    go.touch()
    out, err = mapping.communicate(timeout=60)
    assert mapping.returncode == 0, err
    here.shell(f"yes after | dd of={out.strip()} bs=1M count=4 iflag=fullblock conv=fsync")
    here("unmap", out.strip())

    with here.clusters.admin("a").open_ioctx(here.pools.name) as ioctx:
        with rbd.Image(ioctx, "late", read_only=True) as image:
            assert image.read(0, 5) == b"after"
            (name,) = (s["name"] for s in image.list_snaps() if s["name"].endswith(f".{generation}"))
        with rbd.Image(ioctx, "late", snapshot=name, read_only=True) as image:
            assert image.read(0, 6) == b"before"
