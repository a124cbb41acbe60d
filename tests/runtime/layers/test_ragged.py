"""Heads may read different numbers of tokens, and one token that counts for many."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from stratakv.retrieval.reading import Run
from stratakv.runtime.layers.ragged import read_ragged, with_rest

GROUPS, REPEATS, DIM, COUNT, SCALE = 2, 3, 8, 30, 0.35
RNG = torch.Generator().manual_seed(0)
QUERY = torch.randn(GROUPS, REPEATS, DIM, generator=RNG)
KEYS, VALUES = torch.randn(2, GROUPS, COUNT, DIM, generator=RNG)


class Reader:
    """Reads plain tensors, seven tokens at a time."""

    max_tokens = 7

    def keys_values(self, ids: Tensor, unit: int) -> tuple[Tensor, Tensor]:
        each = torch.arange(GROUPS)[:, None]
        return KEYS[each, ids], VALUES[each, ids]


def attention(ids: list[list[int]], tail: Run, more: list[int] | None = None) -> tuple[Tensor, Tensor]:
    """Over these tokens of each head, the tail, and the last token of all `more` times over."""
    outs, lses = [], []
    for g, own in enumerate(ids):
        own = own + [COUNT - 1] * (0 if more is None else more[g])
        keys, values = torch.cat([KEYS[g, own], tail[0][g]]), torch.cat([VALUES[g, own], tail[1][g]])
        logits = QUERY[g] @ keys.T * SCALE
        outs.append(logits.softmax(-1) @ values)
        lses.append(logits.logsumexp(-1))
    return torch.stack(outs), torch.stack(lses)


def check(ids: list[list[int]], tail: Run) -> tuple[Tensor, Tensor]:
    most, reader = max(map(len, ids)), Reader()
    padded = torch.tensor([[-1] * (most - len(own)) + own for own in ids])
    any_reader: Any = reader
    found = read_ragged(QUERY, padded, any_reader, tail, SCALE)
    for one, other in zip(found, attention(ids, tail), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    return found


def test_each_head_reads_its_own_number() -> None:
    tail, none = (KEYS[:, 26:28], VALUES[:, 26:28]), (KEYS[:, :0], VALUES[:, :0])
    check([list(range(20)), list(range(5, 25))], tail)
    for run in (tail, none):
        check([list(range(20)), [3, 4]], run)
        check([[9], list(range(0, 20, 2))], run)


def test_a_token_that_counts_for_many_is_read_that_many_times() -> None:
    tail = (KEYS[:, 26:28], VALUES[:, 26:28])
    found = check([[1, 2, 3], [4, 5, 6]], tail)
    rest = (KEYS[:, -1], VALUES[:, -1], torch.tensor([5.0, 0.0]))
    both = with_rest(QUERY, *found, rest, SCALE)
    for one, other in zip(both, attention([[1, 2, 3], [4, 5, 6]], tail, [5, 0]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
