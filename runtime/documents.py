"""Reading what a person calls a document."""

from __future__ import annotations

from pathlib import Path


def read_text_file(path: Path) -> str:
    """A text file's contents. Raises OSError, or ValueError if it is not UTF-8 text."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory, not a text file")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}): only text files can be read") from None
    if "\0" in text:
        raise ValueError(f"{path} is a binary file: only text files can be read")
    return text
