"""The header of a safetensors file, read within bounds: the one place where it is parsed.

    header length u64 | header, a JSON object: {name: {dtype, shape, data_offsets}, __metadata__} | data

What passed has known dtypes, sizes that agree with shapes, and tensors that fill the data exactly: no overlap, no hole,
nothing outside, no bytes behind the last. Weights of models are such files, and so are sessions in a store; what is
wrong is raised as whichever error its reader wants.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, BinaryIO

from .json_files import HEADER, Limits, Refuse, parse
from .numbers import is_count, shown

MAX_TENSORS = 1 << 16
ITEM_BYTES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4, "I64": 8, "U64": 8, "F64": 8,
}  # fmt: skip
_MOST = 1 << 63


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """The place of one tensor: bytes `begin` to `end` of the data, which begins behind the header."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """A header whose JSON was read. Its tensors have not been looked at: a later version may mean others."""

    metadata: dict[str, str]
    num_bytes: int
    """Bytes of the header and of the length before it: the offset at which the data begins."""
    data_bytes: int
    _entries: dict[str, Any]
    _refuse: Refuse

    def tensors(self) -> dict[str, TensorEntry]:
        """All tensors by name, in the header's order. Raises the reader's error unless they fill the data exactly."""
        if len(self._entries) > MAX_TENSORS:
            raise self._refuse(f"header: {len(self._entries)} tensors, at most {MAX_TENSORS} are allowed")
        found = {name: self._entry(f"tensor {shown(name)}", entry) for name, entry in self._entries.items()}
        end = 0
        for name, entry in sorted(found.items(), key=lambda item: (item[1].begin, item[1].end, item[0])):
            if entry.begin != end:
                raise self._refuse(
                    f"tensor {shown(name)}: it begins at byte {entry.begin}, the one before it ends at {end}"
                )
            end = entry.end
        if end != self.data_bytes:
            raise self._refuse(f"data: {self.data_bytes} bytes, its tensors have {end}; is it complete?")
        return found

    def _entry(self, where: str, entry: Any) -> TensorEntry:
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise self._refuse(f"{where}: expected dtype, shape and data_offsets, not {shown(entry)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
            raise self._refuse(f"{where}: dtype: {shown(dtype)} is not one of {', '.join(ITEM_BYTES)}")
        if not _are_counts(shape) or len(shape) > 8 or prod(shape) >= _MOST:
            raise self._refuse(f"{where}: shape: {shown(shape)}")
        if not _are_counts(offsets) or len(offsets) != 2:
            raise self._refuse(f"{where}: data_offsets: {shown(offsets)}")
        begin, end = offsets
        if end - begin != prod(shape) * ITEM_BYTES[dtype]:
            raise self._refuse(f"{where}: data_offsets: {end - begin} bytes for {dtype} {shown(shape)}")
        return TensorEntry(dtype, tuple(shape), begin, end)


def read_header(file: BinaryIO, size: int, refuse: Refuse, limits: Limits = HEADER) -> Header:
    """Read the header of a file of `size` bytes, and leave the file where the data begins.

    Args:
        refuse: makes the error that is raised out of "field: what is wrong".
    """
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(limits.size, size - 8):
        raise refuse(f"header length: {length} bytes in a file of {size}, at most {limits.size}; is it complete?")
    entries = parse(file.read(length), "header", limits, refuse)
    metadata = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise refuse("__metadata__: expected names and texts")
    return Header(metadata, 8 + length, size - 8 - length, entries, refuse)


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(is_count(value) and value < _MOST for value in values)
