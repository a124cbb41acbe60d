"""A progress bar with an estimate of the time left, on stderr."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class Bar:
    """A `Ticker` that draws. Shows nothing where stderr is no terminal."""

    def __init__(self) -> None:
        console = Console(stderr=True)
        left = TimeRemainingColumn(compact=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), left)
        self._progress = Progress(
            *columns, TextColumn("{task.description}"), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task("loading", total=None)
        self._begun = False

    def start(self, total: int) -> None:
        self._progress.update(self._task, total=total)

    def advance(self, what: str) -> None:
        """`what` begins; the one before it, if any, is done."""
        self._progress.update(self._task, description=what, advance=int(self._begun))
        self._begun = True

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
