"""``ports.Sites``: the sites of the configuration, each connected when first asked for."""

import threading

from rbdtree import errors
from rbdtree.ceph.cluster import Cluster
from rbdtree.config import Site


class Sites:
    """A failed connection is remembered: a command does not wait twice for the same dead cluster."""

    def __init__(self, sites: dict[str, Site], timeout: float) -> None:
        self._sites = sites
        self._timeout = timeout
        self._guards = {name: threading.Lock() for name in sites}
        self._clusters: dict[str, Cluster | errors.Error] = {}

    def names(self) -> list[str]:
        return list(self._sites)

    def cluster(self, site: str) -> Cluster:
        if site not in self._sites:
            raise errors.NotFound(
                f"there is no site {site!r} in the configuration",
                f"It has: {', '.join(self._sites) or 'none'}.",
            )
        with self._guards[site]:
            if site not in self._clusters:
                try:
                    self._clusters[site] = Cluster(self._sites[site], self._timeout)
                except errors.Error as error:
                    self._clusters[site] = error
            found = self._clusters[site]
        if isinstance(found, errors.Error):
            raise found
        return found

    def close(self) -> None:
        """Ends every connection."""
        for cluster in self._clusters.values():
            if isinstance(cluster, Cluster):
                cluster.close()
        self._clusters.clear()
