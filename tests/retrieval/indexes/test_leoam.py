"""`leoam`: refinement finds what scoring every chunk finds, with fewer boxes; each layer learns its chunk size."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from chosen_units import chosen_units
from closeness import poison_empty
from drawn_keys import clustered, peaked, smooth, whole_numbers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratakv.kernels.page_bounds import bound_scores, bound_scores_reference, page_bounds
from stratakv.kernels.topk_pages import group_scores, topk_pages
from stratakv.retrieval import Index, IndexParams, make_index
from stratakv.retrieval.indexes.leoam import LeoAMIndex

PARAMS = IndexParams(page_size=16, sink=16, local=64)
LONG = 32_768


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def leoam(settings: str = "", params: IndexParams = PARAMS) -> Index:
    return make_index("leoam" + settings, params)


def flat_choice(keys: Tensor, q: Tensor, chunk: int, budget: int, params: IndexParams) -> Tensor:
    """What scoring every chunk finds, unit by unit, for one query head per KV head: the highest upper bound first,
    the earlier of equals, until the budget is full."""
    unit = math.gcd(chunk, params.page_size)
    total, count = keys.shape[1] // unit, budget // unit
    sink, local = params.units(params.sink, unit), params.units(params.local, unit)
    padded = torch.cat([keys, keys[:, -1:].expand(-1, -keys.shape[1] % chunk, -1)], 1)
    scores = bound_scores_reference(q, page_bounds(padded, chunk))[:, 0].repeat_interleave(chunk // unit, 1)[:, :total]
    scores[:, :sink] = torch.inf
    scores[:, total - local :] = torch.inf
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :count].sort(-1).values


# Selection


def test_by_hand() -> None:
    """Chunks of two keys under one box of eight. For (1, 1) their upper bounds are 2, 6, 4 and 0."""
    keys = torch.tensor([[[1, 0], [0, 1], [3, -1], [-1, 3], [2, 2], [2, 2], [0, 0], [0, 0]]], dtype=torch.float32)
    index = leoam(":chunk=2:width=0", IndexParams(page_size=4, sink=0, local=0))
    state = index.build(keys)
    choose = lambda q, budget: index.select(state, torch.tensor([q]), 8, budget).ids.tolist()  # noqa: E731
    assert choose([[1.0, 1.0]], 2) == [[1]]
    assert choose([[1.0, 1.0]], 5) == [[1, 2]]
    assert choose([[-1.0, -1.0]], 4) == [[0, 1]], "2 from the corner (-1, -1); the next is tied at 0 with the last"
    forced = leoam(":chunk=2", IndexParams(page_size=4, sink=1, local=2))
    assert forced.select(state, torch.tensor([[[1.0, 1.0]]]), 8, 6).ids.tolist() == [[0, 1, 3]]


def test_a_dropped_box_by_hand() -> None:
    """Boxes of 128 tokens with keys around -9, 3, 5 and 0: two chunks of 32 are sure to reach 4, which only one box
    may. Its four chunks are scored, and no other."""
    centres = torch.tensor([-9.0, 3.0, 5.0, 0.0]).repeat_interleave(128)
    keys = (centres + torch.linspace(-1, 1, 512)).view(1, 512, 1)
    index = leoam(":chunk=32:width=0", IndexParams(page_size=32, sink=0, local=0))
    chosen = index.select(index.build(keys), torch.tensor([[[1.0]]]), 512, 64)
    assert chosen.ids.tolist() == [[10, 11]]
    assert chosen.notes == (4 + 4, 16)


@settings(max_examples=120, derandomize=True, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    chunk=st.sampled_from([4, 8, 16, 24, 32, 64, 128]),
    page_size=st.sampled_from([4, 8, 16]),
    forced=st.sampled_from([(0, 0), (5, 33), (16, 64)]),
    tight=st.booleans(),
    data=st.data(),
)
def test_dropping_by_bounds_loses_nothing(
    seed: int, chunk: int, page_size: int, forced: tuple[int, int], tight: bool, data: st.DataObject
) -> None:
    """One query head each, `width=0`: the very units that scoring every chunk finds, ties included; and the ranking."""
    params = IndexParams(page_size=page_size, sink=forced[0], local=forced[1])
    tokens = data.draw(st.integers(160 // page_size, 2400 // page_size)) * page_size
    keys = clustered(tokens, run=128, seed=seed) if tight else whole_numbers(2, tokens, 32, seed=seed)
    q = whole_numbers(2, 1, 32, seed=seed + 2)
    least = (params.units(params.sink, page_size) + params.units(params.local, page_size) + 1) * page_size
    budget = data.draw(st.integers(least, tokens - 1))
    index = leoam(f":chunk={chunk}:width=0", params)
    state = index.fit(keys[:, :0], torch.arange(0))
    for run in keys.tensor_split([tokens // page_size // 2 * page_size, tokens - page_size], 1):
        index.append(state, run)
    chosen = index.select(state, q, tokens, budget)
    assert torch.equal(chosen.ids, flat_choice(keys, q, chunk, budget, params))
    ranking = index.ranking(state)
    assert ranking is not None
    scores = ranking.scores(q, torch.tensor([tokens // ranking.unit]))
    assert torch.equal(chosen_units(ranking, scores, tokens, budget), chosen.ids)


def test_forced_tokens_are_no_promise() -> None:
    """A quarter of the best box is read anyway: of the 256 tokens that are wanted, the rest lie in the next best."""
    for sink, local, runs, expected in (
        (64, 0, [9.0, 5.0, 3.0, 0.0], [*range(20)]),
        (0, 64, [0.0, 3.0, 5.0, 9.0], [*range(32, 36), *range(48, 64)]),
    ):
        index = leoam(":chunk=16:width=0", IndexParams(sink=sink, local=local))
        keys = torch.tensor(runs).repeat_interleave(256).view(1, -1, 1)
        chosen = index.select(index.build(keys), torch.ones(1, 1, 1), 1024, 64 + 256)
        assert chosen.ids.tolist() == [expected]


@pytest.mark.parametrize("width", [0, 1])
def test_the_last_box_may_be_incomplete(width: int) -> None:
    """It holds one page, the best; no page is chosen twice in its children's stead."""
    keys = torch.zeros(1, 8192 + 16, 1)
    keys[0, 2048:2304, 0], keys[:, 8192:] = torch.linspace(7, 5, 256), 9.0
    index = leoam(f":width={width}", IndexParams(sink=0, local=0))
    chosen = index.select(index.build(keys), torch.ones(1, 1, 1), 8208, 48)
    assert chosen.ids.tolist() == [[128, 129, 512]]
    assert chosen.notes.visited < 80


