"""Shell completion, tried in the real shells where they are installed."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from terminal import inside


@pytest.fixture
def bin_directory(tmp_path: Path) -> Path:
    """A directory for PATH with ``rbdtree`` in it, as an installation would have it."""
    made = tmp_path / "bin"
    made.mkdir()
    script = made / "rbdtree"
    script.write_text(f"#!{sys.executable}\n# PYTHON_ARGCOMPLETE_OK\nfrom rbdtree_cli.main import main\nmain()\n")
    script.chmod(0o755)
    return made


def shell(name: str, code: str, bin_directory: Path, **more: str) -> str:
    found = shutil.which(name)
    if not found:
        pytest.skip(f"{name} is not installed")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RBDTREE_")}
    environment = {**kept, "PATH": f"{bin_directory}:{os.environ['PATH']}", "HOME": str(bin_directory), **more}
    flags = {"bash": ["--norc", "--noprofile"], "zsh": ["-f"], "fish": ["--no-config"]}[name]
    done = subprocess.run(
        [found, *flags, "-c", code], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert done.returncode == 0, done
    assert done.stderr == "", done
    return done.stdout


def bash(line: str, bin_directory: Path, **more: str) -> list[str]:
    """What bash offers at the end of the line."""
    words = line.split(" ")
    code = f"""
        eval "$(rbdtree completion bash)"
        COMP_LINE={line!r} COMP_POINT={len(line)} COMP_TYPE=9 COMP_WORDS=({" ".join(map(repr, words))})
        COMP_CWORD={len(words) - 1}
        COMP_WORDBREAKS=$' \\t\\n"\\'><=;|&(:'
        function=$(complete -p rbdtree | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        $function rbdtree {words[-1]!r} {words[-2]!r}
        printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return [word.strip() for word in shell("bash", code, bin_directory, **more).split("\n") if word.strip()]


def test_code_for_every_shell() -> None:
    for name in ("bash", "zsh", "fish"):
        assert "rbdtree" in inside("completion", name).out


def test_bash_completes_commands_and_options(bin_directory: Path) -> None:
    assert bash("rbdtree st", bin_directory) == ["status"]
    assert {"sync", "site", "status"} <= set(bash("rbdtree s", bin_directory))
    assert bash("rbdtree verify --a", bin_directory) == ["--at"]
    assert set(bash("rbdtree add t/n --kind ", bin_directory)) == {"mirror", "clone"}


def test_zsh_and_fish_take_their_code(bin_directory: Path) -> None:
    tried = [name for name in ("zsh", "fish") if shutil.which(name)]
    for name in tried:
        if name == "zsh":
            code = 'autoload -U compinit; compinit -u -D; eval "$(rbdtree completion zsh)"; print ${_comps[rbdtree]}'
            assert "argcomplete" in shell(name, code, bin_directory).splitlines()[-1]
        else:
            code = "rbdtree completion fish | source; complete -C 'rbdtree st'"
            assert "status" in shell(name, code, bin_directory)
    if not tried:
        pytest.skip("neither zsh nor fish is installed")


@pytest.mark.ceph
def test_bash_completes_names(shared: Any, bin_directory: Path) -> None:
    where = {"RBDTREE_CONFIG": str(shared.config)}
    assert bash("rbdtree cut v", bin_directory, **where) == ["vol"]
    assert set(bash("rbdtree status ", bin_directory, **where)) >= {"vol", "new"}
    assert set(bash("rbdtree sync vol/", bin_directory, **where)) == {"vol/root", "vol/m", "vol/g", "vol/k"}
    assert bash("rbdtree remove vol/g", bin_directory, **where) == ["vol/g"]
    assert set(bash("rbdtree add vol/x --parent ", bin_directory, **where)) == {"root", "m", "g", "k"}
    assert set(bash("rbdtree site check ", bin_directory, **where)) >= {"a", "b", "c"}
    assert bash(f"rbdtree --config {shared.config} log ne", bin_directory)[0].startswith("new")


@pytest.mark.ceph
def test_completion_is_never_late_and_never_an_error(shared: Any, bin_directory: Path, tmp_path: Path) -> None:
    conf = tmp_path / "closed.conf"
    text = re.sub(r"^mon host.*$", "mon host = [v2:127.0.0.1:1]", shared.pools.conf("b").read_text(), flags=re.M)
    conf.write_text(text)
    began = time.monotonic()
    assert bash("rbdtree cut v", bin_directory, RBDTREE_CONFIG=str(shared.without("b", conf))) == ["vol"]
    assert time.monotonic() - began < 15
    for broken in ("/nonexistent", str(conf)):
        assert bash("rbdtree cut v", bin_directory, RBDTREE_CONFIG=broken) == []
