"""Private folders and files: a store holds what people wrote and read, so it is theirs alone.

A folder is 0700 and what is in it 0600, whatever the umask. One that exists with other modes is closed
(`chmod`), with a warning; one that belongs to another user is refused: its owner could open it again.
"""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from .file_names import as_text
from .scratch import whole_file

logger = logging.getLogger(__name__)

_OTHERS = 0o077


def private_folder(folder: Path) -> None:
    """Create `folder` and its missing parents, or close one that exists. Raises OSError."""
    for missing in reversed([path for path in (folder, *folder.parents) if not path.exists()]):
        missing.mkdir(mode=0o700, exist_ok=True)
    found = folder.stat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{folder} is not a folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(
            f"{folder} belongs to user {found.st_uid}, this process runs as {os.geteuid()}; run as its owner"
        )
    closed = [path for path in (folder, *folder.iterdir()) if _close(path)]
    if closed:
        logger.warning("%s was open to other users; made private: %s", as_text(folder), ", ".join(map(as_text, closed)))


def private_file(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all, unless it holds that already. Raises OSError."""
    if path.exists() and path.read_bytes() == text.encode():
        return
    with whole_file(path) as file:
        file.write(text.encode())


def reserved_file(path: str, size: int) -> None:
    """Allocate the first `size` bytes of a file on disk, zeros where they are new: a process that writes them through a
    memory map is killed where a disk is full. Raises OSError, also for a link: a store may come from elsewhere, and the
    target of a link in it is somebody's."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        found = os.fstat(descriptor)
        if found.st_size < size or not found.st_blocks:
            os.posix_fallocate(descriptor, 0, size)
    finally:
        os.close(descriptor)


def _close(path: Path) -> bool:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & _OTHERS:
            path.chmod(mode & ~_OTHERS)
    except FileNotFoundError:  # another process's lease, gone by now
        return False
    return bool(mode & _OTHERS)
