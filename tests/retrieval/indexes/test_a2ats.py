"""A2ATS: table scores against exact ones, positions, zones, and what a profile does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from indexes import HalfSplitRope
from profiles import a2ats_profile
from torch import Tensor

from stratakv.kernels.codebook_scores import union_scores
from stratakv.retrieval import IndexParams, make_index
from stratakv.retrieval.layer import IndexedLayer, NoRotation
from stratakv.retrieval.structures.codebook import learn_codebooks, query_metric

ROPE = HalfSplitRope()
GROUPS, HEADS, DIM, TOKENS = 2, 3, 16, 512
PARAMS = IndexParams(page_size=16, sink=0, local=0)
MIDDLE = PARAMS.page_size // 2


def plain_keys(seed: int, tokens: int = TOKENS) -> Tensor:
    """Before RoPE; few directions carry most of the variance, and all keys lie off zero."""
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randn(GROUPS, tokens, DIM, generator=generator) * torch.logspace(0.5, -0.8, DIM)
    return keys + torch.randn(GROUPS, 1, DIM, generator=generator)


def plain_queries(seed: int) -> Tensor:
    return torch.randn(GROUPS, HEADS, DIM, generator=torch.Generator().manual_seed(100 + seed))


def profile(keys: Tensor, codewords: int) -> dict[str, Tensor]:
    """Learned from `keys` and queries like `plain_queries`, turned to the distance they are scored at."""
    queries = torch.cat([plain_queries(seed) for seed in range(200, 300)], 1)
    far = ROPE.rotate(queries, torch.full((queries.shape[1],), 2048))
    books = learn_codebooks(keys, query_metric(far.transpose(1, 2) @ far), codewords)
    return {**books, "distance": torch.tensor(2048), "digest": torch.arange(16, dtype=torch.uint8)}


def made(keys: Tensor, codewords: int, settings: str) -> Any:
    return make_index(f"a2ats:{settings}", PARAMS, IndexedLayer(0, ROPE, profile(keys, codewords)))


def at(position: int, rows: int) -> Tensor:
    return torch.full((rows,), position)


def exact_rope(q: Tensor, keys: Tensor, position: int) -> Tensor:
    """Scores `[G, R, n]` with true positions."""
    return ROPE.rotate(q, at(position, HEADS)) @ ROPE.rotate(keys, torch.arange(keys.shape[1])).transpose(1, 2)


def table_scores(index: Any, keys: Tensor, q: Tensor, tokens: int = TOKENS) -> Tensor:
    """Scores `[G, R, n]` that the index finds in its table, at one distance."""
    state = index.build(ROPE.rotate(keys, torch.arange(keys.shape[1])))
    table = index._table(ROPE.rotate(q, at(tokens + MIDDLE, HEADS)), torch.tensor([tokens]))
    return table.gather(2, state.data[:, None, :, 0].long().expand(-1, HEADS, -1))


def recall(scores: Tensor, exact: Tensor, count: int) -> float:
    found, best = (of.mean(1).topk(count).indices for of in (scores, exact))
    return sum(len({*a} & {*b}) for a, b in zip(found.tolist(), best.tolist(), strict=True)) / (count * GROUPS)


def test_a_turned_query_scores_keys_as_rope_does_at_that_distance() -> None:
    keys, q = plain_keys(0, 1), plain_queries(0)
    apart = ROPE.rotate(q, at(2048, HEADS)) @ keys.transpose(1, 2)
    for position in (2048, 3000):
        true = ROPE.rotate(q, at(position, HEADS)) @ ROPE.rotate(keys, at(position - 2048, 1)).transpose(1, 2)
        torch.testing.assert_close(apart, true, rtol=1e-4, atol=1e-4)


def test_a_codeword_for_each_key_gives_exact_scores_at_the_distance() -> None:
    """Whatever the position of query and keys: it is undone before they are turned. Codewords are fp16."""
    keys, q = plain_keys(0), plain_queries(0)
    exact = ROPE.rotate(q, at(2048, HEADS)) @ keys.transpose(1, 2)
    error = (table_scores(made(keys, TOKENS, "zones=1"), keys, q) - exact).abs().max()
    assert error < 1e-3 * exact.abs().max()


def test_recall_of_scores() -> None:
    """What the codebook loses, and what the one distance loses, on keys it was not learned from."""
    index = made(plain_keys(0, 4096), 256, "zones=1")
    coded, turned = [], []
    for seed in range(1, 9):
        keys, q = plain_keys(seed) - plain_keys(seed).mean(1, keepdim=True), plain_queries(seed)
        keys += plain_keys(0, 4096).mean(1, keepdim=True)
        scores = table_scores(index, keys, q)
        exact = ROPE.rotate(q, at(2048, HEADS)) @ keys.transpose(1, 2)
        coded.append(recall(scores, exact, 50))
        turned.append(recall(scores, exact_rope(q, keys, TOKENS + MIDDLE), 50))
    assert sum(coded) / 8 > 0.5, coded
    assert 0.1 < sum(turned) / 8 < sum(coded) / 8, "chance is 0.1; one distance for all keys is the larger loss"


def mass_found(settings: str, seeds: range) -> float:
    """Of attention whose keys vary in dimensions that turn once in 200 to 2,000 tokens."""
    turning = torch.tensor([0.1, 0.1, 0.1, 2, 2, 2, 0.1, 0.1]).repeat(2)
    index, found = (
        made(torch.randn(GROUPS, 4096, DIM, generator=torch.Generator().manual_seed(0)) * turning, 256, settings),
        0.0,
    )
    for seed in seeds:
        keys = torch.randn(GROUPS, 2048, DIM, generator=torch.Generator().manual_seed(seed)) * turning
        q = plain_queries(seed)
        rotated = ROPE.rotate(keys, torch.arange(2048))
        query = ROPE.rotate(q, at(2048 + MIDDLE, HEADS))
        ids = index.select(index.build(rotated), query, 2048, 128).ids
        found += (query @ rotated.transpose(1, 2)).softmax(-1).mean(1).gather(1, ids).sum(1).mean().item()
    return found / len(seeds)


def test_zones_find_what_one_distance_misses() -> None:
    one, four = (mass_found(f"zones={zones}", range(1, 7)) for zones in (1, 4))
    assert four > one + 0.05, (one, four)


def test_a_zone_scores_keys_at_its_own_distance() -> None:
    """As many codewords as keys: what is selected is the top of scores that can be written down."""
    keys, q = plain_keys(0), plain_queries(0)
    index = made(keys, TOKENS, "zones=3:shared=0")
    bounds, distances = (of.tolist() for of in index._zones(torch.tensor([TOKENS])))
    assert bounds == [128, 256]
    assert distances == [91, 181, 362]
    position = TOKENS + MIDDLE
    state = index.build(ROPE.rotate(keys, torch.arange(TOKENS)))
    zone = torch.tensor([sum(position - j > bound for bound in bounds) for j in range(TOKENS)])
    coded = profile(keys, TOKENS)
    known = coded["codewords"].float().gather(1, state.data.long().expand(-1, -1, DIM)) + coded["center"]
    turned = torch.stack([ROPE.rotate(q, at(distance, HEADS)) @ known.transpose(1, 2) for distance in distances])
    scores = turned[zone, :, :, torch.arange(TOKENS)].permute(1, 2, 0)
    alone = union_scores(scores, torch.arange(TOKENS).expand(GROUPS, -1), 100)
    chosen = index.select(state, ROPE.rotate(q, at(position, HEADS)), TOKENS, 100).ids
    assert torch.equal(chosen, alone.topk(100).indices.sort().values)


@pytest.mark.parametrize("zones", [2, 3, 8, 64])
def test_zones_grow_by_the_same_factor(zones: int) -> None:
    index = make_index(f"a2ats:zones={zones}", PARAMS, IndexedLayer(0, ROPE, a2ats_profile((1, 1, 16))))
    for length in (16, 128, 144, 5_008, 131_072, 1_000_000):
        bounds, distances = (of.tolist() for of in index._zones(torch.tensor([length])))
        factor = max(2.0, length / 64) ** (1 / zones)
        assert bounds == [round(64 * factor**zone) for zone in range(1, zones)]
        assert distances == [round(64 * factor ** (zone + 0.5)) for zone in range(zones)]


def test_sinks_and_window_take_no_ranks() -> None:
    """They score highest, and yet the heads' own choice fills all that the budget leaves."""
    params = IndexParams(page_size=4, sink=4, local=4)
    keys = torch.zeros(1, 24, 2)
    keys[0, :, 0] = torch.tensor([9.0] * 4 + [1, 2, 3, 4, 5, 6, 7, 8] + [0.0] * 8 + [9.0] * 4)
    books = learn_codebooks(keys, query_metric(torch.eye(2).unsqueeze(0)), 24)
    known = {**books, "distance": torch.tensor(8), "digest": torch.zeros(16, dtype=torch.uint8)}
    for settings in ("zones=1:shared=0", "zones=1:shared=1"):
        index = make_index(f"a2ats:{settings}", params, IndexedLayer(0, NoRotation(), known))
        ids = index.select(index.build(keys), torch.tensor([[[1.0, 0.0], [2.0, 0.0]]]), 24, 12).ids
        assert ids.tolist() == [[0, 1, 2, 3, 8, 9, 10, 11, 20, 21, 22, 23]]


def test_state_is_two_bytes_per_token_and_kv_head() -> None:
    index = made(plain_keys(0), 32, "zones=1")
    state = index.build(ROPE.rotate(plain_keys(1), torch.arange(TOKENS)))
    assert index.state_bytes(state) == 2 * GROUPS * TOKENS


def test_a_profile_is_needed_and_names_the_state() -> None:
    with pytest.raises(ValueError, match="stratakv calibrate MODEL --text FILE"):
        make_index("a2ats", PARAMS)
    known = a2ats_profile((1, 1, 16))
    index = make_index("a2ats", PARAMS, IndexedLayer(0, ROPE, known))
    assert "profile=000102030405060708090a0b0c0d0e0f" in index.identity
    other = make_index("a2ats", PARAMS, IndexedLayer(0, ROPE, {**known, "digest": torch.ones(16, dtype=torch.uint8)}))
    assert index.identity != other.identity


@pytest.mark.parametrize("settings", ["zones=0", "zones=65", "shared=2"])
def test_settings_are_checked(settings: str) -> None:
    with pytest.raises(ValueError, match=settings.split("=")[0]):
        make_index(f"a2ats:{settings}", PARAMS, IndexedLayer(0, ROPE, a2ats_profile((1, 1, 16))))
