"""Turns: one thread at a time works with what threads share, in the order in which they asked.

A model's buffers, a store's intake and a conversation are made for one caller at a time. A turn is short (one layer
of a prefill span, one decode step), so several conversations advance together; nobody holds one while a reader of a
stream thinks.

    waiting  t1 t2 t3 --first come, first served--> holder --work--> released
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...storage.errors import ForkedError
from ..api.errors import ConversationError

_LOOK_UP_S = 0.2
"""Seconds between two looks of a waiting thread whether it is to stop: a signal does not wake it."""


class Turns:
    """A fair lock that knows its holder. `what` is its name in errors."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.number = 0
        """Number of the turn that is or was taken last. If it is the same before and after, nobody else came
        between."""
        self._pid = os.getpid()
        self._holder: int | None = None
        self._waiting: deque[object] = deque()
        self._changed = threading.Condition()

    @contextmanager
    def taken(self, check: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Wait for the turn and hold it.

        Args:
            check: called now and then while waiting; what it raises ends the wait.

        Raises:
            ConversationError: this thread holds it already: a callback called back.
            ForkedError: in a child of the process that made this.
        """
        self._take(check)
        try:
            yield
        finally:
            self._release()

    @property
    def is_forked(self) -> bool:
        """True in a child of the process that made this: whoever had the turn, or a lock, will never give it back
        here."""
        return os.getpid() != self._pid

    def require_process(self) -> None:
        """Raises ForkedError in a child of the process that made this."""
        if self.is_forked:
            raise ForkedError(
                f"{self.what} belongs to process {self._pid} and is used in its child {os.getpid()}: neither threads "
                "nor the store survive a fork; load the runtime in the child, best in one that multiprocessing's spawn "
                "method starts"
            )

    def require(self) -> None:
        """Raise ConversationError unless this thread holds the turn: the next step would mix up two callers."""
        if self._holder != threading.get_ident():
            raise ConversationError(f"{self.what} is used out of turn: two threads would mix up what they compute")

    def require_free(self) -> None:
        """Raise ConversationError if this thread holds the turn, ForkedError as `require_process`."""
        self.require_process()
        if self._holder == threading.get_ident():
            raise ConversationError(
                f"{self.what} is in use by the call that is being answered; call it again when that has returned "
                "(not from inside on_progress)"
            )

    def _take(self, check: Callable[[], None]) -> None:
        me, ticket = threading.get_ident(), object()
        self.require_free()
        with self._changed:
            self._waiting.append(ticket)
            try:
                while self._holder is not None or self._waiting[0] is not ticket:
                    self._changed.wait(_LOOK_UP_S)
                    check()
            except BaseException:
                self._waiting.remove(ticket)
                self._changed.notify_all()
                raise
            self._waiting.popleft()
            self._holder = me
            self.number += 1

    def _release(self) -> None:
        with self._changed:
            self._holder = None
            self._changed.notify_all()
