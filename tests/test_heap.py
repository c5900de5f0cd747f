"""How many arenas the C library makes for threads, as it tells itself (malloc_info(3))."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import ctypes, sys, threading
from rbdtree import heap

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.fopen.restype = ctypes.c_void_p
if sys.argv[1] == "bound":
    heap.bound()
together = threading.Barrier(40)

def work():
    together.wait()
    libc.malloc(1 << 16)
    together.wait()

threads = [threading.Thread(target=work) for _ in range(40)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
heap.trim()
file = libc.fopen(sys.argv[2].encode(), b"w")
libc.malloc_info(0, ctypes.c_void_p(file))
libc.fclose(ctypes.c_void_p(file))
"""


def arenas(how: str, file: Path, limit: str | None = None) -> int:
    environment = {key: text for key, text in os.environ.items() if key != "MALLOC_ARENA_MAX"}
    if limit:
        environment["MALLOC_ARENA_MAX"] = limit
    subprocess.run([sys.executable, "-c", PROGRAM, how, str(file)], env=environment, check=True, timeout=60)
    return file.read_text().count("<heap nr=")


def test_threads_share_a_few_arenas(tmp_path: Path) -> None:
    assert arenas("free", tmp_path / "free") > 4
    assert arenas("bound", tmp_path / "bound") <= 4
    assert arenas("bound", tmp_path / "told", limit="6") > 4
