"""Names of files, which are bytes: as text for people and models, and as paths for libraries that take nothing but
text."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .scratch import scratch_folder


def as_text(name: str | os.PathLike[str]) -> str:
    r"""A file's name as text that can be encoded. A byte that is no UTF-8 becomes `\xe9`, so two names stay two.

    Python spells such a byte as half a character. Where the locale reads names in another encoding than UTF-8, a name
    that is UTF-8 all the same is read as such.
    """
    plain = os.fspath(name)
    try:
        data = os.fsencode(plain)
    except UnicodeEncodeError:  # halves that stand for no byte, or letters that the locale lacks
        data = plain.encode("utf-8", "surrogatepass")
    try:
        return data.decode()
    except UnicodeDecodeError:
        return plain if _is_text(plain) else data.decode(errors="backslashreplace")


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


@contextmanager
def readable_path(path: Path) -> Iterator[Path]:
    """Give the same file or folder under a path that is text: itself, or a link that lasts as long as the block. Raises
    OSError."""
    if _is_text(str(path)):
        yield path
        return
    with scratch_folder("link") as folder:
        link = folder / "model"
        link.symlink_to(path.absolute())
        yield link
