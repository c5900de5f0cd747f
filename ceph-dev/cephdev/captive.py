"""Clusters for the time of one command.

The clean-up is done by a keeper, a small process that waits at the end of a pipe. The pipe ends when this
process is done with it, or when it dies in whatever way, kill -9 included: the keeper ends the daemons and
removes the files.
"""

import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from cephdev import Failure, boot
from cephdev.fleet import SITES, Fleet

PR_SET_PDEATHSIG = 1
GRACE = 10.0  # seconds between passing on SIGTERM and SIGKILL
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    def __init__(self, number: int) -> None:
        self.number = number


def run(
    directory: Path | None,
    names: list[str],
    wish: boot.Wish,
    command: list[str],
    *,
    environment: dict[str, str],
    report: Callable[[boot.Outcome | Failure], None],
) -> int:
    """The command's exit code, 128 + signal if a signal ended it or us."""
    private = directory is None
    fleet = Fleet(Path(tempfile.mkdtemp(prefix="ceph-dev-run-")) if directory is None else directory)
    fleet.prepare()
    for name in names:
        if os.path.lexists(fleet.cluster(name).directory):
            raise Failure(
                f"{name} is already in {fleet.directory}, and run makes its own clusters; use another name, "
                f"or remove it: ceph-dev/down --dir {fleet.directory} --purge {name}"
            )
    before = {number: signal.signal(number, raise_interrupted) for number in STOPPING}
    keeper = Keeper(fleet, names, private)
    try:
        if len(fleet.up(names, wish, report)) < len(set(names)):
            return 1
        env = environment | {
            "CEPH_DEV_DIR": str(fleet.directory),
            "RBDTREE_CONFIG": str(fleet.directory / SITES),
        }
        inside = ["nsenter", f"--net=/run/netns/{wish.netns}"] if wish.netns else []
        return attend([*inside, *command], env)
    except Interrupted as interrupted:
        return 128 + interrupted.number
    finally:
        for number in STOPPING:
            signal.signal(number, signal.SIG_IGN)
        keeper.clean_up()
        for number, handler in before.items():
            signal.signal(number, handler)


def raise_interrupted(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def attend(command: list[str], environment: dict[str, str]) -> int:
    """Start the command, pass signals on, wait for it."""
    awaited = {*STOPPING, signal.SIGCHLD}
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    libc = ctypes.CDLL(None)

    def prepare() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        for number in STOPPING:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        process = subprocess.Popen(command, env=environment, preexec_fn=prepare)  # noqa: PLW1509 - no threads by now
    except OSError as error:
        print(f"ceph-dev/run: {command[0]}: {error.strerror}", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126
    finally_at = float("inf")
    while process.poll() is None:
        caught = signal.sigtimedwait(awaited, 0.5)
        # A terminal sends Ctrl-C to the command too (si_code > 0); what a process sends comes only here.
        if caught and caught.si_signo in STOPPING and caught.si_code <= 0:
            process.send_signal(caught.si_signo)
            finally_at = min(finally_at, time.monotonic() + GRACE)
        if time.monotonic() > finally_at:
            process.kill()
    return process.returncode if process.returncode >= 0 else 128 - process.returncode


class Keeper:
    def __init__(self, fleet: Fleet, names: list[str], private: bool) -> None:
        waiting, self._pipe = os.pipe()
        self._pid = os.fork()
        if self._pid:
            os.close(waiting)
            return
        code = 1
        try:
            os.close(self._pipe)
            os.setsid()
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)
            os.dup2(2, 1)  # whoever reads the command's output need not wait for us
            while os.read(waiting, 1):
                pass
            clean_up(fleet, names, private)
            code = 0
        except Exception as error:
            print(f"ceph-dev/run: clean-up: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)

    def clean_up(self) -> None:
        os.close(self._pipe)
        os.waitpid(self._pid, 0)


def clean_up(fleet: Fleet, names: list[str], private: bool) -> None:
    """Without the clusters' locks: whoever held them is gone, or waits for us."""
    clusters = [cluster for cluster in map(fleet.cluster, names) if cluster.marker()]
    for _ in range(2):  # twice: a process just forked by a killed boot shows its command line a moment later
        for cluster in clusters:
            cluster.end_daemons(gently=False)
        time.sleep(0.02)
    for cluster in clusters:
        cluster.purge()
    if private:
        shutil.rmtree(fleet.directory)
    else:
        fleet.write_sites()
