"""One daemon of a cluster: mon.a, osd.0, mgr.x."""

import contextlib
import re
import signal
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path

from cephdev import Failure, processes

CRASH = r"FAILED ceph_assert|Caught signal"

# Held while a process is started, so that after cancel() nothing new appears behind the back of a clean-up.
_starting = threading.Lock()
_cancelled = threading.Event()


def cancel() -> None:
    with _starting:
        _cancelled.set()


def spawn(argv: list[str], output: Path) -> subprocess.Popen[bytes]:
    """In a session of its own, to survive the shell and its Ctrl-C; in /: releases have relative paths."""
    with _starting, output.open("ab") as log:
        if _cancelled.is_set():
            raise Failure(f"{argv[0]} was not started: interrupted")
        return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/")


@dataclass(frozen=True)
class Daemon:
    directory: Path  # of the cluster
    kind: str
    ident: str

    @property
    def name(self) -> str:
        return f"{self.kind}.{self.ident}"

    @property
    def program(self) -> str:
        return f"ceph-{self.kind}"

    @property
    def conf(self) -> Path:
        return self.directory / "ceph.conf"

    @property
    def data(self) -> Path:
        return self.directory / self.name

    @property
    def output(self) -> Path:
        return self.directory / "log" / f"{self.name}.out"

    def is_me(self, pid: int) -> bool:
        return processes.is_daemon_of(pid, self.conf, self.program, self.ident)

    def pid(self) -> int | None:
        """From the pid file, if that process is really this daemon; else whoever has our command line."""
        try:
            written = int((self.directory / "run" / f"{self.name}.pid").read_text())
        except (OSError, ValueError):
            written = 0
        if written > 0 and self.is_me(written):
            return written
        return next((pid for pid in processes.daemons_of(self.conf) if self.is_me(pid)), None)

    def state(self) -> str:
        pid = self.pid()
        if pid is None:
            return "dead"
        return "paused" if processes.is_paused(pid) else "running"

    def command(self, *arguments: str) -> list[str]:
        return [self.program, "-c", str(self.conf), "-i", self.ident, *arguments]

    def make_store(self, *arguments: str) -> None:
        self.data.mkdir(exist_ok=True)
        process = spawn(self.command("--mkfs", *arguments), self.output)
        try:
            code = process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            code = "no answer in 60 s"
        if code:
            said = self.last_words()
            raise Failure(f"{self.directory.name}: {self.name} could not make its store ({code}){said}")

    def start(self) -> subprocess.Popen[bytes]:
        return spawn(self.command("-f"), self.output)

    def signal(self, number: int) -> None:
        processes.send(self.must_run(), number)

    def end(self, *, gently: bool) -> bool:
        """True if it had to be killed although it was asked first."""
        stubborn = processes.end([self.must_run()], self.is_me, gently=gently)
        if self.pid() is not None:
            raise Failure(f"{self.directory.name}: {self.name} (pid {self.pid()}) does not end, even by SIGKILL")
        return bool(stubborn)

    def resume(self) -> None:
        self.signal(signal.SIGCONT)

    def must_run(self) -> int:
        pid = self.pid()
        if pid is None:
            raise Failure(
                f"{self.directory.name}: {self.name} is not running; start it: "
                f"ceph-dev/daemon --dir {self.directory.parent} {self.directory.name} {self.name} start"
            )
        return pid

    def last_words(self, lines: int = 15) -> str:
        """The end of what it printed, or else logged, for an error message; of a crash its beginning."""
        for path in (self.output, self.directory / "log" / f"{self.name}.log"):
            with contextlib.suppress(OSError):
                said = [line for line in path.read_text(errors="replace").splitlines() if line.strip()]
                crash = next((at for at, line in enumerate(said) if re.search(CRASH, line)), None)
                said = said[-lines:] if crash is None else said[crash : crash + lines]
                if said:
                    return "\n".join([f"; {path} {'ends' if crash is None else 'says'}:", *said])
        return f"; nothing in {self.output}"


def parse_name(text: str) -> tuple[str, str]:
    found = re.fullmatch(r"(mon|osd|mgr)\.([a-z0-9]+)", text)
    if not found:
        raise Failure(f"{text!r} is no daemon; one is named like mon.a, osd.0 or mgr.x")
    return found[1], found[2]
