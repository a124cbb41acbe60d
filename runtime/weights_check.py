"""A bounded look at a safetensors file's header before the library maps it.

    header length u64 | header, a JSON object: {name: {dtype, shape, data_offsets}} | data

What passed has known dtypes, sizes that agree with shapes, and tensors that fill the data exactly: no
overlap, no hole, nothing outside, no bytes behind the last.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from .errors import ModelFileError
from .json_check import HEADER, parse
from .numbers_check import shown

MAX_TENSORS = 1 << 16
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Weights:
    """What a file's header says: the tensors' shapes by name, and how many numbers they hold together."""

    shapes: dict[str, tuple[int, ...]]
    elements: int


def check_safetensors(path: Path) -> Weights:
    """Raises ModelFileError, naming file and field, unless the header can be believed."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or length > min(HEADER.size, size - 8):
            raise ModelFileError(
                f"{path}: header length: {length} bytes in a file of {size}, at most {HEADER.size}; is it complete?"
            )
        header = parse(path, file.read(length), "header", HEADER)
    return check_header(path, header, size - 8 - length)


def check_header(path: Path, header: dict[str, Any], data_bytes: int) -> Weights:
    """As `check_safetensors`, for a header that was read."""
    _check_metadata(path, header.pop("__metadata__", {}))
    if len(header) > MAX_TENSORS:
        raise ModelFileError(f"{path}: header: {len(header)} tensors, at most {MAX_TENSORS} are allowed")
    spans, shapes, elements = [], {}, 0
    for name, entry in header.items():
        shape, begin, end = _entry(path, f"tensor {shown(name)}", entry)
        spans.append((begin, end, name))
        shapes[name] = tuple(shape)
        elements += prod(shape)
    at = 0
    for begin, end, name in sorted(spans):
        if begin != at:
            raise ModelFileError(
                f"{path}: tensor {shown(name)}: it begins at byte {begin}, the one before it ends at {at}"
            )
        at = end
    if at != data_bytes:
        raise ModelFileError(f"{path}: data: {data_bytes} bytes, its tensors have {at}; is it complete?")
    return Weights(shapes, elements)


def _check_metadata(path: Path, metadata: Any) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ModelFileError(f"{path}: __metadata__: expected names and texts")


def _entry(path: Path, where: str, entry: Any) -> tuple[list[int], int, int]:
    """Shape, first byte, end."""
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{path}: {where}: expected dtype, shape and data_offsets, not {shown(entry)}")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        raise ModelFileError(f"{path}: {where}: dtype: {shown(dtype)} is not one of {', '.join(ITEM_BYTES)}")
    if not _are_counts(shape) or len(shape) > 8 or prod(shape) >= 1 << 63:
        raise ModelFileError(f"{path}: {where}: shape: {shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2:
        raise ModelFileError(f"{path}: {where}: data_offsets: {shown(offsets)}")
    begin, end = offsets
    if end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise ModelFileError(f"{path}: {where}: data_offsets: {end - begin} bytes for {dtype} {shown(shape)}")
    return shape, begin, end


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 1 << 63 for value in values)
