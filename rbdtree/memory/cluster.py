"""Clients of clusters in memory."""

from rbdtree import errors
from rbdtree.memory.pool import Pool
from rbdtree.memory.storage import Place, Storage


class Cluster:
    """One client of a storage."""

    def __init__(self, site: str, storage: Storage) -> None:
        self.site = site
        self.storage = storage
        self.fsid = storage.fsid
        self._address = f"memory/{next(storage.numbers)}"

    def pool(self, name: str, namespace: str = "") -> Pool:
        place = self.storage.places.get((name, namespace))
        if place is None:
            raise errors.NotFound(f"site {self.site} has no pool {name!r}")
        return Pool(self, name, namespace, place)

    def places(self) -> tuple[list[Place], list[errors.Error]]:
        return list(self.storage.places), []

    def address(self) -> str:
        return self._address

    def fence(self, address: str) -> None:
        self.storage.fence(address)

    def close(self) -> None:
        return


class Sites:
    """Named clusters; ``storages`` may be shared with other clients."""

    def __init__(self, storages: dict[str, Storage]) -> None:
        self._storages = storages
        self._clusters = {name: Cluster(name, storage) for name, storage in storages.items()}

    def names(self) -> list[str]:
        return list(self._clusters)

    def cluster(self, site: str) -> Cluster:
        if site not in self._clusters:
            raise errors.NotFound(f"there is no site {site!r}")
        return self._clusters[site]

    def renew(self, site: str) -> None:
        self._clusters[site] = Cluster(site, self._storages[site])

    def end_retired(self) -> None:
        return
