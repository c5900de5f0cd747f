"""Commands in processes of their own."""

import io
import json
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import forked


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def start(words: tuple[object, ...], **environment: str) -> "subprocess.Popen[str]":
    """The command of this checkout or installation, with no configuration but the one it is told of."""
    return subprocess.Popen(
        [sys.executable, "-m", "rbdtree_cli.main", *map(str, words)],
        text=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(environment),
    )


def _environment(more: dict[str, str]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RBDTREE_")}
    return {**kept, "HOME": "/nonexistent", "PYTHONFAULTHANDLER": "1", **more}


def run(*words: object, code: int | None = 0, seconds: float = 60, **environment: str) -> Done:
    """A command to its end; ``code`` None: whatever it exits with."""
    ended = forked.run(words, env=_environment(environment), seconds=seconds)
    done = Done(tuple(map(str, words)), ended.returncode, ended.stdout, ended.stderr)
    assert "Traceback" not in done.err, done.err
    assert code is None or done.code == code, done
    return done


def inside(*words: object) -> Done:
    """A command that ends before it asks any cluster, in this process: quicker."""
    from rbdtree_cli import main

    out, err = io.StringIO(), io.StringIO()
    given = list(map(str, words))
    with redirect_stdout(out), redirect_stderr(err):
        code = main.run(given)
    return Done(tuple(given), code, out.getvalue(), err.getvalue())


def check_refusal(done: Done) -> None:
    """One sentence about what was seen, and a hint of what to do."""
    lines = done.err.splitlines()
    said = [line for line in lines if line.startswith("rbdtree: ") and "warning:" not in line]
    assert said, done
    for line in said:
        sentence = line.removeprefix("rbdtree: ")
        assert not sentence.endswith("."), line
        assert not re.search(r"\b(Errno|errno|None|Traceback|object at 0x)\b", sentence), line
        hint = lines[lines.index(line) + 1 :]
        assert hint, f"no hint: {done}"
        assert hint[0].startswith("  "), f"no hint: {done}"
