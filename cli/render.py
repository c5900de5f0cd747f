"""Everything a person reads that is more than a line: rich tables over the engine's values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rbdtree.engine.report import LogEntry, NodeReport, TreeReport
from rbdtree.model.document import State

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_COLOURS = {
    State.UP_TO_DATE: "green",
    State.OUTDATED: "yellow",
    State.SEEDING: "cyan",
    State.INCONSISTENT: "cyan",
    State.ABSENT: "dim",
    State.DIVERGED: "bold red",
    State.UNREACHABLE: "red",
}


def size(count: int | None) -> str:
    """Bytes for people, in powers of 1024."""
    if count is None:
        return "?"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024:
            break
        value /= 1024
    else:
        unit = "PiB"
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def age(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def lag(node: NodeReport) -> str:
    """How far behind the root."""
    if node.lag_generations is None:
        return "?"
    if node.lag_generations == 0:
        return "-"
    parts = [f"{node.lag_generations} gen"]
    if node.lag_seconds is not None:
        parts.append(age(node.lag_seconds))
    if node.lag_bytes is not None:
        parts.append(size(node.lag_bytes))
    return ", ".join(parts)


def _console() -> "Console":
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        # A pipe has no width: lines are as long as they are.
        console.width = 10_000
    return console


def tree_table(report: TreeReport) -> "Table":
    """The drawn tree."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in ("NODE", "KIND", "STATE", "GENERATION", "LAG", "SIZE", "IMAGE", "DOING"):
        table.add_column(column, no_wrap=True, justify="right" if column == "SIZE" else "left")

    def row(node: NodeReport, lead: str) -> None:
        table.add_row(
            Text.assemble((lead, "dim"), (node.name, "bold")),
            str(node.kind),
            Text(str(node.state), style=_COLOURS[node.state]),
            str(node.position) if node.position else "-",
            lag(node),
            size(node.size_bytes) if node.size_bytes is not None else "-",
            node.image,
            _doing(node),
        )

    def walk(node: NodeReport, lead: str, below: str) -> None:
        row(node, lead)
        children = report.children(node.name)
        for number, child in enumerate(children):
            last = number == len(children) - 1
            walk(child, below + ("└─ " if last else "├─ "), below + ("   " if last else "│  "))

    for top in report.children(None):
        walk(top, "", "")
    return table


def _doing(node: NodeReport) -> str:
    if node.doing:
        done = f", {size(node.intent_done_bytes)} in" if node.intent_done_bytes else ""
        return f"{node.doing}{': -> ' + str(node.intent) + done if node.intent else ''}"
    if node.intent:
        return f"stopped on the way to {node.intent}"
    return "see below" if node.problem else ""


def status(reports: list[TreeReport]) -> None:
    """Prints trees."""
    from rich.text import Text

    console = _console()
    for number, report in enumerate(reports):
        if number:
            console.print()
        head = f"  {size(report.size_bytes)}, generation {report.position}, id {report.tree_id[:8]}"
        console.print(Text.assemble((report.name, "bold"), (head, "dim")))
        console.print(tree_table(report))
        for node in report.nodes:
            if node.problem:
                console.print(Text.assemble((f"{node.name}: ", "bold"), node.problem), soft_wrap=True)


def log(entries: list[LogEntry]) -> None:
    """Prints generations, newest first."""
    import time

    rows = [
        (
            str(e.position),
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(e.created)),
            size(e.size_bytes),
            size(e.delta_bytes),
            ", ".join(e.nodes),
        )
        for e in entries
    ]
    table(("GENERATION", "CUT", "SIZE", "DELTA", "NODES"), rows, right=(2, 3))


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """Prints a plain table."""
    from rich.table import Table

    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for number, column in enumerate(columns):
        drawn.add_column(column, no_wrap=True, justify="right" if number in right else "left")
    for row in rows:
        drawn.add_row(*row)
    _console().print(drawn)
