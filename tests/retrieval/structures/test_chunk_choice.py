"""The chunk of a layer is as large as its attention allows, judged by queries that saw most of the sample."""

from __future__ import annotations

import pytest
import torch
from closeness import poison_empty
from drawn_keys import peaked, smooth

from stratakv.retrieval.structures.chunk_choice import CHUNKS, Asked, choose_chunk


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def test_what_a_query_cannot_see_does_not_count() -> None:
    """A loud key behind all queries but the last; and a window so long that nothing is left to find."""
    keys, queries = peaked(3072)
    positions = torch.arange(3072)
    asked = Asked(queries, positions[15::16].contiguous())
    assert choose_chunk(keys, positions, asked, sink=16, local=64) == 8
    assert choose_chunk(keys, positions, asked, sink=16, local=2900) is None
    keys[:, -1] = queries[:, 0, 0] * 100
    assert choose_chunk(keys, positions, asked, sink=16, local=64) == 8


def asked_at(*positions: int) -> Asked:
    """Queries that are the numbers of their positions."""
    at = torch.tensor(positions, dtype=torch.int64)
    return Asked(at.float().view(1, 1, -1, 1).expand(2, 3, -1, 4), at)


def test_smooth_attention_allows_large_chunks() -> None:
    keys, queries = smooth(3072)
    assert choose_chunk(keys, torch.arange(3072), Asked(queries, torch.arange(15, 3072, 16)), sink=16, local=64) >= 32


def test_equal_keys_allow_the_largest() -> None:
    keys, asked = torch.ones(2, 2048, 4), asked_at(2000, 2047)
    assert choose_chunk(keys, torch.arange(2048), asked, sink=0, local=0) == CHUNKS[-1]


def test_queries_that_saw_too_little_say_nothing() -> None:
    """Three quarters of the sample, wherever in the text it was taken."""
    keys, positions = torch.ones(2, 2048, 4), torch.arange(10_000, 12_048)
    choose = lambda *at: choose_chunk(keys, positions, asked_at(*at), sink=0, local=0)  # noqa: E731
    assert choose() is None
    assert choose(5, 10_000 + 1534) is None
    assert choose(5, 10_000 + 1535) == CHUNKS[-1]


def test_a_sample_too_short_for_the_largest_chunk_says_nothing() -> None:
    """Eight of them must lie between what is always read."""
    asked = asked_at(1300)
    for tokens, local, found in ((1024, 0, CHUNKS[-1]), (1023, 0, None), (1200, 176, CHUNKS[-1]), (1200, 177, None)):
        keys, positions = torch.ones(2, tokens, 4), torch.arange(tokens)
        assert choose_chunk(keys, positions, asked, sink=0, local=local) == found
    assert choose_chunk(torch.ones(2, 1151, 4), torch.arange(1151), asked, sink=1, local=0) is None


def test_queries_follow_one_another_and_are_cut_by_position() -> None:
    both = asked_at().and_then(asked_at(15, 31)).and_then(asked_at(47))
    assert both.positions.tolist() == [15, 31, 47]
    assert both.queries[1, 2, :, 3].tolist() == [15.0, 31.0, 47.0]
    assert both.before(32).positions.tolist() == [15, 31]
    assert both.before(31).queries[0, 0, :, 0].tolist() == [15.0], "the one at 31 does not stand before it"
    assert both.before(15).queries.shape == (2, 3, 0, 4)
