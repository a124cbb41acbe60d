"""Prefill attention: against a slow loop in float64, and against its own reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from closeness import HEAD_SHAPES, assert_close
from torch import Tensor

from stratakv.kernels.prefill_attention import masked_attention, prefill_attention, prefill_attention_reference


def draw(heads: int, groups: int, rows: int, keys: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows * 1000 + keys)
    shapes = ((heads, rows, dim), (groups, keys, dim), (groups, keys, dim))
    q, k, v = (torch.randn(*shape, generator=generator).to(dtype) for shape in shapes)
    return q, k, v


def dot(a: Tensor, b: Tensor) -> float:
    return math.fsum(x * y for x, y in zip(a.tolist(), b.tolist(), strict=True))


def slow(q: Tensor, k: Tensor, v: Tensor, scale: float, causal: bool) -> tuple[Tensor, Tensor]:
    """One row, one key at a time, in float64."""
    out, lse = np.zeros(q.shape), np.zeros(q.shape[:2])
    for h in range(q.shape[0]):
        g = h // (q.shape[0] // k.shape[0])
        for t in range(q.shape[1]):
            seen = range(t + 1 if causal else k.shape[1])
            weights = [math.exp(scale * dot(q[h, t], k[g, s])) for s in seen]
            out[h, t] = sum(w * v[g, s].double().numpy() for s, w in zip(seen, weights, strict=True)) / sum(weights)
            lse[h, t] = math.log(sum(weights))
    return torch.from_numpy(out), torch.from_numpy(lse)


@pytest.mark.parametrize("kernel", [prefill_attention, prefill_attention_reference])
@pytest.mark.parametrize(("rows", "keys", "causal"), [(1, 1, True), (5, 5, True), (1, 7, False), (5, 3, False)])
@pytest.mark.parametrize("repeats", [1, 3])
def test_against_a_slow_loop(kernel: Any, rows: int, keys: int, causal: bool, repeats: int) -> None:
    q, k, v = draw(2 * repeats, 2, rows, keys, 8, torch.float32)
    out, lse = kernel(q, k, v, scale=0.3, causal=causal)
    expected, expected_lse = slow(q, k, v, 0.3, causal)
    assert_close("out", out, expected)
    assert_close("lse", lse, expected_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_a_mask_of_what_a_causal_row_sees(dtype: torch.dtype) -> None:
    q, k, v = draw(6, 2, 5, 5, 8, dtype)
    mask = torch.full((5, 5), -torch.inf, dtype=dtype).triu(1)
    expected, _ = prefill_attention_reference(q, k, v, scale=0.3, causal=True)
    assert_close("out", masked_attention(q, k, v, mask, scale=0.3), expected, dtype)


@pytest.mark.parametrize("dim", [24, 576])
def test_values_narrower_than_keys(dim: int) -> None:
    """Of latent attention; wider than some operators take."""
    q, k, _ = draw(4, 1, 5, 5, dim, torch.float32)
    values = k[..., -16:]
    for causal in (True, False):
        out, lse = prefill_attention(q, k, values, scale=0.2, causal=causal)
        expected, expected_lse = prefill_attention_reference(q, k, values, scale=0.2, causal=causal)
        assert out.shape == (4, 5, 16)
        assert_close("out", out, expected)
        assert_close("lse", lse, expected_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("repeats", "dim"), HEAD_SHAPES)
@pytest.mark.parametrize(
    ("rows", "keys", "causal"), [(1, 1, True), (63, 63, True), (130, 130, True), (1, 200, False), (17, 513, False)]
)
def test_against_the_reference(rows: int, keys: int, causal: bool, repeats: int, dim: int, dtype: torch.dtype) -> None:
    q, k, v = draw(2 * repeats, 2, rows, keys, dim, dtype)
    out, lse = prefill_attention(q, k, v, scale=dim**-0.5, causal=causal)
    expected, expected_lse = prefill_attention_reference(q, k, v, scale=dim**-0.5, causal=causal)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_close("out", out, expected, dtype)
    assert_close("lse", lse, expected_lse, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("repeats", [1, 4])
@pytest.mark.parametrize(("rows", "keys", "causal"), [(130, 130, True), (17, 513, False)])
def test_cuda_against_the_reference(rows: int, keys: int, causal: bool, repeats: int, dtype: torch.dtype) -> None:
    q, k, v = draw(2 * repeats, 2, rows, keys, 128, dtype)
    out, lse = prefill_attention(q.cuda(), k.cuda(), v.cuda(), scale=0.1, causal=causal)
    expected, expected_lse = prefill_attention_reference(q, k, v, scale=0.1, causal=causal)
    assert_close("out", out.cpu(), expected, dtype)
    assert_close("lse", lse.cpu(), expected_lse, dtype)


def test_inputs_may_be_views_with_any_stride() -> None:
    """As the runtime passes them: rows of a span buffer, heads split off a projection."""
    q, k, v = draw(4, 2, 33, 33, 64, torch.float32)
    split = lambda t: t.transpose(0, 1).contiguous().transpose(0, 1)  # noqa: E731
    span = torch.full((2, 2, 50, 64), float("nan"))
    span[0, :, 7:40], span[1, :, 7:40] = k, v
    out, lse = prefill_attention(split(q), span[0, :, 7:40], span[1, :, 7:40], scale=0.2, causal=True)
    expected, expected_lse = prefill_attention_reference(q, k, v, scale=0.2, causal=True)
    assert_close("out", out, expected)
    assert_close("lse", lse, expected_lse)


def test_causal_rows_do_not_see_the_future() -> None:
    q, k, v = draw(2, 2, 20, 20, 64, torch.float32)
    before, _ = prefill_attention(q, k, v, scale=0.2, causal=True)
    k[:, 12:], v[:, 12:] = 9.0, -9.0
    after, _ = prefill_attention(q, k, v, scale=0.2, causal=True)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


@pytest.mark.parametrize(
    ("q", "k", "v", "causal"),
    [
        ((4, 5, 64), (3, 5, 64), (3, 5, 64), False),
        ((4, 5, 64), (2, 5, 32), (2, 5, 32), False),
        ((4, 5, 64), (2, 5, 64), (2, 6, 64), False),
        ((4, 5, 64), (2, 6, 64), (2, 6, 64), True),
    ],
    ids=["heads", "head-dim", "keys-and-values", "causal-needs-a-square"],
)
def test_shapes_that_do_not_fit_are_refused(q: Any, k: Any, v: Any, causal: bool) -> None:
    with pytest.raises(ValueError, match=r"expected|needs"):
        prefill_attention(torch.zeros(q), torch.zeros(k), torch.zeros(v), scale=1.0, causal=causal)
