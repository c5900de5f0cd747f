"""Fixtures of the scenario tests.

world      a place for one tree, in fresh pools of the clusters that all tests share
fragile    the same on clusters of its own, whose daemons may be hurt: they are whole again after each test
"""

import itertools
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .world import World

SCRIPTS = Path(__file__).parents[2] / "ceph-dev"
_numbers = itertools.count(1)


def _ceph_dev(script: str, *arguments: object) -> None:
    subprocess.run([SCRIPTS / script, *map(str, arguments)], check=True, timeout=120, capture_output=True)


@pytest.fixture
def world(pools: Any) -> Iterator[World]:
    """An empty place for a tree ``vol`` at sites a, b and c."""
    made = World(pools)
    yield made
    made.close()


@pytest.fixture(scope="session")
def brittle(clusters: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Three more clusters; b has a manager, without which quotas are not enforced."""
    directory = tmp_path_factory.mktemp("brittle")
    found = type(clusters)(directory)
    try:
        _ceph_dev("up", "--dir", directory, "a", "c")
        _ceph_dev("up", "--dir", directory, "--mgr", "b")
        yield found
    finally:
        found.close()
        _ceph_dev("down", "--dir", directory, "--purge")


@pytest.fixture
def fragile(brittle: Any, pools: Any, tmp_path: Path) -> Iterator[World]:
    """``world`` on clusters whose daemons this test may stop."""
    own = type(pools)(brittle, f"f{next(_numbers)}", tmp_path / "brittle.toml")
    own.make()
    made = World(own)
    yield made
    for site in ("a", "b", "c"):
        for daemon in ("mon.a", "osd.0"):
            for action in ("resume", "start"):
                subprocess.run(
                    [SCRIPTS / "daemon", "--dir", brittle.dir, site, daemon, action],
                    check=False,
                    timeout=60,
                    capture_output=True,
                )
    made.close()
    own.remove()
