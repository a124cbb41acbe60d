"""The reserve: room for removing things where a disk is full.

Deleting a record rewrites LMDB's tree, and a file is shortened by copying what stays: both take some room before they
give any back. So a store's folder keeps a file that is good for nothing but being given up then.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ..errors import StorageFullError, is_full
from ..files.private import reserved_file

logger = logging.getLogger(__name__)

RESERVE_BYTES = 64 << 10
_NAME = "reserve"
Done = TypeVar("Done")


def keep_reserve(folder: Path) -> None:
    """Set the room aside, or as much of it as the disk has."""
    for part in (1, 2, 4):
        try:
            reserved_file(str(folder / _NAME), RESERVE_BYTES // part)
            return
        except OSError as error:
            logger.info("%s has no more room set aside: %s", folder, error)


def with_reserve(folder: Path, remove: Callable[[], Done], needed_bytes: int = RESERVE_BYTES) -> Done:
    """Call `remove` and return its result. Where the disk is too full for it, give up the room that was set aside and
    call it again.

    Args:
        needed_bytes: how many bytes removing takes, for the message.

    Raises StorageFullError.
    """
    try:
        return remove()
    except StorageFullError as error:
        if error.is_at_cap or not is_full(folder, error):
            raise
        if not _give_up(folder):
            raise StorageFullError(
                f"{error}; removing takes some room itself: make {needed_bytes} bytes free there and try again"
            ) from error
    try:
        return remove()
    finally:
        keep_reserve(folder)


def _give_up(folder: Path) -> bool:
    """Give up the room that was set aside. Returns False if there was none."""
    try:
        os.unlink(folder / _NAME)
    except OSError:
        return False
    return True
