"""Attention with noise and a temperature that grows: the same noise whenever a text comes."""

from __future__ import annotations

import torch
from placed_text import all_keys, placement, plain_text, queries, seen
from torch import Tensor

from stratakv.retrieval.placement import Rows
from stratakv.retrieval.placements.keyformer import gumbel


def scores(rows: Rows, prompt: int, layer: int = 0) -> Tensor:
    """The Gumbel softmax of all rows over all columns at once, summed."""
    keys, at = all_keys(rows), rows.start + torch.arange(rows.queries.shape[2])
    logits = rows.queries @ keys.unsqueeze(1).transpose(2, 3) + gumbel(layer, 3, at, rows.text.positions)
    logits = logits / (1 + 0.01 * (at - prompt + 1).clamp(min=0))[:, None]
    return logits.masked_fill(rows.text.positions[0] > at[:, None], -torch.inf).softmax(-1).mean(1).sum(1)


def test_scores_are_a_gumbel_softmax_whose_temperature_grows_in_a_reply() -> None:
    one, text, q = placement("keyformer"), plain_text(60), queries(60)
    text = text._replace(prompt=44)
    state = seen(one, text)
    for begin, end in ((0, 30), (30, 44), (44, 60)):
        state |= one.observe(state, Rows(q[:, :, begin:end], begin, text))
    torch.testing.assert_close(one.scores(state, text), scores(Rows(q, 0, text), 44), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(one.scores(state, text), scores(Rows(q, 0, text), 60), rtol=1e-3)


def test_a_long_reply_tells_tokens_apart_less() -> None:
    one, text, q = placement("keyformer:noise=0"), plain_text(40), queries(8) * 3
    spread = [
        one.observe(seen(one, text), Rows(q, 32, text._replace(prompt=prompt)))["mass"].std() for prompt in (40, -400)
    ]
    assert spread[1] < spread[0]


def test_noise_is_gumbel_and_differs_by_layer_head_and_places() -> None:
    at, positions = torch.arange(200), torch.arange(1000, 1100).expand(2, -1)
    noise = gumbel(3, 4, at, positions)
    assert torch.equal(noise, gumbel(3, 4, at, positions))
    assert torch.equal(noise[:, :, 50:60, 7:9], gumbel(3, 4, at[50:60], positions[:, 7:9]))
    assert abs(noise.mean() - 0.5772) < 0.02
    assert abs(noise.var() - 1.6449) < 0.05
    apart = [
        noise[0, 0],
        noise[0, 1],
        noise[1, 0],
        gumbel(4, 4, at, positions)[0, 0],
        gumbel(3, 4, at + 1, positions)[0, 0],
    ]
    together = torch.corrcoef(torch.stack([one.flatten() for one in apart])) - torch.eye(len(apart))
    assert together.abs().max() < 0.05
    assert torch.corrcoef(noise[0, 0].T).sub(torch.eye(100)).abs().max() < 0.4, "columns among each other"
    assert torch.corrcoef(noise[0, 0]).sub(torch.eye(200)).abs().max() < 0.5, "and rows"
