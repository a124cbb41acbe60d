"""Files that have no name until they are whole.

Bytes written into one are on the file system, and nothing else can see them: neither who adds up a folder nor who lists
it. A process that dies takes it along. Where a file system has no such files, it has a name, and is hidden by a dot.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_SUFFIX = ".new"


@contextmanager
def nameless_file(folder: str) -> Iterator[IO[bytes]]:
    """A new file for its owner alone, open for writing, which goes with the block unless it was given a name. Raises
    OSError."""
    try:
        descriptor = os.open(folder, getattr(os, "O_TMPFILE", os.O_DIRECTORY) | os.O_RDWR, 0o600)
    except OSError:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=_SUFFIX) as file:
            yield file
        return
    with os.fdopen(descriptor, "w+b") as file:
        yield file


def name_file(file: IO[bytes], path: str) -> None:
    """Put a nameless file in the place of what is at `path`, in one step. Raises OSError."""
    made = f"{path}{_SUFFIX}"
    source = file.name if isinstance(file.name, str) else f"/proc/self/fd/{file.fileno()}"
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    try:
        # NOTE: `os.link` follows the link that /proc has for a descriptor only if it is given a folder.
        os.link(source, made, src_dir_fd=folder, follow_symlinks=True)
        os.replace(made, path)
    finally:
        os.close(folder)


def remove_unfinished(folder: str) -> None:
    """Remove what somebody who was killed left in `folder`, where files had names, or between the two steps of naming
    one. The caller has seen to it that nobody is writing one."""
    for path in Path(folder).glob(f"*{_SUFFIX}"):
        path.unlink(missing_ok=True)
