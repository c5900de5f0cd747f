"""``status --watch`` on a terminal: what is drawn, and how fast it says that things get on."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from rbdtree_cli import watch
from rich.console import Console

from rbdtree import errors
from rbdtree.engine.forest import Forest
from rbdtree.engine.report import NodeReport, TreeReport
from rbdtree.model.document import Kind, State
from rbdtree.model.position import Position

GIB = 1 << 30
ROOT = NodeReport("root", "1", None, Kind.ROOT, "a", "a:rbd/vol", State.UP_TO_DATE, Position(1, 7), 8 * GIB, 0, 0.0, 0)
COPYING = NodeReport(
    "m",
    "2",
    "root",
    Kind.MIRROR,
    "b",
    "b:rbd/vol",
    State.OUTDATED,
    Position(1, 6),
    8 * GIB,
    1,
    60.0,
    GIB,
    intent=Position(1, 7),
    intent_done_bytes=2 * GIB,
    intent_size_bytes=8 * GIB,
)
ILL = replace(
    COPYING, name="n", node_id="3", intent=None, intent_done_bytes=None, problem="site c does not answer (3 times)"
)


def test_a_rate_is_of_the_looks_it_was_seen_in() -> None:
    now = [100.0]
    pace = watch.Pace(lambda: now[0])
    assert pace.rate("vol", COPYING) is None
    now[0] += 2
    assert pace.rate("vol", replace(COPYING, intent_done_bytes=3 * GIB)) == GIB / 2
    # Documents tell now and then only: between two of their notes the last rate holds.
    now[0] += 2
    assert pace.rate("vol", replace(COPYING, intent_done_bytes=3 * GIB)) == GIB / 2
    # Another delta, or the same anew.
    assert pace.rate("vol", replace(COPYING, intent=Position(1, 8))) is None
    now[0] += 1
    assert pace.rate("vol", replace(COPYING, intent=Position(1, 8), intent_done_bytes=0)) is None
    assert pace.rate("vol", ILL) is None
    assert pace.rate("other", replace(COPYING, intent_done_bytes=7 * GIB)) is None


def test_what_is_drawn() -> None:
    now = [100.0]
    pace = watch.Pace(lambda: now[0])
    tree = TreeReport("vol", "0123456789", 8 * GIB, Position(1, 7), (ROOT, replace(COPYING, intent_done_bytes=0), ILL))
    forest = Forest((), (errors.Unreachable("site d does not answer"),))
    drawn(watch._drawn(forest, [tree], pace))
    now[0] += 4
    seen = drawn(watch._drawn(forest, [replace(tree, nodes=(ROOT, COPYING, ILL))], pace))
    assert "vol  8 GiB, generation 1.7, id 01234567" in seen[0]
    rows = {words[0]: words for line in seen if (words := re.findall(r"[\w.:/-]+", line)) and "up-to-date" in line}
    assert list(rows) == ["root"]
    assert any("outdated" in line and "1.6" in line for line in seen)
    (bar,) = (line for line in seen if "━" in line)
    assert re.search(r"^  m +━{5}╌{15} +to 1\.7 +25 % +512 MiB/s", bar), bar
    assert any(line.startswith("  n  site c does not answer (3 times)") for line in seen)
    assert "site d does not answer" in seen[-2]
    assert seen[-1].endswith("Ctrl-C ends")
    assert "no trees" in drawn(watch._drawn(forest, [], pace))[0]


def drawn(what: Any) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=100).print(what)
    return out.getvalue().splitlines()


@pytest.mark.ceph
def test_it_draws_until_ctrl_c(shared: Any) -> None:
    above, below = pty.openpty()
    words = ["--config", str(shared.config), "status", "vol", "--watch", "0.2"]
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    watching = subprocess.Popen(
        [sys.executable, "-m", "rbdtree_cli.main", *words], stdin=below, stdout=below, stderr=below, env=env
    )
    os.close(below)
    seen, deadline = "", time.monotonic() + 30
    try:
        while seen.count("Ctrl-C ends") < 3:
            assert time.monotonic() < deadline, seen
            if select.select([above], [], [], 1)[0]:
                seen += os.read(above, 65536).decode()
        watching.send_signal(signal.SIGINT)
        while watching.poll() is None:
            assert time.monotonic() < deadline
            if select.select([above], [], [], 0.2)[0]:
                try:
                    seen += os.read(above, 65536).decode()
                except OSError:
                    break
        assert watching.wait(10) == 0
    finally:
        watching.kill()
        watching.wait()
        os.close(above)
    assert "up-to-date" in seen
    assert "Traceback" not in seen
