"""Operations of a step's table: functions of compiled code that threads call by their address.

Each is compiled by itself when it is first asked for, so a model waits for those alone that it needs, and no change of
one compiles another. What was compiled is kept in `kept.Cache`.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numba
from numba import cfunc

from .kept import Cache
from .native import FAST

logger = logging.getLogger(__name__)
_LOCK = threading.Lock()


class Operation:
    """One operation.

    Args:
        function: called with addresses and numbers, all int64: of its row, of the item, of the thread's own memory.
        arguments: how many.
    """

    def __init__(self, function: Callable[..., None], arguments: int) -> None:
        self._function, self._signature = function, f"void({', '.join(['int64'] * arguments)})"
        self._code: Any = None

    @property
    def _compiled(self) -> Any:
        if self._code is None:
            with _LOCK, _kept_in(Cache.folder) as is_kept:
                if self._code is None:  # another thread may have been before
                    make = cfunc(self._signature, cache=is_kept, nopython=True, fastmath=FAST, error_model="numpy")
                    self._code = make(self._function)
        return self._code

    @property
    def address(self) -> int:
        """Its address, compiled by then."""
        return int(self._compiled.address)

    def __call__(self, *numbers: int) -> None:
        """Call it from Python, whose lock is free meanwhile."""
        self._compiled.ctypes(*numbers)


@contextmanager
def _kept_in(folder: Path | None) -> Iterator[bool]:
    """Inside the block, numba keeps what it compiles in `folder`; elsewhere in the process it is as the user set it."""
    if folder is None:
        yield False
        return
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(folder)
    try:
        yield True
    finally:
        numba.config.CACHE_DIR = before


def operation(function: Callable[[int, int, int], None]) -> Operation:
    """What is done to one item: (row, item, the thread's memory)."""
    return Operation(function, 3)


def preparation(function: Callable[[int, int], None]) -> Operation:
    """What every thread does for itself before it takes items of a row: (row, the thread's memory)."""
    return Operation(function, 2)
