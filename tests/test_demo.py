"""The README's first command, with everything in private directories."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.ceph,
    pytest.mark.timeout(400),
    pytest.mark.skipif(not shutil.which("ceph-mon"), reason="ceph-mon is not installed: run ceph-dev/install"),
]

DEMO = Path(__file__).parents[1] / "ceph-dev" / "demo"


class Demo:
    def __init__(self, tmp: Path) -> None:
        self.dir = tmp / "demo"
        self._environment = {**os.environ, "XDG_CACHE_HOME": str(tmp / "cache")}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(DEMO), *arguments, "--dir", str(self.dir)],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            env=self._environment,
            timeout=350,
            check=False,
        )


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    made.run("--stop")


def daemons_below(directory: Path) -> list[str]:
    lines = (path.read_bytes().replace(b"\0", b" ") for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    return [line.decode(errors="replace") for line in lines if f"{directory}/".encode() in line]


def test_the_demo_builds_a_tree_proves_it_equal_and_leaves_nothing(demo: Demo) -> None:
    done = demo.run("--once")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    for expected in (
        "demo/root is the root of demo, on a:rbd/volume",
        "root       root    up-to-date  1.2         -    512 MiB  a:rbd/volume",
        "├─ bench   clone   up-to-date  1.2         -    512 MiB  a:rbd/bench",
        "└─ copy    mirror  up-to-date  1.2         -    512 MiB  b:rbd/volume",
        "   └─ far  mirror  up-to-date  1.2         -    512 MiB  c:rbd/volume",
        "demo/bench = demo/root at 1.2: a clean clone of that very snapshot",
        "c:rbd/volume-branch",
        "demo/far: published as generation 1.3",
    ):
        assert expected in [line.rstrip() for line in lines], expected
    assert "all four nodes are equal" in lines, "with what was written at the farthest node"
    delta = [line for line in lines if line.startswith("delta ")]
    assert delta, "the figures of the delta are missing"
    for checked in ("far", "root"):
        assert f"$ e2fsck -fn {checked}" in lines
    assert any(re.match(r"1\.3 .* root, bench, copy, far$", line) for line in lines)
    assert not demo.dir.exists()
    assert daemons_below(demo.dir) == []


def test_the_demo_removes_nothing_that_it_did_not_make(demo: Demo) -> None:
    demo.dir.mkdir()
    (demo.dir / "precious").write_text("mine")
    done = demo.run("--stop")
    assert done.returncode != 0
    assert "was not made by this script" in done.stderr
    assert (demo.dir / "precious").read_text() == "mine"
