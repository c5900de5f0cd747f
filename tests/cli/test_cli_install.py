"""``pip install .`` as a user does it: a fresh virtual environment over the system's Python and its Ceph bindings."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"


# Not this checkout, whatever the tests run with.
ENVIRONMENT = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}


def say(*words: object, code: int | None = 0) -> str:
    done = subprocess.run(
        list(map(str, words)), capture_output=True, text=True, timeout=200, check=False, cwd="/", env=ENVIRONMENT
    )
    if code is None:
        return "" if done.returncode else "done"
    assert done.returncode == code, done
    return done.stdout


def test_pip_install_gives_a_command_and_no_cli_module(tmp_path: Path) -> None:
    if not Path(PYTHON).exists() or subprocess.run([PYTHON, "-c", "import rados, rbd, venv"], check=False).returncode:
        pytest.skip(f"{PYTHON} has no rados and rbd")
    source = tmp_path / "source"
    source.mkdir()
    for name in ("rbdtree", "cli"):
        shutil.copytree(REPO / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPO / name, source)
    venv = tmp_path / "venv"
    say(PYTHON, "-m", "venv", "--system-site-packages", venv)
    pip = [venv / "bin/pip", "--disable-pip-version-check"]
    if not say(*pip, "download", "--quiet", "--no-deps", "-d", tmp_path, "argcomplete", code=None):
        pytest.skip("no package index can be reached")
    say(*pip, "install", "--quiet", source)
    assert say(venv / "bin/rbdtree", "--version").startswith("rbdtree ")
    assert "reader" in say(venv / "bin/rbdtree", "caps", "reader", "--format", "json")
    assert "no such" not in say(venv / "bin/rbdtree", "status", "--config", "/nonexistent", code=2)
    assert "rbdtree" in say(venv / "bin/rbdtree", "completion", "bash")
    seen = say(
        venv / "bin/python",
        "-c",
        "import importlib.util as u, rbdtree, rbdtree_cli.main; print(u.find_spec('cli'), rbdtree.__file__)",
    )
    assert seen.startswith("None ")
    assert str(venv) in seen
    installed = say(venv / "bin/pip", "show", "--files", "rbdtree")
    there = [str(p.relative_to(source)).replace("cli/", "rbdtree_cli/", 1) for p in source.glob("cli/*.py")]
    there += [str(p.relative_to(source)) for p in source.glob("rbdtree/**/*.py")]
    assert [name for name in there if f"  {name}\n" not in installed] == []
    assert "rbdtree_cli/main.py" in there
    assert "rbdtree/py.typed" in installed
    assert "  cli/" not in installed
