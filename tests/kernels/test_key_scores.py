"""Scores of keys, with room for more: against the formula, and no bit depends on the room."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.key_scores import key_scores, key_scores_reference, key_scores_triton

pytestmark = MARKS
both = pytest.mark.parametrize("op", [key_scores, key_scores_triton], ids=["torch", "triton"])


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


@both
@pytest.mark.parametrize(
    ("total", "heads", "dim", "dtype"),
    [
        (0, 1, 64, torch.float32), (1, 3, 80, torch.float16), (203, 4, 96, torch.bfloat16), (70, 1, 256, torch.float32),
        (5, 16, 512, torch.bfloat16),
    ],
)  # fmt: skip
def test_against_the_formula(op: Any, total: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    """Queries and keys are strided."""
    q, keys = normal(2, heads, 2 * dim)[..., ::2], normal(2, total + 1, dim, dtype=dtype, seed=1)[:, 1:]
    assert_close("scores", op(q, keys), key_scores_reference(q, keys))


@both
def test_ragged_rows(op: Any) -> None:
    """What there is only room for is not looked at."""
    q, keys, counts = normal(3, 2, 48), normal(3, 1030, 48, seed=1), [1030, 0, 170]
    expected = op(q, keys)
    for room in (1030, 1100):
        wider = torch.full((3, room, 48), float("nan"), device=DEVICE)
        wider[:, :1030] = keys
        wider[2, 170:] = float("nan")
        found = op(q, wider, torch.tensor(counts, device=DEVICE))
        assert found.shape == (3, 2, room)
        for row, count in enumerate(counts):
            assert torch.equal(found[row, :, :count], expected[row, :, :count])
            assert_close("scores", found[row, :, :count], key_scores_reference(q, keys)[row, :, :count])
            assert (found[row, :, count:] == -torch.inf).all()
    assert torch.equal(op(q, wider, torch.tensor(counts, device=DEVICE)[2:].expand(3))[2], found[2])
