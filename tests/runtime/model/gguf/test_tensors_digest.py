"""The digest of tensors is that of their names, types, shapes and bytes, and of nothing else in their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_models import Entry, write_raw

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf.container import read_gguf
from stratakv.runtime.model.gguf.tensors_digest import tensors_digest

ONE, TWO = np.arange(32, dtype=np.float32), np.ones((2, 32), np.float32)
TENSORS: list[Entry] = [("one", ONE), ("two", TWO)]


def digest(folder: Path, tensors: list[Entry], parts: int = 0, **keys: Any) -> str:
    folder.mkdir()
    return tensors_digest(read_gguf(write_raw(folder / "m.gguf", "llama", keys, tensors, tensors_per_part=parts)))


def test_parts_order_and_keys_change_nothing(tmp_path: Path) -> None:
    whole = digest(tmp_path / "whole", TENSORS)
    assert len(whole) == 32
    assert digest(tmp_path / "parts", TENSORS, parts=1) == whole
    assert digest(tmp_path / "order", TENSORS[::-1]) == whole
    assert digest(tmp_path / "keys", TENSORS, name="another") == whole


def test_names_types_shapes_and_bytes_each_make_another(tmp_path: Path) -> None:
    last, half = ONE.copy(), ONE.astype(np.float16)
    last[-1] += 1
    other: list[Entry] = [
        ("too", TWO), ("two", TWO.reshape(1, 64)), ("two", TWO + 1), ("two", ONE), ("two", half),
        ("two", half.view(np.uint8), gguf.GGMLQuantizationType.BF16), ("two", last),
    ]  # fmt: skip
    each = [TENSORS, TENSORS[:1], [("one", TWO), ("two", ONE)], *([TENSORS[0], one] for one in other)]
    found = [digest(tmp_path / str(at), tensors) for at, tensors in enumerate(each)]
    assert len({*found}) == len(found)


def test_a_file_that_was_cut_behind_its_header_is_told(tmp_path: Path) -> None:
    (path,) = write_raw(tmp_path / "m.gguf", "llama", {}, TENSORS)
    contents = read_gguf([path])
    with path.open("r+b") as file:
        file.truncate(contents.tensors["two"].start + 8)
    with pytest.raises(ModelFileError, match=r"m\.gguf: the file ends inside tensor 'two'"):
        tensors_digest(contents)
