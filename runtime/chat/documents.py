"""The reading of documents: a file, a pipe, or standard input. Each is read once."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from ...storage.files.file_names import as_text
from ..process.standard_input import is_standard_input, read_standard_input, read_whole


@dataclass(frozen=True, slots=True)
class Document:
    """A text, and the conversation's name for it."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Read:
    """The cost of reading a document: its `tokens`, of which the store had `cached` already, and milliseconds."""

    tokens: int
    cached: int
    ms: float


def read_text_file(path: Path) -> str:
    """A text file's contents. Raises OSError, or ValueError if it is not UTF-8 text."""
    name = as_text(path)
    try:
        kind = path.stat().st_mode
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(f"{name} is a directory, not a text file")
        if stat.S_ISBLK(kind) or (stat.S_ISCHR(kind) and not path.samefile(os.devnull)):
            raise ValueError(f"{name} is a device, not a text file")
        with path.open("rb") as file:
            data = read_whole(file, name)
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: no such file") from None
    except OSError as error:
        if error.strerror is None:  # an error of ours
            raise
        raise type(error)(f"{name}: {error.strerror}") from None
    return text_of(data, name)


def text_of(data: bytes, what: str) -> str:
    """Decode UTF-8 text. Raises ValueError if it is none."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{what} is not UTF-8 text (byte {error.start}): only text files can be read") from None
    if "\0" in text:
        raise ValueError(f"{what} is a binary file: only text files can be read")
    return text


def read_document(path: Path) -> Document:
    """The document at `path`; `-` is standard input. Raises OSError, or ValueError if it is empty or not UTF-8 text."""
    if is_standard_input(path):
        text = text_of(read_standard_input(), "stdin")
        name = "stdin"
    else:
        text, name = read_text_file(path), document_name(path)
    if not text.strip():
        raise ValueError(f"{name if is_standard_input(path) else as_text(path)} is empty")
    return Document(name, text)


def document_name(path: Path) -> str:
    """The conversation's name for a file: the file's name, as text even where its bytes are none. A shell's `<(...)`
    has another number each time, and is called a pipe."""
    if path.parent in (Path("/dev/fd"), Path("/proc/self/fd")):
        return "pipe"
    return as_text(path.name or path)
