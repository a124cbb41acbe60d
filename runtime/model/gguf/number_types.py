"""The types of a tensor's numbers, and reading them: by gguf's own code, whose results are llama.cpp's to the bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from ...api.errors import ModelFileError
from ...untrusted.numbers import shown

_LATER = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8", 36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8",
    38: "IQ4_NL_8_8", 39: "MXFP4", 40: "NVFP4", 41: "Q1_0", 42: "Q2_0",
}  # fmt: skip
"""llama.cpp's names of types that a version of gguf may not have: removed ones, and those that came later."""
_CHUNK = 1 << 20
"""The number of elements that are expanded at a time: gguf takes several times their size meanwhile."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The place of a tensor's numbers, and their type."""

    name: str
    shape: tuple[int, ...]
    """The tensor's shape, rows first, as numpy has it; the file lists it the other way round."""
    kind: int
    """The number of a `gguf.GGMLQuantizationType`."""
    file: Path
    start: int
    """Offset of its first byte in the file."""
    num_bytes: int

    @property
    def elements(self) -> int:
        return prod(self.shape)


def packed(path: Path, name: str, kind: int) -> tuple[int, int]:
    """The number of elements in a block of a type, and the number of its bytes. Raises ModelFileError if it cannot be
    read."""
    if not _is_readable(kind):
        known = kind in _LATER or kind in list(GGMLQuantizationType)
        called = _LATER.get(kind) or GGMLQuantizationType(kind).name if known else None
        if called is None:
            raise ModelFileError(
                f"{path}: not a readable GGUF model: tensor {shown(name)}: data of the unknown type {kind}; "
                "is it complete?"
            )
        raise ModelFileError(
            f"{path}: the number type {called} is not supported (tensor {shown(name)}); "
            "take a file of this model in another one, such as Q4_K_M, Q8_0 or BF16"
        )
    block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
    return int(block), int(block_bytes)


@cache
def _is_readable(kind: int) -> bool:
    """True if gguf can expand it. That is tried, since the library's own list of types is longer than what it can
    do."""
    try:
        of = GGMLQuantizationType(kind)
        dequantize(np.zeros((1, GGML_QUANT_SIZES[of][1]), np.uint8), of)
    except (ValueError, KeyError, NotImplementedError):
        return False
    return True


def values(tensor: Tensor, first: int = 0, rows: int | None = None) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a tensor's numbers in fp32 `[rows, width]`, a few rows at a time; a vector is one row. Raises
    ModelFileError if the file ends.

    Args:
        first, rows: the first row and the number of rows; None: all from the first on.

    The bytes are read, not mapped: mapped ones stay counted as this process's memory.
    """
    of = GGMLQuantizationType(tensor.kind)
    width = tensor.shape[-1]
    block, block_bytes = GGML_QUANT_SIZES[of]
    row_bytes = width // block * block_bytes
    stop = tensor.elements // width if rows is None else first + rows
    at_once = max(1, _CHUNK // width)
    with tensor.file.open("rb") as file:
        file.seek(tensor.start + first * row_bytes)
        for begin in range(first, stop, at_once):
            size = (min(begin + at_once, stop) - begin) * row_bytes
            data = file.read(size)
            if len(data) < size:
                raise ModelFileError(f"{tensor.file}: tensor {shown(tensor.name)}: the file ends inside it")
            with np.errstate(all="ignore"):  # NaN in the file is NaN in the model
                rows_read = dequantize(np.frombuffer(data, np.uint8).reshape(-1, row_bytes), of)
            yield rows_read
