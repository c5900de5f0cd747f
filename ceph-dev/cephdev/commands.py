"""The command lines. Every function is one script beside this package and returns its exit code."""

import argparse
import contextlib
import functools
import json
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cephdev import Failure, boot, captive, cephconf, daemon, packages
from cephdev import host as hosts
from cephdev.cluster import Cluster
from cephdev.fleet import Fleet

# What Ceph reads from the environment would change what the clusters are made of.
CEPH_VARIABLES = ("CEPH_ARGS", "CEPH_CONF", "CEPH_KEYRING", "CEPH_LIB")
ACTIONS = {
    "kill": "SIGKILL, as in a crash",
    "stop": "SIGTERM, and wait until it is gone",
    "pause": "SIGSTOP: alive, but silent",
    "resume": "SIGCONT",
    "start": "start it and wait until the cluster sees it up",
    "restart": "stop and start",
    "status": "running, paused or dead",
}


def command(function: Callable[[], int]) -> Callable[[], int]:
    """One sentence for every failure we know, and exit code 1."""

    @functools.wraps(function)
    def wrapped() -> int:
        try:
            code = function()
        except Failure as failure:
            complain(failure)
            code = 1
        except (KeyboardInterrupt, captive.Interrupted) as interrupted:
            complain("interrupted; what was half made is made anew by the next ceph-dev/up")
            code = 128 + getattr(interrupted, "number", signal.SIGINT)
        except BrokenPipeError:
            code = 1
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        return code

    return wrapped


def complain(text: object) -> None:
    print(f"{os.path.relpath(sys.argv[0])}: {text}", file=sys.stderr)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def parser(description: str) -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    made.add_argument(
        "--dir",
        type=Path,
        metavar="DIR",
        help="where the clusters live (default: $CEPH_DEV_DIR, else $XDG_RUNTIME_DIR/ceph-dev, "
        "else /tmp/ceph-dev-$UID)",
    )
    return made


def add_wish(options: argparse.ArgumentParser) -> None:
    options.add_argument("--osds", type=int, default=1, metavar="N", help="OSDs in each cluster (1)")
    options.add_argument("--mgr", action="store_true", help="a manager too: slower, but `ceph df` and the like work")
    options.add_argument(
        "--objectstore",
        choices=("bluestore", "memstore"),
        default="bluestore",
        help="memstore boots faster and loses its data when it stops (bluestore)",
    )
    options.add_argument(
        "--size",
        type=explained(cephconf.size_in_bytes),
        metavar="SIZE",
        help="of each OSD, sparse: bytes, or 10G (bluestore 10G, memstore 1G)",
    )
    options.add_argument("--netns", metavar="NS", help="run in the network namespace /run/netns/NS")
    options.add_argument("--addr", metavar="IP", help="IPv4 address of this machine or NS (a free one in 127.0.0.0/8)")
    options.add_argument(
        "--conf",
        type=explained(cephconf.setting),
        action="append",
        default=[],
        metavar="'key = value'",
        help="a line of ceph.conf, stronger than ours; repeatable",
    )


def explained(convert: Callable[[str], Any]) -> Callable[[str], Any]:
    """argparse shows the words of this error only."""

    def converted(text: str) -> Any:
        try:
            return convert(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return converted


def wish_of(given: argparse.Namespace) -> boot.Wish:
    if given.osds < 1:
        raise Failure(f"--osds {given.osds}: a cluster needs at least one")
    return boot.Wish(given.osds, given.mgr, given.objectstore, given.size, given.netns, given.addr, tuple(given.conf))


def report(answer: boot.Outcome | Failure) -> None:
    if isinstance(answer, Failure):
        complain(answer)
        return
    remarks = "".join(f"; {remark}" for remark in answer.remarks)
    did = "already running" if answer.did == "running" else f"{answer.did} in {answer.seconds:.1f} s"
    say(f"{answer.cluster.name}  {answer.cluster.conf}  {did}{remarks}")


def forget_ceph_variables() -> dict[str, str]:
    """The environment as it was."""
    before = dict(os.environ)
    for name in CEPH_VARIABLES:
        os.environ.pop(name, None)
    return before


def chosen(fleet: Fleet, names: list[str]) -> list[Cluster]:
    clusters = [fleet.cluster(name) for name in dict.fromkeys(names)] if names else fleet.clusters()
    for cluster in clusters:
        cluster.must_exist()
    return clusters


@command
def up() -> int:
    options = parser(
        "Boot the named clusters, all at once; each has a pool `rbd` ready for use.\n"
        "A running cluster is left alone, a stopped one is started with its data,\n"
        "a half-made one is made anew."
    )
    add_wish(options)
    options.add_argument("--json", action="store_true", help="print what came up on stdout")
    options.add_argument("names", nargs="+", metavar="NAME")
    given = options.parse_args()
    forget_ceph_variables()
    if given.objectstore == "memstore":
        say("memstore: the data of these clusters is lost when they stop")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, captive.raise_interrupted)
    outcomes = Fleet(given.dir).up(given.names, wish_of(given), report)
    if given.json:
        rows = [
            {
                "name": outcome.cluster.name,
                "conf": str(outcome.cluster.conf),
                "keyring": str(outcome.cluster.keyring),
                "did": outcome.did,
                "seconds": round(outcome.seconds, 3),
                "remarks": list(outcome.remarks),
            }
            for outcome in outcomes
        ]
        print(json.dumps(rows, indent=1))
    return 0 if len(outcomes) == len(set(given.names)) else 1


