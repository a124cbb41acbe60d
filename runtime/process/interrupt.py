"""Signals without torn state: the work of a signal handler waits for the next safe point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGVTALRM", "SIGPROF", "SIGUSR1", "SIGUSR2")
_SIGNALS = tuple(getattr(signal, name) for name in _NAMES if hasattr(signal, name))
"""The signals whose handlers may raise: Ctrl-C, a request to end, a time limit."""


class Interrupts:
    """Inside `deferred()`, signals are remembered and handed on by `check()` and at the end.

    The handler that was installed before then decides what happens: Python's own raises KeyboardInterrupt, an
    application's does what it likes, another handler for the next time included. Signals that are ignored, do what the
    system does by itself (but SIGINT), or belong to a handler that is not Python's are left alone. Only the main thread
    is ever interrupted (Python delivers signals there), so in other threads nothing here does anything.
    """

    def __init__(self) -> None:
        self._pending: dict[int, FrameType | None] = {}
        self._depth, self._pid = 0, os.getpid()
        self._previous: dict[int, Any] = {}
        """The handlers that `_remember` replaces now, or did."""

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Defer signals inside the block. Blocks may be nested; only the outermost restores the handlers and hands on
        what is left."""
        if not _is_main_thread():
            yield
            return
        self._depth += 1
        try:
            if self._depth == 1:
                for number in _SIGNALS:
                    self._defer(number)  # a signal that came before is handled here
            yield
        finally:
            self._depth -= 1
            if not self._depth:
                for number in self._previous:
                    self._restore(number)
                self.check()

    def check(self) -> None:
        """A safe point: hand on the signals that wait, SIGINT by default as KeyboardInterrupt."""
        if not self._pending or not _is_main_thread():
            return
        number, frame = self._pending.popitem()
        try:
            self._hand_on(number, frame)
        finally:  # an error of one handler keeps no other signal waiting
            self.check()

    def _hand_on(self, number: int, frame: FrameType | None) -> None:
        self._restore(number)  # a handler finds itself installed, and may install another one
        handler = signal.getsignal(number)
        try:
            if callable(handler):
                handler(number, frame)
            elif handler == signal.SIG_DFL:  # the operating system's own, which ends the process
                os.kill(os.getpid(), number)
        finally:
            if self._depth:
                self._defer(number)

    def _defer(self, number: int) -> None:
        handler = signal.getsignal(number)
        if handler != self._remember and (callable(handler) or (number, handler) == (signal.SIGINT, signal.SIG_DFL)):
            self._previous[number] = signal.signal(number, self._remember)

    def _restore(self, number: int) -> None:
        """Restore the handler from before, unless somebody has installed another one meanwhile."""
        if signal.getsignal(number) == self._remember:
            signal.signal(number, self._previous[number])

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self._pending[number] = frame
        # This handler runs outside of a block if somebody found it in its time and put it back later, or in a child
        # forked meanwhile, which will never come to a safe point. Both mean the handler before.
        if not self._depth or os.getpid() != self._pid:
            self.check()


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
