"""A row multiplied with one vector and with four: exactly where numbers are whole, and to the bit alike elsewhere."""

from __future__ import annotations

import pytest
import torch
from compiled_rows import nothing_yet
from torch import Tensor

from stratakv.kernels.compiled.dots import dot_of, four_dots_of
from stratakv.kernels.compiled.native import floats
from stratakv.kernels.compiled.operation import Operation
from stratakv.kernels.compiled.record import BF16, F32

KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
WIDTHS = pytest.mark.parametrize("width", [1, 15, 16, 17, 64, 95])
_dot_of_floats, _dot_of_halves = dot_of(F32), dot_of(BF16)
_four_of_floats, _four_of_halves = four_dots_of(F32), four_dots_of(BF16)


def _one(kind: int, row: int, width: int, x: int, to: int) -> None:
    found = _dot_of_floats(row, width, x) if kind == F32 else _dot_of_halves(row, width, x)
    floats(to, 1)[0] = found[0]


def _four(kind: int, row: int, width: int, a: int, b: int, c: int, d: int, to: int) -> None:
    four = floats(to, 4)
    if kind == F32:
        four[0], four[1], four[2], four[3] = _four_of_floats(row, width, a, b, c, d)
    else:
        four[0], four[1], four[2], four[3] = _four_of_halves(row, width, a, b, c, d)


one, four = Operation(_one, 5), Operation(_four, 8)


def products(row: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """With each of four vectors, one by one and together."""
    kind, alone, together = F32 if row.dtype == torch.float32 else BF16, nothing_yet(4), nothing_yet(4)
    for n in range(4):
        one(kind, row.data_ptr(), len(row), x[n].data_ptr(), alone[n:].data_ptr())
    four(kind, row.data_ptr(), len(row), *(x[n].data_ptr() for n in range(4)), together.data_ptr())
    return alone, together


@KINDS
@WIDTHS
def test_all_numbers_are_counted_once_and_none_beside_them(dtype: torch.dtype, width: int) -> None:
    """What lies around the row and the vectors is no number: whoever reads it has none."""
    rows, x = torch.full((width + 2,), torch.nan, dtype=dtype), torch.full((4, width + 2), torch.nan)
    rows[1:-1], x[:, 1:-1] = torch.arange(width) % 7 - 3, torch.arange(4 * width).view(4, width) % 11 - 5
    expected = x[:, 1:-1] @ rows[1:-1].float()
    for found in products(rows[1:-1], x[:, 1:-1]):
        assert torch.equal(found, expected)


@KINDS
@WIDTHS
def test_one_and_four_have_the_same_bits(dtype: torch.dtype, width: int) -> None:
    torch.manual_seed(width)
    alone, together = products(torch.randn(width).to(dtype), torch.randn(4, width))
    assert torch.equal(alone, together)
