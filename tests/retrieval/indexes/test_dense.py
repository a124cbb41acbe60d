"""`dense` reads everything, and keeps nothing for it."""

from __future__ import annotations

import torch

from stratakv.retrieval import IndexParams, make_index


def test_dense_reads_all_whatever_the_budget() -> None:
    index = make_index("dense", IndexParams(page_size=4, sink=1, local=1))
    assert index.select(None, torch.zeros(2, 1, 8), 12, 8).ids.tolist() == [[0, 1, 2]] * 2


def test_dense_keeps_nothing() -> None:
    """So one that was restored reads as many tokens as there are said to be."""
    index = make_index("dense", IndexParams(page_size=4))
    state = index.build(torch.zeros(2, 8, 8))
    assert index.export(state) == {}
    assert index.state_bytes(state) == 0
    chosen = index.select(index.restore({}), torch.zeros(2, 3, 8), 20, 8)
    assert (chosen.ids.tolist(), chosen.num_tokens) == ([[0, 1, 2, 3, 4]] * 2, 20)
