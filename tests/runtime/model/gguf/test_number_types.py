"""Types of numbers, and rows read out of a file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stratakv.runtime import ModelFileError
from stratakv.runtime.model.gguf import number_types
from stratakv.runtime.model.gguf.number_types import Tensor, packed, values

FILE = Path("a.gguf")
NUMBERS = np.random.default_rng(0).normal(size=(50, 8)).astype(np.float32)


def tensor(folder: Path, *, cut: int = 0) -> Tensor:
    path = folder / "a.gguf"
    path.write_bytes(b"head" + NUMBERS.tobytes()[: NUMBERS.nbytes - cut])
    return Tensor("weight", NUMBERS.shape, 0, path, 4, NUMBERS.nbytes)


@pytest.mark.parametrize(("kind", "expected"), [(0, (1, 4)), (1, (1, 2)), (8, (32, 34)), (12, (256, 144))])
def test_blocks(kind: int, expected: tuple[int, int]) -> None:
    assert packed(FILE, "weight", kind) == expected


@pytest.mark.parametrize(
    ("kind", "says"), [(4, "number type Q4_2 is not supported"), (9999, "data of the unknown type 9999")]
)
def test_types_that_cannot_be_read(kind: int, says: str) -> None:
    with pytest.raises(ModelFileError, match=says):
        packed(FILE, "weight", kind)


@pytest.mark.parametrize("chunk", [1, 24, 1 << 20])
@pytest.mark.parametrize(("first", "rows"), [(0, None), (0, 50), (7, 20), (49, 1)])
def test_rows_a_few_at_a_time(
    chunk: int, first: int, rows: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(number_types, "_CHUNK", chunk)
    found = list(values(tensor(tmp_path), first, rows))
    assert all(len(some) <= max(1, chunk // 8) for some in found)
    assert np.array_equal(np.concatenate(found), NUMBERS[first : None if rows is None else first + rows])


def test_a_file_that_ends_inside(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="tensor 'weight': the file ends inside it"):
        list(values(tensor(tmp_path, cut=1)))
