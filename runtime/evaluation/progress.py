"""The progress of a run and the time it may take, on stderr: a bar on a terminal, a line per tenth elsewhere."""

from __future__ import annotations

import sys
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ...storage.transfer import clock
from ..process.terminal import make_console


class Bar:
    """A `Ticker` for people."""

    def __init__(self) -> None:
        console = make_console(stderr=True)
        self._is_drawn = console.is_terminal
        left = TimeRemainingColumn(compact=True)
        columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"), left)
        self._progress = Progress(
            *columns,
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
            disable=not self._is_drawn,
        )
        self._task = self._progress.add_task("loading", total=None)
        self._done, self._total, self._started = -1, 0, 0.0

    def start(self, total: int) -> None:
        self._progress.update(self._task, total=total)
        self._total, self._started = total, clock.now()

    def advance(self, what: str) -> None:
        """Begin `what`; the one before it, if any, is done."""
        self._progress.update(self._task, description=what, advance=int(self._done >= 0))
        self._done += 1
        if not self._is_drawn and self._done and 10 * self._done // self._total > 10 * (self._done - 1) // self._total:
            elapsed = clock.now() - self._started
            left = elapsed * (self._total - self._done) / self._done
            print(f"{self._done} of {self._total}, {what}; about {left / 60:.0f} min left", file=sys.stderr)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
