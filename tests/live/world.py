"""A tree on real clusters as the tests see it: commands run in processes of their own, images read and written with
librbd directly, hashes computed here.

    world.init(size=32 << 20); world.add("m", "root", "mirror", "b")
    world.write("root", {0: b"..."}); world.cut(); world.sync(); world.check(current=True)
"""

import hashlib
import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked

from live import latecomer
from rbdtree.engine.cut import cut
from rbdtree.engine.forest import look
from rbdtree.engine.marks import list_marks
from rbdtree.engine.node import Node
from rbdtree.engine.sync import Sync
from rbdtree.model.document import Kind, NodeDocument
from rbdtree.model.position import Position, snapshot_name

MIB = 1 << 20
TREE = "vol"
DRIVER = Path(__file__).with_name("driver.py")
_OURS = re.compile(r"rbdtree\.[0-9a-f]{8}\.\d+\.\d+")


@dataclass(frozen=True)
class Done:
    """A command that ended."""

    words: tuple[str, ...]
    code: int
    out: str
    err: str
    seconds: float


def until(seen: Callable[[], Any], what: str, seconds: float = 30) -> Any:
    """Polls until ``seen`` gives something true, and returns it; fails after ``seconds``."""
    deadline = time.monotonic() + seconds
    while True:
        found = seen()
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def noise(length: int, seed: object = 0) -> bytes:
    """Bytes without zero blocks, the same for the same seed."""
    return random.Random(repr(seed)).randbytes(length)


def halve(ioctx: Any, name: str, *, named: bool) -> str:
    """An image of this name without what its remover takes first; ``named``: rbd_id.NAME stays. Its id."""
    import rbd

    rbd.RBD().create(ioctx, name, MIB)
    with rbd.Image(ioctx, name, read_only=True) as image:
        image_id = str(image.id())
    for gone in (f"rbd_object_map.{image_id}", f"rbd_header.{image_id}", *([] if named else [f"rbd_id.{name}"])):
        ioctx.remove_object(gone)
    return image_id


