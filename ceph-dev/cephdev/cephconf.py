"""What ceph.conf says: a Ceph small and quick enough to be booted by a test.

What makes it quick (measured on 16.2.15): `bdev aio poll ms` (every open and close of the block file waits
that long; from 250 to 10: store made in 0.6 s instead of 2.3 s, OSD started in 0.35 s instead of 1.5 s),
`paxos propose interval` and `paxos min wait` (a second for every map change otherwise), and no manager.
`cluster addr` must be set beside `public addr`: else heartbeats bind 0.0.0.0, and neighbours on other
addresses wait for each other's ports.
"""

import re
from pathlib import Path

from cephdev import Failure, release
from cephdev.address import Address

# read lease: a lone OSD that stood still for longer than its lease (0.8 of the grace) waits for good for a renewal that
# nobody sends ("waiting for readable", Ceph 16). Replicated pools do not know this; frozen OSDs of tests would.
COMMON = """
    ms bind retry delay = 1
    ms bind retry count = 30
    ms async op threads = 1
    osd pool default size = 1
    osd pool default min size = 1
    osd pool default pg num = 8
    osd pool default pg autoscale mode = off
    osd crush chooseleaf type = 0
    mon allow pool size one = true
    mon allow pool delete = true
    mon warn on pool no redundancy = false
    auth allow insecure global id reclaim = false
    mon data avail warn = 5
    mon data avail crit = 2
    paxos propose interval = 0.05
    paxos min wait = 0.02
    mon tick interval = 1
    mon mgr beacon grace = 3600
    mon cluster log to file = false
    mon rocksdb options = write_buffer_size=2097152,compression=kNoCompression,max_background_jobs=1
    rocksdb cache size = 8388608
    mon memory target = 268435456
    mon memory autotune = false
    mon osd cache size = 10
    mgr initial modules =
    mgr stats period = 2
    mgr tick period = 1
    osd max object name len = 256
    osd op num shards = 1
    osd op num threads per shard = 2
    osd memory target = 939524096
    osd pg log trim min = 100
    osd min pg log entries = 100
    osd max pg log entries = 200
    osd client message size cap = 134217728
    osd heartbeat interval = 2
    osd heartbeat grace = 8
    osd pool default read lease ratio = 100
    osd fast shutdown = true
    osd scrub auto repair = false
    osd max scrubs = 0
    osd mon shutdown timeout = 1
"""

# aio depth: an OSD takes thrice as many of the machine's 65536 (fs.aio-max-nr), which end with 20 OSDs of 1024.
BLUESTORE = """
    bluestore cache autotune = false
    bluestore cache size = 33554432
    bdev aio poll ms = 10
    bdev aio max queue depth = 256
    bluestore fsck quick fix on mount = false
    bluestore prefer deferred size hdd = 0
    bluestore block wal create = false
    bluestore block db create = false
    bluestore rocksdb options = compression=kNoCompression,max_write_buffer_number=2,\
min_write_buffer_number_to_merge=1,write_buffer_size=8388608,max_background_jobs=1
"""

# Without page sets every 4 MiB object of a memstore takes 4 MiB at once.
MEMSTORE = """
    memstore page set = true
"""

LONGEST_SOCKET_PATH = 100  # the kernel allows 107 bytes; a pid has to fit in
# An OSD writes half a megabyte of log at every start otherwise. Errors are logged all the same.
QUIET = "asok auth bdev bluefs bluestore mgr mgrc mon ms osd paxos prioritycache rocksdb"

DEFAULT_SIZE = {"bluestore": 10 << 30, "memstore": 1 << 30}
UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def size_in_bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise ValueError(f"size {text!r} is not a number of bytes such as 10737418240 or 10G")
    return int(found[1]) * UNITS[found[2].upper()]


def setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip() or "\n" in text:
        raise ValueError(f"{text!r} is not of the form 'key = value'")
    return normal(key), value.strip()


def normal(key: str) -> str:
    """Ceph takes `a b`, `a_b` and `a-b` for the same option."""
    return re.sub(r"[\s_-]+", " ", key.strip().lower())


def settings(block: str) -> dict[str, str]:
    return dict(setting(line) for line in block.replace("\\\n", "").splitlines() if line.strip())


def text(directory: Path, fsid: str, at: Address, *, objectstore: str, size: int | None, extra: dict[str, str]) -> str:
    if any(character in str(directory) for character in "\n#;\"'$"):
        raise Failure(f"ceph.conf cannot hold the path {directory}; choose another --dir")
    size = size or DEFAULT_SIZE[objectstore]
    store = {"bluestore": BLUESTORE, "memstore": MEMSTORE}[objectstore]
    size_key = {"bluestore": "bluestore block size", "memstore": "memstore device bytes"}[objectstore]
    everywhere = {
        "fsid": fsid,
        "mon host": at.monitor,
        "public addr": at.ip,
        "cluster addr": at.ip,
        "ms bind port min": str(at.port + 2),
        "ms bind port max": str(at.port + at.span - 1),
        "keyring": f"{directory}/keyring",
        "run dir": f"{directory}/run",
        "mon data": f"{directory}/mon.$id",
        "osd data": f"{directory}/osd.$id",
        "mgr data": f"{directory}/mgr.$id",
        "osd objectstore": objectstore,
        size_key: str(size),
        **settings(COMMON),
        **settings(store),
        **{f"debug {part}": "0/0" for part in QUIET.split()},
    }
    if class_dir := release.osd_class_dir():
        everywhere["osd class dir"] = class_dir
    everywhere |= extra
    socket = f"{directory}/run/$name.asok"
    for_daemons = {
        "log file": f"{directory}/log/$name.log",
        "pid file": f"{directory}/run/$name.pid",
        "admin socket": socket if len(socket) <= LONGEST_SOCKET_PATH else "",
    }
    # A client's pid file or socket would be shared by all rbd-nbd of a host: the second would not start.
    for_clients = {"log file": "", "admin socket": ""}
    sections = {
        "global": everywhere,
        **dict.fromkeys(("mon", "osd", "mgr"), for_daemons),
        "client": for_clients,
    }
    return "\n".join(
        f"[{section}]\n" + "".join(f"{key} = {value}\n" for key, value in options.items())
        for section, options in sections.items()
    )
