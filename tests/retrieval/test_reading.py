"""One softmax over units and tail, in however many blocks a reader is asked for them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratakv.retrieval.reading import Run, read_exactly

HEADS, DIM, UNIT = 2, 8, 4
KEYS, VALUES = torch.randn(2, HEADS, 64, DIM, generator=torch.Generator().manual_seed(0))
TAIL = KEYS[:, 60:], VALUES[:, 60:]
QUERY = torch.randn(HEADS, 3, DIM, generator=torch.Generator().manual_seed(1))


class Tensors:
    """A reader over plain tensors that notes how much it was asked for."""

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.asked: list[int] = []

    def keys_values(self, ids: Tensor, unit: int) -> Run:
        self.asked.append(ids.shape[1] * unit)
        return tuple(t.gather(1, positions(ids, unit).unsqueeze(-1).expand(-1, -1, DIM)) for t in (KEYS, VALUES))

    def values(self, ids: Tensor, unit: int) -> Tensor:
        return self.keys_values(ids, unit)[1]


def positions(ids: Tensor, unit: int) -> Tensor:
    return (ids.unsqueeze(-1) * unit + torch.arange(unit)).flatten(1)


@pytest.mark.parametrize("max_tokens", [1, 8, 12, 1000])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_equals_a_softmax_over_all_of_them(max_tokens: int, count: int) -> None:
    ids = torch.stack([torch.randperm(15, generator=torch.Generator().manual_seed(g))[:count] for g in range(HEADS)])
    reader = Tensors(max_tokens)
    out, lse = read_exactly(QUERY, ids, UNIT, reader, TAIL, 0.3)
    assert all(asked <= max(max_tokens, UNIT) for asked in reader.asked)
    assert sum(reader.asked) == count * UNIT
    for head in range(HEADS):
        at = torch.cat([positions(ids, UNIT)[head], torch.arange(60, 64)])
        scores = QUERY[head] @ KEYS[head, at].T * 0.3
        torch.testing.assert_close(out[head], scores.softmax(-1) @ VALUES[head, at])
        torch.testing.assert_close(lse[head], scores.logsumexp(-1))
