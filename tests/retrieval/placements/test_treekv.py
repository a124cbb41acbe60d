"""Choices between neighbours, one token after another."""

from __future__ import annotations

import pytest
import torch
from placed_text import attention, placement, plain_text, queries, seen
from torch import Tensor

from stratakv.retrieval.placement import Rows
from stratakv.retrieval.placements.treekv import survivors


def one_by_one(scores: Tensor, capacity: int, gone: int) -> list[int]:
    """A token comes; if there is one too many, the next two neighbours are compared."""
    kept: list[int] = []
    place = gone % capacity
    for i in range(len(scores)):
        kept.append(i)
        if len(kept) > capacity:
            del kept[place + (1 if scores[kept[place]] > scores[kept[place + 1]] else 0)]
            place = (place + 1) % capacity
    return kept


@pytest.mark.parametrize(
    ("count", "capacity", "gone"), [(100, 10, 0), (100, 10, 7), (23, 20, 19), (64, 63, 5), (50, 1, 3)]
)
def test_whole_rounds_at_once_are_choices_one_by_one(count: int, capacity: int, gone: int) -> None:
    scores = torch.rand(2, count, generator=torch.Generator().manual_seed(count))
    scores[1] = scores[1].round()  # with many equals
    kept = survivors(scores, capacity, gone)
    for g in range(2):
        assert kept[g].nonzero()[:, 0].tolist() == one_by_one(scores[g], capacity, gone)


def test_dense_near_and_sparse_far() -> None:
    """Of 1600 tokens for 100 places the far half of what is left spans most of the text, whatever the scores."""
    kept = survivors(torch.rand(1, 1600, generator=torch.Generator().manual_seed(0)), 100, 0)[0].nonzero()[:, 0]
    gaps = kept.diff().float()
    quarters = [gaps[i : i + 25].mean().item() for i in range(0, 99, 25)]
    assert quarters == sorted(quarters, reverse=True)
    assert quarters[0] > 8 * quarters[-1]
    assert kept[50] > 1400


def test_scores_are_means_over_the_queries_that_saw_a_token() -> None:
    one, text, q = placement("treekv"), plain_text(60), queries(60)
    state = seen(one, text)
    for begin, end in ((30, 44), (44, 60)):
        state |= one.observe(state, Rows(q[:, :, begin:end], begin, text))
    weights = attention(Rows(q[:, :, 30:], 30, text)).mean(1)
    saw = torch.arange(30, 60)[:, None] >= torch.arange(60)
    torch.testing.assert_close(one.scores(state, text), weights.sum(1) / saw.sum(0))


def test_a_prompt_goes_in_blocks_and_a_reply_token_by_token() -> None:
    one, text = placement("treekv:block=4:recent=0.25"), plain_text(66)
    state = seen(one, text, Rows(queries(4), 62, text))
    scores = one.scores(state, text)
    kept = one.keep(state, text, 24)
    assert kept.sum(1).tolist() == [22, 22], "2 first, 6 last, 2 that fill no block, and 12 in blocks, of 24"
    of_blocks = scores[:, 2:58].unflatten(1, (14, 4)).mean(2)
    for g in range(2):
        blocks = one_by_one(of_blocks[g], 3, 0)
        middle = [2 + 4 * block + i for block in blocks for i in range(4)]
        assert kept[g].nonzero()[:, 0].tolist() == [0, 1, *middle, 58, 59, *range(60, 66)]
    replied = one.keep(state, text._replace(prompt=50), 24)
    for g in range(2):
        middle = [2 + i for i in one_by_one(scores[g, 2:60], 16, 0)]
        assert replied[g].nonzero()[:, 0].tolist() == [0, 1, *middle, *range(60, 66)]
