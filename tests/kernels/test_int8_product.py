"""Products with weights of 8 bits: the Triton kernel against the formula, and the formula against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from closeness import assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.int8_product import int8_product, int8_product_reference, int8_product_triton, widen_int8

pytestmark = MARKS


def drawn(batch: int, rows: int, columns: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(batch, columns, generator=draw).to(DEVICE, dtype)
    codes = torch.randint(-127, 128, (rows, columns), generator=draw, dtype=torch.int8).to(DEVICE)
    return x, codes, torch.rand(rows, generator=draw).to(DEVICE, dtype) / 100


@pytest.mark.parametrize(
    ("batch", "rows", "columns", "dtype"),
    [
        (1, 37, 300, torch.bfloat16), (3, 16, 64, torch.float16), (17, 5, 33, torch.float32), (2, 33, 1, torch.float32),
        (0, 8, 64, torch.bfloat16),
    ],
)  # fmt: skip
def test_triton_multiplies_as_the_formula_does(
    batch: int, rows: int, columns: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, codes, scales = drawn(batch, rows, columns, dtype)
    expected = int8_product_reference(x, codes, scales)
    poison_empty(monkeypatch)
    found = int8_product_triton(x, codes, scales)
    assert found.dtype == dtype
    assert_close("out", found, expected, dtype)


def test_x_may_lie_otherwise() -> None:
    x, codes, scales = drawn(4, 16, 64, torch.float32)
    strided = torch.stack([x, x], 1)[:, 0]
    assert_close("out", int8_product_triton(strided, codes, scales), int8_product_reference(x, codes, scales))


def test_the_formula_is_that_of_pytorchs_product() -> None:
    x, codes, scales = (one.cpu() for one in drawn(3, 64, 128, torch.float32))
    assert_close("out", int8_product(x, codes, scales), torch._weight_int8pack_mm(x, codes, scales))
    assert_close("out", x @ widen_int8(codes, scales).T, int8_product(x, codes, scales))
