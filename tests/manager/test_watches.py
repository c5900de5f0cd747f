"""What a manager listens to, when a site does not answer."""

from collections.abc import Iterator
from typing import Any

import pytest

from rbdtree import errors, memory
from rbdtree.manager.watches import Listened, Watches
from rbdtree.model.document import DIRECTORY, Kind

from .forest import Grove


@pytest.fixture
def grove() -> Iterator[Grove]:
    made = Grove()
    made.add("m", "root", Kind.MIRROR, "b")
    yield made
    made.close()


class Patchy(memory.Sites):
    """Sites that may fall silent; ``asked``: of which one something was wanted."""

    def __init__(self, storages: dict[str, memory.Storage]) -> None:
        super().__init__(storages)
        self.silent: set[str] = set()
        self.asked: list[str] = []

    def cluster(self, site: str) -> memory.Cluster:
        self.asked.append(site)
        if site in self.silent:
            raise errors.Unreachable(f"site {site} does not answer")
        return super().cluster(site)


def everything(grove: Grove) -> set[Listened]:
    nodes = {Listened.node(document.ref) for document in grove.documents().values()}
    return nodes | {Listened(site, "p", "", DIRECTORY) for site in "ab"}


def test_a_site_that_falls_silent_is_asked_once_and_a_silent_one_never(
    grove: Grove, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, wanted, closed = Patchy(grove.storages), everything(grove), list[str]()
    watches = Watches(sites, lambda _: None)
    assert set(watches.listen(wanted)) == wanted
    close = memory.Watch.close
    monkeypatch.setattr(memory.Watch, "alive", lambda _: False)

    def told(self: memory.Watch, *words: Any) -> None:
        closed.append(self._pool.site)
        close(self, *words)

    monkeypatch.setattr(memory.Watch, "close", told)
    sites.asked, sites.silent = [], {"b"}
    assert {one.site for one in watches.listen(wanted)} == {"a"}
    assert sites.asked.count("b") == 1
    sites.asked = []
    assert {one.site for one in watches.listen(wanted - {Listened("b", "p", "", DIRECTORY)}, frozenset("b"))} == {"a"}
    assert "b" not in sites.asked
    assert "b" not in closed, "ending a watch waits for an answer, too"
    sites.silent = set()
    assert set(watches.listen(wanted)) == wanted
    assert closed.count("b") == 2


def test_a_watch_of_a_connection_that_was_replaced_is_registered_anew(grove: Grove) -> None:
    """That connection is shut down after a while: nothing may be asked of its watches then."""
    sites, wanted = memory.Sites(grove.storages), everything(grove)
    watches = Watches(sites, lambda _: None)
    assert set(watches.listen(wanted)) == wanted
    assert not watches.listen(wanted)
    sites.renew("b")
    assert {one.site for one in watches.listen(wanted)} == {"b"}
    assert not watches.listen(wanted)
    assert all(len(found) == 1 for found in grove.storages["b"].places["p", ""].watches.values())
