"""The ceph.conf of one map: the site's, and what this map is given of the host's cache.

A section named after the client comes last and is the most specific, so that it wins over everything before it.
"""

from pathlib import Path

from rbdtree import errors
from rbdtree.host.source import Source

_MIB = 1 << 20


def path_of(place: Path, source: Source) -> Path:
    """Named like the site's file: Ceph takes the cluster's name from it, and looks for keyrings by that."""
    return place / Path(source.conf).name


def write(place: Path, source: Source, cache_bytes: int | None, *, copy_on_read: bool) -> Path:
    """Makes it; its path."""
    try:
        text = Path(source.conf).read_text()
    except OSError as error:
        raise errors.NotFound(
            f"site {source.site}: cannot read {source.conf}: {error.strerror}",
            "Correct 'conf' of this site in the configuration.",
        ) from error
    path = path_of(place, source)
    options = settings(source, cache_bytes, copy_on_read=copy_on_read)
    options |= {"admin socket": str(place / "asok"), "log file": str(place / "log"), "log to stderr": "false"}
    if source.keyring:
        options["keyring"] = source.keyring
    lines = "".join(f"{key} = {value}\n" for key, value in options.items())
    path.write_text(f"{text.rstrip()}\n\n# of this map alone\n[{source.client}]\n{lines}")
    return path


def settings(source: Source, cache_bytes: int | None, *, copy_on_read: bool) -> dict[str, str]:
    """Of librbd. Nothing about the cache where the host has no budget: Ceph's own settings hold then."""
    found = {"rbd clone copy on read": "true"} if copy_on_read else {}
    if cache_bytes is None:
        return found
    if cache_bytes < _MIB:
        return {**found, "rbd cache": "false"}
    return {
        **found,
        "rbd cache": "true",
        # The writearound cache, which is the default, keeps nothing that was read.
        "rbd cache policy": "writeback" if source.write else "writethrough",
        "rbd cache size": str(cache_bytes),
        "rbd cache max dirty": str(cache_bytes * 3 // 4 if source.write else 0),
        "rbd cache target dirty": str(cache_bytes // 2 if source.write else 0),
        "rbd cache writethrough until flush": "true",
    }
