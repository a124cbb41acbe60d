"""Strips of several kinds one below the other are one product with one x, as PyTorch computes it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

pytest.importorskip("numba")

import gguf
from compiled_rows import nothing_yet, team
from gguf_packed import packed

from stratakv.kernels.compiled import record as r
from stratakv.runtime.model.products import Int8Product, Strip, strip_of
from stratakv.runtime.model.strip_rows import fill_products, operations_of, widening

COLUMNS = 256
KINDS = ["F32", "BF16", "I8", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K"]


def strip(kind: str, rows: int, *, has_bias: bool = False, rounds: bool = False) -> tuple[Strip, Tensor, Tensor]:
    """A strip, the numbers it stands for, and its bias."""
    drawn, bias = torch.randn(rows, COLUMNS), torch.randn(rows) if has_bias else torch.zeros(rows)
    own = bias if has_bias else None
    if kind in ("F32", "BF16"):
        held = drawn if kind == "F32" else drawn.bfloat16()
        return strip_of(held, own), held.float(), bias
    if kind == "I8":
        product = Int8Product(drawn.repeat(64, 1)[:64] if rows < 64 else drawn, None)
        few, scale = product.weight[:rows].contiguous(), product.scale[:rows]
        made = replace(strip_of(few, own), scale=scale, rounds=rounds)
        return made, few.float() * scale.unsqueeze(1), bias
    data, of = packed(drawn.numpy(), kind)
    found = Strip(
        kind=getattr(r, kind), address=data.ctypes.data, rows=rows, columns=COLUMNS, owner=data, bias=own, rounds=rounds
    )
    return found, torch.from_numpy(gguf.quants.dequantize(data, of).copy()), bias


def whole_steps(batch: int) -> Tensor:
    """Vectors that are whole steps of the largest of each 32 numbers, so that rounding changes nothing."""
    steps = torch.randint(-32767, 32768, (batch, COLUMNS))
    steps[:, ::32] = 32767
    return steps * 2.0**-14


@settings(max_examples=60, derandomize=True, deadline=None)
@given(
    kinds=st.lists(st.sampled_from(KINDS), min_size=1, max_size=4), batch=st.integers(1, 6), threads=st.integers(1, 3),
    is_gated=st.booleans(), rounds=st.sampled_from([(False,), (True,), (True, False)]), seed=st.integers(0, 99),
)  # fmt: skip
def test_strips_of_any_kinds_are_one_product(
    kinds: list[str], batch: int, threads: int, is_gated: bool, rounds: tuple[bool, ...], seed: int
) -> None:
    torch.manual_seed(seed)
    parts = [
        strip(kind, 1 + (seed * 7 + i * 5) % 23, has_bias=i % 2 == 0, rounds=rounds[i % len(rounds)] and not is_gated)
        for i, kind in enumerate(kinds)
    ]
    weight, bias = torch.cat([plain for _, plain, _ in parts]), torch.cat([bias for *_, bias in parts])
    y, a = nothing_yet(batch, len(weight)), torch.randn(batch, 2 * COLUMNS) if is_gated else whole_steps(batch)
    table = np.zeros((len(parts), r.WIDTH), dtype=np.int64)
    kept = fill_products(table, [part for part, *_ in parts], batch, y)
    table[0, [r.P_INPUT, r.P_A, r.P_ACT]] = r.GATED if is_gated else r.PLAIN, a.data_ptr(), r.SILU
    for row in table[1:]:  # each product makes its own x, where it is not said that it is that of the one before
        row[[r.P_INPUT, r.P_A]] = r.PLAIN, 0
    team().run(table, threads)
    del kept
    x = F.silu(a[:, :COLUMNS]) * a[:, COLUMNS:] if is_gated else a
    expected = F.linear(x.double(), weight.double(), bias.double()).float()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)


def test_rows_of_a_strip_as_plain_numbers() -> None:
    some, plain, _ = strip("Q4_K", 9)
    out = nothing_yet(9, COLUMNS)
    team().run(widening(some, out), 2)
    torch.testing.assert_close(out, plain, rtol=0, atol=0)
    ids = np.array([8, 0, 8], dtype=np.int64)
    out = nothing_yet(3, COLUMNS)
    team().run(widening(some, out, ids), 2)
    torch.testing.assert_close(out, plain[ids], rtol=0, atol=0)


def test_what_is_compiled_ahead_is_what_rows_of_blocks_call() -> None:
    for rounds in (True, False):
        strips = [strip(kind, 4, rounds=rounds)[0] for kind in ("Q4_1", "Q8_0")]
        y, table = nothing_yet(1, 8), np.zeros((2, r.WIDTH), dtype=np.int64)
        fill_products(table, strips, 1, y)
        called = {*table[:, [r.OPERATION, r.PREPARE, r.P_CODE]].flatten().tolist()} - {0}
        assert {operation.address for operation in operations_of({r.Q4_1, r.Q8_0, r.BF16}, rounded=rounds)} == called
        assert operations_of({r.F32, r.BF16}, rounded=rounds) == []


@pytest.mark.parametrize(("rows", "chunk"), [(64, 64), (4096, 64), (8192, 128), (100_000, 256)])
def test_items_of_a_large_weight_are_larger(rows: int, chunk: int) -> None:
    """Here a row has 512 bytes. An item has 32 KiB at least, where there are as many, and 128 KiB at most."""
    one, y = strip_of(torch.empty(rows, COLUMNS, dtype=torch.bfloat16)), torch.empty(1, rows)
    table = np.zeros((1, r.WIDTH), dtype=np.int64)
    fill_products(table, [one], 1, y)
    assert table[0, [r.P_CHUNK, r.ITEMS]].tolist() == [chunk, -(-rows // chunk)]
