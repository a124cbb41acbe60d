"""The highest logits once more, against PyTorch: which they are, and what they become."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_rows import bits, work
from torch import Tensor

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.sharpen import sharpen, sharpen_bytes


def sharpened(logits: Tensor, hidden: Tensor, norm: Tensor, weight: Tensor, bias: Tensor | None, count: int) -> Tensor:
    found = logits.clone()
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER]] = sharpen.address, len(logits), 1
    row[r.MEMORY] = sharpen_bytes(weight.shape[1], count)
    row[[r.T_BATCH, r.T_ROWS, r.T_COLUMNS, r.T_COUNT]] = len(logits), *weight.shape, count
    row[[r.T_LOGITS, r.T_HIDDEN, r.T_NORM, r.T_EPS]] = found.data_ptr(), hidden.data_ptr(), norm.data_ptr(), bits(1e-5)
    row[[r.T_WEIGHT, r.T_KIND]] = weight.data_ptr(), r.F32 if weight.dtype == torch.float32 else r.BF16
    row[r.T_BIAS] = 0 if bias is None else bias.data_ptr()
    work(row)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "count"), [(1, 1), (16, 16), (17, 16), (65, 3), (1000, 16), (1025, 1)])
def test_the_highest_are_those_of_the_unrounded_weights(rows: int, count: int, dtype: torch.dtype) -> None:
    torch.manual_seed(rows)
    hidden, norm, weight = torch.randn(3, 33), torch.randn(33), torch.randn(rows, 33).to(dtype)
    bias = torch.randn(rows) if rows % 2 else None
    exact = F.linear(F.rms_norm(hidden, (33,), norm, 1e-5), weight.float(), bias)
    logits = torch.stack([torch.randperm(rows) for _ in range(3)]).float()
    expected, ids = logits.clone(), logits.topk(count).indices
    expected.scatter_(1, ids, exact.gather(1, ids))
    torch.testing.assert_close(sharpened(logits, hidden, norm, weight, bias, count), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ["up", "down", "equal", "none"])
def test_logits_in_any_order(order: str) -> None:
    """Ascending ones take all places anew again and again; of equal ones any may be taken, but as many as there are to
    be; what is not a number makes nobody read elsewhere."""
    rows, count = 300, 16
    logits = torch.arange(rows, dtype=torch.float32).view(1, -1) + 1000
    made = {"up": logits, "down": logits.flip(1).contiguous(), "equal": torch.full_like(logits, 2.0)}
    given = made.get(order, torch.full_like(logits, torch.nan))
    hidden, norm, weight = torch.ones(1, 8), torch.ones(8), torch.zeros(rows, 8)
    found = sharpened(given, hidden, norm, weight, None, count)
    assert int((found == 0).sum()) == count
    if order in ("up", "down"):
        assert (found[given > 1000 + rows - count - 1] == 0).all()
