"""Digests of files, remembered as long as nothing can have changed the file (docs/decisions/0026).

A file's *stamp* is its inode, size and both of its times. Size and modification time are anybody's to choose; the
other one, `ctime`, the kernel writes by its own clock at every change of bytes, times or names, and no program can set
it. So a stamp stands for the bytes, unless

- the file system has no such clock and repeats what it was told (images and archives with fixed times, some network
  file systems): there `ctime` has no fraction of a second, and such a file is digested every time;
- the file was changed so shortly ago that another change might get the same time: it is digested again next time.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from time import time_ns

import xxhash

from ...storage.files.scratch import whole_file

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int, int]
_SECOND = 10**9
_SETTLED_NS = 2 * _SECOND
"""Nanoseconds after a change from which on its time is final: no clock that puts fractions into `ctime` is coarser."""


def stamp(path: Path) -> Stamp:
    """The stamp that stands for the file's bytes: inode, size, and both times in nanoseconds. Raises OSError."""
    with path.open("rb") as file:  # opening asks a file server; `stat` alone may tell what it said a minute ago
        status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def remembered(memo: Path, path: Path, kind: str, compute: Callable[[Path], str]) -> str:
    """`compute(path)`, or its result from when the file last had this stamp.

    Args:
        memo: the file that remembers. Where it cannot be read or written, everything is only slower.
        kind: names the result among several that are computed from one file.
    """
    path = path.resolve()  # a link may lead elsewhere meanwhile
    began, now = time_ns(), stamp(path)
    found = _recalled(memo, path, kind, now)
    if found is not None:
        return found
    digest = compute(path)
    if _is_telling(now, began):
        _write(memo, {**_read(memo), f"{kind}:{path}": [now, digest]})
    return digest


def recalled(memo: Path, path: Path, kind: str) -> str | None:
    """The remembered result for the file as it is now; None if there is none."""
    return _recalled(memo, path.resolve(), kind, stamp(path))


def _recalled(memo: Path, path: Path, kind: str, now: Stamp) -> str | None:
    match _read(memo).get(f"{kind}:{path}"):
        case [[*stamped], str(digest)] if tuple(stamped) == now:
            return digest
    return None


def digest_of(path: Path) -> str:
    """XXH3-128 of a file's bytes, in hexadecimal."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 18):
            digest.update(block)
    return digest.hexdigest()


def _is_telling(of: Stamp, at: int) -> bool:
    """True if a change after `at` (nanoseconds since 1970) cannot leave this stamp."""
    changed = of[-1]
    return changed % _SECOND != 0 and changed + _SETTLED_NS < at


def _read(memo: Path) -> dict[str, object]:
    try:
        known = json.loads(memo.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}


def _write(memo: Path, known: dict[str, object]) -> None:
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(memo) as file:
            file.write(json.dumps(known).encode())
    except OSError as error:
        logger.info("%s: what was computed is not remembered (%s)", memo, error)
