"""Decode attention over runs: against a slow loop in float64, and against its own reference."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from closeness import HEAD_SHAPES, assert_close, poison_empty
from torch import Tensor

from stratakv.kernels.decode_attention import decode_attention, decode_attention_reference

Runs = list[tuple[Tensor, Tensor]]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def draw(lengths: list[int], groups: int, repeats: int, dim: int, dtype: torch.dtype) -> tuple[Tensor, Runs]:
    generator = torch.Generator().manual_seed(len(lengths) * 1000 + dim)
    make = lambda *shape: torch.randn(*shape, generator=generator).to(dtype)  # noqa: E731
    return make(groups, repeats, dim), [(make(groups, n, dim), make(groups, n, dim)) for n in lengths]


def slow(q: Tensor, runs: Runs, scale: float) -> tuple[Tensor, Tensor]:
    """One head, one key at a time, in float64."""
    out = np.zeros(q.shape)
    lse = np.zeros(q.shape[:2])
    for g in range(q.shape[0]):
        keys = [key.tolist() for k, _ in runs for key in k[g]]
        values = [value.double().numpy() for _, v in runs for value in v[g]]
        for r in range(q.shape[1]):
            query = q[g, r].tolist()
            weights = [math.exp(scale * math.fsum(x * y for x, y in zip(query, key, strict=True))) for key in keys]
            out[g, r] = sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
            lse[g, r] = math.log(sum(weights))
    return torch.from_numpy(out), torch.from_numpy(lse)


LENGTHS = [[1], [63], [1000], [16, 1], [0, 5], [5, 0], [48, 0, 16, 7], [1, 1, 1]]


@pytest.mark.parametrize("kernel", [decode_attention, decode_attention_reference])
@pytest.mark.parametrize("lengths", [[1], [7], [3, 5], [0, 4, 2]], ids=str)
@pytest.mark.parametrize("repeats", [1, 3])
def test_against_a_slow_loop(kernel: Any, lengths: list[int], repeats: int) -> None:
    q, runs = draw(lengths, 2, repeats, 8, torch.float32)
    out, lse = kernel(q, runs, scale=0.3)
    expected, expected_lse = slow(q, runs, 0.3)
    assert_close("out", out, expected)
    assert_close("lse", lse, expected_lse)


@pytest.mark.parametrize("lengths", [[9], [3, 5]], ids=str)
def test_values_that_are_part_of_their_keys(lengths: list[int]) -> None:
    q, runs = draw(lengths, 1, 5, 24, torch.float32)
    runs = [(keys, keys[..., -16:]) for keys, _ in runs]
    out, lse = decode_attention(q, runs, scale=0.3)
    expected, expected_lse = decode_attention_reference(q, runs, scale=0.3)
    assert out.shape == (1, 5, 16)
    assert_close("out", out, expected)
    assert_close("lse", lse, expected_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("repeats", "dim"), HEAD_SHAPES)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_against_the_reference(lengths: list[int], repeats: int, dim: int, dtype: torch.dtype) -> None:
    q, runs = draw(lengths, 2, repeats, dim, dtype)
    out, lse = decode_attention(q, runs, scale=dim**-0.5)
    expected, expected_lse = decode_attention_reference(q, runs, scale=dim**-0.5)
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_close("out", out, expected, dtype)
    assert_close("lse", lse, expected_lse)


def test_runs_may_be_views_with_any_stride() -> None:
    """As the runtime passes them: gathered pages from a flat buffer, the tail inside its page."""
    q, [(keys, values)] = draw([40], 3, 2, 64, torch.float32)
    pages = torch.stack([keys, values])
    page = torch.full((3, 2, 64, 64), float("nan"))
    page[:, :, :8] = pages[:, :, 32:].transpose(0, 1)
    tail = page.transpose(0, 1)[:, :, :8]
    reversed_dims = pages[:, :, :32].transpose(2, 3).contiguous().transpose(2, 3)
    out, lse = decode_attention(q, [(reversed_dims[0], reversed_dims[1]), (tail[0], tail[1])], scale=0.2)
    expected, expected_lse = decode_attention_reference(q, [(keys, values)], scale=0.2)
    assert_close("out", out, expected)
    assert_close("lse", lse, expected_lse)


def test_inputs_are_left_alone() -> None:
    q, runs = draw([5, 3], 2, 2, 64, torch.float32)
    before = [t.clone() for t in (q, *(t for run in runs for t in run))]
    decode_attention(q, runs, scale=0.1)
    assert all(torch.equal(old, new) for old, new in zip(before, (q, *(t for run in runs for t in run)), strict=True))


def test_large_scores_do_not_overflow() -> None:
    """exp(1000) is infinite in fp32: the maximum must be taken off first."""
    q = torch.full((1, 1, 4), 50.0)
    keys = torch.tensor([[[5.0] * 4, [4.0] * 4, [-5.0] * 4]])
    values = torch.tensor([[[1.0] * 4, [2.0] * 4, [3.0] * 4]])
    out, lse = decode_attention(q, [(keys, values)], scale=1.0)
    assert_close("out", out, torch.ones(1, 1, 4))
    assert_close("lse", lse, torch.full((1, 1), 1000.0))


@pytest.mark.parametrize("lengths", [[], [0], [0, 0]], ids=str)
def test_no_key_at_all_is_refused(lengths: list[int]) -> None:
    q, runs = draw(lengths, 2, 2, 64, torch.float32)
    with pytest.raises(ValueError, match="no keys"):
        decode_attention(q, runs, scale=1.0)
