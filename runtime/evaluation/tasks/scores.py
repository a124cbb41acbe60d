"""RULER's scorers, which look for a reference in the reply, whatever the case."""

from __future__ import annotations

import re

_CONTROL = re.compile(r"[\x00-\x1f]")


def all_of(reply: str, references: tuple[str, ...]) -> float:
    """The share of references that the reply contains."""
    found = _found(reply, references)
    return sum(found) / len(found)


def any_of(reply: str, references: tuple[str, ...]) -> float:
    """1 if the reply contains at least one reference, else 0."""
    return float(any(_found(reply, references)))


def _found(reply: str, references: tuple[str, ...]) -> list[bool]:
    if not references or not all(references):
        raise ValueError(f"references must be there and not empty, got {references!r}")
    text = _clean(reply)
    return [reference.lower() in text for reference in references]


def _clean(reply: str) -> str:
    # Line breaks stand in for control characters, as in RULER: with nothing there, "12\n34" would read 1234.
    return _CONTROL.sub("\n", reply).strip().lower()
