"""What differs between Ceph releases, as far as booting a tiny cluster is concerned."""

import functools
import glob
import os
import re
import subprocess
from dataclasses import dataclass

from cephdev import Failure

CODENAMES = {16: "pacific", 17: "quincy", 18: "reef", 19: "squid", 20: "tentacle"}


@dataclass(frozen=True)
class Release:
    text: str  # "16.2.15"
    major: int
    key_type: str | None  # None: whatever the release makes by itself

    @property
    def min_mon_release(self) -> str | None:
        """A new monmap of 17 and later starts at an old release and the monitor refuses to go further."""
        return CODENAMES.get(self.major) if self.major > 16 else None

    @property
    def key_options(self) -> list[str]:
        return ["--key-type", self.key_type] if self.key_type else []

    @property
    def monmap_cipher_options(self) -> list[str]:
        """With aes keys alone a monitor of Ceph 20 answers EACCES: the monmap must allow and prefer them."""
        if not self.key_type:
            return []
        kind = self.key_type
        allowed = kind if kind == "aes256k" else f"{kind},aes256k"
        return [
            *("--auth-allowed-ciphers", allowed),
            *("--auth-service-cipher", kind),
            *("--auth-preferred-cipher", kind),
        ]


@functools.cache
def installed() -> Release:
    try:
        answer = subprocess.run(["ceph-mon", "--version"], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        raise Failure("ceph-mon is not installed; run ceph-dev/install") from None
    except subprocess.CalledProcessError as error:
        raise Failure(f"ceph-mon --version failed: {error.stderr.strip()}; run ceph-dev/install") from None
    found = re.search(r"ceph version ((\d+)\.[\d.]+)", answer)
    if not found:
        raise Failure(f"ceph-mon --version said {answer.strip()!r}, which names no release")
    wanted = os.environ.get("CEPH_DEV_KEY_TYPE") or None
    major = int(found[2])
    if wanted not in (None, "aes", "aes256k"):
        raise Failure(f"CEPH_DEV_KEY_TYPE is {wanted!r}; it may be aes or aes256k")
    if major < 20:
        if wanted == "aes256k":
            raise Failure(f"CEPH_DEV_KEY_TYPE=aes256k needs Ceph 20, and {found[1]} is installed")
        wanted = None  # older releases make aes keys and have no option to say so
    return Release(found[1], major, wanted)


def osd_class_dir() -> str | None:
    """Debian's 18 and 20 are built with a relative path here: `rbd create` then answers EOPNOTSUPP."""
    folders = [*glob.glob("/usr/lib/*/rados-classes"), "/usr/lib64/rados-classes", "/usr/lib/rados-classes"]
    return next((folder for folder in folders if os.path.exists(f"{folder}/libcls_rbd.so")), None)
