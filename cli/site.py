"""``site ls``, ``site check``, ``caps``."""

import argparse
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from rbdtree import errors
from rbdtree.ceph.probe import SiteReport, probe

from . import completion, options, render
from .completion import completes
from .session import Session, described


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    site = commands.add_parser("site", help="the sites of the configuration")
    actions = site.add_subparsers(dest="action", required=True, metavar="ACTION")
    ls = actions.add_parser("ls", help="list the sites", parents=[options.common()])
    ls.set_defaults(run=site_ls)
    check = actions.add_parser(
        "check",
        help="connect to each: version, health, what its key may do, what is missing",
        parents=[options.common()],
    )
    completes(check.add_argument("site", nargs="*", metavar="SITE", help="only these"), completion.sites)
    check.set_defaults(run=site_check)
    caps = commands.add_parser(
        "caps", help="print the cephx caps a role needs, least privilege", parents=[options.common()]
    )
    caps.add_argument(
        "role", choices=tuple(ROLES), help="; ".join(f"{role}: {text}" for role, (text, _) in ROLES.items())
    )
    caps.add_argument("--pool", default="rbd", help="pool, or pool/namespace (default rbd)")
    caps.add_argument("--client", default="client.rbdtree", help="name of the key (default client.rbdtree)")
    caps.set_defaults(run=print_caps)


def site_ls(session: Session) -> int:
    sites = session.config.sites.values()
    if session.json:
        rows = [
            {
                "site": site.name,
                "conf": str(site.conf),
                "client": site.client,
                "keyring": str(site.keyring) if site.keyring else None,
                "pools": list(site.pools),
            }
            for site in sites
        ]
        session.put({"sites": rows}, "")
    else:
        render.table(
            ("SITE", "CONF", "CLIENT", "KEYRING", "POOLS"),
            [(s.name, str(s.conf), s.client, str(s.keyring or ""), " ".join(s.pools)) for s in sites],
        )
    return 0


def site_check(session: Session) -> int:
    names = session.options.site or session.sites.names()
    for name in names:
        if name not in session.sites.names():
            raise errors.NotFound(
                f"there is no site {name!r} in the configuration", f"It has: {', '.join(session.sites.names())}."
            )
    with ThreadPoolExecutor(len(names)) as threads:
        found = list(threads.map(lambda name: _check(session, name), names))
    if session.json:
        session.put({"sites": [_found(name, *one) for name, one in zip(names, found, strict=True)]}, "")
    else:
        for name, (report, error) in zip(names, found, strict=True):
            _print(name, report, error)
    codes = (
        error.exit_code if error else errors.Denied.exit_code for report, error in found if error or report.missing
    )
    return next(codes, 0)


def _check(session: Session, name: str) -> tuple[SiteReport, errors.Error | None]:
    site = session.config.sites[name]
    try:
        return probe(session.sites.cluster(name), site.client), None
    except errors.Error as error:
        return SiteReport(name, "", site.client), error


def _found(name: str, report: SiteReport, error: errors.Error | None) -> dict[str, object]:
    told = {key: value or None for key, value in asdict(report).items() if key in ("fsid", "version", "health")}
    return {**asdict(report), "site": name, **told, "error": described(error) if error else None}


def _print(name: str, report: SiteReport, error: errors.Error | None) -> None:
    if error:
        text = str(error).removeprefix(f"site {name}: ").removeprefix(f"site {name} ")
        print(f"{name}: {text}" + (f"\n  {error.hint}" if error.hint else ""))
        return
    version = re.sub(r"^ceph version (\S+) \([0-9a-f]+\) (\w+).*", r"Ceph \1 \2", report.version)
    print(f"{name}: {version or 'Ceph of unknown version'}, {report.health or 'health unknown'}, fsid {report.fsid}")
    print(f"  key   {report.client}" + "".join(f"  {who} '{what}'" for who, what in report.caps.items()))
    for place in report.places:
        may = "reads and writes" if place.write else "reads only" if place.read else "no access"
        print(f"  pool  {place.name}: {may}")
    for missing in report.missing:
        print(f"  missing: {missing}")
    if not report.missing:
        print("  nothing is missing")


ROLES = {
    "reader": (
        "status, log, diff, verify",
        ("mon 'allow r'", "osd 'profile rbd-read-only pool={pool}{ns}'"),
    ),
    "child": (
        "a cluster that receives: writes images and documents, fences dead workers",
        ("mon 'profile rbd'", "osd 'profile rbd pool={pool}{ns}'"),
    ),
    "parent": (
        "a cluster that is copied from: reads images, writes holds into documents",
        (
            "mon 'profile rbd'",
            "osd 'profile rbd-read-only pool={pool}{ns}, allow rwx pool={pool}{ns} object_prefix rbdtree'",
        ),
    ),
    "root": (
        "the cluster of the root: init, cut, clones beside it",
        ("mon 'profile rbd'", "osd 'profile rbd pool={pool}{ns}'"),
    ),
}


def print_caps(session: Session) -> int:
    pool, _, namespace = session.options.pool.partition("/")
    _, caps = ROLES[session.options.role]
    filled = [cap.format(pool=pool, ns=f" namespace={namespace}" if namespace else "") for cap in caps]
    session.put(
        {"role": session.options.role, "client": session.options.client, "caps": filled},
        f"ceph auth get-or-create {session.options.client} {' '.join(filled)}",
    )
    return 0
