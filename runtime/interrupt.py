"""Ctrl-C without torn state: the signal waits for the next safe point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class Interrupts:
    """Inside `deferred()`, SIGINT is remembered and handed on by `check()` and at the end.

    What then happens is up to the handler that was installed before: Python's own raises KeyboardInterrupt, an
    application's does what it likes. Where SIGINT is ignored it stays so. Only the main thread is ever interrupted
    (Python delivers signals there), so in other threads nothing here does anything.
    """

    def __init__(self) -> None:
        self._pending: FrameType | bool = False
        self._depth = 0
        self._previous: Any = None

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """May be nested; only the outermost restores the handler and hands on what is left."""
        if self._depth and _is_main_thread():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        if not _is_main_thread() or signal.getsignal(signal.SIGINT) in (signal.SIG_IGN, None):
            yield
            return
        self._pending = False
        self._previous = signal.signal(signal.SIGINT, self._remember)  # a signal that came before is raised here
        self._depth = 1
        try:
            yield
        finally:
            self._depth = 0
            signal.signal(signal.SIGINT, self._previous)
            self.check()

    def check(self) -> None:
        """A safe point: a signal that waits is handed on, by default as KeyboardInterrupt."""
        if not self._pending or not _is_main_thread():
            return
        frame, self._pending = self._pending, False
        if callable(self._previous):
            self._previous(signal.SIGINT, None if frame is True else frame)
        else:  # the operating system's own default, which ends the process
            signal.signal(signal.SIGINT, self._previous)
            os.kill(os.getpid(), signal.SIGINT)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending = frame or True


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
