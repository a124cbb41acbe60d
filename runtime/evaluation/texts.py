"""The evaluation's texts, opened from a folder and checked before use.

    austen/<novel>.txt      shakespeare/<play>.md      kjv.tsv (citation TAB text)
    python-docs.txt         words/adjectives.txt, words/nouns.txt (one a line)

A score means something only over the very text it was measured on, so every file has a SHA-256: in the
folder's own `SHA256SUMS` if it has one (an excerpt), else in `texts.sha256` beside this file (what
`fetch` makes).
"""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from ..api.errors import StratakvError
from ..model.locate import cache_dir

PUBLISHED_SUMS = Path(__file__).with_name("texts.sha256")
EXCERPT_SUMS = "SHA256SUMS"
FETCH = "python -m stratakv.runtime.evaluation.fetch"


class MissingTextError(StratakvError):
    """A text is not there or not the published one. The message names text, file and folder, and how to get it."""


class Speech(NamedTuple):
    """The words that one character says at a stretch."""

    speaker: str
    lines: tuple[str, ...]


class Texts:
    """The evaluation's texts, from a folder that `fetch` filled or an excerpt with the same layout.

    A file is read and checked when its text is first asked for; each instance reads it once.

    Args:
        folder: `None` means `texts` in the user's cache directory.

    Raises:
        MissingTextError: from every method, if a file of that text is missing or differs.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = default_folder() if folder is None else folder

    def novels(self) -> dict[str, str]:
        """Austen's novels: texts by name such as `emma`."""
        return self._novels

    def verses(self) -> list[tuple[str, str]]:
        """The King James Bible in order: (citation such as `Genesis 1:1`, text)."""
        return self._verses

    def plays(self) -> dict[str, list[Speech]]:
        """Shakespeare's plays by name such as `hamlet`: speeches in order, without stage directions or markup."""
        return self._plays

    def docs(self) -> str:
        """Python's documentation: the reStructuredText sources in the order of their paths."""
        return self._docs

    def words(self) -> tuple[list[str], list[str]]:
        """Plain lower-case words for synthetic keys: (adjectives, nouns)."""
        return self._words

    @cached_property
    def _novels(self) -> dict[str, str]:
        return {Path(name).stem: text for name, text in self._read("Austen's novels", "austen/").items()}

    @cached_property
    def _verses(self) -> list[tuple[str, str]]:
        (table,) = self._read("the King James Bible", "kjv.tsv").values()
        pairs = (line.split("\t") for line in table.splitlines())
        return [(citation, text) for citation, text in pairs]

    @cached_property
    def _plays(self) -> dict[str, list[Speech]]:
        return {Path(name).stem: speeches(text) for name, text in self._read("the plays", "shakespeare/").items()}

    @cached_property
    def _docs(self) -> str:
        (text,) = self._read("Python's documentation", "python-docs.txt").values()
        return text

    @cached_property
    def _words(self) -> tuple[list[str], list[str]]:
        adjectives, nouns = (text.splitlines() for text in self._read("the word lists", "words/").values())
        return adjectives, nouns

    @cached_property
    def _sums(self) -> dict[str, str]:
        return read_sums(self.folder / EXCERPT_SUMS if is_excerpt(self.folder) else PUBLISHED_SUMS)

    def _read(self, title: str, prefix: str) -> dict[str, str]:
        """Read the checked files whose names start with `prefix`, in the order of their names."""
        names = sorted(name for name in self._sums if name.startswith(prefix))
        if not names:
            raise self._missing(title, f"{prefix} has no file")
        return {name: self._checked(title, name).decode() for name in names}

    def _checked(self, title: str, name: str) -> bytes:
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise self._missing(title, f"{name} cannot be read ({error.strerror})") from error
        if hashlib.sha256(data).hexdigest() != self._sums[name]:
            raise self._missing(title, f"{name} is not the published file (its SHA-256 differs)")
        return data

    def _missing(self, title: str, what: str) -> MissingTextError:
        if is_excerpt(self.folder):
            remedy = f"restore this excerpt, or get the whole texts with `make data` or `{FETCH}`"
        elif self.folder == default_folder():
            remedy = f"`make data` or `{FETCH}` gets it"
        else:
            remedy = f"`{FETCH} --folder {self.folder}` gets it"
        return MissingTextError(f"{title}: {what} in {self.folder}; {remedy}")


def default_folder() -> Path:
    """The folder where `fetch` puts the texts unless told otherwise."""
    return cache_dir() / "texts"


def is_excerpt(folder: Path) -> bool:
    """True if the folder has checksums of its own."""
    return (folder / EXCERPT_SUMS).is_file()


def read_sums(path: Path) -> dict[str, str]:
    """SHA-256 in hexadecimal by file name, from a file as `sha256sum` writes it."""
    pairs = (line.split(maxsplit=1) for line in path.read_text().splitlines())
    return {name: digest for digest, name in pairs}


# Directions are in italics: from the start of a line to the end of that or a later one (`_` or `*`), or
# bracketed inside a line, where some files lack the opening underscore.
_DIRECTION = re.compile(r"^(?P<mark>_|\*(?!\*))(?:(?!\n\n).)*?(?P=mark) *$", re.MULTILINE | re.DOTALL)
_BRACKETED = re.compile(r"_*\\?\[[^\]_]*\]_")


def speeches(markdown: str) -> list[Speech]:
    """The speeches of a play, with who says them. Words before a scene's first speaker are left out: most describe the
    place."""
    found: list[tuple[str, list[str]]] = []
    speaking = False
    for line in _DIRECTION.sub("", _BRACKETED.sub("", markdown)).splitlines():
        words = line.strip()
        if words.startswith("#"):
            speaking = False
        elif words.startswith("**"):
            found.append((words.strip("*"), []))
            speaking = True
        elif words and speaking:
            found[-1][1].append(re.sub(r"\\(.)", r"\1", words))
    return [Speech(speaker, tuple(lines)) for speaker, lines in found if lines]
