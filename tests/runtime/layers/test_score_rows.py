"""Rows that choose leave the units that the index's own `select` chooses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attending import SCALE, attending
from compiled_rows import work
from torch import Tensor

from stratakv.kernels.compiled import record as r
from stratakv.retrieval import Index, IndexParams, make_index
from stratakv.runtime.layers.attend_rows import Attending
from stratakv.runtime.layers.score_rows import BOUNDS_SPAN, CODES_SPAN, fill_choice

GROUPS, REPEATS, DIM, PAGE = 2, 3, 16, 4
PARAMS = IndexParams(page_size=PAGE, sink=5, local=9)
BUDGET = 80


def drawn(tokens: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Attending]:
    """Keys, and what attends to them."""
    torch.manual_seed(0)
    q = torch.randn(GROUPS * REPEATS, DIM)
    return torch.randn(GROUPS, tokens, DIM).to(dtype), attending(q, GROUPS, tokens)


def chosen(index: Index, keys: Tensor, at: Attending, rows: np.ndarray) -> Tensor:
    """Units int64 `[G, n]` by rows."""
    scoring = index.scoring(index.build(keys), keys.shape[1])
    assert scoring is not None
    counts = scoring.counts(BUDGET)
    fill_choice(rows, at, scoring, counts)
    ids = np.full((GROUPS, counts.units), -1, dtype=np.int32)
    rows[-1, r.C_IDS] = ids.ctypes.data
    work(*rows)
    return torch.from_numpy(ids).long()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("name", "tokens"),
    [("bounds", 120), ("bounds", (BOUNDS_SPAN + 9) * PAGE), ("spectral", 120), ("spectral", CODES_SPAN + 52)],
)
def test_the_choice_is_that_of_the_index(name: str, tokens: int, dtype: torch.dtype) -> None:
    """In one part and in two; but for one unit a head, whose score may round otherwise."""
    keys, at = drawn(tokens, dtype)
    index = make_index(name, PARAMS)
    rows = np.full((3, r.WIDTH), -1, dtype=np.int64)
    found = chosen(index, keys, at, rows)
    query = at.q.view(GROUPS, REPEATS, DIM) * SCALE
    expected = index.select(index.build(keys), query, tokens, BUDGET).ids
    assert found.shape == expected.shape
    for one, other in zip(found.tolist(), expected.tolist(), strict=True):
        assert len({*one} - {*other}) <= 1
        assert one == sorted(one)


def test_an_index_without_codes_needs_no_tables() -> None:
    keys, at = drawn(120)
    rows = np.full((3, r.WIDTH), -1, dtype=np.int64)
    chosen(make_index("bounds", PARAMS), keys, at, rows)
    assert rows[0].tolist() == [0] * r.WIDTH
    chosen(make_index("spectral", PARAMS), keys, at, rows)
    assert rows[:, r.ITEMS].min() > 0
    assert rows[:, r.MARK].tolist() == [r.M_TABLES, r.M_SCORES, r.M_CHOICE]


def test_layers_that_follow_each_other_score_in_the_same_memory() -> None:
    keys, at = drawn(120)
    rows = np.zeros((2, 3, r.WIDTH), dtype=np.int64)
    for each in rows:
        chosen(make_index("bounds", PARAMS), keys, at, each)
    assert rows[0, 1, r.S_SCORES] == rows[1, 1, r.S_SCORES] == rows[1, 2, r.C_SCORES]
    assert rows[0, 1, r.S_TOPS] == rows[1, 1, r.S_TOPS] == rows[1, 2, r.C_TOPS]
