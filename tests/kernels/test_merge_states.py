"""Merging partial attention: any split of the keys gives the one softmax."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from closeness import assert_close
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratakv.kernels.decode_attention import decode_attention
from stratakv.kernels.merge_states import merge_states
from stratakv.kernels.prefill_attention import prefill_attention_reference

INFINITE = float("inf")


def draw(groups: int, repeats: int, rows: int, keys: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(keys)
    q = torch.randn(groups * repeats, rows, 64, generator=generator).to(dtype)
    k, v = torch.randn(2, groups, keys, 64, generator=generator).to(dtype)
    return q, k, v


@settings(max_examples=40, derandomize=True, deadline=None)
@given(
    cuts=st.sets(st.integers(1, 99), max_size=6),
    repeats=st.sampled_from([1, 3, 4, 8]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_merged_blocks_equal_one_softmax(cuts: set[int], repeats: int, dtype: torch.dtype) -> None:
    q, k, v = draw(2, repeats, 3, 100, dtype)
    edges = [0, *sorted(cuts), 100]
    parts = [prefill_attention_reference(q, k[:, a:b], v[:, a:b], scale=0.3, causal=False) for a, b in pairwise(edges)]
    out, lse = merge_states([part for part, _ in parts], [part for _, part in parts])
    expected, expected_lse = prefill_attention_reference(q, k, v, scale=0.3, causal=False)
    assert out.dtype == dtype
    assert_close("out", out, expected, dtype)
    assert_close("lse", lse, expected_lse)


def test_past_blocks_and_a_causal_block_equal_one_causal_attention() -> None:
    """How a later turn is prefilled: the rows against the past in blocks, and against themselves."""
    q, k, v = draw(2, 3, 120, 120, torch.float32)
    expected, expected_lse = prefill_attention_reference(q, k, v, scale=0.2, causal=True)
    rows = q[:, 80:]
    parts = [prefill_attention_reference(rows, k[:, 80:], v[:, 80:], scale=0.2, causal=True)]
    for start in range(0, 80, 32):
        block = slice(start, min(start + 32, 80))
        parts.append(prefill_attention_reference(rows, k[:, block], v[:, block], scale=0.2, causal=False))
    out, lse = merge_states(*zip(*parts, strict=True))
    assert_close("out", out, expected[:, 80:])
    assert_close("lse", lse, expected_lse[:, 80:])


def test_decode_states_merge_alike() -> None:
    q, k, v = draw(2, 4, 1, 50, torch.float32)
    query = q.view(2, 4, 64)
    parts = [decode_attention(query, [(k[:, a:b], v[:, a:b])], scale=0.3) for a, b in ((0, 16), (16, 50))]
    out, lse = merge_states(*zip(*parts, strict=True))
    expected, expected_lse = decode_attention(query, [(k, v)], scale=0.3)
    assert_close("out", out, expected)
    assert_close("lse", lse, expected_lse)


def test_a_part_that_saw_nothing_adds_nothing() -> None:
    q, k, v = draw(2, 2, 3, 10, torch.float32)
    out, lse = prefill_attention_reference(q, k, v, scale=0.3, causal=False)
    nothing, silence = torch.full_like(out, 7.0), torch.full_like(lse, -INFINITE)
    for outs, lses in (([nothing, out], [silence, lse]), ([out, nothing], [lse, silence])):
        merged, merged_lse = merge_states(outs, lses)
        assert torch.equal(merged, out)
        assert torch.equal(merged_lse, lse)


def test_rows_that_no_part_saw_are_zero() -> None:
    out = torch.ones(2, 3, 8)
    lse = torch.tensor([[0.0, -INFINITE, 0.0]] * 2)
    merged, merged_lse = merge_states([out, out], [lse, lse])
    assert merged[:, 1].eq(0).all()
    assert merged_lse[:, 1].eq(-INFINITE).all()
    assert_close("out", merged[:, ::2], out[:, ::2])


def test_large_lses_do_not_overflow() -> None:
    outs = [torch.full((1, 1, 4), 1.0), torch.full((1, 1, 4), 3.0)]
    merged, lse = merge_states(outs, [torch.full((1, 1), 100.0), torch.full((1, 1), 100.0)])
    assert_close("out", merged, torch.full((1, 1, 4), 2.0))
    assert_close("lse", lse, torch.full((1, 1), 100.6931472))


@pytest.mark.parametrize(("parts", "lses"), [(0, 0), (2, 1), (1, 2)])
def test_lists_that_do_not_match_are_refused(parts: int, lses: int) -> None:
    with pytest.raises(ValueError, match=f"got {parts} parts and {lses} lses"):
        merge_states([torch.zeros(1, 1, 4)] * parts, [torch.zeros(1, 1)] * lses)
