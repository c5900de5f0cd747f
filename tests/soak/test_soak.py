"""The long run, shortened: a minute of bad luck by a fixed seed (RBDTREE_TEST_SEED), then rest."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]


@pytest.mark.ceph
@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_a_minute_of_bad_luck() -> None:
    seed = os.environ.get("RBDTREE_TEST_SEED", "1")
    command = [TOP / "ceph-dev" / "soak", "--minutes", "1", "--seed", seed]
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=560, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert done.stdout.rstrip().endswith("all is well")
