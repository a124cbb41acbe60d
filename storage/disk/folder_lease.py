"""Folder leases: which other tiers have a store folder open, and since when.

A lease is a file `lease.<pid>.<random>` that its owner keeps locked (`flock`) as long as the tier is
open. The kernel drops the lock when the process dies, however it dies: no heartbeat, no pid that means
another process tomorrow or in another container, nothing to repair. The file holds the store's use
clock at opening; records used since then may be in use, older ones are not (`uses`). Behind it stands how long the
data file may become by what its owner has claimed (`share`).

Invariants  (1) a locked file is a living owner's; an unlocked one is a dead owner's, and anyone removes it
            (2) a lease exists before its owner opens the data file and until it has closed it
            (3) who replaces the data file (`alone`) holds `replace.lock` and has seen no other lease;
                who opens it has a lease first and looks at that lock then: one of two sees the other
Fork        a child must not keep its parent's leases alive, so it closes them at once.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files.locks import is_locked, new_locked

_PREFIX = "lease."
_DIGITS = 20
"""Decimal digits of each number in a lease file."""
_REPLACING = "replace.lock"
_HELD: weakref.WeakSet[FolderLease] = weakref.WeakSet()


class FolderLease:
    """This tier's lease on a store folder.

    Args:
        folder: the store's folder; it exists.

    Raises:
        OSError: the folder cannot be written, or its data file is being replaced right now.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path, self._descriptor = _locked_file(folder)
        self._clock, self._claimed = 0, 0
        _HELD.add(self)
        self.after_a_death = bool(self._remove_dead())
        """True if some owner died without giving its lease back."""
        try:
            with _replacing(folder, alone=False):
                pass
        except OSError:
            self.release()
            raise

    def hold_from(self, clock: int) -> None:
        """Claim the records used at `clock` or later. Until this is called, all records are claimed."""
        self._clock = clock
        self._write()

    @property
    def is_held(self) -> bool:
        """True until the lease is given back, or forgotten in a forked child."""
        return self._descriptor >= 0

    def claim(self, num_bytes: int) -> None:
        """Claim that the data file may become `num_bytes` long."""
        self._claimed = num_bytes
        self._write()

    def _write(self) -> None:
        # NOTE: a version that knows no claims reads a clock of 0 from two numbers: everything is in use.
        os.pwrite(self._descriptor, f"{self._clock:0{_DIGITS}d} {self._claimed:0{_DIGITS}d}".encode(), 0)

    def others(self) -> list[int]:
        """The clocks from which other living owners claim records, one each."""
        self._remove_dead()
        clocks = []
        for path in self._other_paths():
            found = _read(path)
            if found is not None:  # otherwise it was released meanwhile
                clocks.append(found[0])
        return clocks

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Keep other owners out until the end of the block. Yields True if there is none."""
        with _replacing(self._folder, alone=True):
            yield not self.others()

    def release(self) -> None:
        if self.is_held:
            self._path.unlink(missing_ok=True)
            self.forget()

    def forget(self) -> None:
        """Let go of the file without removing it: in a forked child it is the parent's."""
        if self.is_held:
            os.close(self._descriptor)
            self._descriptor = -1

    def _other_paths(self) -> list[Path]:
        return [path for path in self._folder.glob(f"{_PREFIX}*") if path != self._path]

    def _remove_dead(self) -> int:
        return sum(_remove_if_dead(path) for path in self._other_paths())


def claimed_in(folder: Path) -> int:
    """The length in bytes that living owners have claimed for the data file in `folder`, 0 if none has. Removes no dead
    lease: whoever opens the folder next is to find it (`FolderLease.after_a_death`)."""
    return max(
        (found[1] for path in folder.glob(f"{_PREFIX}*") if (found := _read(path)) and is_locked(path)), default=0
    )


def is_open(folder: Path) -> bool:
    """True if any tier has the folder open."""
    return any(is_locked(path) for path in folder.glob(f"{_PREFIX}*"))


def _read(path: Path) -> tuple[int, int] | None:
    """Read clock and claim from a lease file; None if it is gone. Text that is no number reads as 0: it claims all
    records and no bytes."""
    try:
        numbers = path.read_bytes().decode(errors="replace").split()
    except FileNotFoundError:
        return None
    clock, claim = [*numbers, "", ""][:2]
    return _number(clock), _number(claim)


def _number(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else 0


def _locked_file(folder: Path) -> tuple[Path, int]:
    return new_locked(
        lambda: folder / f"{_PREFIX}{os.getpid()}.{secrets.token_hex(4)}",
        lambda path: os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600),
    )


def _remove_if_dead(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


@contextmanager
def _replacing(folder: Path, *, alone: bool) -> Iterator[None]:
    """Hold `replace.lock` during the block: `alone`, as whoever replaces the data file does, or shared. Raises OSError
    if it is taken."""
    try:
        descriptor = os.open(folder / _REPLACING, os.O_RDWR | (os.O_CREAT if alone else 0), 0o600)
    except FileNotFoundError:
        yield  # nobody has ever replaced the data file
        return
    try:
        _lock(descriptor, fcntl.LOCK_EX if alone else fcntl.LOCK_SH | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> None:
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        raise BlockingIOError("another process is compacting this store; try again when it is done") from None


def _forget_in_child() -> None:
    for lease in list(_HELD):
        lease.forget()


os.register_at_fork(after_in_child=_forget_in_child)
