"""`actqkv`: some steps ask together, the unusual ones loudest, and no more is recalled than the scores are dense."""

from __future__ import annotations

import pytest
import torch

from stratakv.retrieval import IndexParams, make_index
from stratakv.retrieval.indexes.actqkv import num_dense, probe

PARAMS = IndexParams(page_size=4, sink=2, local=6)
GENERATOR = torch.Generator().manual_seed(0)
KEYS = torch.randn(2, 80, 8, generator=GENERATOR)


def test_the_probe_is_the_mean_of_queries_weighed_by_their_bias() -> None:
    queries = torch.randn(5, 2, 3, 8, generator=GENERATOR)
    center = sum(queries) / 5
    biases = [float((one - center).square().sum()) for one in queries]
    expected = sum(bias / sum(biases) * one for bias, one in zip(biases, queries, strict=True))
    torch.testing.assert_close(probe(torch.cat(list(queries), 1), 3), expected)
    assert torch.equal(probe(torch.cat([queries[0]] * 4, 1), 3), queries[0])


def test_as_few_pages_are_recalled_as_hold_the_share() -> None:
    scores = torch.tensor([[0.1, 0.6, 0.0, 0.3], [0.2, 0.2, 0.2, 0.2]])
    assert [num_dense(scores[:1], density) for density in (0.5, 0.7, 0.95, 1)] == [1, 2, 3, 3]
    assert num_dense(scores, 0.7) == 3, "as many as the KV head wants that wants most"


def test_pages_are_ranked_by_their_mean_key() -> None:
    """Naively, with all of the budget; then with a query that one page answers."""
    q = torch.randn(2, 3, 8, generator=GENERATOR)
    index = make_index("actqkv:density=1", PARAMS)
    for head, ids in enumerate(index.select(index.build(KEYS), q, 80, 28).ids.tolist()):
        means = [KEYS[head, at : at + 4].mean(0) for at in range(0, 80, 4)]
        shares = torch.stack([torch.softmax(torch.stack([one @ mean for mean in means]), 0) for one in q[head]]).mean(0)
        best = sorted(range(1, 18), key=lambda page: -float(shares[page]))[:4]
        assert ids == sorted([0, 18, 19, *best])
    keys = KEYS.clone()
    keys[:, 40:44] = 20 * torch.nn.functional.normalize(q.mean(1, keepdim=True), dim=-1)
    dense = make_index("actqkv:density=0.6", PARAMS)
    assert dense.select(dense.build(keys), q.mean(1, keepdim=True) * 4, 80, 28).ids.tolist() == [[0, 10, 18, 19]] * 2


def test_steps_before_ask_as_well_as_far_as_the_window_goes() -> None:
    index = make_index("actqkv:window=3", PARAMS)
    state, queries = index.build(KEYS), torch.randn(4, 2, 3, 8, generator=GENERATOR)
    for q in queries:
        asked = torch.cat([state.recent, q], 1)
        chosen = index.select(state, q, 80, 28)
        alone = make_index("actqkv:window=1", PARAMS)
        assert torch.equal(chosen.ids, alone.select(alone.build(KEYS), probe(asked, 3), 80, 28).ids)
        index.remember(state, chosen)
    assert torch.equal(state.recent, torch.cat([queries[2], queries[3]], 1))


@pytest.mark.parametrize("wrong", ["window=0", "window=257", "density=0.0", "density=1.5"])
def test_settings_are_checked(wrong: str) -> None:
    with pytest.raises(ValueError, match="window is 1 to 256 and density above 0 to 1"):
        make_index(f"actqkv:{wrong}", PARAMS)
