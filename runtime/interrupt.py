"""Ctrl-C without torn state: the signal waits for the next safe point."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Inside `deferred()`, SIGINT is remembered and raised by `check()` as KeyboardInterrupt."""

    def __init__(self) -> None:
        self._pending = False
        self._depth = 0

    @contextmanager
    def deferred(self) -> Iterator[None]:
        if self._depth or threading.current_thread() is not threading.main_thread():
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1
            return
        self._depth, self._pending = 1, False
        previous = signal.signal(signal.SIGINT, self._remember)
        try:
            yield
        finally:
            self._depth = 0
            signal.signal(signal.SIGINT, previous)
        self.check()

    def check(self) -> None:
        """A safe point. Raises KeyboardInterrupt if one is waiting."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending = True
