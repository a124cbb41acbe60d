"""Temporary folders and files: they go with their owner, or the next owner removes them if theirs was killed.

Both are called `stratakv-<what for>-<16 hex digits>.tmp`, and their owner keeps them locked (`flock`) from their making
to their end. The kernel drops a lock when its owner dies, however it dies. So what is called so and is not locked is a
dead owner's, and whoever makes another one in the same place removes it first: no pid that means another process
tomorrow or in another container, nothing that ages.

Earlier versions locked nothing and left folders of other names. Such a folder is a dead owner's if no store in it is
in use and nothing in it was changed for a day: they wrote all the time.

Invariants  (1) a living owner's is never removed by anybody else; where files cannot be locked nobody's is
            (2) nothing that is called otherwise, or belongs to another user, is ever touched
            (3) a file takes its place whole or not at all (`whole_file`)
Fork        a child must not keep its parent's alive, so it lets go of them at once, and removes none.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from .locks import is_locked, new_locked

_NAME = re.compile(r"stratakv-[a-z]+-[0-9a-f]{16}\.tmp")
_FORMER_NAME = re.compile(r"(stratakv-bench-|\.convert-)[a-z0-9_]{8}")
"""Names of folders that earlier versions made."""
_FORMER_ALIVE_S = 24 * 3600
_HELD: dict[Path, int] = {}
"""The paths that this process owns, each with the descriptor that holds its lock."""


@contextmanager
def scratch_folder(kind: str, parent: Path | None = None) -> Iterator[Path]:
    """A new folder of mode 0700, removed at the end with all that is in it.

    Args:
        kind: its purpose in small letters, which is part of its name.
        parent: the folder to make it in; None: the one for the machine's temporary files.

    Raises OSError.
    """
    path = _new(Path(tempfile.gettempdir() if parent is None else parent), kind, _make_folder)
    try:
        inner = path / kind  # its user may lock it, as a store does
        inner.mkdir(mode=0o700)
        yield inner
    finally:
        _remove_held(path)


@contextmanager
def whole_file(path: Path, mode: int = 0o600) -> Iterator[BinaryIO]:
    """Give a file to write, which takes the place of `path` at the end of the block, on disk and with the mode of what
    was there before. After an exception `path` is as it was.

    Args:
        mode: the mode of a file that is new, less the umask.

    Raises OSError.
    """
    partial = _new(path.parent, "part", lambda made: os.open(made, os.O_RDWR | os.O_CREAT | os.O_EXCL, mode))
    try:
        with open(partial, "r+b") as file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode))
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        _remove_held(partial)


def remove_dead(folder: Path) -> None:
    """Remove what dead owners left in `folder`, as far as that can be done."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if _NAME.fullmatch(name):
                _remove_if_dead(folder / name)
            elif _FORMER_NAME.fullmatch(name):
                _remove_if_abandoned(folder / name)


def remove_all() -> None:
    """Remove what this process owns: it is about to end without leaving its blocks."""
    for path in list(_HELD):
        _remove_held(path)


def _new(parent: Path, kind: str, make: Callable[[Path], int]) -> Path:
    """Make a thing and lock it. `make` returns a descriptor of it. Where there are no locks, nobody can take it for a
    dead owner's either."""
    remove_dead(parent)
    path, descriptor = new_locked(
        lambda: parent / f"stratakv-{kind}-{secrets.token_hex(8)}.tmp", make, needs_lock=False
    )
    _HELD[path] = descriptor
    return path


def _make_folder(path: Path) -> int:
    while True:
        path.mkdir(mode=0o700)
        with suppress(FileNotFoundError):  # somebody removed it before it was locked
            return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)


def _remove_held(path: Path) -> None:
    """Remove what this process owns and let its lock go last. In a child of the owner nothing happens."""
    if path in _HELD:
        with suppress(OSError):  # the next owner tries again
            _remove(path)
        os.close(_HELD.pop(path))


def _remove_if_dead(path: Path) -> None:
    with suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            if os.fstat(descriptor).st_uid == os.geteuid():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        finally:
            os.close(descriptor)


def _remove_if_abandoned(path: Path) -> None:
    """Remove a folder of an earlier version if its owner is dead, judged by locks and times inside it."""
    with suppress(OSError):
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
            return
        inside = list(path.rglob("*"))
        latest = max(each.lstat().st_mtime for each in (path, *inside))
        is_in_use = any(is_locked(each) for each in inside if each.name.startswith("lease."))
        if time.time() - latest > _FORMER_ALIVE_S and not is_in_use:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _forget_in_child() -> None:
    for descriptor in _HELD.values():
        os.close(descriptor)
    _HELD.clear()


os.register_at_fork(after_in_child=_forget_in_child)
