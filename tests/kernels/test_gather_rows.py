"""Gathering rows: the reference and Triton against plain indexing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import poison_empty
from torch import Tensor
from triton_device import DEVICE, INTERPRETED, MARKS

from stratakv.kernels.gather_rows import gather_rows, gather_rows_reference, gather_rows_triton

pytestmark = MARKS


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def on_host(tensor: Tensor) -> Tensor:
    """Pinned where there is a device to read it from."""
    return tensor if INTERPRETED else tensor.cpu().pin_memory()


KERNELS = [gather_rows, gather_rows_reference, gather_rows_triton]


@pytest.mark.parametrize("gather", KERNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8], ids=str)
@pytest.mark.parametrize(("count", "width"), [(0, 64), (1, 1), (13, 33), (5, 64), (3, 2048), (40, 6), (2, 1030)])
def test_rows(gather: Any, count: int, width: int, dtype: torch.dtype) -> None:
    random = torch.Generator().manual_seed(width)
    source = torch.randint(0, 255, (29, width), generator=random).to(dtype)
    rows = torch.randint(0, 29, (count,), generator=random)
    out = torch.full((count, width), 255, dtype=dtype, device=DEVICE)
    gather(on_host(source), rows.to(DEVICE), out)
    assert out.cpu().tolist() == [source[row].tolist() for row in rows.tolist()]


@pytest.mark.parametrize("gather", KERNELS)
@pytest.mark.parametrize(("step", "begin", "width"), [(30, 4, 5), (30, 4, 6), (31, 4, 6), (30, 3, 6)])
def test_rows_that_lie_apart(gather: Any, step: int, begin: int, width: int) -> None:
    """Aligned to words or not, by their length, their distance or their beginning."""
    source = on_host(torch.arange(7 * step, dtype=torch.int16).view(7, step))[:, begin : begin + width]
    rows = torch.tensor([6, 0, 0, 3], dtype=torch.int32, device=DEVICE)
    out = torch.empty(4, width, dtype=torch.int16, device=DEVICE)
    gather(source, rows, out)
    assert out.tolist() == source[[6, 0, 0, 3]].tolist()


@pytest.mark.parametrize(
    ("source", "rows", "out", "message"),
    [
        (torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 5), r"\[3, 5\]"),
        (torch.zeros(5, 4), torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4).half(), "one dtype"),
        (torch.zeros(4, 5).T, torch.zeros(3, dtype=torch.int64), torch.zeros(3, 4), "each row of source"),
    ],
)
def test_rows_that_do_not_fit_are_refused(source: Tensor, rows: Tensor, out: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gather_rows(source, rows, out)
