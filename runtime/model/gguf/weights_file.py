"""The writing of a model's weights as one safetensors file, a few rows at a time: a model need not fit in memory.

header length u64 | header, a JSON object: {name: {dtype, shape, data_offsets}} | data
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .architectures import in_halves
from .number_types import values
from .plan import TensorRows, Weight

_NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


def write_weights(path: Path, weights: list[Weight], dtype: torch.dtype) -> None:
    """Write the file. Raises OSError, and ModelFileError if the GGUF file ends inside a tensor."""
    listed: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for weight in weights:
        own = torch.float32 if weight.is_exact else dtype
        end = at + weight.elements * own.itemsize
        listed[weight.name] = {"dtype": _NAMES[own], "shape": list(weight.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(listed, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights:
            for piece in pieces(weight, torch.float32 if weight.is_exact else dtype):
                file.write(piece.contiguous().view(torch.uint8).numpy().data)


def pieces(weight: Weight, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the weight from the top to the bottom; in one piece if its rows move."""
    if not weight.parts:
        yield torch.zeros(weight.shape, dtype=dtype)
    elif not weight.pairs:
        for part in weight.parts:
            yield from rows_of(part, weight.offset, dtype, is_decay=weight.is_decay)
    else:
        whole = torch.cat([rows for part in weight.parts for rows in rows_of(part, weight.offset, dtype)])
        yield in_halves(whole.view(weight.shape), weight.pairs)


def rows_of(part: TensorRows, offset: float, dtype: torch.dtype, *, is_decay: bool = False) -> Iterator[Tensor]:
    """Yield a part's rows in `dtype`. Factor, offset and logarithm are applied before the numbers are rounded."""
    scale = None if part.scale is None else float(next(values(part.scale))[0, 0])
    is_vector = len(part.tensor.shape) == 1
    if part.is_turned:
        yield torch.cat(list(rows_of(replace(part, is_turned=False), offset, dtype))).T.contiguous()
        return
    for found in values(part.tensor) if is_vector else values(part.tensor, part.first, part.rows):
        rows = found if scale is None else found * found.dtype.type(scale)
        rows = rows + found.dtype.type(offset) if offset else rows
        rows = np.log(-rows) if is_decay else rows
        rows = rows[:, part.first : part.first + part.rows].ravel() if is_vector else rows
        yield torch.from_numpy(rows if rows.flags.writeable else rows.copy()).to(dtype)
