"""All clusters of one directory, and the rbdtree.toml that names them as sites."""

import contextlib
import fcntl
import json
import os
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from cephdev import Failure, boot, daemon
from cephdev.cluster import Cluster

HEADER = "# Written by ceph-dev: one site for every cluster in this directory. Changes here are lost.\n"
SITES = "rbdtree.toml"


def default_directory() -> Path:
    if chosen := os.environ.get("CEPH_DEV_DIR"):
        return Path(chosen)
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        return Path(runtime) / "ceph-dev"
    return Path(f"/tmp/ceph-dev-{os.getuid()}")


class Fleet:
    def __init__(self, directory: Path | None) -> None:
        # Absolute, without symbolic links: daemons are recognised by the path of their ceph.conf.
        self.directory = Path(os.path.realpath(directory or default_directory()))

    def prepare(self) -> None:
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise Failure(f"{self.directory}: {error.strerror}; choose another --dir") from None
        if self.directory.stat().st_uid != os.getuid():
            raise Failure(f"{self.directory} belongs to another user; choose another --dir")
        self._must_be_ours(self.directory / SITES)

    def cluster(self, name: str) -> Cluster:
        return Cluster(self.directory, name)

    def clusters(self) -> list[Cluster]:
        if not self.directory.is_dir():
            return []
        found = []
        for path in sorted(self.directory.iterdir()):
            with contextlib.suppress(Failure):
                cluster = Cluster(self.directory, path.name)
                if cluster.marker():
                    found.append(cluster)
        return found

    def up(
        self, names: list[str], wish: boot.Wish, report: Callable[[boot.Outcome | Failure], None]
    ) -> list[boot.Outcome]:
        """All at once; `report` hears of each as it comes. An interruption stops what was half made."""
        self.prepare()
        answers: queue.SimpleQueue[boot.Outcome | Failure] = queue.SimpleQueue()

        def bring_up(cluster: Cluster) -> None:
            try:
                answers.put(boot.bring_up(cluster, wish))
            except Failure as failure:
                named = str(failure).startswith(f"{cluster.name}:")
                answers.put(failure if named else Failure(f"{cluster.name}: {failure}"))
            except BaseException as error:
                answers.put(Failure(f"{cluster.name}: {type(error).__name__}: {error}"))

        clusters = [self.cluster(name) for name in dict.fromkeys(names)]
        threads = [threading.Thread(target=bring_up, args=(cluster,), daemon=True) for cluster in clusters]
        for thread in threads:
            thread.start()
        outcomes = []
        try:
            for _ in threads:
                answer = answers.get()
                report(answer)
                if isinstance(answer, boot.Outcome):
                    outcomes.append(answer)
        except BaseException:
            daemon.cancel()
            for cluster in clusters:
                if (marker := cluster.marker()) and marker.state == "booting":
                    cluster.end_daemons(gently=False)
            for thread in threads:
                thread.join(timeout=2)
            raise
        self.write_sites()
        return outcomes

    def down(self, cluster: Cluster, *, purge: bool) -> list[str]:
        """Remarks."""
        with cluster.locked():
            cluster.must_exist()
            stubborn = cluster.end_daemons(gently=not purge)
            if purge:
                cluster.purge()
        return [f"{name} did not end in time and was killed" for name in stubborn]

    def _must_be_ours(self, path: Path) -> None:
        if path.exists() and not path.read_text(errors="replace").startswith(HEADER):
            raise Failure(f"{path} was not written by ceph-dev and is left alone; move it away")

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def write_sites(self) -> None:
        """A rbdtree.toml for the clusters there are; none for none. A file that is not ours stays."""
        if not self.directory.is_dir():
            return
        path = self.directory / SITES
        with self._locked():
            self._must_be_ours(path)
            clusters = self.clusters()
            if not clusters:
                path.unlink(missing_ok=True)
                return
            tables = (
                f'\n[sites.{cluster.name}]\nconf = {json.dumps(str(cluster.conf))}\nid = "admin"\n'
                for cluster in clusters
            )
            new = path.with_suffix(".toml.new")
            new.write_text(HEADER + "".join(tables))
            new.replace(path)
