"""The meaning of a line at the chat's prompt: a command with its argument, or a message."""

from __future__ import annotations

import re
from collections.abc import Callable
from difflib import get_close_matches

QUOTES = '"""'


def command_of(line: str, known: list[str]) -> tuple[str, str] | None:
    """The command and its argument; None for a message. Case does not matter.

    Raises ValueError for a command that there is not.
    """
    if not line.startswith("/") or line.startswith("//"):
        return None
    typed, *rest = re.split(r"\s+", line[1:], maxsplit=1)
    name = typed.lower()
    if name not in known:
        close = get_close_matches(name, known, 1)
        meant = f"; did you mean /{close[0]}?" if close else ""
        raise ValueError(f"no command /{typed}; /help lists them{meant} (// begins a message with a slash)")
    return name, rest[0].strip() if rest else ""


def message_of(line: str) -> str:
    """The message itself: `//` stands for a slash that begins no command."""
    return line[1:] if line.startswith("//") else line


def whole_message(first: str, more: Callable[[], str]) -> str:
    '''A line, or the lines from one that begins with `"""` to the one that ends with it, `more()` giving the next.'''
    first = first.strip()
    if not first.startswith(QUOTES):
        return first
    lines = [first[len(QUOTES) :]]
    while not lines[-1].rstrip().endswith(QUOTES):
        lines.append(more())
    lines[-1] = lines[-1].rstrip()[: -len(QUOTES)]
    return "\n".join(lines).strip()
