"""A token of recurrent layers in compiled loops against the rule and the convolution as they are written."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_rows import bits, nothing_yet, work
from torch import Tensor

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.mixers import convolve, delta, delta_bytes
from stratakv.kernels.delta_rule import delta_rule_reference

BATCH, TAPS = 2, 4


def convolved(weights: Tensor, columns: Tensor, new: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sequence, and the columns then."""
    rows = torch.cat([columns, new.unsqueeze(1)], 1)
    return (rows * weights.T).sum(1), rows[:, 1:]


@pytest.mark.parametrize("groups", [1, 2, 4])
def test_delta(groups: int) -> None:
    """Four value heads, each with the key head before it in a list of as many."""
    torch.manual_seed(groups)
    count, key, value = 4, 12, 10
    channels = 2 * groups * key + count * value
    given, weights = torch.randn(BATCH, channels + count * (value + 2)), torch.randn(channels, TAPS)
    rates, steps, norm = -torch.rand(count), torch.randn(count), torch.randn(value)
    columns, matrix = torch.randn(BATCH, TAPS - 1, channels), torch.randn(BATCH, count, key, value)
    behind, matrix_behind = nothing_yet(*columns.shape), nothing_yet(*matrix.shape)
    out = nothing_yet(BATCH, count, value)
    head, by = np.arange(count), np.arange(count) // (count // groups)
    at = np.stack([by * key, (groups + by) * key, 2 * groups * key + head * value], 1)
    rest = channels + np.stack([head * value, count * value + head, count * (value + 1) + head], 1)
    is_first = head % (count // groups) == 0
    places = np.ascontiguousarray(np.concatenate([at, rest, at, is_first[:, None]], 1, dtype=np.int64))
    tensors = columns, behind, matrix, matrix_behind
    states = np.array([[tensor[b].data_ptr() for tensor in tensors] for b in range(BATCH)])
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER, r.MEMORY]] = delta.address, BATCH * count, 1, delta_bytes(key, value)
    row[[r.D_BATCH, r.D_HEADS, r.D_KEY, r.D_VALUE, r.D_CHANNELS, r.D_TAPS]] = BATCH, count, key, value, channels, TAPS
    row[[r.D_IN, r.D_STRIDE, r.D_OUT]] = given.data_ptr(), given.shape[1], out.data_ptr()
    row[[r.D_PLACES, r.D_STATES]] = places.ctypes.data, states.ctypes.data
    row[[r.D_WEIGHTS, r.D_RATES, r.D_STEPS]] = weights.data_ptr(), rates.data_ptr(), steps.data_ptr()
    row[[r.D_NORM, r.D_EPS, r.D_SCALE]] = norm.data_ptr(), bits(1e-6), bits(0.25)
    work(row)

    mixed, z, b, a = given.split([channels, count * value, count, count], 1)
    made, columns = convolved(weights, columns, mixed)
    assert torch.equal(behind, columns)
    q, k, v = F.silu(made).split([groups * key, groups * key, count * value], 1)
    q, k = (F.normalize(part.view(BATCH, groups, key), dim=-1)[:, by] for part in (q, k))
    for at_row in range(BATCH):
        inputs = 0.25 * q[at_row], k[at_row], v[at_row].view(count, value), rates * F.softplus(a[at_row] + steps)
        read, state = delta_rule_reference(*(one[None] for one in (*inputs, b[at_row].sigmoid())), matrix[at_row])
        torch.testing.assert_close(matrix_behind[at_row], state, rtol=1e-4, atol=1e-5)
        expected = F.rms_norm(read[0], (value,), norm, 1e-6) * F.silu(z[at_row].view(count, value))
        torch.testing.assert_close(out[at_row], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("taps", [1, 2, TAPS])
@pytest.mark.parametrize("has_bias", [False, True])
def test_convolve(taps: int, has_bias: bool) -> None:
    torch.manual_seed(taps)
    channels = 21
    given, weights, bias = torch.randn(BATCH, 3, channels), torch.randn(channels, taps), torch.randn(channels)
    columns, out = torch.randn(BATCH, taps - 1, channels), nothing_yet(BATCH, channels)
    behind = nothing_yet(*columns.shape)
    states = np.array([[columns[b].data_ptr(), behind[b].data_ptr()] for b in range(BATCH)])
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER]] = convolve.address, BATCH * 3, 1
    row[[r.K_BATCH, r.K_CHANNELS, r.K_TAPS, r.K_CHUNK]] = BATCH, channels, taps, 8
    row[[r.K_IN, r.K_OUT, r.K_STATES]] = given.data_ptr(), out.data_ptr(), states.ctypes.data
    row[[r.K_WEIGHTS, r.K_BIAS]] = weights.data_ptr(), bias.data_ptr() if has_bias else 0
    work(row)
    made, columns = convolved(weights, columns, given[:, 0] * given[:, 2])
    assert torch.equal(behind, columns)
    torch.testing.assert_close(out, given[:, 1] * (made + bias if has_bias else made))
