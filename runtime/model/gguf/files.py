"""The files of a GGUF model: one, or the parts of a split one, whichever of them was named.

    NAME.gguf                   a model in one file
    NAME-00002-of-00003.gguf    one of three parts that lie side by side, as llama.cpp's gguf-split writes them
    a folder                    the one model in it

Endings and names count in any case. A file without the ending is one as well if it begins as GGUF files do: caches
name their files by digests.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from ...api.errors import ModelFileError

_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE | re.DOTALL)
_BESIDE_A_MODEL = "mmproj"
"""Part of the name of a file that turns pictures and sounds into embeddings (llama.cpp's word): no model by itself."""
_LISTED = 8
"""The most names in a message."""


class _Part(NamedTuple):
    name: str
    number: int
    """The number of this part, from 1."""
    of: int


def is_gguf(path: Path) -> bool:
    """True if it is a file that is called or begins as GGUF files do."""
    if not path.is_file():
        return False
    if path.suffix.lower() == ".gguf":
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def gguf_files(path: Path) -> list[Path]:
    """Find all files of the model that `path` is a file of, in order.

    Raises ModelFileError: parts of a split file are missing.
    """
    part = _part(path)
    if part is None:
        return [path]
    found = _parts_beside(path, part)
    if len(found) < part.of and path.is_symlink():
        target = path.resolve()
        found = {**_parts_beside(target, _part(target) or part), **found}
    missing = [number for number in range(1, part.of + 1) if number not in found]
    if missing and not _is_whole(path):
        names = [f"{part.name}-{number:05}-of-{part.of:05}.gguf" for number in missing]
        raise ModelFileError(
            f"{path}: part {part.number} of {part.of} of a split model; put the other parts beside it, "
            f"missing: {_listed(names)}"
        )
    return [path] if missing else [found[number] for number in range(1, part.of + 1)]


def gguf_in(folder: Path) -> list[Path]:
    """Find all files of the one GGUF model in a folder; none if there is no model in it.

    Raises ModelFileError: there are several, or parts of it are missing.
    """
    models: dict[str, Path] = {}
    for path in sorted(folder.iterdir(), key=lambda path: path.name):
        if path.suffix.lower() == ".gguf" and path.is_file() and _BESIDE_A_MODEL not in path.name.lower():
            part = _part(path)
            models.setdefault(path.name if part is None else f"{part.name.lower()} {part.of}", path)
    if len(models) > 1:
        names = _listed([path.name for path in models.values()])
        raise ModelFileError(f"{folder}: it holds {len(models)} GGUF models; name one of them: {names}")
    return [file for path in models.values() for file in gguf_files(path)]


def folders_with_gguf(folder: Path) -> list[Path]:
    """The folders in a folder that hold GGUF files: large models are published with one for each quantisation."""
    return [inner for inner in sorted(folder.iterdir()) if inner.is_dir() and any(map(_is_named_so, inner.iterdir()))]


def title(path: Path) -> str:
    """The name of the model whose file or folder this is: the same for all parts of a split one."""
    part = _part(path)
    if part is not None:
        return part.name
    return path.stem if _is_named_so(path) else path.name


def _is_whole(path: Path) -> bool:
    """True if the file is whole although it is called a part: it was merged, and kept its first part's name."""
    from .container import read_gguf

    try:
        return read_gguf([path]).parts == 1
    except ModelFileError:
        return False


def _is_named_so(path: Path) -> bool:
    return path.suffix.lower() == ".gguf"


def _part(path: Path) -> _Part | None:
    match = _PART.fullmatch(path.name)
    if match is None:
        return None
    found = _Part(match[1], int(match[2]), int(match[3]))
    return found if 1 <= found.number <= found.of else None


def _parts_beside(path: Path, part: _Part) -> dict[int, Path]:
    """The parts of the same split in the folder of `path`, by number. A name in the same case wins over one in
    another."""
    found: dict[int, Path] = {}
    for other in sorted(path.parent.iterdir()):
        its = _part(other)
        if its is None or its.of != part.of or its.name.lower() != part.name.lower() or not other.is_file():
            continue
        if its.number not in found or its.name == part.name:
            found[its.number] = other
    return {**found, part.number: path}


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
