"""Weight files are known by their headers: shapes and sizes are told without a look at the numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from stratakv.runtime import ModelFileError
from stratakv.runtime.untrusted.weights import read_weights


def test_shapes_and_how_many_numbers_they_hold_together(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {
        "a": np.zeros((2, 3), np.float32),
        "b": np.zeros(5, np.uint8),
        "one": np.array(1.0),
        "none": np.zeros((0, 4)),
    }
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    found = read_weights(path)
    assert found.shapes == {"a": (2, 3), "b": (5,), "one": (), "none": (0, 4)}
    assert found.elements == 6 + 5 + 1


def test_a_terabyte_of_numbers_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    entry = {"dtype": "F32", "shape": [1 << 19, 1 << 19], "data_offsets": [0, 1 << 40]}
    header = json.dumps({"w": entry}).encode()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        file.truncate(8 + len(header) + (1 << 40))
    assert read_weights(path).elements == 1 << 38


def test_what_is_wrong_is_told_by_file_and_field(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.numpy.save_file({"a": np.zeros(4, np.uint8)}, path)
    whole = path.read_bytes()
    for content, says in (
        (whole[:-1], r"data: 3 bytes, its tensors have 4; is it complete\?"),
        (whole.replace(b"[4]", b"[5]"), "tensor 'a': data_offsets: 4 bytes for U8"),
        (b"", "header length: "),
    ):
        path.write_bytes(content)
        with pytest.raises(ModelFileError, match=f"^{path}: {says}"):
            read_weights(path)
