"""LMDB's own format number, told from a file that LMDB does not open."""

from __future__ import annotations

from pathlib import Path

_MAGIC = bytes.fromhex("dec0efbe")
"""In the first bytes of a data file; the number is behind it."""
_READ = (0, 1, 3)
"""None can be told, LMDB 0.9, LMDB 1.0: py-lmdb has both."""


def later_format(folder: Path) -> int | None:
    """The number in `data.mdb`, if it is none that can be read here."""
    try:
        with open(folder / "data.mdb", "rb") as file:
            head = file.read(64)
    except OSError:
        return None
    _, is_lmdb, behind = head.partition(_MAGIC)
    found = int.from_bytes(behind[:4], "little") if is_lmdb else 0
    return found if found not in _READ else None
