"""A product with blocks gives each row its scale and its bias; products with one x make it once. Numbers are whole, so
that every sum is exact."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compiled_rows import Buffer, nothing_yet, product_row, work
from torch import Tensor

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.block_products import prepare, product, product_bytes
from stratakv.kernels.compiled.blocks import rows

COLUMNS, CHUNK = 64, 3


def whole(*shape: int, most: int = 50) -> Tensor:
    return torch.randint(-most, most + 1, shape, generator=torch.Generator().manual_seed(shape[0])).float()


def block_row(weight: Tensor, y: Tensor, a: Tensor, *, rounded: bool = False) -> np.ndarray:
    """y = W a with int8 W, which has a block for each 32 numbers."""
    row = product_row(weight, y, a, r.I8, chunk=CHUNK)
    row[[r.OPERATION, r.PREPARE, r.MEMORY]] = product.address, prepare.address, product_bytes(len(y), COLUMNS)
    row[[r.P_CODE, r.P_ROUNDED]] = rows(r.I8, rounded=rounded).address, rounded
    return row


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("has_scale", [False, True])
def test_rows_are_scaled_before_their_bias_is_added(has_scale: bool, has_bias: bool, batch: int) -> None:
    """Item by item, the last of which is short, in as many bytes as are said to be needed."""
    weight, a = whole(7, COLUMNS).to(torch.int8), whole(batch, COLUMNS)
    y, bias, scale = nothing_yet(batch, 9), whole(7), 2.0 ** torch.arange(-3, 4)
    row = block_row(weight, y, a)
    row[r.P_STRIDE] = 9
    row[r.P_SCALE] = scale.data_ptr() if has_scale else 0
    row[r.P_BIAS] = bias.data_ptr() if has_bias else 0
    scratch = Buffer(product_bytes(batch, COLUMNS), np.uint8)
    prepare(row.ctypes.data, scratch.address)
    for item in (2, 0, 1):
        product(row.ctypes.data, item, scratch.address)
    scratch.check()
    expected = a @ weight.float().T
    expected = expected * scale if has_scale else expected
    assert torch.equal(y[:, :7], expected + bias if has_bias else expected)
    assert y[:, 7:].isnan().all(), "rows that there are not"


def test_what_is_made_once_serves_the_products_behind_it() -> None:
    """Those that take it in the same form need not even arrange it; one that wants it rounded arranges it anew."""
    weights, a = [whole(n, COLUMNS).to(torch.int8) for n in (5, 9, 4)], whole(2, COLUMNS, most=32767)
    a[:, ::32] = 32767.0  # so that rounding changes nothing
    results = [nothing_yet(2, len(weight)) for weight in weights]
    table = [
        block_row(weight, y, a, rounded=rounded)
        for weight, y, rounded in zip(weights, results, [False, False, True], strict=True)
    ]
    table[0][r.BARRIER] = table[1][r.BARRIER] = 0
    table[1][[r.P_SAME, r.P_A, r.PREPARE]] = 1, 0, 0
    table[2][[r.P_SAME, r.P_A]] = 1, 0
    work(*table)
    for weight, y in zip(weights, results, strict=True):
        expected = a.double() @ weight.double().T
        torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=1.0)
