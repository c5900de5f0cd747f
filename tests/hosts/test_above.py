"""What lies over a device, in a tree like that of /sys."""

from pathlib import Path

from rbdtree.host import above
from rbdtree.host.device import Mounted


def kernel(tmp_path: Path) -> Path:
    """nbd0 with two partitions, the second under LVM under dm-crypt; nbd1 has nothing to do with it."""
    disks = {"nbd0": "43:0", "nbd1": "43:32", "dm-0": "254:0", "dm-1": "254:1"}
    parts = {"nbd0p1": "43:1", "nbd0p2": "43:2"}
    numbers = tmp_path / "dev" / "block"
    numbers.mkdir(parents=True)
    for name, number in {**disks, **parts}.items():
        folder = tmp_path / "block" / ("nbd0" if name in parts else "") / name
        (folder / "holders").mkdir(parents=True)
        (folder / "dev").write_text(f"{number}\n")
        if name in parts:
            (folder / "partition").write_text("1\n")
        (numbers / number).symlink_to(folder)
    (tmp_path / "block/nbd0/nbd0p2/holders/dm-0").symlink_to(tmp_path / "block/dm-0")
    (tmp_path / "block/dm-0/holders/dm-1").symlink_to(tmp_path / "block/dm-1")
    return tmp_path


def test_partitions_and_what_holds_them_lie_over_a_device(tmp_path: Path) -> None:
    sys = kernel(tmp_path)
    assert above.stack(["43:0"], sys) == {
        "43:0": ("43:1", "43:2"),
        "43:1": (),
        "43:2": ("254:0",),
        "254:0": ("254:1",),
        "254:1": (),
    }
    assert above.stack(["43:32"], sys) == {"43:32": ()}
    assert above.stack(["9:9"], sys) == {"9:9": ()}
    assert above.named("254:1", sys) == "/dev/dm-1"


def test_one_directory_of_each_file_system() -> None:
    mounted = [
        Mounted(1, "/a", "43:1", "/dev/x", "ext4", ""),
        Mounted(2, "/b", "43:1", "/dev/x", "ext4", ""),
        Mounted(3, "/c", "254:1", "/dev/y", "xfs", ""),
        Mounted(4, "/d", "8:1", "/dev/z", "ext4", ""),
    ]
    numbers = frozenset({"43:0", "43:1", "254:1"})
    assert above.roots(numbers, mounted) == (("/a", "/c"), ())
    # What covers another is not frozen in its place.
    covering = Mounted(5, "/c", "8:2", "/dev/w", "ext4", "")
    assert above.roots(numbers, [*mounted, covering]) == (("/a",), ("/c",))
    assert above.roots(numbers, [*mounted, Mounted(6, "/a", "8:2", "/dev/w", "ext4", "")]) == (("/b", "/c"), ())
