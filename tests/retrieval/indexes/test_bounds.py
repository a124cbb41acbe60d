"""`bounds`: what is chosen by hand, the votes of query heads, and states of earlier versions."""

from __future__ import annotations

import torch

from stratakv.retrieval import IndexParams, make_index
from stratakv.retrieval.stored import Geometry, check_stored


def test_bounds_by_hand() -> None:
    """Pages of two keys; bounds for (1, 1): 2, 6, 4, 0, although page 1's own keys only reach 2."""
    keys = torch.tensor([[[1, 0], [0, 1], [3, -1], [-1, 3], [2, 2], [2, 2], [0, 0], [0, 0]]], dtype=torch.float32)
    index = make_index("bounds", IndexParams(page_size=2, sink=0, local=0))
    state = index.build(keys)
    choose = lambda q, budget: index.select(state, torch.tensor([q]), 8, budget).ids.tolist()  # noqa: E731
    assert choose([[1.0, 1.0]], 2) == [[1]]
    assert choose([[1.0, 1.0]], 5) == [[1, 2]]
    assert choose([[1.0, 1.0]], 6) == [[0, 1, 2]]
    assert choose([[-1.0, -1.0]], 2) == [[1]], "2 from the corner (-1, -1), against 0, -4 and 0"
    forced = make_index("bounds", IndexParams(page_size=2, sink=1, local=2))
    assert forced.select(state, torch.tensor([[[1.0, 1.0]]]), 8, 6).ids.tolist() == [[0, 1, 3]]


def test_bounds_weigh_query_heads_equally() -> None:
    """One loud head and two quiet ones that agree: its scores are larger, its vote is not."""
    keys = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]])
    index = make_index("bounds", IndexParams(page_size=1, sink=0, local=0))
    q = torch.tensor([[[50.0, 0.0], [0.0, 4.0], [0.0, 4.0]]])
    assert index.select(index.build(keys), q, 3, 1).ids.tolist() == [[2]]


def test_bounds_of_earlier_versions_go_on() -> None:
    """They were fp32 on a CPU, whatever the keys: the same numbers, to which further ones are appended."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(3, 592, 64, generator=generator).bfloat16()
    q = torch.randn(3, 3, 64, generator=generator) / 4
    half = keys[:, :288]
    index = make_index("bounds", IndexParams(page_size=16, sink=16, local=64))
    now = index.build(half)
    saved = {name: tensor.float() for name, tensor in index.export(now).items()}
    check_stored(saved, index.stored(Geometry(keys[:, :0], half.shape[1], 3), saved))
    before = index.restore(saved)
    for state in (now, before):
        index.append(state, keys[:, half.shape[1] :])
    assert torch.equal(before.data, now.data)
    assert now.data.dtype == torch.bfloat16
    count = keys.shape[1]
    assert torch.equal(index.select(before, q, count, 150).ids, index.select(now, q, count, 150).ids)
    assert index.scoring(now, count) is not None
    assert index.scoring(index.restore(saved), half.shape[1]) is not None
