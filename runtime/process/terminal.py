"""Text on its way to a terminal, which must show it and never obey it.

Names of files and sessions, errors and a model's replies are other people's words: a control sequence in them could
clear the screen, rename the window or type into the shell.
"""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

_LONGEST = 2000
"""The most characters of one line that are shown; an error may quote a whole file."""
_PICTURES = {number: 0x2400 + number for number in range(0x20)} | {0x7F: 0x2421}
_REPLY = {
    **_PICTURES, **{number: f"\\x{number:02x}" for number in range(0x80, 0xA0)}, ord("\n"): "\n", ord("\t"): "\t",
    ord("\r"): None,
}  # fmt: skip
"""The characters that show a reply's control characters: their pictures (ESC is one character that reads `ESC`). A
carriage return is dropped, since it would overwrite its line."""


def printable(text: str) -> str:
    """`text` on one line: whitespace becomes single spaces, and characters that a terminal obeys or cannot show are
    escaped."""
    line = " ".join(text.split())
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    return "".join(map(_escaped, line))


def _escaped(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    if "\udc80" <= character <= "\udcff":  # a byte of a file's name, as Python spells it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return repr(character)[1:-1]


def escaped_bytes(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler for streams: characters that cannot be encoded become `?`, but bytes of a file's name stay
    apart, as in `printable`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    return "".join(_escaped(letter) if "\udc80" <= letter <= "\udcff" else "?" for letter in text), error.end


def reply_text(piece: str) -> str:
    """A piece of a reply that is safe on a terminal: lines and tabs stay, other controls become visible.

    Characters after an escape character are plain text then, so pieces need no memory of each other.
    """
    return piece.translate(_REPLY)


def shown(piece: str) -> str:
    """A piece of a reply for standard output: unchanged for files and pipes, without controls on a terminal."""
    return reply_text(piece) if sys.stdout is not None and sys.stdout.isatty() else piece


def make_console(*, stderr: bool = False) -> Any:
    """A console that shows text as it is: no markup, no colours of its own, no `:name:` made an emoji. It is a terminal
    if its stream is one, whatever the environment says of colours: bars would fill a log."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream is not None and stream.isatty()
    return Console(
        stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=True, force_terminal=is_terminal
    )
