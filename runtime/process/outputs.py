"""Files that results go to: tried before the work that takes hours, and written whole or not at all after it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ...storage.files.file_names import as_text
from ...storage.files.scratch import scratch_folder, whole_file

_TRIED_BYTES = 4096
"""Number of bytes written to see whether the disk takes any."""


def check_outputs(*paths: Path | None) -> None:
    """Refuse paths that cannot be written, None aside, by writing beside them. Raises ValueError."""
    given = [path for path in paths if path is not None]
    for path in given:
        try:
            _try(path)
        except OSError as error:
            raise ValueError(f"{as_text(path)}: cannot be written: {error.strerror}") from error
    files = [os.path.realpath(path) for path in given if not _is_stream(path)]
    if len(set(files)) < len(files):
        raise ValueError(f"two results cannot go to one file: {', '.join(map(as_text, given))}")


@contextmanager
def output(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open the file to write a result to. At the end of the block `path` holds all of it, and a link stays a link.
    Raises OSError.

    Args:
        mode: the mode of a file that is new, less the umask.
    """
    if _is_stream(path) or not _may_replace(path):
        with open(path, "ab" if _is_stream(path) else "wb") as file:
            yield file
    else:
        with whole_file(_meant(path), mode) as file:
            yield file


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all. Raises OSError."""
    with output(path) as file:
        file.write(text.encode())


def deliver(deliveries: Iterable[Callable[[], None]]) -> None:
    """Call each of `deliveries`, whatever becomes of the others: results must not be lost to a full disk or a reader
    who left. Raises the error of the first that failed."""
    failed: list[Exception] = []
    for one in deliveries:
        try:
            one()
        except Exception as error:
            failed.append(error)
    if failed:
        raise failed[0]


def _try(path: Path) -> None:
    """Try to write beside `path`. Raises OSError; ValueError where the place itself is wrong."""
    if path.is_dir():
        raise ValueError(f"{as_text(path)}: cannot be written: it is a folder")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{as_text(path)}: its folder does not exist")
    if _is_stream(path):
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return
    if path.exists():
        open(path, "ab").close()
    if _may_replace(path) or not path.exists():
        with scratch_folder("try", _meant(path).parent) as folder:
            (folder / "tried").write_bytes(bytes(_TRIED_BYTES))


def _is_stream(path: Path) -> bool:
    """True for a device, a pipe or a name for an open file, which nothing may take the place of."""
    return path.exists() and (not path.is_file() or path.absolute().parts[1] in ("dev", "proc"))


def _may_replace(path: Path) -> bool:
    """True if another file can take the path's place. Its folder may be closed to writers where the file itself is
    open."""
    return os.access(_meant(path).parent, os.W_OK | os.X_OK, effective_ids=os.access in os.supports_effective_ids)


def _meant(path: Path) -> Path:
    """The file that `path` leads to behind all links."""
    return Path(os.path.realpath(path))
