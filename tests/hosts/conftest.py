"""Hosts with real block devices.

here    this machine, where FUSE and loop devices can be had: commands run natively, in a state directory of the test
site    clusters a and b on a network of test hosts (ceph-dev/host), and hosts h1, h2 and h3 on it; one a session
yard    a fresh pool on these clusters, and what a test does there
"""

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ground import HOSTS, Here, Site, Yard, testhost

_numbers = itertools.count(1)


@pytest.fixture(scope="module")
def ground(clusters: Any, pools_class: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Here]:
    """A fresh pool, one for a module. Tests leave nothing mapped in it; generations and trees they may add."""
    if os.geteuid() != 0:
        pytest.skip("block devices need root")
    for needed in ("/dev/fuse", "/dev/loop-control"):
        if not os.path.exists(needed):
            pytest.skip(f"this kernel has no {needed}")
    if not shutil.which("qemu-storage-daemon"):
        pytest.skip("qemu-storage-daemon is not installed: run ceph-dev/install")
    folder = tmp_path_factory.mktemp("here")
    pools = pools_class(clusters, f"h{os.getpid()}", folder / "rbdtree.toml")
    pools.make()
    try:
        yield Here(pools, folder)
    finally:
        pools.remove()


@pytest.fixture
def here(ground: Here) -> Iterator[Here]:
    kept = ground.config.read_text()
    try:
        yield ground
    finally:
        ground.leave()
        ground.config.write_text(kept)


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    problem = testhost.why_not()
    if problem:
        pytest.skip(problem)
    if not shutil.which("ceph-mon"):
        pytest.skip("ceph-mon is not installed: run ceph-dev/install")
    made = Site(tmp_path_factory.mktemp("site"))
    try:
        made.boot()
        yield made
    finally:
        made.end()


@pytest.fixture
def yard(site: Site, tmp_path: Path) -> Iterator[Yard]:
    # A folder of the site's: what a host has read of this machine's files it may remember.
    made = Yard(site, f"y{next(_numbers)}", site.directory / f"y{next(_numbers)}.toml")
    made.make()
    down = [h for h in HOSTS if not site.network.host(h).running]
    if down:
        site.network.up(down)
    try:
        yield made
    finally:
        made.leave()
