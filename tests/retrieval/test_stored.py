"""A state from anywhere is checked tensor by tensor before an index works with it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from stratakv.retrieval.stored import Geometry, Stored, check_stored

EXPECTED = {
    "bounds": Stored(torch.float16, (2, 3)),
    "ids": Stored(torch.int32, (2,), low=0, below=7),
    "none": Stored(torch.int64, (0, 5), low=0),
}


def tensors(**changes: Any) -> dict[str, torch.Tensor]:
    found = {
        "bounds": torch.ones(2, 3, dtype=torch.float16),
        "ids": torch.tensor([0, 6], dtype=torch.int32),
        "none": torch.empty(0, 5, dtype=torch.int64),
    }
    return {name: tensor for name, tensor in {**found, **changes}.items() if tensor is not None}


def test_what_is_as_expected_passes() -> None:
    check_stored(tensors(), EXPECTED)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"ids": None}, "'ids': is not there"),
        ({"other": torch.ones(1)}, "'other': unknown"),
        ({"bounds": torch.ones(2, 3)}, r"'bounds': torch.float32 \(2, 3\), expected torch.float16"),
        ({"bounds": torch.ones(3, 2, dtype=torch.float16)}, r"'bounds': torch.float16 \(3, 2\)"),
        ({"bounds": torch.full((2, 3), math.nan, dtype=torch.float16)}, "not finite"),
        ({"bounds": torch.full((2, 3), -math.inf, dtype=torch.float16)}, "not finite"),
        ({"ids": torch.tensor([0, -1], dtype=torch.int32)}, "'ids': has a value below 0"),
        ({"ids": torch.tensor([7, 0], dtype=torch.int32)}, "'ids': has a value of 7 or more"),
    ],
)
def test_what_is_not_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        check_stored(tensors(**changes), EXPECTED)


def test_shapes_follow_from_the_keys() -> None:
    of = Geometry(torch.empty(2, 0, 64), num_tokens=7, repeats=3)
    assert (of.groups, of.dim) == (2, 64)
