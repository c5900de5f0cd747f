"""``ports.Sites``: the sites of the configuration, each connected when first asked for."""

import threading
import time
from contextlib import suppress

from rbdtree import errors
from rbdtree.ceph.cluster import Cluster
from rbdtree.config import Site

RETIRED_SECONDS = 300.0
"""How long somebody may still use a connection that was replaced: longer than any operation waits."""


class Sites:
    """A failed connection is remembered, so that a command does not wait twice for the same dead cluster; for
    ``retry_seconds``, if that is given, as a service wants it."""

    def __init__(self, sites: dict[str, Site], timeout: float, retry_seconds: float | None = None) -> None:
        self._sites = sites
        self._timeout = timeout
        self._retry_seconds = retry_seconds
        self._guards = {name: threading.Lock() for name in sites}
        self._clusters: dict[str, Cluster] = {}
        self._failed: dict[str, tuple[float, errors.Error]] = {}
        self._retiring = threading.Lock()
        self._retired: list[tuple[float, Cluster]] = []

    def names(self) -> list[str]:
        return list(self._sites)

    def cluster(self, site: str) -> Cluster:
        if site not in self._sites:
            raise errors.NotFound(
                f"there is no site {site!r} in the configuration",
                f"It has: {', '.join(self._sites) or 'none'}.",
            )
        with self._guards[site]:
            found = self._clusters.get(site)
            if found is None:
                self._raise_known(site)
                try:
                    found = self._clusters[site] = Cluster(self._sites[site], self._timeout)
                    self._failed.pop(site, None)
                except errors.Error as error:
                    self._failed[site] = time.monotonic(), error
                    raise
            return found

    def _raise_known(self, site: str) -> None:
        failed = self._failed.get(site)
        if failed and (self._retry_seconds is None or time.monotonic() - failed[0] < self._retry_seconds):
            raise failed[1]

    def renew(self, site: str) -> None:
        with self._guards[site]:
            gone = self._clusters.pop(site, None)
        if gone:
            with self._retiring:
                self._retired.append((time.monotonic(), gone))

    def end_retired(self) -> None:
        now = time.monotonic()
        with self._retiring:
            over = [cluster for when, cluster in self._retired if now - when > RETIRED_SECONDS]
            self._retired = [(when, cluster) for when, cluster in self._retired if cluster not in over]
        for cluster in over:
            with suppress(errors.Error):
                cluster.close()

    def close(self) -> None:
        """Ends every connection."""
        for cluster in (*self._clusters.values(), *(cluster for _, cluster in self._retired)):
            cluster.close()
        self._clusters.clear()
        self._retired.clear()
