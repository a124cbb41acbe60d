"""Rows that attend leave the parts of one softmax, as many as there is room for, in memory that stays for the step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attending import SCALE, attending
from compiled_rows import work

from stratakv.kernels.compiled import record as r
from stratakv.kernels.decode_attention import decode_attention_reference
from stratakv.runtime.layers.attend_rows import KV_KINDS, SPAN, Room, is_kind, most_parts, num_parts

GROUPS, HEADS, DIM = 2, 6, 16
PAGE = 24
"""Tokens of a page; SPAN is no multiple of it."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pages", [0, 1, 5, 6, 20])
def test_the_parts_of_pages_and_of_the_run_behind_are_one_softmax(dtype: torch.dtype, pages: int) -> None:
    torch.manual_seed(pages)
    q, tail = torch.randn(HEADS, DIM), 7
    stored, behind = torch.randn(pages, GROUPS, 2, PAGE, DIM).to(dtype), torch.randn(2, GROUPS, 9, DIM).to(dtype)
    places = stored.data_ptr() + np.arange(pages) * stored[:1].nbytes
    side = PAGE * DIM * dtype.itemsize
    at, row = attending(q, GROUPS, pages * PAGE + tail), np.full(r.WIDTH, -1, dtype=np.int64)
    parts = num_parts(pages, PAGE) + num_parts(tail, 1)
    at.row(row, unit=PAGE, page=PAGE, parts=parts)
    at.read(row, pages, places.ctypes.data, 2 * side, side, KV_KINDS[dtype])
    at.behind(row, behind, tail)
    work(row)
    out, lse = at.merged(parts)
    sealed = stored.permute(2, 1, 0, 3, 4).flatten(2, 3).float()
    runs = [(sealed[0], sealed[1]), (behind[0, :, :tail].float(), behind[1, :, :tail].float())]
    expected, expected_lse = decode_attention_reference(q.view(GROUPS, -1, DIM), runs, scale=SCALE)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(lse, expected_lse, rtol=1e-4, atol=1e-5)


def test_there_is_room_for_the_parts_of_any_units() -> None:
    """Whole units of any length, and fewer tokens than a page behind them."""
    for unit in (1, 3, 16, 64, 65, 96, 100, SPAN, SPAN + 1, 500):
        for count in range(60):
            for tail in (0, 1, unit - 1, unit):
                parts = num_parts(count, unit) + num_parts(tail, 1)
                assert parts <= most_parts(count * unit + tail), (unit, count, tail)


def test_no_part_holds_more_than_a_span_unless_a_unit_does() -> None:
    assert [num_parts(count, 1) for count in (0, 1, SPAN, SPAN + 1)] == [0, 1, 1, 2]
    assert [num_parts(count, 60) for count in (1, 2, 3)] == [1, 1, 2]
    assert num_parts(3, SPAN + 1) == 3


def test_more_parts_than_there_is_room_for_are_refused() -> None:
    at, row = attending(torch.randn(HEADS, DIM), GROUPS, 10), np.zeros(r.WIDTH, dtype=np.int64)
    assert at.most_parts == most_parts(10)
    with pytest.raises(AssertionError, match="more parts than there is room for"):
        at.row(row, unit=1, page=1, parts=at.most_parts + 1)


def test_an_address_stays_while_it_has_room_and_what_grew_stays_for_the_step() -> None:
    room = Room()
    first, version = room.floats("scores", 1000), room.version
    assert first % 64 == 0
    assert (room.floats("scores", 1000), room.version) == (first, version)
    assert room.floats("tops", 1000) != first
    held = [tensor.data_ptr() for tensor in room._held.values()]
    version = room.version
    assert room.floats("scores", 5000) != first
    assert room.version > version
    assert [tensor.data_ptr() for tensor in room._outgrown] == held[:1], "rows that are filled in have its address"
    assert all(tensor.numel() * 4 >= 4 * 1000 + 60 for tensor in room._outgrown)
    room.begin_step()
    assert not room._outgrown


def test_rows_can_say_fp32_and_bf16() -> None:
    assert [is_kind(dtype) for dtype in ("float32", "bfloat16", "float16")] == [True, True, False]
