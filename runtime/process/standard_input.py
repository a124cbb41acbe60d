"""Standard input as the command finds it: a terminal, text, nothing, or a pipe that nobody will ever write into."""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from pathlib import Path
from typing import IO

PATIENCE_S = 3.0
"""Seconds that a pipe beside `-p` may stay silent before it is taken for one that holds nothing. Schedulers and remote
shells hand their own open pipes down; a program that waited for such a one would wait for ever. The model loads
meanwhile, so mostly nobody waits."""
_AT_ONCE_S = 0.2
_SAY_AFTER_S = 1.0
_STILL_SAY_AFTER_S = 5.0
MOST_BYTES = 1 << 28
"""The most bytes of a text: more than the longest windows there are, by far. Some pipes never end."""
_NAMES = {"-", "/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"}


def is_standard_input(path: Path) -> bool:
    return str(path) in _NAMES


def is_terminal() -> bool:
    return _stream() is not None and sys.stdin.isatty()


class PipedText:
    """The text that was piped in beside a prompt."""

    def __init__(self) -> None:
        self._until = time.monotonic() + PATIENCE_S

    def at_once(self) -> bytes | None:
        """All of the text, mostly nothing; None if it may come later. Call it before the model is loaded."""
        stream = _stream()
        if stream is None or sys.stdin.isatty():
            return b""
        kind = _kind(stream)
        if kind is None or stat.S_ISREG(kind):
            return read_whole(stream, "stdin")
        if not (stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind)):
            return b""  # /dev/null and other devices
        return read_whole(stream, "stdin") if _has_begun(stream, _AT_ONCE_S) else None

    def late(self) -> bytes:
        """All of the text, or nothing if nobody has written for `PATIENCE_S` seconds, which it then says on stderr."""
        stream = _stream()
        assert stream is not None
        if _has_begun(stream, max(0.0, self._until - time.monotonic())):
            return read_whole(stream, "stdin")
        _tell(f"nothing came through stdin in {PATIENCE_S:g} s, going on without it; -f - waits for it however long")
        return b""


def read_standard_input() -> bytes:
    """All of standard input, however long it takes; says on stderr if nothing comes. Raises ValueError if there is
    none."""
    stream = _stream()
    if stream is None:
        raise ValueError("stdin is closed: there is nothing to read")
    if _kind(stream) is not None and not _has_begun(
        stream, _SAY_AFTER_S if sys.stderr.isatty() else _STILL_SAY_AFTER_S
    ):
        _tell("reading stdin until it ends (Ctrl-D on a terminal)")
    return read_whole(stream, "stdin")


def read_whole(stream: IO[bytes], what: str) -> bytes:
    """All bytes of a text, at most `MOST_BYTES`. Raises ValueError if there are more, OSError."""
    data = stream.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES:
        raise ValueError(f"{what} has more than {MOST_BYTES >> 20} MiB, or never ends: no model could read it")
    return data


def _stream() -> IO[bytes] | None:
    """The stream of standard input; None where the process was given none."""
    if sys.stdin is None or sys.stdin.closed:
        return None
    return sys.stdin.buffer


def _kind(stream: IO[bytes]) -> int | None:
    """The file's mode; None where the stream is no file of the system."""
    try:
        return os.fstat(stream.fileno()).st_mode
    except (OSError, ValueError):
        return None


def _has_begun(stream: IO[bytes], seconds: float) -> bool:
    """True if there is something to read within `seconds`, which the end of the stream is too."""
    try:
        ready, _, _ = select.select([stream], [], [], seconds)
    except (OSError, ValueError):  # the stream cannot be waited for; reading it will tell
        return True
    return bool(ready)


def _tell(line: str) -> None:
    if sys.stderr is not None:
        print(f"stratakv: {line}", file=sys.stderr, flush=True)
