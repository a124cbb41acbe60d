"""LMDB's own format number, told from a file that LMDB does not open."""

from __future__ import annotations

from pathlib import Path

from ..errors import LaterStoreError

_MAGIC = bytes.fromhex("dec0efbe")
"""In the first bytes of a data file; the number is behind it."""
_READ = (0, 1, 3)
"""None can be told, LMDB 0.9, LMDB 1.0: py-lmdb has both."""


def refuse_later(folder: Path) -> None:
    """Raises LaterStoreError if `data.mdb` is of a format that cannot be read here."""
    try:
        with open(folder / "data.mdb", "rb") as file:
            head = file.read(64)
    except OSError:
        return
    _, is_lmdb, behind = head.partition(_MAGIC)
    number = int.from_bytes(behind[:4], "little") if is_lmdb else 0
    if number not in _READ:
        raise LaterStoreError(
            f"store folder {folder} was written by a later version of stratakv, or by another program (LMDB format "
            f"{number}); it is left as it is: choose another (path=)"
        )
