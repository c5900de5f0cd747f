"""Commands in processes of their own, forked from one that has everything imported: to start Python and import is most
of what a command costs, and the tests run thousands.

    done = forked.run(["status", "vol"], seconds=60)        a subprocess.CompletedProcess

What a command reads from a terminal, signals to it, and what /proc says of its command line need a process that was
started: ``subprocess``.
"""

import atexit
import faulthandler
import importlib
import json
import os
import pkgutil
import random
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

_REQUEST = 1 << 20
_ANSWER = struct.Struct("<q")
_PATIENCE = 60.0
"""Seconds until the first command is forked: everything is imported before."""
_guard = threading.Lock()
_servers: dict[int, socket.socket] = {}
"""By process: one that was forked from another has its own."""


def run(
    words: Sequence[object], *, env: Mapping[str, str] | None = None, seconds: float = 60
) -> "subprocess.CompletedProcess[str]":
    """``rbdtree WORDS`` to its end; ``TimeoutExpired`` after that many seconds, and it is killed."""
    given = list(map(str, words))
    request = {"words": given, "env": dict(os.environ if env is None else env), "cwd": os.getcwd()}
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine, tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        with theirs:
            files = [out.fileno(), err.fileno(), theirs.fileno()]
            socket.send_fds(_to_server(), [json.dumps(request).encode()], files)
        mine.settimeout(_PATIENCE)
        pid = _answer(mine)
        mine.settimeout(seconds)
        try:
            code = _answer(mine)
        except TimeoutError:
            os.kill(pid, signal.SIGKILL)
            mine.settimeout(10)
            _answer(mine)
            raise subprocess.TimeoutExpired(given, seconds, _text(out), _text(err)) from None
        return subprocess.CompletedProcess(given, code, _text(out), _text(err))


def _answer(connection: socket.socket) -> int:
    data = connection.recv(_ANSWER.size)
    assert data, "the process that commands are forked from has died"
    return int(_ANSWER.unpack(data)[0])


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _to_server() -> socket.socket:
    with _guard:
        if os.getpid() not in _servers:
            mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            command = [sys.executable, str(Path(__file__).resolve()), str(theirs.fileno())]
            process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
            theirs.close()
            atexit.register(_end, mine, process)
            _servers[os.getpid()] = mine
        return _servers[os.getpid()]


def _end(connection: socket.socket, process: "subprocess.Popen[bytes]") -> None:
    connection.close()
    process.wait(10)


# -- the server


def serve(connection: socket.socket) -> None:
    """Until whoever started it is gone."""
    for name in ("rbdtree", "rbdtree_cli"):
        package = importlib.import_module(name)
        for module in pkgutil.walk_packages(package.__path__, f"{name}."):
            importlib.import_module(module.name)
    while True:
        data, files, _, _ = socket.recv_fds(connection, _REQUEST, 3)
        if not data:
            return
        if os.fork() == 0:
            connection.close()
            _see_to(json.loads(data), *files)
        for file in files:
            os.close(file)
        _reap()


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _see_to(request: dict[str, object], out: int, err: int, status: int) -> None:
    """One command: who tells of its end is another process, so that this one may be killed."""
    pid = os.fork()
    if pid == 0:
        os.close(status)
        _command(request, out, err)
    os.write(status, _ANSWER.pack(pid))
    os.write(status, _ANSWER.pack(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])))
    os._exit(0)


def _command(request: dict[str, object], out: int, err: int) -> None:
    code = 1
    try:
        for file, number in ((out, 1), (err, 2)):
            os.dup2(file, number)
            os.close(file)
        words, env, cwd = request["words"], request["env"], request["cwd"]
        assert isinstance(words, list)
        assert isinstance(env, dict)
        os.environ.clear()
        os.environ.update(env)
        os.chdir(str(cwd))
        sys.stdout, sys.stderr = (open(number, "w", closefd=False) for number in (1, 2))  # noqa: SIM115
        sys.argv = ["rbdtree", *words]
        faulthandler.enable(2)
        # Not the numbers of everybody else that was forked.
        random.seed()
        importlib.import_module("rbdtree_cli.main").main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])))
