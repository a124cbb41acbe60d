"""Conversion of GGUF to safetensors, once per file and dtype: a folder in the model cache, there whole or not at all.

The bytes it needs are known before it begins: the weights in the wanted dtype, and a tokenizer that is told at more
length than in the GGUF file's header. The next conversion removes what a killed one left (`storage.files.scratch`).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ...storage.files.scratch import remove_dead, scratch_folder, whole_file
from ..api.errors import ModelFileError

logger = logging.getLogger(__name__)

VERSION = 2
"""Version of the conversion. The first version's folders, whose names have none, may have wrong positions."""
_DIGEST = 16
_NAME = re.compile(rf".*-([0-9a-f]{{{_DIGEST}}})-(float32|bfloat16|float16|file)(?:-v([1-9][0-9]{{0,8}}))?", re.DOTALL)
_GB = 10**9
IN_FILE = "file"
"""In place of a dtype: the folder has everything but the weights, which stay in the GGUF file."""
_TOKENIZER_GROWTH = 6
"""Bytes of `tokenizer.json` for each byte of the GGUF file's header: 2.0 in SmolLM2, 5.1 in Gemma 3."""
_OTHER_FILES = 1 << 20
_ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def tell(what: str) -> None:
    """Log a conversion where the caller did not ask to be told of it."""
    logger.info("converting %s once; later starts skip this", what)


class Made(NamedTuple):
    """The facts that a folder's name states about its conversion."""

    digest: str
    """The beginning of the file's digest."""
    dtype: str
    """Of the weights, or `IN_FILE`."""
    version: int

    @property
    def is_current(self) -> bool:
        """True if this version of the conversion made it."""
        return self.version == VERSION

    @property
    def is_outdated(self) -> bool:
        """True if an earlier version made it, perhaps with wrong settings."""
        return self.version < VERSION


def folder_name(called: str, digest: str, dtype: str) -> str:
    """The name of the folder for this version's conversion of a file, from what people call it and from its digest."""
    return f"{called}-{digest[:_DIGEST]}-{dtype}-v{VERSION}"


def made_of(name: str) -> Made | None:
    """Read a folder's name; None unless this or an earlier version gave it."""
    found = _NAME.fullmatch(name)
    return Made(found[1], found[2], int(found[3] or 1)) if found else None


def is_made(folder: Path) -> bool:
    """True if a folder of this version has the files that a model is read from: False if somebody removed one of
    them."""
    made = made_of(folder.name)
    weights = TENSORS_FILE if made is not None and made.dtype == IN_FILE else "model.safetensors"
    return all((folder / name).is_file() for name in ("config.json", weights))


TENSORS_FILE = "tensors.txt"
"""In a folder without weights: the digest of those in the GGUF file."""


def tensors_in(folder: Path) -> str | None:
    """The digest of the weights that a folder leaves in a GGUF file; None if it is another folder."""
    path = folder / TENSORS_FILE
    return path.read_text().strip() if path.is_file() else None


def convert(paths: Sequence[Path], dtype: str, target: Path, on_convert: Callable[[str], None]) -> None:
    """Make `target`, a new folder in the model cache.

    Args:
        paths: a GGUF file, or all parts of a split one.
        dtype: of the weights, or `IN_FILE`: everything but them, which takes no time.
        on_convert: called before weights are converted with the file's name, the room that the conversion needs and the
            room free.

    Raises ModelFileError: the file is damaged or no model that we can run, or there is no room for what is made of it.
    """
    import torch

    from .gguf.directory import read_model, write_model
    from .gguf.tensors_digest import tensors_digest

    found = read_model(paths)
    gguf = found.contents.path
    weight_bytes = 0 if dtype == IN_FILE else found.num_weights * _ITEM_BYTES[dtype]
    needed = weight_bytes + found.contents.header_bytes * _TOKENIZER_GROWTH + _OTHER_FILES
    with _room_for(gguf, needed, target.parent) as room, scratch_folder("convert", target.parent) as scratch:
        if weight_bytes:
            on_convert(f"{gguf.name} ({room})")
        made = scratch / "made"
        made.mkdir(mode=0o700)
        if dtype == IN_FILE:
            write_model(found, None, made)
            (made / TENSORS_FILE).write_text(f"{tensors_digest(found.contents)}\n")
        else:
            write_model(found, getattr(torch, dtype), made)
        if not is_made(target):
            shutil.rmtree(target, ignore_errors=True)
        try:
            os.rename(made, target)
        except OSError:
            if not is_made(target):  # otherwise another process finished first
                raise


def join(parts: list[Path], target: Path) -> None:
    """Make one file of a GGUF file's parts. Raises ModelFileError: there is no room for it."""
    size = sum(part.stat().st_size for part in parts)
    with _room_for(target, size, target.parent), whole_file(target) as file:
        for part in parts:
            with part.open("rb") as source:
                shutil.copyfileobj(source, file, 1 << 20)


@contextmanager
def _room_for(what: Path, needed: int, folder: Path) -> Iterator[str]:
    """Refuse before and explain after: files are written in the block, also by libraries, each of which says in its own
    way that a disk is full. Yields how much is needed and how much is free, for people."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        remove_dead(folder)  # the room that it took is free again
        free = shutil.disk_usage(folder).free
        room = f"needs {needed / _GB:.3g} GB in {folder}, {free / _GB:.3g} GB are free"
        if free < needed:
            raise ModelFileError(f"{what}: no room to convert it: {room}; {_REMEDY}")
        yield room
    except Exception as error:
        from safetensors import SafetensorError

        if not isinstance(error, OSError | SafetensorError) and type(error) is not Exception:  # tokenizers raises these
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelFileError(
            f"{what}: could not be converted ({reason}): needs {needed / _GB:.3g} GB in {folder}; {_REMEDY}"
        ) from error


_REMEDY = "make room there, or have XDG_CACHE_HOME name a folder with more"
