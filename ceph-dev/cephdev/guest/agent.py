"""Inside a test host: runs commands that come over the network, one a connection.

In: a line of JSON, {"command": ..., "seconds": ...}. Out: a line of JSON, {"code": ..., "out": ..., "err": ...}.
"""

import json
import os
import signal
import socketserver
import subprocess
from typing import Any

PORT = 2222


def run(command: str, seconds: float) -> dict[str, Any]:
    # Into files: a daemon that a command leaves behind would keep a pipe open for ever.
    out = os.memfd_create("out")
    err = os.memfd_create("err")
    process = subprocess.Popen(
        ["/bin/bash", "-c", command], stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True, cwd="/"
    )
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        code = 124
    return {"code": code, "out": text(out), "err": text(err)}


def text(handle: int) -> str:
    size = os.lseek(handle, 0, os.SEEK_END)
    found = os.pread(handle, size, 0).decode(errors="replace")
    os.close(handle)
    return found


class Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline()
        if line:
            asked = json.loads(line)
            self.wfile.write(json.dumps(run(asked["command"], asked["seconds"])).encode() + b"\n")


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


if __name__ == "__main__":
    Server(("", PORT), Handler).serve_forever()
