"""The tool as a user runs it: one process a command."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from sites import Site, Sites

COMMAND = [sys.executable, "-P", "-m", "rbdtree_cli.main"]
"""-P: the rbdtree that is installed, not the one in the current directory, whose modules may not be compiled."""


def check(*programs: str) -> None:
    """Says what is missing before anything is built; ``programs``: what is measured beside the tool."""
    for program in programs:
        if shutil.which(program) is None:
            raise SystemExit(f"{program} is not here: install it (Debian and Ubuntu: apt-get install {program})")
    try:
        subprocess.run([*COMMAND, "--version"], check=True, capture_output=True)
    except subprocess.CalledProcessError as error:
        raise SystemExit(
            f"{sys.executable} cannot run rbdtree: use the Python of a virtual environment in which it is installed"
            f"\n{error.stderr.decode()}"
        ) from None


def argv(config: Path, *words: str) -> list[str]:
    return [*COMMAND, "--config", str(config), "--no-progress", *words]


def run(sites: Sites, at: Site, *words: str) -> None:
    at.run(argv(sites.config, *words), stdout=subprocess.DEVNULL)


def ask(sites: Sites, at: Site, *words: str) -> Any:
    found = at.run(argv(sites.config, "--format", "json", *words), stdout=subprocess.PIPE).stdout
    return json.loads(found)
