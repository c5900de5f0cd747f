"""What every test may ask for: three Ceph clusters, and a fresh pool in each of them.

    clusters    one a session: clusters a, b and c, booted by ceph-dev/up and purged at the end; with
                RBDTREE_TEST_CLUSTERS=DIR those that run in DIR, which are neither booted nor stopped
    pools       one a test: a pool of the same fresh name in each cluster, gone when the test ends
    mortal      three more clusters, whose daemons a test may hurt; it mends them (``mortal.mend()``) before it ends
    mortal_pools    the same as pools, on those

With xdist each worker has its own of all of these. A test that takes any must be marked ``ceph``; where Ceph is missing
it is skipped, and says why.
"""

import faulthandler
import importlib
import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from rbdtree import config

NAMES = ("a", "b", "c")
SCRIPTS = Path(__file__).parents[1] / "ceph-dev"
VARIABLE = "RBDTREE_TEST_CLUSTERS"
_numbers = itertools.count(1)
_GRACE = 120
"""Seconds after its time-out in which a test may still end: with what it started, and as it likes."""
_stderr = -1

# Commands under test inherit that Ctrl-C is ignored, as it is for what a shell has put into the background.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A busy machine makes a slow test, not a wrong one.
settings.register_profile("rbdtree", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rbdtree")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of our own."""
    parser.addoption(
        "--sweep-minutes",
        type=float,
        default=30.0,
        help="how long all tests marked 'sweep' together go on (30); 0: until they have killed at every call",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Here nothing is captured yet."""
    global _stderr  # noqa: PLW0603
    _stderr = os.dup(2)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """A test that hangs in a library, where no signal reaches Python, ends its process; xdist starts another. One whose
    time-out is 0 has none."""
    marker = item.get_closest_marker("timeout")
    limit = marker.args[0] if marker and marker.args else float(item.config.getini("timeout"))
    if limit:
        faulthandler.dump_traceback_later(limit + _GRACE, exit=True, file=_stderr)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


def ceph_dev(script: str, *arguments: object, seconds: float = 90) -> str:
    """Runs a script of ceph-dev/ to its end; its stdout. A failure shows what it said."""
    command = [str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    said = f"{done.stdout}{done.stderr}"
    assert done.returncode == 0, f"{' '.join(command)}: exit code {done.returncode}\n{said}"
    return done.stdout


class Clusters:
    """Running clusters a, b and c."""

    def __init__(self, directory: Path) -> None:
        self.dir = directory
        self.names = NAMES
        self.config = directory / "rbdtree.toml"
        self._clients: list[Any] = []
        self._admins: dict[str, Any] = {}

    def conf(self, name: str) -> Path:
        """ceph.conf of one cluster: ``rbd -c``, ``ceph -c``."""
        return self.dir / name / "ceph.conf"

    def sites(self, timeout: float = 30, config_path: Path | None = None) -> Any:
        """A new client (``rbdtree.ceph.sites.Sites``) with connections and addresses of its own, closed
        at the end of the session."""
        from rbdtree.ceph.sites import Sites

        made = Sites(config.load(config_path or self.config).sites, timeout)
        self._clients.append(made)
        return made

    def admin(self, name: str) -> Any:
        """A plain ``rados.Rados`` of one cluster, shared by all tests, to look behind our code's back."""
        import rados

        if name not in self._admins:
            found = self._admins[name] = rados.Rados(conffile=str(self.conf(name)), name="client.admin")
            found.connect(timeout=30)
        return self._admins[name]

    def mon(self, name: str, /, **words: Any) -> Any:
        """A mon command, such as ``clusters.mon("a", prefix="osd dump")``; its JSON answer."""
        code, out, message = self.admin(name).mon_command(json.dumps({**words, "format": "json"}), b"")
        assert code == 0, f"{words}: {message or code}"
        return json.loads(out) if out.strip() else None

    def daemon(self, name: str, daemon: str, action: str) -> None:
        """``kill``, ``stop``, ``pause``, ``resume``, ``start`` or ``restart`` of ``mon.a`` or ``osd.0``.

        Whoever takes a daemon away brings it back before the test ends."""
        ceph_dev("daemon", "--dir", self.dir, name, daemon, action)

    def mend(self) -> None:
        """All daemons run again."""
        for name in self.names:
            for daemon in ("mon.a", "osd.0"):
                for action in ("resume", "start"):
                    # One that runs already is content.
                    with suppress(AssertionError):
                        self.daemon(name, daemon, action)

    def close(self) -> None:
        for client in self._clients:
            client.close()
        for admin in self._admins.values():
            admin.shutdown()


class Pools:
    """A pool of one fresh name in every cluster, RBD ready, seen by no other test.

    ``config`` is an rbdtree.toml with sites a, b and c that looks for trees in this pool only.
    """

    def __init__(self, clusters: Clusters, name: str, config_path: Path) -> None:
        self.clusters = clusters
        self.name = name
        self.config = config_path
        self._places = {site: [name] for site in NAMES}
        self._clients: list[Any] = []
        self._write_config()

    def _write_config(self) -> None:
        sections = (
            f'[sites.{site}]\nconf = "{self.clusters.conf(site)}"\npools = {json.dumps(places)}\n'
            for site, places in self._places.items()
        )
        self.config.write_text("\n".join(sections))

    def spec(self, site: str, image: str, namespace: str = "") -> str:
        """``SITE:POOL/[NAMESPACE/]IMAGE``, as commands take it."""
        return f"{site}:" + "/".join(part for part in (self.name, namespace, image) if part)

    def conf(self, site: str) -> Path:
        return self.clusters.conf(site)

    def sites(self, timeout: float = 30) -> Any:
        """A new client that looks for trees in this pool only, closed when the test ends."""
        made = self.clusters.sites(timeout, self.config)
        self._clients.append(made)
        return made

    def namespace(self, site: str, name: str) -> None:
        """Makes a namespace in the pool of this site; clients and config from now on look in it too."""
        import rbd

        with self.clusters.admin(site).open_ioctx(self.name) as ioctx:
            rbd.RBD().namespace_create(ioctx, name)
        self._places[site].append(f"{self.name}/{name}")
        self._write_config()

    def make(self) -> None:
        def one(site: str) -> None:
            import rbd

            size = {"pg_num": 4, "pgp_num": 4}
            self.clusters.mon(site, prefix="osd pool create", pool=self.name, **size)
            with self.clusters.admin(site).open_ioctx(self.name) as ioctx:
                rbd.RBD().pool_init(ioctx, True)

        self._everywhere(one)

    def remove(self) -> None:
        for client in self._clients:
            client.close()
        self._everywhere(lambda site: self.clusters.admin(site).delete_pool(self.name))

    def _everywhere(self, call: Any) -> None:
        with ThreadPoolExecutor(len(self.clusters.names)) as threads:
            list(threads.map(call, self.clusters.names))


@contextmanager
def _running(directory: Path, *boots: tuple[str, ...]) -> Iterator[Clusters]:
    """Booted by ceph-dev/up, once for each group of arguments, and purged at the end; none where RBDTREE_TEST_CLUSTERS
    names others that run."""
    try:
        for binding in ("rados", "rbd"):
            importlib.import_module(binding)
    except ImportError as error:
        pytest.skip(f"python3-{error.name} is missing; a venv sees it with --system-site-packages")
    if boots and not shutil.which("ceph-mon"):
        pytest.skip(f"ceph-mon is not installed: run ceph-dev/install, or set {VARIABLE} to running clusters")
    found = Clusters(directory.resolve())
    try:
        for arguments in boots:
            ceph_dev("up", "--dir", directory, *arguments)
        yield found
    finally:
        found.close()
        if boots:
            ceph_dev("down", "--dir", directory, "--purge")


@pytest.fixture(scope="session")
def clusters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """Clusters a, b and c, running; the same for all tests of a session."""
    given = os.environ.get(VARIABLE)
    boots = () if given else (NAMES,)
    with _running(Path(given) if given else tmp_path_factory.mktemp("clusters"), *boots) as found:
        yield found


@pytest.fixture(scope="session")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clusters]:
    """Three more clusters, whose daemons may be hurt. b has a manager, without which quotas are not enforced."""
    with _running(tmp_path_factory.mktemp("mortal"), ("a", "c"), ("--mgr", "b")) as found:
        yield found


@pytest.fixture(scope="session")
def pools_class() -> type[Pools]:
    """For pools that live longer than a test."""
    return Pools


@contextmanager
def _fresh(clusters: Clusters, config_path: Path) -> Iterator[Pools]:
    made = Pools(clusters, f"t{os.getpid()}-{next(_numbers)}", config_path)
    made.make()
    yield made
    made.remove()


@pytest.fixture
def pools(clusters: Clusters, tmp_path: Path) -> Iterator[Pools]:
    """A fresh pool in each cluster, removed with everything in it when the test ends."""
    with _fresh(clusters, tmp_path / "rbdtree.toml") as made:
        yield made


@pytest.fixture
def mortal_pools(mortal: Clusters, tmp_path: Path) -> Iterator[Pools]:
    """The same in clusters whose daemons this test may hurt."""
    with _fresh(mortal, tmp_path / "mortal.toml") as made:
        yield made
