"""The Triton kernels of decode attention and of merging against their references."""

from __future__ import annotations

import pytest
import torch
from closeness import TOLERANCE, assert_close, poison_empty
from torch import Tensor
from triton_device import DEVICE, MARKS

from stratakv.kernels.decode_attention import decode_attention_reference, decode_attention_triton
from stratakv.kernels.merge_states import merge_states_reference, merge_states_triton

pytestmark = MARKS
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
INFINITE = float("inf")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def normal(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def check(q: Tensor, runs: list[tuple[Tensor, Tensor]], splits: int | None) -> None:
    scale = q.shape[-1] ** -0.5
    out, lse = decode_attention_triton(q, runs, scale=scale, splits=splits)
    expected, expected_lse = decode_attention_reference(q, runs, scale=scale)
    assert out.dtype == q.dtype
    assert lse.dtype == torch.float32
    worst = max((q.dtype, *(t.dtype for run in runs for t in run)), key=TOLERANCE.__getitem__)
    assert_close("out", out, expected, worst)
    assert_close("lse", lse, expected_lse)


# Decode attention over runs


@pytest.mark.parametrize(
    ("heads", "dim", "dtype"),
    [
        (1, 64, torch.float32), (2, 80, torch.bfloat16), (3, 96, torch.float16), (7, 64, torch.bfloat16),
        (8, 256, torch.float32), (16, 512, torch.float16),
    ],
)  # fmt: skip
def test_decode_attention(heads: int, dim: int, dtype: torch.dtype) -> None:
    runs = [(normal(2, n, dim, dtype=dtype, seed=n), normal(2, n, dim, dtype=dtype, seed=n + 1)) for n in (67, 0, 5)]
    check(normal(2, heads, dim, dtype=dtype), runs, splits=2)


@pytest.mark.parametrize("splits", [None, 1, 2, 3, 50])
@pytest.mark.parametrize("lengths", [[1], [64], [65], [200, 1], [0, 130]], ids=str)
def test_any_cut_gives_the_one_softmax(lengths: list[int], splits: int | None) -> None:
    runs = [(normal(1, n, 64, seed=n), normal(1, n, 64, seed=n + 1)) for n in lengths]
    check(normal(1, 2, 64), runs, splits)


def test_runs_may_be_strided_and_what_lies_beyond_them_is_not_read() -> None:
    page = torch.full((3, 2, 40, 64), float("nan"), device=DEVICE)
    page[:, :, :9] = normal(3, 2, 9, 64)
    tail = page.transpose(0, 1)[:, :, :9]
    turned = normal(2, 3, 64, 21).transpose(2, 3)
    check(normal(3, 64, 2).transpose(1, 2), [(turned[0], turned[1]), (tail[0], tail[1])], splits=2)


@pytest.mark.parametrize(("query", "key", "value"), [(0, 1, 1), (1, 0, 1), (2, 0, 2)])
def test_dtypes_may_differ(query: int, key: int, value: int) -> None:
    """Rebuilt keys are fp32 whatever the values are."""
    run = normal(2, 19, 64, dtype=DTYPES[key], seed=1), normal(2, 19, 64, dtype=DTYPES[value], seed=2)
    check(normal(2, 3, 64, dtype=DTYPES[query]), [run], splits=1)


def test_large_scores_do_not_overflow() -> None:
    keys = torch.tensor([[[5.0] * 16, [4.0] * 16, [-5.0] * 16]], device=DEVICE)
    values = torch.tensor([[[1.0] * 16, [2.0] * 16, [3.0] * 16]], device=DEVICE)
    out, lse = decode_attention_triton(torch.full((1, 1, 16), 50.0, device=DEVICE), [(keys, values)], scale=1.0)
    assert_close("out", out, torch.ones(1, 1, 16, device=DEVICE))
    assert_close("lse", lse, torch.full((1, 1), 4000.0, device=DEVICE))


# Merging


@pytest.mark.parametrize(
    ("parts", "shape", "dtype"),
    [
        (2, (1, 64), torch.float32), (3, (5, 80), torch.float16), (17, (2, 3, 96), torch.bfloat16),
        (33, (2, 512), torch.float32), (2, (0, 64), torch.float16),
    ],
)  # fmt: skip
def test_merge_states(parts: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    outs = [normal(*shape, dtype=dtype, seed=i) for i in range(parts)]
    lses = [normal(*shape[:-1], seed=100 + i) + i / 4 for i in range(parts)]
    out, lse = merge_states_triton(outs, lses)
    expected, expected_lse = merge_states_reference(outs, lses)
    assert out.dtype == dtype
    assert_close("out", out, expected, dtype)
    assert_close("lse", lse, expected_lse)


def test_parts_that_saw_nothing_add_nothing() -> None:
    out, lse = normal(4, 64), normal(4)
    nothing, silence = torch.full_like(out, 7.0), torch.full_like(lse, -INFINITE)
    for outs, lses in (([nothing, out], [silence, lse]), ([out, nothing], [lse, silence])):
        merged, merged_lse = merge_states_triton(outs, lses)
        assert torch.equal(merged, out)
        assert torch.equal(merged_lse, lse)
    merged, merged_lse = merge_states_triton([nothing, nothing], [silence, silence])
    assert merged.eq(0).all()
    assert merged_lse.eq(-INFINITE).all()


def test_large_lses_do_not_overflow() -> None:
    outs = [torch.full((1, 16), 1.0, device=DEVICE), torch.full((1, 16), 3.0, device=DEVICE)]
    merged, lse = merge_states_triton(outs, [torch.full((1,), 1000.0, device=DEVICE)] * 2)
    assert_close("out", merged, torch.full((1, 16), 2.0, device=DEVICE))
    assert_close("lse", lse, torch.full((1,), 1000.6931472, device=DEVICE))
