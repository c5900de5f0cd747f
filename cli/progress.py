"""Progress on stderr: bars with bytes, rate and time left on a terminal, what a person must know elsewhere."""

import sys
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from rbdtree.ports import Silent

from . import render
from .session import Session

if TYPE_CHECKING:
    from rich.progress import ProgressColumn, TaskID


def _figures() -> "ProgressColumn":
    """A column with bytes, rate and time left, narrow enough for 80 columns."""
    from rich.progress import ProgressColumn, Task
    from rich.table import Column
    from rich.text import Text

    class Figures(ProgressColumn):
        def render(self, task: Task) -> Text:
            if task.total is None or task.finished:
                return Text("")
            words = [f"{render.size(int(task.completed))} of {render.size(int(task.total))}"]
            if task.speed:
                words.append(f"{render.size(int(task.speed))}/s")
            if task.time_remaining is not None:
                words.append(str(timedelta(seconds=int(task.time_remaining))))
            return Text(", ".join(words))

    return Figures(Column(no_wrap=True, justify="right"))


class Bars:
    """A reporter that draws. A context manager."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._progress: Progress = Progress(
            SpinnerColumn(finished_text=" "),
            TextColumn("[bold]{task.description}"),
            TextColumn("{task.fields[step]}"),
            BarColumn(bar_width=None),
            _figures(),
            console=Console(stderr=True),
            transient=True,
            expand=True,
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

    def say(self, text: str) -> None:
        """Something about the whole command."""
        self._progress.console.print(f"rbdtree: {text}", style="yellow", highlight=False)

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

    def say(self, text: str) -> None:
        """Something about the whole command."""
        print(f"rbdtree: {text}", file=sys.stderr)


def reporter(session: Session) -> "Bars | Notes":
    """What suits the terminal and the options."""
    if session.options.no_progress or session.json or not sys.stderr.isatty():
        return Notes()
    return Bars()
