"""A manager on a host whose clock is set: hours ahead, hours back. A test host has a clock of its own."""

import json

import pytest
from ground import Yard, line, until

pytestmark = [pytest.mark.ceph, pytest.mark.hosts, pytest.mark.timeout(1200)]
LOG = "/run/clock.log"


def test_the_clock_of_a_managers_host_is_set(yard: Yard) -> None:
    """It cuts by schedule, copies and retires as before, and what it makes is in the order in which it was made."""
    yard.tree()
    yard("policy", "set", "vol", "schedule=2s", "keep=last 3", "scrub=60s")
    manager = line(("manager", "--metrics", "off", "--poll", "2s", "--log-format", "json"), yard.config)
    yard.sh("h3", f"{manager} >{LOG} 2>&1 </dev/null & echo $! >/run/clock.pid")

    def seen() -> list[int]:
        """Generations at the mirror."""
        names = [entry["name"] for entry in json.loads(yard.rbd("b", "snap", "ls", "vol", "--format=json"))]
        return [int(name.rpartition(".")[2]) for name in names if name.startswith("rbdtree.")]

    def arrives(when: str) -> None:
        before = max(seen(), default=0)
        yard.rbd("a", "bench", "--io-type=write", "--io-pattern=rand", "--io-size=4K", "--io-total=64K", "vol")
        until(f"a generation is there {when}", lambda: max(seen(), default=0) > before, 240)
        assert seen() == sorted(seen())

    def equal() -> bool:
        """Through rbd alone."""
        a, b = (
            yard.site.shell(f"rbd -c {yard.site.conf(site)} export --no-progress {yard.name}/{what} - | md5sum").out
            for site, what in (("a", "vol"), ("b", f"vol@{newest()}"))
        )
        return a == b

    def newest() -> str:
        return str(json.loads(yard.rbd("b", "snap", "ls", "vol", "--format=json"))[-1]["name"])

    until("the mirror is there", lambda: yard.rbd("b", "ls"))
    arrives("before anything is done to the clock")
    for step in ("+2 hours", "-5 hours", "-30 days", "+31 days"):
        yard.sh("h3", f"date -s '{step}'")
        arrives(f"though the clock was set {step}")
        until("the mirror has what was written", equal)
    until("retention, which looks once a minute, goes on", lambda: len(seen()) <= 4, 240)
    verdict = yard("--format", "json", "verify", "vol").json
    assert all(node["equal"] for node in verdict["nodes"])
    yard.sh("h3", "kill $(cat /run/clock.pid)")
    until("it ends in good order", lambda: '"event": "stopped"' in yard.sh("h3", f"tail -1 {LOG}").out)
    said = [json.loads(row) for row in yard.sh("h3", f"cat {LOG}").out.splitlines()]
    assert not [event for event in said if event.get("error_kind") == "Bug"]
