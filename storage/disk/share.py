"""One byte cap for all folders of a store, and what each of them may take of it.

A folder's *share* is what its data file may grow to: LMDB's map ends there. A tier claims its share before it writes
so much, in steps, under a lock on the store's root; its lease says how much that is, so a share ends with its owner,
however it dies. A folder that nobody has open takes what its files have.

Invariants  (1) the files of all folders, and what is claimed beyond them, never add up to more than the cap, unless
                somebody came with a smaller cap than is taken already
            (2) the lock is held for as long as it takes to look and to write a lease, never while a data file is
                written: a process that is stopped in a commit stops nobody else's
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .folder_lease import FolderLease, claimed_in
from .reserve import RESERVE_BYTES, keep_reserve

logger = logging.getLogger(__name__)

DATA = "data.mdb"
_BLOCK = 512
BOOKKEEPING_BYTES = 16 << 10
"""Bytes that the first user of a folder adds beside the data file: LMDB's table of readers, `replace.lock`, a lease."""
_SPARE_PAGES = 32
_STEPS = 16
_MIN_STEP_BYTES = 1 << 18
_RESERVE_SHARE = 128
"""At most 1 / `_RESERVE_SHARE` of a cap is set aside in a folder: under a tiny cap nothing is."""
_LOCKED: set[int] = set()
"""Descriptors that hold a root's lock at this moment. A child of a fork must not keep it."""


class Share:
    """The bytes that the data file in `folder` may take of the `cap_bytes` of the store around it.

    Args:
        folder: one of the store's; `folder.parent` is the store's root.
        lease: the lease of the tier whose share it is.
    """

    def __init__(self, folder: Path, cap_bytes: int, lease: FolderLease) -> None:
        self.folder, self.cap_bytes, self._lease = folder, cap_bytes, lease
        self.claimed_bytes = self.others_bytes = 0
        """Bytes of this share, and bytes that the other folders took at the last look."""

    def claim(self, num_bytes: int) -> int:
        """Claim a share of `num_bytes`, or of what is left of the cap if that is less. Returns the share: it never
        shrinks, and is never less than the file has. Raises OSError if the store cannot be looked into."""
        has = _file_bytes(self.folder)
        with alone_in(self.folder.parent):
            others = [folder for folder in data_folders(self.folder.parent) if folder.name != self.folder.name]
            self.others_bytes = sum(map(claimed_bytes, others))
            beside = max(BOOKKEEPING_BYTES, bytes_in(self.folder) - has)
            left = self.cap_bytes - self.others_bytes - beside - spare_bytes(self.cap_bytes)
            least = max(has, self.claimed_bytes)
            wanted = max(least, min(num_bytes, left))
            if min(left - wanted, self.cap_bytes // _RESERVE_SHARE) >= RESERVE_BYTES:
                keep_reserve(self.folder)
            try:
                self._lease.claim(wanted)
            except OSError as error:  # a full disk, most likely: there is nothing to grow into
                logger.info("no more room is claimed for %s: %s", self.folder, error)
                wanted = least
            self.claimed_bytes = wanted
        return self.claimed_bytes

    @property
    def most_bytes(self) -> int:
        """The largest that the share could be at the last look, the folder's small files included."""
        return max(self.cap_bytes - self.others_bytes, self.claimed_bytes)

    @property
    def step_bytes(self) -> int:
        """The least number of bytes by which a share grows. Other folders lack what is claimed and never used."""
        return max(self.cap_bytes // _STEPS, _MIN_STEP_BYTES)


def spare_bytes(cap_bytes: int) -> int:
    """Bytes of a store's cap that nobody claims: a folder that gives way needs some room to rewrite LMDB's tree."""
    return cap_bytes // 256 + _SPARE_PAGES * 4096


def data_folders(root: Path) -> list[Path]:
    """The folders of a store that have a data file."""
    return sorted(path.parent for path in root.glob(f"*/{DATA}"))


def bytes_in(folder: Path) -> int:
    """Bytes that a folder and everything in it take on the file system, or state as their size, whichever is more."""
    found = 0
    for place, _, names in os.walk(folder):
        for path in (place, *(os.path.join(place, name) for name in names)):
            with suppress(FileNotFoundError):  # a lease or a copy, gone by now
                status = os.lstat(path)
                said = 0 if path == place else status.st_size
                found += max(said, status.st_blocks * _BLOCK)
    return found


def claimed_bytes(folder: Path) -> int:
    """Bytes that a folder of the store takes, or may take without asking because its living owners have claimed
    them."""
    return bytes_in(folder) + max(0, claimed_in(folder) - _file_bytes(folder))


@contextmanager
def alone_in(root: Path) -> Iterator[None]:
    """Let one process and thread at a time decide what becomes of a store. Raises OSError."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    _LOCKED.add(descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        _LOCKED.discard(descriptor)
        os.close(descriptor)


def _file_bytes(folder: Path) -> int:
    try:
        return (folder / DATA).stat().st_size
    except FileNotFoundError:
        return 0


def _forget_in_child() -> None:
    while _LOCKED:
        os.close(_LOCKED.pop())


os.register_at_fork(after_in_child=_forget_in_child)
