"""Functions run in a forked child: cheap processes to crash, kill, or share a store with."""

from __future__ import annotations

import json
import os
import signal
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Say = Callable[[Any], None]


class Child:
    """A child that runs `work(say, wait)`; it ends when that returns, or when it is killed.

    `say(value)` sends JSON to `hear`; `wait()` blocks until `go` is called.
    """

    def __init__(self, work: Callable[[Say, Callable[[], None]], None]) -> None:
        hear, say = os.pipe()
        wait, go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(hear)
            os.close(go)
            _run(work, say, wait)
        os.close(say)
        os.close(wait)
        self._hear, self._go = os.fdopen(hear), go
        self.status: int | None = None

    def hear(self) -> Any:
        """What the child says next; None when it has ended."""
        line = self._hear.readline()
        return json.loads(line) if line else None

    def go(self) -> None:
        os.write(self._go, b".")

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.join()

    def join(self) -> int:
        """The exit status; minus the signal's number if one ended it."""
        if self.status is None:
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status


def _run(work: Callable[[Say, Callable[[], None]], None], say: int, wait: int) -> None:
    status = 1
    try:
        work(lambda value: _say(say, value), lambda: _wait(wait))
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _say(descriptor: int, value: Any) -> None:
    os.write(descriptor, f"{json.dumps(value)}\n".encode())


def _wait(descriptor: int) -> None:
    assert os.read(descriptor, 1), "the parent is gone"


@contextmanager
def child(work: Callable[[Say, Callable[[], None]], None]) -> Iterator[Child]:
    """Killed at the end of the block if it is still there."""
    found = Child(work)
    try:
        yield found
    finally:
        if found.status is None:
            found.kill()
        os.close(found._go)
        found._hear.close()
