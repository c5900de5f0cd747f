"""Programs of the host, run to their end within a deadline."""

import shutil
import subprocess
from pathlib import Path

from rbdtree import errors

_PLACES = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""A user's PATH often lacks the folders in which modprobe, losetup and mkfs lie."""
PATIENCE = 60.0


def find(program: str) -> str | None:
    """Its path; None when it is not installed."""
    return shutil.which(program) or shutil.which(program, path=_PLACES)


def run(what: str, *words: str | Path, seconds: float = PATIENCE, hint: str | None = None) -> str:
    """Its stdout. ``HostFailed`` when it is not there, fails, or does not end in time (then it is killed)."""
    program = find(str(words[0]))
    if program is None:
        raise errors.HostFailed(f"{what}: there is no program {words[0]}", "See 'rbdtree doctor'.")
    command = [program, *map(str, words[1:])]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as error:
        raise errors.HostFailed(
            f"{what}: {words[0]} did not end within {seconds:g} s", hint or "See 'rbdtree doctor' and the kernel's log."
        ) from error
    if done.returncode:
        raise errors.HostFailed(f"{what}: {words[0]} {_last(done.stderr, done.returncode)}", hint or _HINT)
    return done.stdout


_HINT = "See 'rbdtree doctor' and the kernel's log (dmesg)."


def _last(said: str, code: int) -> str:
    """What a program complained of, in a phrase."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    return f"said: {lines[-1].rstrip('.')}" if lines else f"ended with {code}"


def lines(path: str | Path) -> list[str]:
    """Of a file of the kernel's; none when it is not there."""
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def has_module(name: str) -> bool:
    """Whether the kernel has it, loaded, built in, or to be loaded."""
    if Path("/sys/module", name.replace("-", "_")).exists():
        return True
    program = find("modprobe")
    if program is None:
        return False
    done = subprocess.run([program, "-n", "-q", name], capture_output=True, check=False, timeout=PATIENCE)
    return done.returncode == 0


def load_module(name: str, *settings: str) -> None:
    """Nothing when it is there already; what the kernel does without it shows soon enough."""
    program = find("modprobe")
    if program and not Path("/sys/module", name.replace("-", "_")).exists():
        subprocess.run([program, "-q", name, *settings], capture_output=True, check=False, timeout=PATIENCE)
