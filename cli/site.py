"""``site ls``, ``site check``, ``caps``."""

import argparse
from dataclasses import asdict

from rbdtree import errors
from rbdtree.ceph.probe import SiteReport, probe

from . import options, render
from .session import Session


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
    check.add_argument("site", nargs="*", help="only these")
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
    rows = [
        (site.name, str(site.conf), site.client, str(site.keyring or ""), " ".join(site.pools))
        for site in session.config.sites.values()
    ]
    keys = ("site", "conf", "client", "keyring", "pools")
    if session.json:
        session.put({"sites": [dict(zip(keys, row, strict=True)) for row in rows]}, "")
    else:
        render.table(tuple(key.upper() for key in keys), rows)
    return 0


def site_check(session: Session) -> int:
    code = 0
    found: list[dict[str, object]] = []
    for name in session.options.site or session.sites.names():
        try:
            report = probe(session.sites.cluster(name), session.config.sites[name].client)
            found.append({**asdict(report), "error": None})
            if not session.json:
                _print(report)
            if report.missing:
                code = code or errors.Denied.exit_code
        except errors.Error as error:
            code = error.exit_code
            found.append({"site": name, "error": str(error)})
            if not session.json:
                print(f"{name}: {error}" + (f"\n  {error.hint}" if error.hint else ""))
    if session.json:
        session.put({"sites": found}, "")
    return code


def _print(report: SiteReport) -> None:
    print(
        f"{report.site}: {report.version or 'Ceph of unknown version'}, {report.health or 'health unknown'}, fsid {report.fsid}"
    )
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
