"""A run's numbers lead to every row of it by address, and what stands is known by being the same object."""

from __future__ import annotations

import ctypes

import numpy as np
import pytest
import torch

from stratakv.kernels.compiled import record as r
from stratakv.runtime.layers.standing import NUM_ROWS, Run, Standing

GROUPS, ROWS, DIM = 2, 5, 8


@pytest.mark.parametrize(("dtype", "kind"), [(torch.float32, r.F32), (torch.bfloat16, r.BF16)], ids=str)
@pytest.mark.parametrize("is_page", [True, False], ids=["a page", "a window"])
def test_the_numbers_of_a_run_are_where_its_rows_lie(dtype: torch.dtype, kind: int, *, is_page: bool) -> None:
    """A page is laid out head by head, a window side by side."""
    shape = (GROUPS, 2, ROWS, DIM) if is_page else (2, GROUPS, ROWS, DIM)
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    kv = whole.transpose(0, 1) if is_page else whole
    numbers = Run(kv).numbers
    assert numbers.kind == kind
    for side, group, row in np.ndindex(2, GROUPS, ROWS):
        address = numbers.address + side * numbers.v_after + group * numbers.head_pitch + row * numbers.pitch
        found = ctypes.string_at(address, DIM * dtype.itemsize)
        assert found == kv[side, group, row].contiguous().view(torch.uint8).numpy().tobytes()


def test_what_stands_is_equal_to_itself_alone() -> None:
    """Whoever compares does not look at arrays: the same objects mean that only the newest token is new."""
    rows, kv = np.zeros((NUM_ROWS, r.WIDTH), dtype=np.int64), torch.zeros(2, GROUPS, ROWS, DIM)
    standing, run = Standing(rows, ROWS), Run(kv)
    assert (standing, run) == (standing, run)
    assert standing != Standing(rows, ROWS)
    assert run != Run(kv)


def test_a_layer_that_reads_its_run_alone_has_no_pages() -> None:
    standing = Standing(np.zeros((NUM_ROWS, r.WIDTH), dtype=np.int64), ROWS)
    assert (standing.pids.dtype, len(standing.pids)) == (np.int64, 0)
    assert (sum(standing.counts), standing.most, standing.is_chosen) == (0, 0, False)