def test_query_heads_agree_by_their_softmax() -> None:
    """Where nothing is dropped, the ranking is the mean of the heads' softmax over all chunks."""
    generator = torch.Generator().manual_seed(0)
    keys, q = torch.randn(2, 4096, 64, generator=generator), torch.randn(2, 3, 64, generator=generator) / 4
    index = leoam(params=IndexParams(sink=0, local=0))
    chosen = index.select(index.build(keys), q, 4096, 1024)
    scores = group_scores(bound_scores(q, page_bounds(keys, 16)))
    assert torch.equal(chosen.ids, topk_pages(scores, 64, sink=0, local=0))
    assert chosen.notes == (256, 256), "no coarse box is scored that could rule out little"


def test_what_is_read_anyway_has_its_share_of_the_softmax() -> None:
    """Two heads and one chunk to choose; the first head has all it wants in the sinks, so the second decides."""
    keys = torch.zeros(1, LONG, 2)
    keys[:, 3] = torch.tensor([40.0, 0.0])
    keys[:, 10_000] = torch.tensor([9.0, 0.0])
    keys[:, 20_000] = torch.tensor([0.0, 8.0])
    index = leoam(params=IndexParams(sink=16, local=0))
    chosen = index.select(index.build(keys), torch.eye(2).unsqueeze(0), LONG, 32)
    assert chosen.notes.visited < 300
    assert chosen.ids.tolist() == [[0, 20_000 // 16]]


@pytest.mark.parametrize("tied", ["all", "within-a-run"])
def test_equal_keys_fill_the_budget(tied: str) -> None:
    """Upper and lower bounds of equal keys are one number, which rounding must not pull apart."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randn(2, 1 if tied == "all" else 16, 48, generator=generator).repeat_interleave(4096, 1)[:, :4096]
    q = torch.randn(2, 3, 48, generator=generator)
    for width in (0, 1, 4):
        index = leoam(f":width={width}")
        assert index.select(index.build(keys), q, 4096, 512).num_tokens == 512


def test_fewer_boxes_than_scoring_every_chunk() -> None:
    """At 32,768 tokens: bounds alone suffice where keys are alike in runs; where they are not, `width` does."""
    keys, q = clustered(LONG), whole_numbers(2, 1, 32, seed=2)
    index = leoam(":width=0")
    chosen = index.select(index.build(keys), q, LONG, 1024)
    assert torch.equal(chosen.ids, flat_choice(keys, q, 16, 1024, PARAMS))
    assert chosen.notes.chunks == LONG // 16
    assert chosen.notes.visited < 0.2 * chosen.notes.chunks
    index = leoam()
    scattered = whole_numbers(2, LONG, 32, seed=3)
    state, q = index.build(scattered), whole_numbers(2, 3, 32, seed=4)
    assert index.select(state, q, LONG, 1024).notes.visited < 0.25 * LONG // 16
    everything = leoam(":width=0").select(state, q, LONG, 1024).notes
    assert everything.visited == LONG // 256 + LONG // 64 + LONG // 16, "nothing of them can be ruled out"


@pytest.mark.parametrize("place", [20, 3_000, 17_777, 32_600])
@pytest.mark.parametrize("spec", ["", ":chunk=8:width=1", ":chunk=64"])
def test_a_needle_is_found(place: int, spec: str) -> None:
    """One key that a single head of each group asks for, among 32,768 that nobody does."""
    generator = torch.Generator().manual_seed(place)
    keys = torch.randn(2, LONG, 64, generator=generator)
    q = torch.randn(2, 3, 64, generator=generator) / 8
    q[:, 1] = keys[:, place] / 2
    keys[:, place] *= 3
    index = leoam(spec)
    chosen = index.select(index.build(keys), q, LONG, 512)
    assert (chosen.ids == place // chosen.unit).any(-1).all()


@pytest.mark.parametrize("chunk", [1, 8, 24, 64, 128])
@pytest.mark.parametrize("page_size", [10, 16])
def test_every_chunk_size_keeps_the_contract(chunk: int, page_size: int) -> None:
    """Pieces, truncation, fewer tokens than there are, budgets that are no whole chunks; pages of 10 and of 16."""
    params = IndexParams(page_size=page_size, sink=5, local=33)
    keys, other = whole_numbers(2, 61 * page_size, 32, seed=0), whole_numbers(2, 9 * page_size, 32, seed=1)
    q, kept = whole_numbers(2, 3, 32, seed=2) / 8, 23 * page_size
    index = leoam(f":chunk={chunk}", params)
    fitted = lambda: index.fit(keys, torch.arange(keys.shape[1]))  # noqa: E731
    whole, pieces, anew = fitted(), fitted(), fitted()
    index.append(whole, keys)
    for run in keys.split([page_size, 29 * page_size, 31 * page_size], 1):
        index.append(pieces, run)
    assert same(index, whole, pieces)
    for budget in (7 * page_size, 20 * page_size + 3, kept - 1):
        chosen = index.select(whole, q, kept, budget)
        assert chosen.unit == math.gcd(chunk, page_size)
        assert budget - page_size < chosen.num_tokens <= budget
        assert torch.equal(chosen.ids, index.select(index.build(keys[:, :kept]), q, kept, budget).ids)
    index.truncate(whole, kept)
    index.append(whole, other)
    index.append(anew, torch.cat([keys[:, :kept], other], 1))
    assert same(index, whole, anew)
    assert same(index, whole, index.restore(index.export(whole)))


def same(index: Index, a: Any, b: Any) -> bool:
    one, two = index.export(a), index.export(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("wrong", ["chunk=-1", "width=-1"])
def test_settings_are_checked(wrong: str) -> None:
    with pytest.raises(ValueError, match="at least 0"):
        leoam(":" + wrong)


# Chunk sizes


def learned(keys: Tensor, queries: Tensor | None, settings: str = "") -> int:
    index = leoam(settings)
    state = index.build(keys, queries)
    assert index.export(state)["learned"][0] == state.chunk
    return int(state.chunk)


@pytest.mark.parametrize("seed", range(3))
def test_concentrated_layers_get_small_chunks_and_smooth_ones_large(seed: int) -> None:
    assert learned(*peaked(3072, seed=seed)) == 8
    assert learned(*smooth(3072, seed=seed)) >= 32


def test_chunks_without_evidence() -> None:
    """No queries, too few tokens, or a size that was set."""
    keys, queries = smooth(3072)
    assert learned(keys, None) == 16
    assert learned(keys[:, :512], queries[:, :, :32]) == 16
    assert learned(keys, queries, ":chunk=32") == 32


def test_attention_that_is_always_read_does_not_count() -> None:
    """What the sinks draw leaves little to lose: there large chunks are good enough."""
    keys, queries = peaked(3072)
    keys[:, 0] = queries[:, 0, 0] * 100
    assert learned(keys, queries) == 128


def test_a_longer_conversation_learns_anew() -> None:
    """A greeting first, then a document, page by page as it is written: after a kilotoken there is enough to learn
    from, then at every doubling."""
    index = leoam()
    assert isinstance(index, LeoAMIndex)
    keys, queries = smooth(6144)
    state = index.build(keys[:, :32], queries[:, :, :2])
    assert (state.chunk, state.fitted) == (16, 32)
    fits = []
    for page in range(2, 6144 // 16):
        index.append(state, keys[:, page * 16 : page * 16 + 16], queries[:, :, page : page + 1])
        if index.is_outgrown(state):
            held = (page + 1) * 16
            fresh = index.fit(keys[:, :held], torch.arange(held), None, state)
            index.append(fresh, keys[:, :held])
            assert not index.is_outgrown(fresh)
            fits.append((held, fresh.chunk))
            state = fresh
    assert [held for held, _ in fits] == [1024, 2048, 4096]
    assert fits[-1][1] >= 64


def test_what_is_kept_to_learn_from_does_not_depend_on_pieces() -> None:
    index = leoam()
    keys, queries = peaked(2048)
    whole = index.fit(keys[:, :0], torch.arange(0))
    index.append(whole, keys, queries)
    pieces, page = index.fit(keys[:, :0], torch.arange(0)), 0
    for count in (1, 14, 1, 1, 30, 0, 81):
        run = queries[:, :, page : page + count].clone()
        index.append(pieces, keys[:, page * 16 : (page + count) * 16], run)
        run.fill_(float("nan"))
        page += count
    assert same(index, whole, pieces)
    assert index.export(whole)["query_positions"].tolist() == list(range(255, 2048, 256))
    index.truncate(whole, 1024)
    assert index.export(whole)["query_positions"].tolist() == [255, 511, 767, 1023]
    assert torch.equal(index.export(whole)["queries"], queries[:, :, 15:64:16])
    index.append(whole, keys[:, 1024:], queries[:, :, 64:])
    assert same(index, whole, pieces)


def test_pages_of_unknown_queries_teach_nothing() -> None:
    """Adopted from the store: the state grows and is not fitted anew for nothing; what was learned before stays."""
    index = leoam()
    keys, queries = smooth(4096)
    state = index.build(keys[:, :16])
    index.append(state, keys[:, 16:])
    assert not index.is_outgrown(state)
    state = index.build(keys[:, :1024], queries[:, :, :64])
    index.append(state, keys[:, 1024:1536], queries[:, :, 64:96])
    index.append(state, keys[:, 1536:])
    assert not index.is_outgrown(state), "the queries that are known saw less than half of it"
    learned = index.build(keys, queries)
    assert learned.chunk >= 64
    assert index.fit(keys, torch.arange(4096), None, learned).chunk == learned.chunk