@command
def down() -> int:
    options = parser("Stop clusters: the named ones, or all in the directory. Their data stays.")
    options.add_argument("--purge", action="store_true", help="kill them and remove their directories")
    options.add_argument("names", nargs="*", metavar="NAME")
    given = options.parse_args()
    forget_ceph_variables()
    fleet = Fleet(given.dir)
    clusters = chosen(fleet, given.names)
    if not clusters:
        say(f"no clusters in {fleet.directory}")
    failed = False
    for cluster in clusters:
        objectstore = cluster.must_exist().objectstore
        try:
            remarks = fleet.down(cluster, purge=given.purge)
        except Failure as failure:
            complain(failure)
            failed = True
            continue
        if objectstore == "memstore" and not given.purge:
            remarks.append("its memstore is lost")
        say("; ".join([f"{cluster.name}  {'purged' if given.purge else 'stopped'}", *remarks]))
    fleet.write_sites()
    return 1 if failed else 0


@command
def status() -> int:
    options = parser("Which clusters there are, and whether their daemons run.")
    options.add_argument("--json", action="store_true")
    given = options.parse_args()
    fleet = Fleet(given.dir)
    rows = []
    for cluster in fleet.clusters():
        with contextlib.suppress(Failure):  # purged by somebody just now
            rows.append(row_of(cluster))
    if given.json:
        print(json.dumps(rows, indent=1))
        return 0
    if not rows:
        say(f"no clusters in {fleet.directory}; boot some: ceph-dev/up a b")
    for row in rows:
        daemons = "  ".join(f"{name} {found['state']}" for name, found in row["daemons"].items())
        where = f"{row['address']} in {row['netns']}" if row["netns"] else row["address"]
        print(f"{row['name']}  {row['state']}  {where}  ceph {row['ceph']} {row['objectstore']}  {daemons}")
        print(f"    {row['conf']}")
    return 0


def row_of(cluster: Cluster) -> dict[str, Any]:
    marker = cluster.must_exist()
    return {
        "name": cluster.name,
        "state": cluster.state(),
        "conf": str(cluster.conf),
        "keyring": str(cluster.keyring),
        "fsid": marker.fsid,
        "address": f"{marker.ip}:{marker.port}",
        "netns": marker.netns,
        "ceph": marker.ceph,
        "objectstore": marker.objectstore,
        "daemons": {one.name: {"state": one.state(), "pid": one.pid()} for one in cluster.daemons()},
    }


@command
def one_daemon() -> int:
    lines = "\n".join(f"  {action:8} {meaning}" for action, meaning in ACTIONS.items())
    options = parser(f"Do something to one daemon of a cluster.\n\n{lines}")
    options.add_argument("cluster", metavar="CLUSTER")
    options.add_argument("daemon", metavar="DAEMON", help="mon.a, osd.0, mgr.x")
    options.add_argument("action", choices=ACTIONS, metavar="ACTION", help=" | ".join(ACTIONS))
    given = options.parse_args()
    forget_ceph_variables()
    cluster = Fleet(given.dir).cluster(given.cluster)
    marker = cluster.must_exist()
    target = cluster.daemon(given.daemon)
    if given.action in ("stop", "restart") and target.end(gently=True):
        say(f"{cluster.name}: {target.name} did not end in time and was killed")
    if given.action in ("start", "restart"):
        start(cluster, marker.objectstore, target)
    if given.action == "kill":
        target.end(gently=False)
    elif given.action == "pause":
        target.signal(signal.SIGSTOP)
    elif given.action == "resume":
        target.resume()
    elif given.action == "status":
        print(target.state())
    return 0


