"""A new token's heads against PyTorch: norms, rotation, and where k and v go."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from compiled_rows import bits, nothing_yet, work

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.heads import heads, heads_bytes

BATCH, QUERIES, GROUPS, DIM = 2, 4, 2, 12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", ["none", "each", "wide"])
@pytest.mark.parametrize("rotary", [0, 8, DIM])
@pytest.mark.parametrize("in_pairs", [False, True])
@pytest.mark.parametrize("grows", [False, True])
def test_heads(dtype: torch.dtype, norm: str, rotary: int, in_pairs: bool, grows: bool) -> None:
    torch.manual_seed(1)
    qkv, weight = torch.randn(BATCH, QUERIES + 2 * GROUPS, DIM), torch.randn(QUERIES + GROUPS, DIM)
    factors = 1 + torch.rand(BATCH)
    cos, sin = torch.randn(BATCH, DIM), torch.randn(BATCH, max(rotary, 1))
    q, kv = nothing_yet(BATCH, QUERIES, DIM), torch.full((BATCH, 2, GROUPS, 5, DIM), 7.0, dtype=dtype)
    size = kv.element_size()
    kind = r.F32 if dtype == torch.float32 else r.BF16
    places = np.array(
        [[kv[b, 0, 0, 3].data_ptr(), 5 * DIM * size, GROUPS * 5 * DIM * size, kind] for b in range(BATCH)]
    )
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER]] = heads.address, BATCH * (QUERIES + 2 * GROUPS), 1
    row[[r.MEMORY, r.H_BATCH, r.H_HEADS, r.H_GROUPS, r.H_DIM]] = heads_bytes(DIM), BATCH, QUERIES, GROUPS, DIM
    row[[r.H_QKV, r.H_Q, r.H_COS, r.H_SIN]] = qkv.data_ptr(), q.data_ptr(), cos.data_ptr(), sin.data_ptr()
    row[[r.H_ROTARY, r.H_PLACES, r.H_PAIRS]] = rotary, places.ctypes.data, in_pairs * (rotary or DIM)
    row[[r.H_NORM, r.H_EPS, r.H_WIDE]] = weight.data_ptr() if norm != "none" else 0, bits(1e-5), int(norm == "wide")
    row[r.H_FACTORS] = factors.data_ptr() if grows else 0
    work(row)

    qk, v = qkv[:, : QUERIES + GROUPS], qkv[:, QUERIES + GROUPS :]
    if norm == "each":
        qk = F.rms_norm(qk, (DIM,), None, 1e-5) * weight
    elif norm == "wide":
        parts = qk.split([QUERIES, GROUPS], 1)
        qk = torch.cat([F.rms_norm(part, part.shape[1:], None, 1e-5) for part in parts], 1) * weight
    if in_pairs:
        width = rotary or DIM
        qk = torch.cat([qk[..., :width:2], qk[..., 1:width:2], qk[..., width:]], -1)
    if rotary:
        half, turned = rotary // 2, qk * cos[:, None]
        turned[..., :half] += qk[..., half:rotary] * sin[:, None, :half]
        turned[..., half:rotary] += qk[..., :half] * sin[:, None, half:]
        qk = turned
    torch.testing.assert_close(q, qk[:, :QUERIES] * factors[:, None, None] if grows else qk[:, :QUERIES])
    torch.testing.assert_close(kv[:, 0, :, 3], qk[:, QUERIES:].to(dtype), rtol=1e-2, atol=1e-5)
    assert torch.equal(kv[:, 1, :, 3], v.to(dtype))
    kv[:, :, :, 3] = 7.0
    assert (kv == 7.0).all(), "a number lies where none belongs"


@pytest.mark.parametrize("keys_are_values", [False, True])
def test_values_are_normed_and_may_be_keys(keys_are_values: bool) -> None:
    torch.manual_seed(2)
    qkv = torch.randn(BATCH, QUERIES + (1 if keys_are_values else 2) * GROUPS, DIM)
    weight, q, kv = (
        torch.randn(QUERIES + GROUPS, DIM),
        nothing_yet(BATCH, QUERIES, DIM),
        nothing_yet(BATCH, 2, GROUPS, DIM),
    )
    places = np.array([[one.data_ptr(), 4 * DIM, 4 * GROUPS * DIM, r.F32] for one in kv])
    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER]] = heads.address, BATCH * (QUERIES + 2 * GROUPS), 1
    row[[r.MEMORY, r.H_BATCH, r.H_HEADS, r.H_GROUPS, r.H_DIM]] = heads_bytes(DIM), BATCH, QUERIES, GROUPS, DIM
    row[[r.H_QKV, r.H_Q, r.H_PLACES, r.H_NORM]] = qkv.data_ptr(), q.data_ptr(), places.ctypes.data, weight.data_ptr()
    row[[r.H_EPS, r.H_NORMS_VALUES, r.H_KEYS_ARE_VALUES]] = bits(1e-5), 1, keys_are_values
    work(row)
    qk, v = qkv[:, : QUERIES + GROUPS], qkv[:, -GROUPS:]
    torch.testing.assert_close(torch.cat([q, kv[:, 0]], 1), F.rms_norm(qk, (DIM,), None, 1e-5) * weight)
    torch.testing.assert_close(kv[:, 1], F.rms_norm(v, (DIM,), None, 1e-5))
