"""A host that is still opening an image while a snapshot of it is made: librbd as it is, held up for as long as wanted
between its reading the header and its watching it (Ceph 16 and 18: image/OpenRequest.cc).

    python latecomer.py CONF POOL IMAGE       with LD_PRELOAD=(what ``build`` made), LATE_SIGN=FILE, LATE_GO=FILE

The file of LATE_SIGN is there once it is held up; it goes on when that of LATE_GO is. Then a line "OFFSET TEXT" on
stdin is a write, and is answered when it is acknowledged.
"""

import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

# librados is opened by Python's modules, not by the program: so it is asked for by name.
_SHIM = r"""
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
#define WATCH \
  "_ZN8librados7v14_2_05IoCtx9aio_watchERKNSt7__cxx1112basic_stringIcSt11char_traitsIcESaIcEEE" \
  "PNS0_13AioCompletionEPmPNS0_9WatchCtx2E"
typedef int (*watch_t)(void *, void *, void *, void *, void *);
int held_up(void *io, void *oid, void *c, void *handle, void *ctx) __asm__(WATCH);
int held_up(void *io, void *oid, void *c, void *handle, void *ctx) {
  close(open(getenv("LATE_SIGN"), O_CREAT | O_WRONLY, 0600));
  while (access(getenv("LATE_GO"), F_OK))
    usleep(1000);
  watch_t real = (watch_t)dlsym(dlopen("librados.so.2", RTLD_NOW), WATCH);
  return real(io, oid, c, handle, ctx);
}
"""


def build(folder: Path) -> Path | None:
    """What is loaded before librados; None without a C compiler."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    (folder / "late.c").write_text(_SHIM)
    made = folder / "late.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", made, folder / "late.c", "-ldl"], check=True, timeout=60)
    return made


def write(ioctx: Any, image: Any, offset: int, data: bytes | None) -> None:
    """What such a host leaves behind, without one: writes with the snapshots of before, inside one object that is
    there (None: removes it), and notes it in the object map. Nobody has the image open for writing."""
    prefix, unit = image.stat()["block_name_prefix"], image.stat()["obj_size"]
    number = offset // unit
    ioctx.set_self_managed_snap_write(sorted((int(s["id"]) for s in image.list_snaps()), reverse=True)[1:])
    try:
        if data is None:
            ioctx.remove_object(f"{prefix}.{number:016x}")
        else:
            ioctx.write(f"{prefix}.{number:016x}", data, offset % unit)
    finally:
        ioctx.set_self_managed_snap_write([])
    # From one object to the next: "exists", or does not, whatever it was before.
    change = struct.pack("<QQBB", number, number + 1, data is not None, 0)
    ioctx.execute(f"rbd_object_map.{image.id()}", "rbd", "object_map_update", change)


def main() -> None:
    """Until its stdin ends."""
    import rados
    import rbd

    conf, pool, name = sys.argv[1:]
    with rados.Rados(conffile=conf, rados_id="admin") as cluster, cluster.open_ioctx(pool) as ioctx:
        image = rbd.Image(ioctx, name)
        print("open", flush=True)
        for line in sys.stdin:
            offset, text = line.split()
            image.write(text.encode(), int(offset))
            image.flush()
            print("written", flush=True)
        image.close()


if __name__ == "__main__":
    main()
