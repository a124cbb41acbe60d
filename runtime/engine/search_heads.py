"""Which heads look far back: found by random tokens that come again and again (RazorAttention, arXiv 2407.15891)."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from ..model.model import Model
from .layerwise import Sides, layer_by_layer

LENGTH, REPEATS = 512, 4
"""Random tokens, and how often they come."""
_ROWS = 128
_KNOWN: WeakKeyDictionary[Model, dict[int, Tensor]] = WeakKeyDictionary()


@torch.inference_mode()
def search_scores(model: Model) -> dict[int, Tensor]:
    """By tiered layer, how much each KV head's best query head looks at where the last token stood before (echo), and
    at what came behind it there (induction): fp32 `[2, G]`, on the CPU. Computed once for each model."""
    if (known := _KNOWN.get(model)) is not None:
        return known
    tokens, length = repeated_tokens(model)
    found = {}

    def see(layer: int, plain: Sides, rotated: Sides, values: Tensor, scale: float) -> None:
        found[layer] = looks_back(*rotated, scale, length, model.sinks[layer]).cpu()

    with model.turns.taken():  # a conversation may be under way
        for _ in layer_by_layer(model, [tokens], see, lambda layer: None):
            pass
    _KNOWN[model] = found
    return found


def repeated_tokens(model: Model) -> tuple[np.ndarray, int]:
    """Token ids, the same each time: what the model expects before any text, and `REPEATS` times the same random ones,
    as many as are also returned."""
    before = model.tokenizer("").input_ids
    length = min(LENGTH, (model.max_positions - len(before)) // REPEATS)
    words = np.setdiff1d(np.arange(model.config.vocab_size), model.tokenizer.all_special_ids)
    drawn = np.random.default_rng(0).choice(words, length)
    return np.array([*before, *np.tile(drawn, REPEATS)]), length


def looks_back(q: Tensor, k: Tensor, scale: float, length: int, sinks: Tensor | None = None) -> Tensor:
    """The mean weights `[2, G]` that rotated queries `[H, T, D]` of the last `length * (REPEATS - 1)` tokens, of each
    KV head's best query head, give to the same tokens earlier, and to those behind them; keys `[G, T, D]`."""
    groups, count, first = len(k), k.shape[1], k.shape[1] - length * (REPEATS - 1)
    q, k = q.float().reshape(groups, -1, *q.shape[1:]), k.float().unsqueeze(1)
    total = q.new_zeros((2, *q.shape[:2]))
    for begin in range(first, count, _ROWS):
        at = torch.arange(begin, min(begin + _ROWS, count), device=q.device)
        logits = q[:, :, begin : begin + _ROWS] @ k.transpose(2, 3) * scale
        logits.masked_fill_(torch.arange(count, device=q.device) > at.unsqueeze(1), -torch.inf)
        lse = logits.logsumexp(-1)
        if sinks is not None:
            lse = torch.logaddexp(lse, sinks.float().view(groups, -1, 1))
        for times in range(1, REPEATS):
            before = at - times * length
            rows = (before >= first - length).nonzero()[:, 0]
            for behind in (0, 1):
                weights = torch.exp(logits[:, :, rows, before[rows] + behind] - lse[:, :, rows])
                total[behind] += weights.sum(-1)
    return (total / (count - first)).amax(2)
