"""Everything a person reads that is more than a line: rich tables over the engine's values."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rbdtree.engine.report import LogEntry, NodeReport, TreeReport
from rbdtree.model.document import PushState, State
from rbdtree.model.portion import Portion
from rbdtree.model.portion import text as portion_text

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
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
    unit = "B"
    for larger in ("KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024:
            break
        value, unit = value / 1024, larger
    return f"{value:.0f} {unit}" if value == int(value) else f"{value:.1f} {unit}"


def counted(number: int, what: str, many: str = "") -> str:
    """``1 object``, ``2 objects``; ``many``: the plural where it is irregular."""
    return f"{number} {what if number == 1 else many or what + 's'}"


def age(seconds: float | None) -> str:
    """Seconds for people."""
    if seconds is None:
        return "?"
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def moment(seconds: float) -> str:
    """A time of day, local; ``-`` for 0: not known."""
    import time

    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds)) if seconds else "-"


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
    """On a terminal nothing is cut off, it is folded. A pipe has no width: lines end where their text does."""
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    return console


def show(*drawn: "RenderableType", soft_wrap: bool = False) -> None:
    """Prints."""
    console = _console()
    if console.is_terminal:
        console.print(*drawn, sep="\n", soft_wrap=soft_wrap)
        return
    with console.capture() as captured:
        console.print(*drawn, sep="\n", soft_wrap=soft_wrap)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def _empty_table() -> "Table":
    from rich.table import Table

    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")


def tree_table(report: TreeReport, *, doing: bool = True) -> "Table":
    """The drawn tree; with what each node is doing, where any does."""
    from rich.text import Text

    table = _empty_table()
    doing = doing and any(_doing(node) for node in report.nodes)
    branched = any(node.branch for node in report.nodes)
    parted = any(node.portion or node.portion_pending for node in report.nodes)
    more = (*(("PORTION",) if parted else ()), *(("BRANCH",) if branched else ()), *(("DOING",) if doing else ()))
    for column in ("NODE", "KIND", "STATE", "GENERATION", "LAG", "SIZE", "IMAGE", *more):
        # Where a line is too short for all of it, these are folded.
        wide = column in ("LAG", "IMAGE", "PORTION", "BRANCH", "DOING")
        justify: Literal["left", "right"] = "right" if column == "SIZE" else "left"
        table.add_column(column, no_wrap=not wide, overflow="fold", justify=justify)

    def row(node: NodeReport, lead: str) -> None:
        table.add_row(
            Text.assemble((lead, "dim"), (node.name, "bold")),
            str(node.kind),
            Text(str(node.state), style=_COLOURS[node.state]),
            str(node.position) if node.position else "-",
            lag(node),
            size(node.size_bytes) if node.size_bytes is not None else "-",
            node.image,
            *((_portion(node),) if parted else ()),
            *((_branch(node),) if branched else ()),
            *((_doing(node),) if doing else ()),
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


def _portion(node: NodeReport) -> str:
    later = " from the next generation on" if node.portion_pending else ""
    return f"{ranges(node.portion)}{later}"


def ranges(portion: Portion) -> str:
    """A portion for people: a space after each comma, to be folded at."""
    return portion_text(portion).replace(",", ", ")


def _branch(node: NodeReport) -> str:
    if not node.branch:
        return "-"
    refused = sum(push.state is PushState.CONFLICT for push in node.pushes)
    waiting = len(node.pushes) - refused
    parts = [f"over {node.branch_base}", *((node.uplink,) if node.uplink != "snapshot" else ())]
    parts += [f"{counted(waiting, 'push', 'pushes')} on the way"] if waiting else []
    parts += [f"{counted(refused, 'push', 'pushes')} refused"] if refused else []
    return ", ".join(parts)


def _doing(node: NodeReport) -> str:
    way = ""
    if node.intent:
        done = f", {size(node.intent_done_bytes)} in" if node.intent_done_bytes else ""
        way = f"on the way to {node.intent}{done}"
    if node.doing:
        return f"{node.doing} {way}".rstrip()
    return f"stopped {way}" if way else "see below" if node.problem else ""


def watched(report: TreeReport, rates: dict[str, float | None]) -> list["RenderableType"]:
    """A tree for ``--watch``: below it what is under way (how much of the volume is done, how fast), what is wrong."""
    from rich.text import Text

    head = f"  {size(report.size_bytes)}, generation {report.position}, id {report.tree_id[:8]}"
    parts: list[RenderableType] = [Text.assemble((report.name, "bold"), (head, "dim")), tree_table(report, doing=False)]
    for node in report.nodes:
        if node.intent and node.intent_done_bytes is not None:
            whole = node.intent_size_bytes or 0
            share = f"{100 * node.intent_done_bytes / whole:3.0f} %" if whole else ""
            rate = rates.get(node.name)
            speed = f"{size(int(rate))}/s" if rate else ""
            words = "  ".join(part for part in (f"to {node.intent}", share, speed) if part)
            parts.append(Text.assemble((f"  {node.name}  ", "bold"), (_bar(node), "cyan"), "  ", words))
        if node.problem:
            parts.append(Text.assemble((f"  {node.name}  ", "bold"), (node.problem, "red")))
    return parts


def _bar(node: NodeReport, width: int = 20) -> str:
    whole = node.intent_size_bytes or 0
    full = min(width, width * (node.intent_done_bytes or 0) // whole) if whole else 0
    return "━" * full + "╌" * (width - full)


def status(reports: list[TreeReport]) -> None:
    """Prints trees. What nodes are doing goes below a table that would be too wide with it."""
    from rich.measure import Measurement
    from rich.text import Text

    for number, report in enumerate(reports):
        head = f"  {size(report.size_bytes)}, generation {report.position}, id {report.tree_id[:8]}"
        table, console = tree_table(report), _console()
        wide = console.options.update(max_width=10_000)
        narrow = Measurement.get(console, wide, table).maximum > console.width
        if narrow:
            table = tree_table(report, doing=False)
        show(*([""] if number else []), Text.assemble((report.name, "bold"), (head, "dim")), table)
        for node in report.nodes:
            doing = _doing(node) if narrow else ""
            for text in (doing if doing != "see below" else "", node.problem):
                if text:
                    show(Text.assemble((f"{node.name}: ", "bold"), text), soft_wrap=True)


def log(entries: list[LogEntry]) -> None:
    """Prints generations, newest first."""
    pushed = any(e.author for e in entries)
    rows = [
        (
            str(e.position),
            moment(e.created),
            size(e.size_bytes),
            size(e.delta_bytes),
            *((e.author or "-",) if pushed else ()),
            ", ".join(e.nodes),
        )
        for e in entries
    ]
    columns = ("GENERATION", "CUT", "SIZE", "DELTA", *(("PUSHED BY",) if pushed else ()), "NODES")
    table(columns, rows, right=(2, 3))


def table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]], right: tuple[int, ...] = ()) -> None:
    """Prints a plain table."""
    drawn = _empty_table()
    for number, column in enumerate(columns):
        drawn.add_column(column, overflow="fold", justify="right" if number in right else "left")
    for row in rows:
        drawn.add_row(*row)
    show(drawn)
