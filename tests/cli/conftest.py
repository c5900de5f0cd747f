"""The command line from outside: commands in processes of their own, and dumps of everything on the clusters.

room.run("status", "vol")           a command to its end, with this room's configuration
room.refused("sync", "no", code=2)  one that must fail, say why in a sentence, give a hint, and change nothing
room.dump()                         all objects, omaps, images, snapshots and trash of the room's pools
"""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from terminal import Done, check_refusal, run

MIB = 1 << 20
_VOLATILE = ("access_timestamp", "modify_timestamp")


class Room:
    """A fresh pool in every cluster and what a test does there."""

    def __init__(self, pools: Any) -> None:
        self.pools = pools
        self.clusters = pools.clusters
        self.config: Path = pools.config
        self._conf_numbers = iter(range(1000))

    def run(self, *words: object, code: int | None = 0, config: Path | None = None, **more: Any) -> Done:
        return run("--config", config or self.config, *words, code=code, **more)

    def get(self, *words: object, code: int | None = 0, config: Path | None = None) -> Any:
        return self.run("--format", "json", *words, code=code, config=config).json

    def refused(
        self, *words: object, code: int, config: Path | None = None, before: Any = None, says: str = ""
    ) -> Done:
        """``before``: a dump made earlier, to save the time."""
        before = before if before is not None else self.dump()
        done = self.run(*words, code=code, config=config)
        check_refusal(done)
        assert says in done.err, done
        assert self.dump() == before, f"something changed: {done}"
        return done

    def spec(self, site: str, image: str, namespace: str = "") -> str:
        return str(self.pools.spec(site, image, namespace))

    def tree(self, name: str = "vol", size: str = "8M", site: str = "a", image: str = "") -> None:
        self.run("init", name, "--node", "root", "--image", self.spec(site, image or name), "--size", size)

    def add(self, name: str, parent: str, kind: str, site: str, *more: object, code: int = 0) -> Done:
        image = name.replace("/", "-")
        words = ("add", name, "--parent", parent, "--kind", kind, "--image", self.spec(site, image), *more)
        return self.run(*words, code=code)

    # -- behind the tool's back

    @contextmanager
    def ioctx(self, site: str, namespace: str = "") -> Iterator[Any]:
        with self.clusters.admin(site).open_ioctx(self.pools.name) as ioctx:
            ioctx.set_namespace(namespace)
            yield ioctx

    @contextmanager
    def image(self, site: str, name: str, namespace: str = "", **more: Any) -> Iterator[Any]:
        import rbd

        with self.ioctx(site, namespace) as ioctx, rbd.Image(ioctx, name, **more) as image:
            yield image

    def create(self, site: str, name: str, size: int = 8 * MIB, namespace: str = "", **more: Any) -> None:
        import rbd

        with self.ioctx(site, namespace) as ioctx:
            rbd.RBD().create(ioctx, name, size, old_format=False, **more)

    def write(self, site: str, name: str, data: bytes, offset: int = 0) -> None:
        with self.image(site, name) as image:
            image.write(data, offset)
            image.flush()

    def read(self, site: str, name: str) -> bytes:
        with self.image(site, name, read_only=True) as image:
            return bytes(image.read(0, image.size()))

    def rbd(self, site: str, *words: object, code: int = 0) -> str:
        """The rbd command, in this room's pool."""
        command = ["rbd", "-c", str(self.pools.conf(site)), "--pool", self.pools.name, *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == code, done
        return done.stdout

    def nodes(self, tree: str = "vol") -> dict[str, Any]:
        """``status`` by node name."""
        return {node["name"]: node for node in self.get("status", tree)["trees"][0]["nodes"]}

    def document(self, site: str, node_id: str) -> dict[str, Any]:
        import rados

        with self.ioctx(site) as ioctx, rados.ReadOpCtx() as op:
            found, _ = ioctx.get_omap_vals_by_keys(op, ("document",))
            ioctx.operate_read_op(op, f"rbdtree.node.{node_id}")
            return dict(json.loads(dict(found)["document"]))

    def put_document(self, site: str, node_id: str, text: str) -> None:
        import rados

        with self.ioctx(site) as ioctx, rados.WriteOpCtx() as op:
            ioctx.set_omap(op, ("document",), (text.encode(),))
            ioctx.operate_write_op(op, f"rbdtree.node.{node_id}")

    def key(self, name: str, mon: str, osd: str, conf: Path | None = None, pools: list[str] | None = None) -> Path:
        """A configuration in which every site is reached with a new key of these caps."""
        text = ""
        for site in self.clusters.names:
            entity = f"client.{self.pools.name}-{name}"
            made = self.clusters.mon(site, prefix="auth get-or-create", entity=entity, caps=["mon", mon, "osd", osd])
            keyring = self.config.with_name(f"{site}.{name}.keyring")
            keyring.write_text(f"[{entity}]\nkey = {made[0]['key']}\n")
            text += f'[sites.{site}]\nconf = "{conf or self.pools.conf(site)}"\nname = "{entity}"\n'
            text += f'keyring = "{keyring}"\npools = {json.dumps(pools or [self.pools.name])}\n'
        path = self.config.with_name(f"{name}.toml")
        path.write_text(text)
        return path

    def without(self, site: str, conf: Path) -> Path:
        """A configuration in which this site has another ceph.conf."""
        path = self.config.with_name(f"without-{site}-{next(self._conf_numbers)}.toml")
        path.write_text(self.config.read_text().replace(str(self.pools.conf(site)), str(conf)))
        return path

    # -- everything

    def dump(self) -> dict[str, Any]:
        """Every object of the room's pools, in every namespace: data, omap; locks and access times are left out."""
        return {site: self._dump(site) for site in self.clusters.names}

    def _dump(self, site: str) -> dict[str, Any]:
        import rados

        found: dict[str, Any] = {}
        with self.ioctx(site, rados.LIBRADOS_ALL_NSPACES) as ioctx:
            names = sorted((entry.nspace, entry.key) for entry in ioctx.list_objects())
            snapshots = sorted(snap.name for snap in ioctx.list_snaps())
        with self.ioctx(site) as ioctx:
            for namespace, name in names:
                ioctx.set_namespace(namespace)
                size, _ = ioctx.stat(name)
                data = hashlib.sha256(ioctx.read(name, size) if size else b"").hexdigest()
                with rados.ReadOpCtx() as op:
                    page, _ = ioctx.get_omap_vals(op, "", "", 1 << 20)
                    ioctx.operate_read_op(op, name)
                    # The keys of rbd_children are binary, which the binding cannot give.
                    readable = name != "rbd_children"
                    omap = {key: value for key, value in page if key not in _VOLATILE} if readable else {}
                found[f"{namespace}/{name}"] = (size, data, omap)
        return {"objects": found, "snapshots": snapshots}


@pytest.fixture
def room(pools: Any) -> Room:
    """A fresh, empty one."""
    return Room(pools)


@pytest.fixture(scope="module")
def shared(
    clusters: Any, pools_class: Any, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Room]:
    """One for a whole module, with a tree ``vol``, in step but for its newest generation, and much beside it:

        vol   root (a:vol) -> m (mirror, b:vol-m) -> g (mirror, c:vol-g);  root -> k (clone, a:vol-k)
        new   root (b:new), without generations

    and images ``data`` and ``empty`` at b. Tests that take it change nothing.
    """
    directory = tmp_path_factory.mktemp("room")
    name = re.sub(r"\W", "-", f"cli-{os.getpid()}-{request.module.__name__}")
    pools = pools_class(clusters, name, directory / "rbdtree.toml")
    pools.make()
    try:
        room = Room(pools)
        room.tree()
        room.write("a", "vol", b"one" * 1000)
        room.add("vol/m", "root", "mirror", "b")
        room.add("vol/g", "m", "mirror", "c")
        room.add("vol/k", "root", "clone", "a")
        room.run("sync", "--cut", "vol")
        room.write("a", "vol", b"two" * 1000, MIB)
        room.run("sync", "--cut", "vol")
        room.write("a", "vol", b"six" * 1000, 5 * MIB)
        room.run("cut", "vol")
        room.run("init", "new", "--node", "root", "--image", room.spec("b", "new"), "--size", "4M")
        room.create("b", "data")
        room.write("b", "data", b"precious")
        room.create("b", "empty")
        yield room
    finally:
        pools.remove()


@pytest.fixture(scope="module")
def before(shared: Room) -> Any:
    """What is in the shared room."""
    return shared.dump()
