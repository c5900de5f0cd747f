"""The network of a host is taken away under what runs there."""

import json
import time

import pytest
from ground import Yard, line, until

pytestmark = [pytest.mark.ceph, pytest.mark.hosts, pytest.mark.timeout(1200)]
CUT = 15
"""Seconds; longer than it waits for a cluster."""


def test_an_uplink_under_load_whose_link_is_cut(yard: Yard) -> None:
    """It waits, and goes on by itself: the root gets all that was written meanwhile."""
    yard.tree()
    yard("sync", "--cut", "vol")
    image = yard("--format", "json", "branch", "vol/m", "--uplink", "journal").json["image"].rpartition("/")[2]
    uplink = line(("--timeout", "10", "uplink", "vol/m", "--interval", "1s"), yard.config)
    yard.sh("h1", f"{uplink} >/run/uplink.log 2>&1 </dev/null & echo $! >/run/uplink.pid")

    def newest() -> str:
        return str(json.loads(yard.rbd("a", "snap", "ls", "vol", "--format=json"))[-1]["name"])

    def write() -> None:
        yard.rbd("b", "bench", "--io-type=write", "--io-pattern=rand", "--io-size=4K", "--io-total=1M", image)

    def equal() -> bool:
        """Through rbd alone."""
        root, branch = (
            yard.site.shell(f"rbd -c {yard.site.conf(site)} export --no-progress {yard.name}/{what} - | md5sum").out
            for site, what in (("a", f"vol@{newest()}"), ("b", image))
        )
        return root == branch

    first = newest()
    write()
    until("the uplink publishes", lambda: newest() != first)
    host = yard.site.network.host("h1")
    host.cut_link()
    held = newest()
    write()
    time.sleep(CUT)
    write()
    assert newest() == held
    host.cut_link(up=True)
    until("it goes on", lambda: newest() != held, 240)
    until("the root is the branch", equal)
    yard.sh("h1", "kill $(cat /run/uplink.pid)")
    until("it ends in good order", lambda: not yard.sh("h1", "ls -d /proc/$(cat /run/uplink.pid)", None).out.strip())
