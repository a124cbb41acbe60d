"""LMDB's own format number, read from a data file that LMDB refuses to open."""

from __future__ import annotations

from pathlib import Path

from ..errors import LaterStoreError

_MAGIC = bytes.fromhex("dec0efbe")
"""Stands in the first bytes of a data file; the format number follows it."""
_READ = (0, 1, 3)
"""Format numbers that do not say a later version: none found, LMDB 0.9, LMDB 1.0. py-lmdb reads the last two."""


def refuse_later(folder: Path) -> None:
    """Raise LaterStoreError if `data.mdb` is of a format that cannot be read here."""
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
