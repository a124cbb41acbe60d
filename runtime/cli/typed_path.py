r"""The path that a person means: typed, quoted as for a shell, or dragged from a file manager.

    a b.txt   "a b.txt"   'a b.txt'   a\ b.txt   ~/a.txt   file:///tmp/a%20b.txt

A file that is called exactly as typed wins over any reading of quotes and backslashes.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit


def path_of(typed: str) -> Path:
    """The file that `typed` names. Raises ValueError if it names none; whether there is one shows when it is read."""
    if not typed:
        raise ValueError("give a file name")
    readings = [typed, typed.strip(), *_readings(typed.strip())]
    for reading in readings:
        path = _expanded(reading)
        if path is not None and _is_there(path):
            return path
    last = _expanded(readings[-1])
    if last is None:
        raise ValueError(f"{readings[-1]}: no such file")
    return last


def unquoted(typed: str) -> str:
    """A name without the quotes around it."""
    return typed[1:-1] if len(typed) > 2 and typed[0] == typed[-1] and typed[0] in "'\"" else typed


def _readings(typed: str) -> list[str]:
    """Other spellings than the plain one, the likeliest last."""
    if typed.lower().startswith("file:"):
        return _of_url(typed)
    try:
        words = shlex.split(typed)
    except ValueError:  # an unclosed quote
        return []
    return [words[0]] if len(words) == 1 and words[0] else []


def _of_url(typed: str) -> list[str]:
    try:
        parts = urlsplit(typed)
    except ValueError:
        return []
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        # Names hold ? and # as they are where a program did not escape them.
        return [os.fsdecode(unquote_to_bytes(typed.split(":", 1)[1].removeprefix("//localhost").removeprefix("//")))]
    return [os.fsdecode(unquote_to_bytes(parts.path))]


def _expanded(reading: str) -> Path | None:
    """The path with `~` as the home folder; None where no file can be called so."""
    return None if "\0" in reading or not reading else Path(os.path.expanduser(reading))


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a name no file can have
        return False
