"""Where compiled code is kept, so that another process finds it. This imports nothing that compiles."""

from __future__ import annotations

import hashlib
import os
import threading
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

BUSY = threading.RLock()
"""Held while a thread imports what compiles, or compiles. A fork waits for it: a child would wait for ever for a lock
that a thread held which it does not have."""
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=BUSY.acquire, after_in_parent=BUSY.release, after_in_child=BUSY.release)


class Cache:
    """The folder where compiled code is kept; None: it is kept nowhere.

    What is there is found by numba: under the name of the processor, and only if the file that has the function is as
    old as it was. That does not see a function that it calls in another file. So there is a folder for every state of
    all of these files, and of numba.
    """

    folder: Path | None = None

    @staticmethod
    def key() -> str:
        """A text that changes with everything compiled code depends on besides the processor."""
        state = hashlib.blake2b(f"{_version('numba')} {_version('llvmlite')}".encode(), digest_size=8)
        for path in sorted(Path(__file__).parent.glob("*.py")):
            state.update(path.read_bytes())
        return state.hexdigest()


def _version(package: str) -> str:
    """Of an installed package; of one that says none, a word: whether it can be used is seen when it is imported."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
