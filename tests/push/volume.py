"""A tree whose nodes write: ``live.world.World`` with branches, and a model of what the volume should hold.

volume.init(size=16 << 20); volume.add("m", "root", "mirror", "b"); volume.step()
volume.put("m", {4096: b"..."}); volume.push("m"); volume.settled()
"""

import io
import json
import time
from calendar import timegm
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from subprocess import check_output
from typing import Any
from unittest import mock

from live.world import TREE, Done, World
from rbdtree_cli import main
from rbdtree_cli.session import Session

from rbdtree.engine import branch as branches
from rbdtree.engine import ends
from rbdtree.engine.forest import look
from rbdtree.engine.marks import list_marks
from rbdtree.engine.node import Node
from rbdtree.engine.sync import Sync
from rbdtree.model.document import Kind, NodeDocument, PushState
from rbdtree.model.position import parse_snapshot_name, push_snapshot_name, snapshot_name

KIB, MIB = 1 << 10, 1 << 20
REFUSED, BUSY, UNSUPPORTED, MISUSED, DIVERGED = 78, 16, 95, 22, 117


class Volume(World):
    """The tree and ``model``: the bytes that the newest generation at the root should have.

    ``apart``: commands run in processes of their own, as users run them, and not in this one.
    """

    def __init__(self, pools: Any) -> None:
        super().__init__(pools)
        self.model = bytearray()
        self.apart = False

    def cli(self, *words: object, code: int | None = 0, seconds: float = 60) -> Done:
        """As a process of its own would do it, but with this process' connections: starting costs more than pushing."""
        if self.apart:
            return super().cli(*words, code=code, seconds=seconds)
        sites, began = self.sites, time.monotonic()

        class Here(Session):
            @property
            def sites(self) -> Any:
                return sites

        out, err = io.StringIO(), io.StringIO()
        with mock.patch.object(main, "Session", Here), redirect_stdout(out), redirect_stderr(err):
            ended = main.run(["--config", str(self.pools.config), *map(str, words)])
        done = Done(tuple(map(str, words)), ended, out.getvalue(), err.getvalue(), time.monotonic() - began)
        if code is not None:
            assert done.code == code, f"exit code {done.code}, not {code}: {done}"
        assert "Traceback" not in done.err, done.err
        return done

    def process(self, *words: object, code: int | None = 0, seconds: float = 60) -> Done:
        """A command in a process of its own."""
        return super().cli(*words, code=code, seconds=seconds)

    # -- building

    def init(self, site: str = "a", image: str = "vol", size: int | None = 16 * MIB, *more: object) -> None:
        super().init(site, image, size, *more)
        self.model = bytearray(size or 0)

    def node(self, name: str) -> Node:
        return Node.at(self.sites, self.document(name).ref)

    def root_write(self, pieces: dict[int, bytes]) -> None:
        """What the root's host writes; the model has it from the next generation on."""
        self.write("root", pieces)
        self.expect(pieces)

    def expect(self, pieces: dict[int, bytes]) -> None:
        for offset, data in pieces.items():
            self.model[offset : offset + len(data)] = data

    # -- branches

    def branch(self, name: str, *more: object) -> str:
        """``rbdtree branch``: the name of the image to write to."""
        spec = str(self.get("branch", f"{TREE}/{name}", *more)["image"])
        return spec.rpartition("/")[2]

    @contextmanager
    def on_branch(self, name: str, **more: Any) -> Iterator[Any]:
        """The ``rbd.Image`` of a node's branch, which is made if need be."""
        document = self.document(name)
        if document.branch is None or not document.branch.image_id:
            self.branch(name)
            document = self.document(name)
        ref = document.ref
        assert document.branch
        with self.at(ref.site, document.branch.image, namespace=ref.namespace, **more) as image:
            yield image

    def put(self, name: str, pieces: dict[int, bytes], *, expect: bool = True) -> None:
        """Writes to a node's branch; ``expect``: the model will have it when it is published."""
        with self.on_branch(name) as image:
            for offset, data in pieces.items():
                image.write(data, offset)
            image.flush()
        if expect:
            self.expect(pieces)

    def branch_bytes(self, name: str) -> bytes:
        with self.on_branch(name, read_only=True) as image:
            return bytes(image.read(0, image.size()))

    def push(self, name: str, *more: object, code: int | None = 0, seconds: float = 60) -> Done:
        return self.cli("push", f"{TREE}/{name}", *more, code=code, seconds=seconds)

    def pushed(self, name: str, *more: object, code: int | None = 0) -> Any:
        """``push``, its JSON answer."""
        done = self.cli("--format", "json", "push", f"{TREE}/{name}", *more, code=code)
        return json.loads(done.out) if done.out.strip() else None

    def diff(self, name: str) -> list[tuple[int, int]]:
        found = self.get("diff", f"{TREE}/{name}")["extents"]
        return [(e["offset_bytes"], e["length_bytes"]) for e in found]

    def conflict(self, name: str) -> dict[str, Any]:
        """The refused push of a node as ``status`` shows it, JSON."""
        refused = [p for p in self.status()[name]["pushes"] if p["state"] == "conflict"]
        assert len(refused) == 1, refused
        return dict(refused[0])

    def newest(self) -> int:
        """Sequence of the root's newest generation."""
        return self.document("root").position.sequence

    # -- what must be true

    def at_root(self, sequence: int | None = None) -> bytes:
        """The bytes of a generation at the root."""
        document = self.document("root")
        wanted = [g for g in document.generations if sequence in (None, g.position.sequence)]
        name = snapshot_name(document.tree_id, wanted[-1].position)
        ref = document.ref
        with self.at(
            ref.site, None, name, namespace=ref.namespace, image_id=document.image_id, read_only=True
        ) as image:
            return bytes(image.read(0, image.size()))

    def check_model(self) -> None:
        """The newest generation is the model, byte for byte."""
        found = self.at_root()
        if found != bytes(self.model):
            wrong = [at for at in range(0, len(self.model), 512) if found[at : at + 512] != self.model[at : at + 512]]
            raise AssertionError(f"{len(found)} bytes, {len(wrong)} sectors differ, the first at {wrong[:5]}")

    def settled(self, *, current: bool = True, died: bool = False) -> None:
        """The root is the model, everybody has the root's bytes, nothing is left over and nothing is left to do.

        ``died``: whoever moved a branch on may have died when our snapshots were off the old image: then nobody can
        tell any more that all of it was published, and it stays in the trash until it expires."""
        self.check_model()
        self.check(current=current)
        self.at_rest(died=died)

    def at_rest(self, *, trash: bool = False, died: bool = False) -> None:
        """No plan, no lock, no staged image, exactly the holds that edges and branches need."""
        planned = Sync(self.sites, dry_run=True).run(look(self.sites, TREE).tree(TREE))
        assert all(not outcome.steps and not outcome.error for outcome in planned), planned
        documents = self.documents()
        for name, document in documents.items():
            assert not document.phase
            assert not document.discarding, name
            left = [(p.owner_name, p.number, str(p.state), p.staging) for p in document.pushes if p.staging]
            assert not left, f"staged at {name}: {left}"
            assert not document.branch or document.branch.image_id, f"{name} has half a branch"
        self._check_holds(documents)
        self._check_images(documents, trash, died)
        self._check_marks(documents)

    def _check_holds(self, documents: dict[str, NodeDocument]) -> None:
        for name, document in documents.items():
            expected = set()
            for child in documents.values():
                if child.parent is None:
                    continue
                if ends.source_node(self.sites, child).node_id == document.ref.node_id:
                    expected |= {(child.edge, p) for p in {child.position, *ends.needed_by(child)}}
                if child.branch and child.kind is Kind.CLONE and child.replica.node_id == document.ref.node_id:
                    expected.add((f"branch:{child.ref.node_id}", child.branch.base))
            if document.branch:
                expected.add((f"branch:{document.ref.node_id}", document.branch.base))
            found = {(hold.owner, hold.position) for hold in document.holds}
            assert found == expected, f"{name}: holds {found - expected} too many, {expected - found} missing"

    def _check_images(self, documents: dict[str, NodeDocument], trash: bool, died: bool) -> None:
        import rbd

        expected: dict[tuple[str, str], set[str]] = {}
        for document in documents.values():
            here = expected.setdefault((document.ref.site, document.ref.namespace), set())
            if document.image_id:
                here.add(document.ref.image)
            if document.branch:
                here.add(document.branch.image)
        for (site, namespace), names in expected.items():
            with self.ioctx(site, namespace) as ioctx:
                assert set(rbd.RBD().list(ioctx)) == names, site
                trashed = [e for e in rbd.RBD().trash_list(ioctx) if not (died and self._expires(ioctx, e))]
                assert trash or not trashed, f"{site}: trash {[entry['name'] for entry in trashed]}"

    def _expires(self, ioctx: Any, entry: dict[str, Any]) -> bool:
        """By itself: nothing keeps it."""
        import rbd

        with rbd.Image(ioctx, image_id=entry["id"], read_only=True) as image:
            kept = list(image.list_snaps())
        return not kept and timegm(entry["deferment_end_time"].utctimetuple()) > time.time()

    def _check_marks(self, documents: dict[str, NodeDocument]) -> None:
        marks, failed = list_marks(self.sites)
        assert not failed, failed
        nodes = {d.ref.node_id for d in documents.values()}
        images = {d.image_id for d in documents.values()} | {d.branch.image_id for d in documents.values() if d.branch}
        for mark in marks:
            assert mark.kind != "lock", mark
            key = mark.detail.partition(".")[2]
            assert mark.kind != "directory" or key in nodes | images, f"nobody's: {mark}"
            if mark.kind == "snapshot" and ".push." in mark.where:
                number = int(mark.where.rpartition(".")[2])
                name = mark.where.partition("@")[0].rpartition("/")[2]
                owner = next(
                    d
                    for d in documents.values()
                    if d.ref.site == mark.site and d.branch and d.branch.image == name and d.kind
                )
                assert number <= owner.push_number, mark

    def _check_clone(self, name: str, document: NodeDocument, truth: dict[Any, str]) -> None:
        """A clone node that is a branch may hold more: what it stands on is in its first snapshot."""
        if document.branch is None or not document.branch.image_id:
            super()._check_clone(name, document, truth)
            return
        with self.ioctx(document.ref.site, document.ref.namespace) as ioctx:
            import rbd

            try:
                with rbd.Image(ioctx, document.ref.image, read_only=True) as image:
                    whole = image.id() == document.branch.image_id
                    snapshots = [s["name"] for s in image.list_snaps()]
                    parent = image.get_parent_image_spec()["snap_name"]
            except rbd.ImageNotFound:
                return
        if not whole:
            # Being swapped, parked or discarded.
            return
        over = parse_snapshot_name(parent)
        assert over is None or over[1] == document.branch.base, f"{name} stands on {parent}"
        since = push_snapshot_name(document.tree_id, 0)
        if since not in snapshots:
            return
        ref = document.ref
        with self.at(
            ref.site, None, since, namespace=ref.namespace, image_id=document.branch.image_id, read_only=True
        ) as image:
            same = self.digest(image) == truth[document.branch.base]
        assert same, f"{name} does not stand on {document.branch.base}"

    def check(self, *, current: bool = False) -> None:
        """As for a tree without branches; and a branch stands on what its document says."""
        super().check(current=current)
        for name, document in self.documents().items():
            if document.branch and document.branch.image_id and document.kind is not Kind.CLONE:
                ref, base = document.ref, document.branch.base
                with self.at(
                    ref.site, None, namespace=ref.namespace, image_id=document.branch.image_id, read_only=True
                ) as image:
                    over = parse_snapshot_name(image.get_parent_image_spec()["snap_name"])
                assert over, name
                assert over[1] == base, f"the branch of {name} is over {over[1]}, not {base}"

    def exported(self, to: Path) -> set[bytes]:
        """Contents of all nodes' newest generation, by Ceph's own tool."""
        found = set()
        for document in self.documents().values():
            ref = document.replica
            site, newest = ref.site, document.position
            tree = document.tree_id
            spec = "/".join(p for p in (ref.pool, ref.namespace, ref.image) if p) + f"@{snapshot_name(tree, newest)}"
            target = to / document.name
            check_output(["rbd", "-c", self.pools.conf(site), "--no-progress", "export", spec, target], timeout=60)
            found.add(target.read_bytes())
        return found

    def under_way(self, name: str) -> list[tuple[int, PushState]]:
        document = self.document(name)
        return [(p.number, p.state) for p in branches.own_pushes(document)]
