"""Rows multiplied with several heads, and added up for several, number by number. Numbers are whole, so that every sum
is exact in whatever order it is taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compiled_rows import nothing_yet
from torch import Tensor

from stratakv.kernels.compiled.native import floats
from stratakv.kernels.compiled.operation import Operation
from stratakv.kernels.compiled.record import BF16, F32
from stratakv.kernels.compiled.tiles import BLOCK, ROW, ROWS, highest, products_of, weighted_of

KINDS = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
HEADS = pytest.mark.parametrize("heads", [1, 2, 3, 4, 8])
_products_of_floats, _products_of_halves = products_of(F32), products_of(BF16)
_weighted_floats, _weighted_halves = weighted_of(F32), weighted_of(BF16)


def _multiply(
    kind: int, vectors: int, dim: int, heads: int, a: int, b: int, c: int, d: int, to: int, pitch: int
) -> None:
    if kind == F32:
        _products_of_floats(vectors, dim, heads, a, b, c, d, to, pitch)
    else:
        _products_of_halves(vectors, dim, heads, a, b, c, d, to, pitch)


def _add(kind: int, weights: int, shrink: int, heads: int, places: int, count: int, dim: int, out: int) -> None:
    if kind == F32:
        _weighted_floats(weights, shrink, heads, places, count, dim, out)
    else:
        _weighted_halves(weights, shrink, heads, places, count, dim, out)


def _find(numbers: int, to: int) -> None:
    floats(to, 1)[0] = highest(numbers)


multiply, add, find = Operation(_multiply, 10), Operation(_add, 8), Operation(_find, 2)


def whole(*shape: int, seed: int = 0) -> Tensor:
    """Small enough for bf16."""
    return torch.randint(-9, 10, shape, generator=torch.Generator().manual_seed(seed)).float()


def rows_of(count: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, list[int], int]:
    """Rows, their addresses, and their kind. They begin where no vector does."""
    rows = torch.cat([whole(1), whole(count * dim, seed=1)]).to(dtype)[1:].view(count, dim)
    return rows, [row.data_ptr() for row in rows], F32 if dtype == torch.float32 else BF16


@KINDS
@HEADS
@pytest.mark.parametrize("dim", [ROW, 3 * ROW])
def test_each_head_is_multiplied_with_each_row(dtype: torch.dtype, heads: int, dim: int) -> None:
    vectors, out = whole(heads, dim), nothing_yet(heads, ROWS + 2)
    rows, places, kind = rows_of(3, dim, dtype)
    four = [2, 0, 1, 1]  # rows lie anywhere, and may be the same
    multiply(
        kind, vectors.data_ptr(), dim, heads, *(places[t] for t in four), out.data_ptr(), out.stride(0) * out.itemsize
    )
    assert torch.equal(out[:, :ROWS], vectors @ rows[four].float().T)
    assert out[:, ROWS:].isnan().all(), "what lies between the heads' products"


@KINDS
@HEADS
@pytest.mark.parametrize("count", [0, 1, BLOCK])
def test_weighted_rows_are_added_to_what_is_left(dtype: torch.dtype, heads: int, count: int) -> None:
    """Weights behind those of the rows that there are count for nothing."""
    dim = 2 * ROW
    rows, places, kind = rows_of(BLOCK, dim, dtype)
    weights, shrink, out = whole(heads, BLOCK, seed=2), 0.5 ** torch.arange(heads), whole(heads + 1, dim, seed=3)
    weights[:, count:] = torch.nan
    expected = out[:heads] * shrink.unsqueeze(1) + weights[:, :count] @ rows[:count].float()
    behind, at = out[heads].clone(), np.array(places, dtype=np.int64)
    add(kind, weights.data_ptr(), shrink.data_ptr(), heads, at.ctypes.data, count, dim, out.data_ptr())
    assert torch.equal(out[:heads], expected)
    assert torch.equal(out[heads], behind), "written behind the last head"


def test_the_highest_is_found_wherever_it_is() -> None:
    numbers, found = torch.arange(BLOCK).float() - 40, nothing_yet(1)
    for turn in range(BLOCK):
        turned = numbers.roll(turn)
        find(turned.data_ptr(), found.data_ptr())
        assert found.item() == BLOCK - 1 - 40
    nothing = torch.full((BLOCK,), -torch.inf)
    find(nothing.data_ptr(), found.data_ptr())
    assert found.item() == -torch.inf
