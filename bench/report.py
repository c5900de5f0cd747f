"""RESULTS.md: a section for each script, replaced when it runs with ``--write``; raw figures as JSON beside it."""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "RESULTS.md"
_HEAD = """# Measured

Every section was written by the command it names. Times are whole processes, medians; clusters are `ceph-dev`'s
one-node clusters, so that monitors, OSDs and contenders share the cores. Ratios compare what ran interleaved in
one run.
"""


def machine() -> str:
    """Cores, kernel, Ceph, Python, in one line."""
    ceph = subprocess.run(["rbd", "--version"], capture_output=True, text=True, check=True).stdout.split()[2]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    congestion = Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    return (
        f"{os.cpu_count()} cores, {memory:.0f} GiB, Linux {platform.release()} (TCP {congestion}), Ceph {ceph}, "
        f"Python {platform.python_version()}"
    )


def command() -> str:
    return shlex.join(["bench/" + Path(sys.argv[0]).name, *sys.argv[1:]])


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown; the first column to the left, the others to the right."""
    lines = ["| " + " | ".join(head) + " |", "|---" + "|--:" * (len(head) - 1) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def put(section: str, title: str, body: str, figures: dict[str, Any], write: bool) -> None:
    """Prints the section; with ``write`` also puts it into RESULTS.md and the figures into results/SECTION.json."""
    stamp = f"{time.strftime('%Y-%m-%d')}, {machine()}, `{command()}`"
    text = f"## {title}\n\n{stamp}\n\n{body}\n"
    print(text)
    if not write:
        return
    (HERE / "results").mkdir(exist_ok=True)
    whole = {"date": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "machine": machine(), "command": command(), **figures}
    (HERE / "results" / f"{section}.json").write_text(json.dumps(whole, indent=1) + "\n")
    old = RESULTS.read_text() if RESULTS.exists() else _HEAD
    block = f"<!-- {section} -->\n{text}<!-- /{section} -->\n"
    pattern = re.compile(rf"<!-- {section} -->\n.*?<!-- /{section} -->\n", re.DOTALL)
    new = pattern.sub(lambda _: block, old) if pattern.search(old) else f"{old.rstrip()}\n\n{block}"
    RESULTS.write_text(new)
