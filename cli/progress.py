"""Progress on stderr: bars with bytes, rate and time left on a terminal, single lines elsewhere."""

import sys
import threading
from typing import TYPE_CHECKING

from rbdtree.ports import Silent

from .session import Session

if TYPE_CHECKING:
    from rich.progress import TaskID


class Bars:
    """A reporter that draws. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            Progress,
            SpinnerColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )

        self._progress: Progress = Progress(
            SpinnerColumn(finished_text="✓"),
            TextColumn("[bold]{task.description}"),
            TextColumn("{task.fields[step]}"),
            BarColumn(bar_width=24),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._guard = threading.Lock()

    def __enter__(self) -> "Bars":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def _task(self, node: str) -> "TaskID":
        with self._guard:
            if node not in self._tasks:
                self._tasks[node] = self._progress.add_task(node, total=None, step="")
            return self._tasks[node]

    def step(self, node: str, text: str) -> None:
        self._progress.update(self._task(node), step=text)

    def copying(self, node: str, done_bytes: int, total_bytes: int | None) -> None:
        self._progress.update(self._task(node), completed=done_bytes, total=total_bytes)

    def note(self, node: str, text: str) -> None:
        self._progress.console.print(f"{node}: {text}", style="yellow", highlight=False)

    def finished(self, node: str, text: str) -> None:
        task = self._task(node)
        self._progress.update(task, step="[red]failed" if text else "[green]done", total=1, completed=1)


class Notes(Silent):
    """A reporter that says only what a person must know."""

    def __enter__(self) -> "Notes":
        return self

    def __exit__(self, *_: object) -> None:
        return

    def note(self, node: str, text: str) -> None:
        print(f"rbdtree: {node}: {text}", file=sys.stderr)


def reporter(session: Session) -> "Bars | Notes":
    """What suits the terminal and the options."""
    if session.options.no_progress or session.json or not sys.stderr.isatty():
        return Notes()
    return Bars()
