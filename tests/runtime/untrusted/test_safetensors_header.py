"""A header passes only if its tensors fill the data exactly."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from stratakv.runtime.untrusted.json_files import Limits
from stratakv.runtime.untrusted.safetensors_header import Header, TensorEntry, read_header


def refuse(what: str) -> Exception:
    return KeyError(what)


def header(entries: dict[str, Any], data_bytes: int) -> Header:
    text = json.dumps(entries).encode()
    data = len(text).to_bytes(8, "little") + text + bytes(data_bytes)
    return read_header(io.BytesIO(data), len(data), refuse)


def entry(begin: int, end: int, *shape: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def test_what_the_library_writes_is_read() -> None:
    payload = safetensors.numpy.save({"a": np.ones((2, 3), np.float32), "b": np.ones(5, np.uint8)}, {"say": "hello"})
    file = io.BytesIO(payload)
    found = read_header(file, len(payload), refuse)
    assert found.metadata == {"say": "hello"}
    assert file.tell() == found.num_bytes == len(payload) - found.data_bytes
    assert found.tensors() == {"a": TensorEntry("F32", (2, 3), 0, 24), "b": TensorEntry("U8", (5,), 24, 29)}


@pytest.mark.parametrize(
    ("entries", "says"),
    [
        ({"a": entry(0, 4, 4), "b": entry(5, 10, 5)}, "tensor 'b': it begins at byte 5, the one before it ends at 4"),
        ({"a": entry(0, 4, 4), "b": entry(3, 10, 7)}, "tensor 'b': it begins at byte 3"),
        ({"a": entry(0, 9, 9)}, "data: 10 bytes, its tensors have 9; is it complete?"),
        ({"a": entry(0, 11, 11)}, "data: 10 bytes, its tensors have 11"),
        ({"a": entry(0, 10, 5)}, "tensor 'a': data_offsets: 10 bytes for U8"),
        ({"a": entry(0, 10, 5, dtype="U128")}, "tensor 'a': dtype: 'U128' is not one of"),
        ({"a": entry(0, 10, -10)}, "tensor 'a': shape: "),
        ({"a": {**entry(0, 10, 10), "more": 1}}, "tensor 'a': expected dtype, shape and data_offsets"),
        ({"a": {**entry(0, 10, 10), "data_offsets": [0]}}, "tensor 'a': data_offsets: "),
        ({"a": 7}, "tensor 'a': expected dtype"),
    ],
)
def test_tensors_that_do_not_fill_the_data(entries: dict[str, Any], says: str) -> None:
    with pytest.raises(KeyError, match=says.replace("?", r"\?")):
        header(entries, 10).tensors()


@pytest.mark.parametrize("metadata", [["a"], {"a": 1}, "text"])
def test_metadata_are_texts(metadata: Any) -> None:
    with pytest.raises(KeyError, match="__metadata__: expected names and texts"):
        header({"__metadata__": metadata}, 0)


@pytest.mark.parametrize(
    "data", [b"", b"\x01\0\0", (1 << 60).to_bytes(8, "little") + b"{}", b"\x64" + bytes(7) + b"{}"]
)
def test_a_length_beyond_the_file_is_refused(data: bytes) -> None:
    with pytest.raises(KeyError, match="header length: "):
        read_header(io.BytesIO(data), len(data), refuse)


def test_a_long_header_is_refused_unread() -> None:
    data = (100).to_bytes(8, "little") + bytes(200)
    with pytest.raises(KeyError, match="at most 50"):
        read_header(io.BytesIO(data), len(data), refuse, Limits(50, 10))