class World:
    """One tree ``vol`` in the fresh pools of a test."""

    def __init__(self, pools: Any) -> None:
        self.pools = pools
        self._sites: Any = None
        self._hashes: dict[tuple[str, str, int], str] = {}
        self._ioctxs: dict[tuple[str, str, str], Any] = {}
        self._extra_pools: list[tuple[str, str]] = []
        self._children: list[subprocess.Popen[str]] = []

    # -- commands

    def _command(self, words: tuple[object, ...]) -> list[str]:
        return [sys.executable, "-m", "rbdtree_cli.main", "--config", str(self.pools.config), *map(str, words)]

    def start(self, *words: object) -> "subprocess.Popen[str]":
        """A command in the background; killed at the end of the test if it still runs."""
        made = subprocess.Popen(
            self._command(words), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
        )
        self._children.append(made)
        return made

    def cli(self, *words: object, code: int | None = 0, seconds: float = 60) -> Done:
        """A command to its end. ``code``: the exit code it must have, None for any."""
        began = time.monotonic()
        ended = forked.run(["--config", self.pools.config, *words], seconds=seconds)
        done = Done(tuple(map(str, words)), ended.returncode, ended.stdout, ended.stderr, time.monotonic() - began)
        if code is not None:
            assert done.code == code, f"exit code {done.code}, not {code}: {done}"
        assert "Traceback" not in done.err, done.err
        return done

    def driven(
        self, *words: object, seconds: float = 60, config: Path | None = None, **orders: object
    ) -> "subprocess.CompletedProcess[str]":
        """A command under ``driver.py``: the same command, killed or slowed where ``orders`` say."""
        return subprocess.run(
            self.driver_command(words, orders),
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    def start_driven(self, *words: object, **orders: object) -> "subprocess.Popen[str]":
        """``driven`` in the background."""
        made = subprocess.Popen(
            self.driver_command(words, orders),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
        )
        self._children.append(made)
        return made

    def driver_command(self, words: tuple[object, ...], orders: dict[str, object]) -> list[str]:
        arguments = ["--config", str(self.pools.config), *map(str, words)]
        return [sys.executable, str(DRIVER), json.dumps(orders), *arguments]

    def get(self, *words: object, code: int | None = 0, seconds: float = 60) -> Any:
        """The JSON answer of a command."""
        return json.loads(self.cli("--format", "json", *words, code=code, seconds=seconds).out)

    # -- the tree

    def init(self, site: str = "a", image: str = "vol", size: int | None = 32 * MIB, *more: object) -> None:
        words = ["--size", str(size)] if size is not None else []
        self.cli("init", TREE, "--node", "root", "--image", self.pools.spec(site, image), *words, *more)

    def add(
        self,
        name: str,
        parent: str,
        kind: str,
        site: str,
        *more: object,
        image: str | None = None,
        namespace: str = "",
        code: int = 0,
    ) -> Done:
        spec = self.pools.spec(site, image or f"{TREE}-{name}", namespace)
        return self.cli("add", f"{TREE}/{name}", "--parent", parent, "--kind", kind, "--image", spec, *more, code=code)

    def cut(self) -> str:
        return str(self.get("cut", TREE)["generation"])

    def quick_cut(self) -> str:
        """``cut`` in this process, for loops."""
        root = self.document("root")
        return str(cut(Node.at(self.sites, root.ref)).position)

    def sync(self, node: str = "", *more: object, code: int | None = 0, seconds: float = 60) -> Done:
        return self.cli("sync", f"{TREE}/{node}" if node else TREE, *more, code=code, seconds=seconds)

    def step(self, *more: object) -> None:
        """A generation, brought everywhere, and everything compared."""
        self.sync("", "--cut", *more)
        self.check(current=True)

    def status(self) -> dict[str, dict[str, Any]]:
        """By node name."""
        return {node["name"]: node for node in self.get("status", TREE)["trees"][0]["nodes"]}

    @property
    def sites(self) -> Any:
        """A client of the tests' own."""
        if self._sites is None:
            self._sites = self.pools.sites()
        return self._sites

    def documents(self) -> dict[str, NodeDocument]:
        """By node name."""
        tree = look(self.sites, TREE).tree(TREE)
        return {m.ref.name: m.document for m in tree.members.values() if m.document}

    def document(self, node: str) -> NodeDocument:
        return self.documents()[node]

    # -- images

    @contextmanager
    def ioctx(self, site: str, namespace: str = "", pool: str | None = None) -> Iterator[Any]:
        """Kept open until the test ends."""
        key = (site, namespace, pool or self.pools.name)
        if key not in self._ioctxs:
            made = self._ioctxs[key] = self.pools.clusters.admin(site).open_ioctx(key[2])
            made.set_namespace(namespace)
        yield self._ioctxs[key]

    @contextmanager
    def at(self, site: str, name: str | None = None, snapshot: str | None = None, **more: Any) -> Iterator[Any]:
        """An ``rbd.Image`` of librbd; ``namespace=``, ``image_id=``, ``read_only=``."""
        import rbd

        with (
            self.ioctx(site, more.pop("namespace", "")) as ioctx,
            rbd.Image(ioctx, name, snapshot=snapshot, **more) as image,
        ):
            yield image

    @contextmanager
    def image(self, node: str, snapshot: str | None = None, **more: Any) -> Iterator[Any]:
        """The ``rbd.Image`` of a node."""
        ref = self.document(node).ref
        with self.at(ref.site, ref.image, snapshot, namespace=ref.namespace, **more) as image:
            yield image

    def create(self, site: str, name: str, size: int, **more: Any) -> None:
        import rbd

        with self.ioctx(site, more.pop("namespace", "")) as ioctx:
            rbd.RBD().create(ioctx, name, size, old_format=False, **more)

    def write(self, node: str, pieces: dict[int, bytes]) -> None:
        """Writes to a node's image behind the tool's back: for the root that is what its host does."""
        with self.image(node) as image:
            for offset, data in pieces.items():
                image.write(data, offset)
            image.flush()

    def write_late(self, site: str, name: str, offset: int, data: bytes) -> None:
        """As of a client that does not know of the newest snapshot."""
        with self.ioctx(site) as ioctx, self.at(site, name, read_only=True) as image:
            latecomer.write(ioctx, image, offset, data)

    def take_lock(self, node: str) -> None:
        """From a client that is dead: RBD would wait 30 s for it."""
        import rbd

        with self.image(node) as image:
            for owner in list(image.lock_get_owners()):
                image.lock_break(rbd.RBD_LOCK_MODE_EXCLUSIVE, owner["owner"])

    def scatter(self, seed: object, count: int = 6, length: int = 4096, node: str = "root") -> None:
        """``count`` writes of ``length`` bytes at places chosen by the seed."""
        chosen = random.Random(repr(seed))
        with self.image(node) as image:
            size = image.size()
            for number in range(count):
                offset = chosen.randrange(max(1, (size - length) // 4096)) * 4096
                image.write(noise(length, (seed, number)), offset)
            image.flush()

    def digest(self, image: Any) -> str:
        """Of all bytes an open ``rbd.Image`` shows."""
        found = hashlib.sha256()
        size = image.size()
        found.update(struct.pack("<Q", size))
        for offset in range(0, size, 4 * MIB):
            found.update(image.read(offset, min(4 * MIB, size - offset)))
        return found.hexdigest()

    def head(self, node: str) -> str:
        """Hash of what a node's image holds now."""
        with self.image(node, read_only=True) as image:
            return self.digest(image)

    def hashes(self, document: NodeDocument) -> dict[str, str]:
        """Hash by name of our snapshots of a node's image (each computed once: it may not change), and of its head as
        ``""``."""
        ref = document.ref
        with self.at(ref.site, None, namespace=ref.namespace, image_id=document.image_id, read_only=True) as image:
            found = {"": self.digest(image)}
            for snapshot in list(image.list_snaps()):
                if not _OURS.fullmatch(snapshot["name"]):
                    continue
                key = (ref.fsid, document.image_id, snapshot["id"])
                if key not in self._hashes:
                    image.set_snap(snapshot["name"])
                    self._hashes[key] = self.digest(image)
                found[snapshot["name"]] = self._hashes[key]
        return found

    def forget_hashes(self) -> None:
        """Everything is read anew from here on."""
        self._hashes.clear()

    def used(self, node: str, snapshot: str | None = None) -> int:
        """What ``rbd du`` says of a node's image or snapshot, in bytes: whole objects that exist."""
        with self.image(node, snapshot, read_only=True) as image:
            spans: list[int] = []
            if image.size():
                count = lambda at, n, exists: spans.append(n if exists else 0)  # noqa: E731
                image.diff_iterate(0, image.size(), None, count, True, True)
            return sum(spans)

    def snapshots(self, node: str) -> list[str]:
        with self.image(node, read_only=True) as image:
            return [s["name"] for s in image.list_snaps()]

    # -- what must be true

    def check(self, *, current: bool = False) -> None:
        """Every sealed generation, wherever it is, holds the root's bytes; ``current``: everybody has the newest."""
        documents = self.documents()
        root = next(d for d in documents.values() if d.kind is Kind.ROOT)
        seen = self.hashes(root)
        truth = {
            g.position: seen[name]
            for g in root.generations
            if (name := snapshot_name(root.tree_id, g.position)) in seen
        }
        for name, document in documents.items():
            if document.kind is Kind.CLONE:
                self._check_clone(name, document, truth)
            elif document.kind is Kind.MIRROR and document.image_id:
                self._check_mirror(name, document, truth)
            if current:
                assert document.intent is None, f"{name}: {document.intent}"
                assert document.position == root.position, f"{name} is at {document.position}, not {root.position}"
                assert not document.distrust, f"{name}: {document.distrust}"

    def _check_mirror(self, name: str, document: NodeDocument, truth: dict[Position, str]) -> None:
        seen = self.hashes(document)
        # Sealed is what has a snapshot, be it listed in the document yet or not.
        for position, expected in truth.items():
            found = seen.get(snapshot_name(document.tree_id, position), expected)
            assert found == expected, f"{name} at {position} differs from the root"
        newest = document.newest
        if newest and not document.intent and newest.position in truth:
            same = seen[""] == truth[newest.position]
            assert same, f"the head of {name} is not {newest.position}"

    def _check_clone(self, name: str, document: NodeDocument, truth: dict[Position, str]) -> None:
        if not document.image_id or document.newest is None or document.intent:
            return
        with self.at(document.ref.site, document.ref.image, namespace=document.ref.namespace, read_only=True) as image:
            assert image.id() == document.image_id, f"{name} is another image"
            if document.newest.position in truth:
                same = self.digest(image) == truth[document.newest.position]
                assert same, f"{name} differs from the root's {document.newest.position}"

    def check_settled(self, *, strays: bool = True) -> None:
        """A further sync plans nothing, and only the marks of a tree at rest are there."""
        run = Sync(self.sites, dry_run=True)
        planned = run.run(look(self.sites, TREE).tree(TREE))
        assert all(not outcome.steps and not outcome.error for outcome in planned), planned
        documents = self.documents()
        by_id = {d.ref.node_id for d in documents.values()}
        edges = {d.edge: d for d in documents.values() if d.parent}
        for document in documents.values():
            assert not document.phase, f"{document.name} is {document.phase}"
            for hold in document.holds:
                assert hold.owner in edges, f"{document.name} has a hold of nobody: {hold}"
                child = edges[hold.owner]
                assert hold.position == child.position, f"stale hold on {document.name}: {hold}"
            for child_of in document.children:
                assert child_of.ref.node_id in by_id, f"{document.name} has a child of nobody: {child_of}"
        if strays:
            self.check_strays()

    def check_strays(self) -> None:
        """What ``marks`` lists belongs to nodes that are there, and nothing else of ours is in the pools."""
        marks, failed = list_marks(self.sites)
        assert not failed, failed
        documents = [m.document for tree in look(self.sites).trees for m in tree.members.values() if m.document]
        nodes = {d.ref.node_id for d in documents}
        images = {(d.ref.site, d.image_id): d for d in documents}
        places = {(d.ref.site, d.ref.pool, d.ref.namespace, d.ref.image) for d in documents}
        for mark in marks:
            assert mark.kind != "lock", mark
            if mark.kind == "directory":
                kind, _, key = mark.detail.partition(".")
                known = key in nodes if kind == "node" else (mark.site, key) in images
                assert known, f"nobody's: {mark}"
            elif mark.kind in ("object", "hold"):
                assert mark.where.rpartition("rbdtree.node.")[2] in nodes, f"nobody's: {mark}"
            else:
                pool, *between, image = mark.where.partition("@")[0].split("/")
                assert (mark.site, pool, "".join(between), image) in places, f"nobody's: {mark}"
        for site in self.pools.clusters.names:
            assert not self.strays(site), f"{site}: {self.strays(site)}"

    def strays(self, site: str) -> list[str]:
        """Clones that were being made and images in the trash that still carry our names."""
        import rbd

        found = []
        with self.ioctx(site) as ioctx:
            found += [name for name in rbd.RBD().list(ioctx) if ".rbdtree-" in name]
            found += [f"trash:{entry['name']}" for entry in rbd.RBD().trash_list(ioctx)]
        return found

    # -- around

    def data_pool(self, site: str) -> str:
        """One more pool at the site, gone with the test."""
        name = self.extra_pool(site)
        with self.pools.clusters.admin(site).open_ioctx(name) as ioctx:
            import rbd

            rbd.RBD().pool_init(ioctx, True)
        return name

    def extra_pool(self, site: str, **more: object) -> str:
        """The same of which nothing is asked yet."""
        name = f"{self.pools.name}-data"
        self.pools.clusters.mon(site, prefix="osd pool create", pool=name, pg_num=4, pgp_num=4, **more)
        self._extra_pools.append((site, name))
        return name

    def drop_extra_pools(self) -> None:
        while self._extra_pools:
            site, name = self._extra_pools.pop()
            sure = {"yes_i_really_really_mean_it": True}
            self.pools.clusters.mon(site, prefix="osd pool delete", pool=name, pool2=name, **sure)

    def close(self) -> None:
        for child in self._children:
            if child.poll() is None:
                child.kill()
            with suppress(Exception):
                child.communicate(timeout=10)
        for ioctx in self._ioctxs.values():
            ioctx.close()
        self.drop_extra_pools()


def admin_socket(path: Path, prefix: str) -> Any:
    """Asks a daemon through its admin socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asked:
        asked.settimeout(10)
        asked.connect(str(path))
        asked.sendall(json.dumps({"prefix": prefix}).encode() + b"\0")
        raw = b""
        while len(raw) < 4:
            raw += asked.recv(4 - len(raw))
        (length,) = struct.unpack(">I", raw)
        answer = b""
        while len(answer) < length:
            answer += asked.recv(1 << 16)
    return json.loads(answer)


def bytes_read(clusters: Any, site: str) -> int:
    """What the OSD of a cluster has sent to readers since it started."""
    path = clusters.dir / site / "run" / "osd.0.asok"
    return int(admin_socket(path, "perf dump")["osd"]["op_out_bytes"])


def alive(pid: int) -> bool:
    with suppress(OSError):
        os.kill(pid, 0)
        return True
    return False
