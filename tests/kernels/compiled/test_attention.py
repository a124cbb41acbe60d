"""Attention that reads units where they lie against one softmax over copies of them; parts are put together. The same
tokens leave the same bits however they are said."""

from __future__ import annotations

import numpy as np
import torch
from compiled_rows import bits, nothing_yet, product_row, work
from hypothesis import given, settings
from hypothesis import strategies as st

from stratakv.kernels.compiled import record as r
from stratakv.kernels.compiled.attention import attend, attend_bytes
from stratakv.kernels.decode_attention import decode_attention_reference
from stratakv.kernels.sinks import with_sinks

drawn = settings(max_examples=40, derandomize=True, deadline=None)
PAGE, SPAN = 16, 32
KINDS = {torch.float32: r.F32, torch.bfloat16: r.BF16}


@drawn
@given(
    dtype=st.sampled_from([torch.float32, torch.bfloat16]), groups=st.integers(1, 2),
    repeats=st.sampled_from([1, 2, 3, 4, 5, 8, 16]), dim=st.sampled_from([2, 24, 64, 512]),
    unit=st.sampled_from([1, 4, 16]), pages=st.integers(0, 9), tail=st.integers(1, 50),
    chooses=st.booleans(), is_own=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_attention_is_one_softmax(
    dtype: torch.dtype, groups: int, repeats: int, dim: int, unit: int, pages: int, tail: int, chooses: bool,
    is_own: bool, seed: int,
) -> None:  # fmt: skip
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    stored = torch.randn(pages, groups, 2, PAGE, dim).to(dtype)
    order = rng.permutation(pages)  # pages lie anywhere
    size = stored.element_size()
    places = stored.data_ptr() + order * (groups * 2 * PAGE * dim * size)
    behind = torch.randn(2, groups, tail, dim).to(dtype)
    q = torch.randn(groups, repeats, dim)
    units = pages * PAGE // unit
    count = int(rng.integers(1, units + 1)) if chooses and units else units
    ids = np.stack([np.sort(rng.permutation(units)[:count]) for _ in range(groups)]).astype(np.int32)
    kv = stored[torch.from_numpy(order)].permute(2, 1, 0, 3, 4).reshape(2, groups, units, unit, dim)
    chosen = torch.stack([kv[:, g, torch.from_numpy(ids[g]).long()] for g in range(groups)], 1).flatten(2, 3)
    parts = -(-count * unit // SPAN) + -(-tail // SPAN)
    out = nothing_yet(1, groups, parts, repeats, 2 + dim)

    row = np.zeros(r.WIDTH, dtype=np.int64)
    row[[r.OPERATION, r.ITEMS, r.BARRIER, r.MEMORY]] = attend.address, groups * parts, 1, attend_bytes(repeats, dim)
    row[[r.A_GROUPS, r.A_REPEATS, r.A_DIM, r.A_PAGE]] = groups, repeats, dim, PAGE
    row[[r.A_Q, r.A_SCALE, r.A_COUNT, r.A_UNIT]] = q.data_ptr(), bits(0.3), count, unit
    row[r.A_IDS] = ids.ctypes.data if chooses else 0
    row[[r.A_PLACES, r.A_PITCH]] = places.ctypes.data, 2 * PAGE * dim * size
    own = places[ids * unit // PAGE] + np.arange(groups)[:, None] * 2 * PAGE * dim * size
    own = np.ascontiguousarray(own + ids * unit % PAGE * dim * size)
    if is_own:
        row[[r.A_OWN, r.A_PLACES]] = 1, own.ctypes.data
    row[[r.A_V_AFTER, r.A_KV_KIND]] = PAGE * dim * size, KINDS[dtype]
    row[[r.A_TAIL, r.A_TAIL_LEN, r.A_TAIL_KIND]] = behind.data_ptr(), tail, KINDS[dtype]
    row[[r.A_TAIL_PITCH, r.A_TAIL_V_AFTER]] = tail * dim * size, groups * tail * dim * size
    row[[r.A_SPAN, r.A_TAIL_SPAN, r.A_OUT, r.A_PARTS]] = SPAN, SPAN, out.data_ptr(), parts

    width = groups * repeats * dim
    merged, each = nothing_yet(1, width), np.array([parts])
    merge = product_row(torch.eye(width), merged, out, r.F32)
    identity = torch.eye(width)
    merge[r.P_WEIGHT] = identity.data_ptr()
    merge[[r.P_INPUT, r.P_PARTS, r.P_ROOM]] = r.MERGED, each.ctypes.data, out.numel()
    merge[[r.P_DIM, r.P_GROUPS]] = dim, groups
    work(row, merge)
    runs = [(chosen[0], chosen[1]), (behind[0], behind[1])]
    expected, lse = decode_attention_reference(q, runs, scale=0.3)
    torch.testing.assert_close(merged.view(groups, repeats, dim), expected, rtol=1e-4, atol=1e-5)
    sinks = 9 * torch.randn(groups, repeats, generator=torch.Generator().manual_seed(1))
    merge[r.P_D] = sinks.data_ptr()
    work(merge)
    expected = with_sinks(expected, lse, sinks)
    torch.testing.assert_close(merged.view(groups, repeats, dim), expected, rtol=1e-4, atol=1e-5)

    one_by_one, again = row.copy(), nothing_yet(*out.shape)
    each_own = np.ascontiguousarray(own[..., None] + np.arange(unit) * dim * size)
    one_by_one[[r.A_OWN, r.A_PLACES, r.A_IDS]] = 1, each_own.ctypes.data, 0
    one_by_one[[r.A_UNIT, r.A_COUNT, r.A_OUT]] = 1, count * unit, again.data_ptr()
    work(one_by_one, threads=1)
    assert out.numpy().tobytes() == again.numpy().tobytes(), "whatever the units and the threads"
