"""The text around needles: RULER's noise, or an Austen novel by sentences or paragraphs."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

from ..texts import Texts

T = TypeVar("T")

NOISE = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
_SENTENCE_END = re.compile(r"(?:(?<=[.!?])|(?<=[.!?]\"))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bDr\.)(?<!\bSt\.)\s+(?=[A-Z\"])")
_PARAGRAPH_END = re.compile(r"\n\s*\n")
_PARAGRAPH_CHARS = range(120, 800)
"""Characters that make a paragraph a document: headings and one-line dialogue are too short, some speeches too long."""


class Endless(Generic[T]):
    """A list without end, made as far as it is asked for, so that a longer text begins like a shorter one."""

    def __init__(self, pieces: Iterator[T]) -> None:
        self._pieces = pieces
        self._made: list[T] = []

    def take(self, count: int) -> list[T]:
        while len(self._made) < count:
            self._made.append(next(self._pieces))
        return self._made[:count]


def sentences(text: str) -> list[str]:
    return [piece for piece in _SENTENCE_END.split(" ".join(text.split())) if piece]


def paragraphs(text: str) -> list[str]:
    pieces = (" ".join(piece.split()) for piece in _PARAGRAPH_END.split(text))
    return [piece for piece in pieces if len(piece) in _PARAGRAPH_CHARS]


def novel(
    rng: random.Random,
    texts: Texts,
    split: Callable[[str], list[str]] = sentences,
    without: Sequence[str] = (),
) -> Endless[str]:
    """Yield passages of the novels from a random place on, round and round.

    Args:
        without: pieces that contain one of these are left out, so no reference stands there by accident.
    """
    books = list(texts.novels().values())
    first, start = rng.randrange(len(books)), rng.random()
    barred = [word.lower() for word in without]
    pieces = _round(books[first:] + books[:first], split, start)
    return Endless(piece for piece in pieces if not any(word in piece.lower() for word in barred))


def _round(books: list[str], split: Callable[[str], list[str]], start: float) -> Iterator[str]:
    while True:
        for book in books:
            pieces = split(book)
            if not pieces:
                raise ValueError(f"a novel has no {split.__name__}; it begins {book[:40]!r}")
            yield from pieces[int(start * len(pieces)) :]
            start = 0.0


def scatter(pieces: Sequence[str], needles: Sequence[tuple[float, str]]) -> list[str]:
    """Put each (depth, needle) before the passage at that depth, 0 to 1."""
    found = list(pieces)
    for depth, needle in sorted(needles, key=lambda needle: needle[0], reverse=True):
        found.insert(int(depth * len(pieces)), needle)
    return found
