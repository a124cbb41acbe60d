"""Products of a compiled step against PyTorch's, for every kind of weight and every way in which x is made."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from compiled_rows import bits, nothing_yet, product_row, work
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratakv.kernels.compiled import record as r

drawn = settings(max_examples=30, derandomize=True, deadline=None)


def weights(kind: int, rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """A weight as it is held, and the numbers it stands for."""
    plain = torch.randn(rows, columns)
    return (plain, plain) if kind == r.F32 else (plain.bfloat16(), plain.bfloat16().float())


@drawn
@given(
    kind=st.sampled_from([r.F32, r.BF16]), rows=st.integers(1, 40), columns=st.integers(1, 70),
    batch=st.integers(1, 4), has_bias=st.booleans(), seed=st.integers(0, 9),
)  # fmt: skip
def test_a_product_is_torchs(kind: int, rows: int, columns: int, batch: int, has_bias: bool, seed: int) -> None:
    torch.manual_seed(seed)
    held, plain = weights(kind, rows, columns)
    x, y, bias = torch.randn(batch, columns), nothing_yet(batch, rows), torch.randn(rows)
    row = product_row(held, y, x, kind)
    row[r.P_BIAS] = bias.data_ptr() if has_bias else 0
    work(row)
    torch.testing.assert_close(y, F.linear(x, plain, bias if has_bias else None), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", [r.F32, r.BF16])
def test_neither_threads_nor_other_sequences_change_a_bit(kind: int) -> None:
    held, _ = weights(kind, 37, 65)
    x, found = torch.randn(3, 65), []
    for threads in (1, 2, 3):
        y = nothing_yet(3, 37)
        work(product_row(held, y, x, kind), threads=threads)
        found.append(y)
    alone, second = nothing_yet(1, 37), x[1:2].clone()
    work(product_row(held, alone, second, kind))
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0][1], alone[0])


@pytest.mark.parametrize("has_more", [True, False])
@pytest.mark.parametrize("norms_more", [True, False])
@pytest.mark.parametrize("norms_sum", [True, False])
def test_a_sum_is_left_and_normed(has_more: bool, norms_more: bool, norms_sum: bool) -> None:
    a, d, weight, of_d, of_sum = (torch.randn(*s) for s in ((2, 21), (2, 21), (5, 21), (21,), (21,)))
    y, total = nothing_yet(2, 5), nothing_yet(2, 21)
    row = product_row(weight, y, a, r.F32)
    row[[r.P_INPUT, r.P_SUM, r.P_EPS]] = r.SUM, total.data_ptr(), bits(1e-5)
    row[r.P_D] = d.data_ptr() if has_more else 0
    row[r.P_NORM_D] = of_d.data_ptr() if norms_more else 0
    row[r.P_NORM] = of_sum.data_ptr() if norms_sum else 0
    row[r.P_TOTAL] = bits(0.75)
    work(row)
    expected = a
    if has_more:
        expected = 0.75 * (a + (F.rms_norm(d, (21,), of_d, 1e-5) if norms_more else d))
        torch.testing.assert_close(total, expected)
    else:
        assert total.isnan().all()
    normed = F.rms_norm(expected, (21,), of_sum, 1e-5) if norms_sum else expected
    torch.testing.assert_close(y, normed @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("is_parallel", [False, True])
@pytest.mark.parametrize("is_centred", [False, True])
def test_a_sum_with_a_factor(is_centred: bool, is_parallel: bool) -> None:
    a, d, weight, of_sum = (torch.randn(*s) + 0.5 for s in ((2, 21), (2, 21), (5, 21), (21,)))
    y, total = nothing_yet(2, 5), nothing_yet(2, 21)
    row = product_row(weight, y, a, r.F32)
    row[[r.P_INPUT, r.P_SUM, r.P_EPS, r.P_D]] = r.SUM, total.data_ptr(), bits(1e-5), d.data_ptr()
    row[[r.P_NORM, r.P_FACTOR]] = of_sum.data_ptr(), bits(0.25)
    row[[r.P_CENTRED, r.P_PARALLEL]] = is_centred, is_parallel
    work(row)
    torch.testing.assert_close(total, a + 0.25 * d)
    normed = a if is_parallel else a + 0.25 * d
    norm = F.layer_norm(normed, (21,), of_sum, eps=1e-5) if is_centred else F.rms_norm(normed, (21,), of_sum, 1e-5)
    torch.testing.assert_close(y, norm @ weight.T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("act", "function"), [(r.SILU, F.silu), (r.GELU_TANH, lambda x: F.gelu(x, approximate="tanh"))]
)
def test_gates(act: int, function: Callable[[Tensor], Tensor]) -> None:
    given_, weight, y = 4 * torch.randn(2, 2 * 19), torch.randn(7, 19), nothing_yet(2, 7)
    given_[0, :3] = torch.tensor([-90.0, 90.0, 0.0])  # where the exponential ends
    row = product_row(weight, y, given_, r.F32)
    row[[r.P_INPUT, r.P_ACT]] = r.GATED, act
    work(row)
    expected = function(given_[:, :19]) * given_[:, 19:]
    torch.testing.assert_close(y, expected @ weight.T, rtol=1e-5, atol=1e-4)


def test_gates_that_are_clamped() -> None:
    given_, weight, y = 4 * torch.randn(2, 2 * 19), torch.randn(7, 19), nothing_yet(2, 7)
    given_[0, :3] = given_[0, 19:22] = torch.tensor([-90.0, 90.0, 0.0])
    row = product_row(weight, y, given_, r.F32)
    row[[r.P_INPUT, r.P_ACT, r.P_LIMIT, r.P_SLOPE]] = r.GATED, r.CLAMPED, bits(3.0), bits(1.702)
    work(row)
    gate, up = given_[:, :19].clamp(max=3), given_[:, 19:].clamp(-3, 3)
    expected = gate * torch.sigmoid(1.702 * gate) * (up + 1)
    torch.testing.assert_close(y, expected @ weight.T, rtol=1e-5, atol=1e-4)


def test_what_is_made_once_serves_the_product_behind_it() -> None:
    a, first, second = torch.randn(2, 16), torch.randn(5, 16), torch.randn(9, 16)
    left, right = nothing_yet(2, 5), nothing_yet(2, 9)
    rows = [product_row(first, left, a, r.F32), product_row(second, right, a, r.F32)]
    rows[0][r.BARRIER] = 0
    rows[1][[r.P_SAME, r.P_A]] = 1, 0
    work(*rows)
    torch.testing.assert_close(left, a @ first.T, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(right, a @ second.T, rtol=1e-5, atol=1e-5)
