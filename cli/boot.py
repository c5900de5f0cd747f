"""``maps``: what this host maps and mounts at boot; ``doctor``: what is wrong with it."""

import argparse
import os
from pathlib import Path
from typing import Any, NamedTuple

from rbdtree import errors
from rbdtree.host import doctor, process, table, tools
from rbdtree.host import portion as portions
from rbdtree.host.mounts import Mounts
from rbdtree.host.state import MAPPED, Record
from rbdtree.host.table import Entry
from rbdtree.model.position import Position

from . import host, mounting, options, render
from .session import Session, described


def register(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the commands."""
    booting = commands.add_parser("maps", help="what this host maps and mounts at boot (/etc/rbdtree/maps)")
    actions = booting.add_subparsers(dest="action", required=True, metavar="ACTION")
    for action, text, run in (
        ("ls", "what stands there, and what of it is there", run_ls),
        ("start", "map and mount all of it; what is there already stays", run_start),
        ("stop", "unmount and unmap all of it", run_stop),
        ("follow", "keep one mount of it on the newest generation, until stopped", run_follow),
    ):
        parents = [options.common()] + ([options.changing()] if action in ("start", "stop") else [])
        parser = actions.add_parser(action, help=text, parents=parents)
        parser.add_argument("--table", metavar="FILE", help=f"instead of ${table.VARIABLE} or {table.DEFAULT}")
        if action == "follow":
            parser.add_argument("directory", metavar="DIR")
        parser.set_defaults(run=run)

    checking = commands.add_parser(
        "doctor", help="what this host lacks, what was left behind, how each is mended", parents=[options.common()]
    )
    checking.add_argument("--mend", action="store_true", help="clear away what was left behind")
    checking.add_argument("--table", metavar="FILE", help=f"instead of ${table.VARIABLE} or {table.DEFAULT}")
    checking.set_defaults(run=run_doctor)


def _as_given(session: Session, entry: Entry, **more: object) -> Session:
    """A session with the options of a line, as if they had been typed."""
    values = dict(entry.values)
    given = argparse.Namespace(
        **{
            **vars(session.options),
            **{flag: flag in entry.flags for flag in table.FLAGS},
            "node": entry.node,
            "directory": entry.directory,
            "at": values.get("at"),
            "driver": values.get("driver"),
            "portion": values.get("portion"),
            "quiesce_hook": values.get("quiesce-hook"),
            "on_switch": values.get("on-switch", ""),
            "options": values.get("options", ""),
            **more,
        }
    )
    return session.like(given)


def _rows(entries: list[Entry], results: list[errors.Error | None]) -> list[dict[str, Any]]:
    return [
        {
            "node": entry.node,
            "directory": entry.directory or None,
            "options": [*entry.flags, *(f"{key}={value}" for key, value in entry.values)],
            "error": described(error) if error else None,
        }
        for entry, error in zip(entries, results, strict=True)
    ]


def run_ls(session: Session) -> int:
    entries = table.load(table.path(session.options.table))
    mounts = Mounts(host.maps_of(session))
    mounted = {m.directory for m in mounts.state.mounts() if mounts.shown(m.directory)}
    mapped = [r for r in mounts.state.records() if mounts.maps.find(r)]
    there = [_place(e) in mounted if e.directory else any(_made_for(e, r) for r in mapped) for e in entries]
    if session.json:
        rows = _rows(entries, [None] * len(entries))
        session.put({"maps": [{**row, "there": is_there} for row, is_there in zip(rows, there, strict=True)]}, "")
    elif not entries:
        print(f"{table.path(session.options.table)} has no lines")
    else:
        render.table(
            ("NODE", "DIR", "OPTIONS", "THERE"),
            [
                (
                    e.node,
                    e.directory or "-",
                    ",".join([*e.flags, *(f"{k}={v}" for k, v in e.values)]) or "-",
                    "yes" if t else "no",
                )
                for e, t in zip(entries, there, strict=True)
            ],
        )
    return 0


def run_start(session: Session) -> int:
    entries = _lines(session)
    results: list[errors.Error | None] = []
    for entry in entries.right:
        results.append(_attempt(session, entry))
    return _ended(session, entries, results, "started")


class _Lines(NamedTuple):
    """Of the table: those without a mistake, and what is to be said of the others."""

    right: list[Entry]
    mistakes: errors.UsageError | None


def _lines(session: Session) -> _Lines:
    return _Lines(*table.read(table.path(session.options.table)))


def _attempt(session: Session, entry: Entry) -> errors.Error | None:
    """One line that fails keeps no other from its device."""
    inner = _as_given(session, entry, follow=False, boot=entry.key)
    try:
        if entry.directory:
            if not session.dry_run:
                os.makedirs(entry.directory, exist_ok=True)
            mounting.mount_one(inner, follows=entry.follow)
        elif not _has_one(session, entry):
            host.map_one(inner)
    except errors.Error as error:
        return error
    except OSError as error:
        return errors.HostFailed(f"{entry.name}: {error.strerror}", "See 'rbdtree doctor'.")
    if entry.follow and not session.dry_run:
        _start_follower(session, entry)
    return None


def _has_one(session: Session, entry: Entry) -> bool:
    """Whether a generation is mapped for this line: of one without ``at``, a newer one takes no place beside it."""
    maps = host.maps_of(session)
    mine = [r for r in maps.state.records() if r.boot == entry.key and not r.source.write and r.step == MAPPED]
    return any(map(maps.find, mine))


def _start_follower(session: Session, entry: Entry) -> None:
    """By systemd, where that runs."""
    if not Path("/run/systemd/system").is_dir() or not tools.find("systemd-escape"):
        session.warn(
            errors.HostFailed(
                f"{entry.directory} is mounted, and nothing follows for it: there is no systemd here",
                f"Run 'rbdtree maps follow {entry.directory}' under a supervisor.",
            )
        )
        return
    try:
        unit = tools.run(
            "name a unit", "systemd-escape", "--path", "--template=rbdtree-follow@.service", entry.directory
        )
        tools.run("start a unit", "systemctl", "start", "--no-block", unit.strip())
    except errors.HostFailed as error:
        session.warn(error)


def run_follow(session: Session) -> int:
    directory = os.path.realpath(session.options.directory)
    entries = _lines(session)
    entry = next((e for e in entries.right if _place(e) == directory and e.follow), None)
    if entry is None:
        raise entries.mistakes or errors.NotFound(
            f"{table.path(session.options.table)} has no line with 'follow' for {directory}", "See 'rbdtree maps ls'."
        )
    return mounting.run_mount(_as_given(session, entry))


def _place(entry: Entry) -> str:
    """Its directory as a mount is noted: without symbolic links."""
    return os.path.realpath(entry.directory) if entry.directory else ""


def run_stop(session: Session) -> int:
    entries = _lines(session)
    mounts = Mounts(host.maps_of(session))
    results: list[errors.Error | None] = []
    for entry in reversed(entries.right):
        try:
            if not session.dry_run:
                _stop_one(mounts, entry)
            results.append(None)
        except errors.Error as error:
            results.append(error)
    return _ended(session, entries, results[::-1], "stopped")


def _stop_one(mounts: Mounts, entry: Entry) -> None:
    directory = _place(entry)
    if directory:
        if mounts.state.mount(directory):
            mounting.end_follower(mounts, directory)
            mounts.umount(directory)
        return
    for record in mounts.state.records():
        if record.boot == entry.key and not record.for_mount:
            mounts.maps.unmap(record)


def _made_for(entry: Entry, record: Record) -> bool:
    """Whether a map shows what this line names: of a line without ``at``, any generation."""
    values, of = dict(entry.values), record.source
    at, portion = values.get("at"), values.get("portion")
    return (
        (of.full_name, of.write) == (entry.node, "write" in entry.flags)
        and (not at or of.write or of.position == str(Position.parse(at)))
        and record.portion == (portions.parse(portion) if portion else None)
    )


def _ended(session: Session, entries: _Lines, results: list[errors.Error | None], did: str) -> int:
    failed = [error for error in (entries.mistakes, *results) if error]
    for error in failed:
        session.say(error)
    there = len(entries.right)
    text = f"{there - sum(1 for error in results if error)} of {render.counted(there, 'line')} {did}"
    session.put({"maps": _rows(entries.right, results), "dry_run": session.dry_run}, text)
    return failed[0].exit_code if failed else 0


# -- doctor


def run_doctor(session: Session) -> int:
    mounts = Mounts(host.maps_of(session))
    findings = _examine(session, mounts)
    mended: list[str] = []
    if session.options.mend:
        for finding in findings:
            if finding.cure:
                try:
                    finding.cure()
                    mended.append(finding.subject)
                except errors.Error as error:
                    session.say(error)
        findings = _examine(session, mounts)
    bad = [f for f in findings if f.level == doctor.BAD]
    if session.json:
        rows = [
            {
                "level": f.level,
                "subject": f.subject,
                "text": f.text,
                "mend": f.mend or None,
                "curable": f.cure is not None,
            }
            for f in findings
        ]
        session.put({"findings": rows, "mended": mended, "healthy": not bad}, "")
    else:
        for subject in mended:
            print(f"mended: {subject}")
        for finding in findings:
            print(f"{finding.level:<5}  {finding.subject}: {finding.text}")
            if finding.mend and finding.level != doctor.GOOD:
                print(f"       {finding.mend}")
    return errors.HostFailed.exit_code if bad else 0


def _examine(session: Session, mounts: Mounts) -> list[doctor.Finding]:
    maps = mounts.maps
    found = [*doctor.state_directory(maps), *doctor.tools_and_drivers(maps), *doctor.memory(session.config.host)]
    for name in session.sites.names():
        try:
            session.sites.cluster(name)
            found.append(doctor.Finding(doctor.GOOD, f"site {name}", "answers, and takes this host's key"))
        except errors.Error as error:
            found.append(
                doctor.Finding(doctor.BAD, f"site {name}", str(error), error.hint or f"rbdtree site check {name}")
            )
    forest = session.forest()
    found += [
        *doctor.clock(forest.trees),
        *doctor.maps_left(maps),
        *doctor.mounts_left(mounts, lambda pid: process.mentions(pid, ("rbdtree",))),
        *doctor.holds_left(maps, forest.trees),
        *doctor.boot(table.path(session.options.table)),
    ]
    return found