def start(cluster: Cluster, objectstore: str, target: daemon.Daemon) -> None:
    with cluster.locked():
        if (state := target.state()) != "dead":
            say(f"{cluster.name}: {target.name} is already {state}")
            return
        if target.kind == "osd" and objectstore == "memstore":
            say(f"{cluster.name}: {target.name} comes back empty, its memstore was lost")
        boot.start_one(cluster, target)


@command
def run() -> int:
    arguments, dashes, words = split(sys.argv[1:])
    options = parser(
        "Boot the named clusters, run a command, stop and remove the clusters; its exit code is ours.\n"
        "The command finds CEPH_DEV_DIR and RBDTREE_CONFIG in its environment,\n"
        "and runs in --netns if given.\n"
        "Without --dir the clusters live in a fresh directory of their own."
    )
    options.usage = "%(prog)s [options] NAME [NAME...] -- CMD [ARG...]"
    add_wish(options)
    options.add_argument("names", nargs="+", metavar="NAME")
    given = options.parse_args(arguments)
    if not dashes or not words:
        options.error("after the names, -- and a command are needed")
    environment = forget_ceph_variables()
    return captive.run(given.dir, given.names, wish_of(given), words, environment=environment, report=report)


def split(argv: list[str]) -> tuple[list[str], bool, list[str]]:
    if "--" not in argv:
        return argv, False, []
    at = argv.index("--")
    return argv[:at], True, argv[at + 1 :]


@command
def host() -> int:
    options = parser(
        "Test hosts: real Linux kernels with nbd and krbd, as ordinary processes, on a network of their own.\n\n"
        "  up NAME...         boot them, all at once (2 to 3 s); they see this machine's files and change none\n"
        "  run NAME -- CMD    a command inside, as root; its exit code is ours\n"
        "  crash NAME...      a power cut\n"
        "  down [NAME...]     in good order; without names: all of them, and the network\n"
        "  status             which there are, and the network's name\n\n"
        "Clusters that hosts can reach: ceph-dev/up --netns NS --addr 10.213.0.1 a, with NS as 'status' says."
    )
    options.add_argument("action", choices=("up", "run", "crash", "down", "status"))
    options.add_argument("names", nargs="*", metavar="NAME")
    options.add_argument("--memory", default="512M", metavar="SIZE", help="of each host (512M)")
    options.add_argument("--seconds", type=float, default=600, help="how long a command may take (600)")
    arguments, dashes, words = split(sys.argv[1:])
    given = options.parse_args(arguments)
    network = hosts.Network(Fleet(given.dir).directory)
    if given.action == "status" and not given.names:
        print(f"network {network.namespace}{'' if network.exists else ' (not made)'}, clusters at {hosts.GATEWAY}")
        for one in network.hosts():
            print(f"{one.name}  {one.address}  {'running' if one.running else 'off'}  {one.log}")
        return 0
    if given.action == "down" and not given.names:
        network.remove()
        return 0
    if not given.names:
        options.error(f"{given.action} needs the name of a host")
    if given.action == "up":
        for one in network.up(given.names, given.memory):
            say(f"{one.name}  {one.address}  up")
    elif given.action == "run":
        if not dashes or not words or len(given.names) != 1:
            options.error("one name, -- and a command are needed")
        done = network.host(given.names[0]).run(words[0] if len(words) == 1 else shlex.join(words), given.seconds)
        print(done.out, end="")
        print(done.err, end="", file=sys.stderr)
        return done.code
    else:
        for one in map(network.host, given.names):
            one.crash() if given.action == "crash" else one.down()
    return 0


@command
def install() -> int:
    options = argparse.ArgumentParser(
        description="Install what Debian or Ubuntu packages ceph-dev and rbdtree need; only the missing ones."
    )
    options.add_argument("--check", action="store_true", help="only say what is missing; exit code 1 if anything is")
    given = options.parse_args()
    missing = packages.missing()
    if not missing:
        say("nothing is missing")
        return 0
    if given.check:
        say(f"missing: {' '.join(missing)}; run ceph-dev/install")
        return 1
    needed = [package for package in missing if package in packages.NEEDED]
    try:
        packages.as_root()
    except Failure as failure:
        if needed:
            raise
        say(f"{failure}; without {' '.join(missing)} the tests of block devices are skipped")
        return 0
    say(f"installing: {' '.join(missing)}")
    packages.install(missing)
    return 0
