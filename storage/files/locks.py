"""Locks that say that somebody owns a file or folder (`flock`): the kernel drops a lock when its owner dies, however it
dies."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


def new_locked(name: Callable[[], Path], make: Callable[[Path], int], *, needs_lock: bool = True) -> tuple[Path, int]:
    """Make a thing and lock it, so that nobody takes it for a dead owner's between the two.

    Args:
        name: a new one each time. make: makes it and returns a descriptor of it.
        needs_lock: raise OSError where nothing can be locked.

    Returns its path and the descriptor that holds the lock. Raises OSError.
    """
    while True:
        path = name()
        descriptor = make(path)
        try:
            with suppress(*(() if needs_lock else (OSError,))):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.stat(path).st_ino == os.fstat(descriptor).st_ino:
                return path, descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """True if somebody alive has it locked. Raises OSError where that cannot be told."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
