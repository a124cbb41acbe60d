"""`shadowkv`: what low rank loses, what outliers are for, and that keys stay where they are."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from chosen_units import rebuilt_units
from closeness import assert_close, poison_empty
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from indexes import HalfSplitRope, PlainReader
from torch import Tensor

from stratakv.retrieval import Index, IndexParams, make_index
from stratakv.retrieval.layer import IndexedLayer
from stratakv.retrieval.reading import Run, read_exactly

SHAPE = (2, 3, 64)
PARAMS = IndexParams(page_size=16, sink=16, local=64)
BARE = IndexParams(page_size=16, sink=0, local=0)
TOKENS = 40 * 16
BUDGET = 320
ROPE = HalfSplitRope()


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def shadowkv(settings: str = "", params: IndexParams = PARAMS) -> Index:
    return make_index("shadowkv" + settings, params, IndexedLayer(1, ROPE))


def low_rank(tokens: int, seed: int, *, start: int = 0, power: float = 1.0, turn: int = 0) -> Tensor:
    """Rotated keys `[G, n, D]` whose i-th direction before rotation, of all heads together, has standard
    deviation ~ i^-power. `turn` says which directions these are."""
    groups, _, dim = SHAPE
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(groups * dim, groups * dim, generator=torch.Generator().manual_seed(turn))).Q
    spread = torch.arange(1, groups * dim + 1) ** -power
    rows = torch.randn(tokens, groups * dim, generator=generator) * (spread / spread.norm() * (groups * dim) ** 0.5)
    keys = (rows @ basis).view(tokens, groups, dim).transpose(0, 1)
    return ROPE.rotate(keys, torch.arange(start, start + tokens))


def normal(*shape: int, seed: int = 7) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def query(seed: int = 3) -> Tensor:
    return normal(*SHAPE, seed=seed) * SHAPE[2] ** -0.5 * 2


def tail_of(keys: Tensor, count: int = 7) -> Run:
    return normal(keys.shape[0], count, keys.shape[2], seed=11), normal(keys.shape[0], count, keys.shape[2], seed=12)


def attended(
    index: Index, state: Any, q: Tensor, keys: Tensor, values: Tensor, tail: Run, budget: int = BUDGET
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What the index makes of its selection, and exact attention over the same tokens."""
    chosen = index.select(state, q, keys.shape[1], budget)
    found = index.attend(state, q, chosen, PlainReader(keys, values), tail, 1.0)
    return found, read_exactly(q, chosen.ids, chosen.unit, PlainReader(keys, values), tail, 1.0)


def reconstruction_error(state: Any, keys: Tensor, tokens: slice) -> float:
    """Relative error of the un-rotated keys of `tokens`, Frobenius."""
    rows = ROPE.unrotate(keys, torch.arange(keys.shape[1])).transpose(0, 1).flatten(1)[tokens]
    return float((rows - state.factors.data[0, tokens].float() @ state.basis.T).norm() / rows.norm())


# What low rank loses


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_full_rank_is_exact(dtype: torch.dtype) -> None:
    """But for the rounding of coefficients, and of the result in half precision: though keys were appended in
    pieces, some twice, and are rebuilt in several blocks, each at its own position."""
    keys, values = low_rank(TOKENS, 0).to(dtype), normal(SHAPE[0], TOKENS, SHAPE[2]).to(dtype)
    index = shadowkv(":rank=100000:outliers=2")
    state = index.build(keys[:, :320])
    index.append(state, keys[:, 336:])
    index.truncate(state, 320)
    index.append(state, keys[:, 320:])
    tail = tail_of(keys)
    (out, lse), (exact, exact_lse) = attended(
        index, state, query().to(dtype), keys, values, (tail[0].to(dtype), tail[1].to(dtype))
    )
    assert out.dtype == dtype
    assert lse.dtype == torch.float32
    assert_close("out", out, exact, torch.float16 if dtype == torch.float32 else dtype)
    assert_close("log-sum-exp", lse, exact_lse, torch.float16)


def test_error_falls_with_rank() -> None:
    """Over the same tokens: the choice does not depend on the rank."""
    keys, values = low_rank(TOKENS, 0), normal(SHAPE[0], TOKENS, SHAPE[2])
    errors, chosen = [], []
    for rank in (4, 8, 16, 32, 64, 96, 128):
        index = shadowkv(f":rank={rank}")
        state = index.build(keys)
        chosen.append(index.select(state, query(), TOKENS, BUDGET).ids)
        pairs = [attended(index, state, query(seed), keys, values, tail_of(keys)) for seed in range(8)]
        errors.append(sum(float((out - exact).norm() / exact.norm()) for (out, _), (exact, _) in pairs) / len(pairs))
    assert all(torch.equal(ids, chosen[0]) for ids in chosen)
    assert all(more < less * 0.9 for less, more in pairwise(errors)), errors
    assert errors[0] > 0.05
    assert errors[-1] < 1e-3


def test_later_tokens_are_kept_as_well_as_the_first() -> None:
    """Generated tokens and later turns are projected on directions that were learned before they came."""
    index = shadowkv(":rank=48")
    state = index.build(low_rank(TOKENS, 0))
    later = low_rank(TOKENS - 16, 1, start=TOKENS)
    for at in range(0, later.shape[1], 48):
        index.append(state, later[:, at : at + 48])
    keys = torch.cat([low_rank(TOKENS, 0), later], 1)
    fitted, new = (reconstruction_error(state, keys, slice(a, a + TOKENS)) for a in (0, TOKENS))
    assert 0.05 < fitted < 0.3
    assert new < 1.25 * fitted


def test_a_sequence_that_changed_is_learned_anew_when_it_doubled() -> None:
    keys = torch.cat([low_rank(TOKENS, 0), low_rank(TOKENS, 1, start=TOKENS, turn=1)], 1)
    index = shadowkv(":rank=64")
    state = index.build(keys[:, :TOKENS])
    assert not index.is_outgrown(state)
    index.append(state, keys[:, TOKENS:-16])
    assert not index.is_outgrown(state)
    index.append(state, keys[:, -16:])
    assert index.is_outgrown(state)
    assert index.is_outgrown(index.restore(index.export(state)))
    sample = torch.cat([torch.arange(TOKENS - 320, TOKENS), torch.arange(2 * TOKENS - 320, 2 * TOKENS)])
    anew = index.fit(keys[:, sample], sample, None, state)
    index.append(anew, keys)
    assert not index.is_outgrown(anew)
    later = slice(TOKENS, 2 * TOKENS)
    assert reconstruction_error(anew, keys, later) < 0.6 * reconstruction_error(state, keys, later)


def test_nothing_learned_is_outgrown_by_the_first_page() -> None:
    index = shadowkv()
    state = index.fit(torch.zeros(2, 0, 64), torch.arange(0))
    assert not index.is_outgrown(state)
    index.append(state, low_rank(16, 0))
    assert index.is_outgrown(state)


def test_keys_out_of_range_do_no_harm() -> None:
    """Coefficients are 16 bits wide; bf16 keys reach further."""
    keys, values = low_rank(TOKENS, 0), normal(SHAPE[0], TOKENS, SHAPE[2])
    keys[:, 100] *= 1e6
    index = shadowkv(":outliers=0")
    state = index.build(keys)
    assert all(tensor.isfinite().all() for tensor in index.export(state).values())
    (out, lse), _ = attended(index, state, query(), keys, values, tail_of(keys))
    assert out.isfinite().all()
    assert lse.isfinite().all()


# What is kept, and what moves


def test_no_keys_are_kept() -> None:
    """Llama-3-8B: coefficients and means in the place of 2048 bytes of bf16 keys per token."""
    groups, dim = 8, 128
    index = shadowkv()
    keys = normal(groups, 64, dim)
    state = index.build(keys)
    fixed = index.state_bytes(index.fit(keys, torch.arange(64)))
    per_token = (index.state_bytes(state) - fixed) / 64
    print(f"{per_token} bytes per token and {fixed} besides; bf16 keys take {2 * groups * dim}")
    assert per_token == 320 + 256 + 4
    assert fixed <= 4 * groups * dim * 160 + 8


@pytest.mark.parametrize(
    ("shape", "settings", "rank"),
    [
        ((8, 128), "", 160),
        ((3, 64), "", 96),
        ((1, 256), "", 128),
        ((3, 64), ":rank=64", 64),
        ((3, 64), ":rank=160", 160),
        ((3, 64), ":rank=500", 192),
    ],
)
def test_rank_fits_the_model(shape: tuple[int, int], settings: str, rank: int) -> None:
    groups, dim = shape
    state = shadowkv(settings).fit(normal(groups, 32, dim), torch.arange(32))
    assert state.basis.shape == (groups * dim, rank)


@pytest.mark.parametrize("wrong", ["rank=-1", "outliers=-1", "refine=-1", "chunk=0"])
def test_settings_are_checked(wrong: str) -> None:
    with pytest.raises(ValueError, match="at least"):
        shadowkv(":" + wrong)


def test_keys_are_moved_only_where_they_are_read_exactly() -> None:
    keys, values = low_rank(TOKENS, 0), normal(SHAPE[0], TOKENS, SHAPE[2])
    for of, outliers in (("", (BUDGET - 80) // 8 // 4), (":outliers=3", 3), (":outliers=0", 0)):
        index, reader = shadowkv(of), PlainReader(keys, values)
        state = index.build(keys)
        chosen = index.select(state, query(), TOKENS, BUDGET)
        index.attend(state, query(), chosen, reader, tail_of(keys), 1.0)
        assert reader.keys_moved == 16 + 64 + 8 * outliers
        assert reader.values_moved == chosen.num_tokens == BUDGET
        exact, rebuilt = (set(ids[0].tolist()) for ids in chosen.notes[:2])
        assert not exact & rebuilt
        assert exact | rebuilt == set(chosen.ids[0].tolist())
        assert {0, 1, *range(72, 80)} <= exact


def test_nothing_need_be_exact() -> None:
    keys, values = low_rank(TOKENS, 0), normal(SHAPE[0], TOKENS, SHAPE[2])
    index = shadowkv(":rank=128:outliers=0", BARE)
    none = torch.zeros(SHAPE[0], 0, SHAPE[2])
    (out, _), (exact, _) = attended(index, index.build(keys), query(), keys, values, (none, none))
    assert_close("out", out, exact, torch.float16)


# What is chosen


def by_hand(settings: str = "") -> tuple[Index, Any]:
    """Six chunks of two keys; means (1, 0) (1, 4) (0, 0.5) (1, 1) (-1, 0) (0, -1). Only the keys of the third differ
    in direction: (4, 0) and (-4, 1)."""
    chunks = [[[1, 0]] * 2, [[1, 2], [1, 6]], [[4, 0], [-4, 1]], [[1, 1]] * 2, [[-1, 0]] * 2, [[0, -1]] * 2]
    index = make_index("shadowkv:chunk=2" + settings, IndexParams(page_size=4, sink=0, local=0))
    return index, index.build(torch.tensor(chunks, dtype=torch.float32).view(1, 12, 2))


def test_landmarks_and_outliers_by_hand() -> None:
    index, state = by_hand()
    choose = lambda q, budget: index.select(state, torch.tensor([[q]]), 12, budget)  # noqa: E731
    found = choose([1.0, 0.25], 8)
    assert found.unit == 2
    assert found.ids.tolist() == [[0, 1, 2, 3]]
    assert found.notes.exact.tolist() == [[2]]
    assert found.notes.rebuilt.tolist() == [[0, 1, 3]]
    assert choose([-0.25, -1.0], 8).ids.tolist() == [[0, 2, 4, 5]], "-0.25, 0.25 and 1"
    small = choose([1.0, 0.25], 6)
    assert small.ids.tolist() == [[0, 1, 3]], "1, 2 and 1.25: the budget is too small for an outlier"
    assert small.notes.exact.tolist() == [[]]
    index, state = by_hand(":outliers=0")
    assert choose([1.0, 0.25], 8).notes.rebuilt.tolist() == [[0, 1, 2, 3]], "the mean of the third is worth 0.125"
    assert choose([-1.0, -1.0], 4).ids.tolist() == [[4, 5]]


def test_a_chunk_may_matter_to_one_query_head_alone() -> None:
    """Nine tenths of two heads' weight against all of one's: the maximum counts, not the mean."""
    keys = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).repeat_interleave(8, 0).unsqueeze(0)
    index = make_index("shadowkv", IndexParams(page_size=8, sink=0, local=0))
    q = torch.tensor([[[50.0, 0.0], [0.0, 3.0], [0.0, 3.0]]])
    assert index.select(index.build(keys), q, 24, 8).ids.tolist() == [[1]]


def test_refined_to_tokens_by_rebuilt_keys() -> None:
    """At full rank, and with every chunk looked into, the choice is that of exact keys; what is read of each token,
    and attention, are as for whole chunks."""
    keys, values, tail = low_rank(TOKENS, 0), normal(SHAPE[0], TOKENS, SHAPE[2]), tail_of(low_rank(TOKENS, 0))
    index = shadowkv(":rank=192:outliers=0:refine=100")
    state, q, reader = index.build(keys), query(), PlainReader(keys, values)
    chosen = index.select(state, q, TOKENS, BUDGET)
    exactly = make_index("oracle", PARAMS)
    wanted = exactly.select(exactly.build(keys), q, TOKENS, BUDGET)
    assert chosen.unit == 1
    same = [set(ours) & set(theirs) for ours, theirs in zip(chosen.ids.tolist(), wanted.ids.tolist(), strict=True)]
    assert min(map(len, same)) >= BUDGET - 4, "but for near ties, which fp16 coefficients decide otherwise"
    out, lse = index.attend(state, q, chosen, reader, tail, 1.0)
    assert (reader.keys_moved, reader.values_moved) == (16 + 64, BUDGET)
    out_of_exact, lse_of_exact = read_exactly(q, chosen.ids, 1, PlainReader(keys, values), tail, 1.0)
    assert (out - out_of_exact).abs().max() < 2e-2
    assert (lse - lse_of_exact).abs().max() < 2e-2


def test_refining_looks_only_into_the_best_chunks() -> None:
    """The key (4, 0) is worth most, in the chunk that ranks fourth."""
    q = torch.tensor([[[1.0, 0.25]]])
    for refine, best in ((3, [2, 3]), (4, [3, 4])):
        index, state = by_hand(f":rank=2:outliers=0:refine={refine}")
        assert index.select(state, q, 12, 2).ids.tolist() == [best]


def alike() -> Tensor:
    """Keys `[1, n, D]` that hardly differ."""
    return (normal(1, 1, 64, seed=20) * 2 + 0.05 * normal(1, TOKENS, 64, seed=21)).clone()


@pytest.mark.parametrize("token", [64, 203, 391])
def test_a_needle_is_found(token: int) -> None:
    """One key in 640 points another way, and its chunk's mean an eighth of that."""
    keys, direction = alike(), normal(64, seed=22) / 8
    keys[0, token] += 6 * direction
    index = shadowkv(":outliers=0")
    chosen = index.select(index.build(keys), direction.view(1, 1, 64) * 4, TOKENS, 80 + 32)
    assert token // 8 in chosen.notes.rebuilt[0].tolist()


def test_outliers_are_what_a_mean_hides() -> None:
    """Two keys that point opposite ways beside others that are alike: their mean tells of neither."""
    keys, direction = alike(), normal(64, seed=22) / 8
    keys[0, 203] += 30 * direction
    keys[0, 204] -= 31 * direction
    q, values, tail = direction.view(1, 1, 64) * 2, normal(1, TOKENS, 64), tail_of(keys)
    weights = torch.softmax(q[0] @ keys[0].T, -1)
    assert weights[0, 203] > 0.99, "nearly all of the attention"
    found = {}
    for outliers in (0, 1):
        index = shadowkv(f":outliers={outliers}")
        state = index.build(keys)
        chosen = index.select(state, q, TOKENS, 80 + 64)
        found[outliers] = 203 // 8 in chosen.ids[0].tolist()
        assert (203 // 8 in chosen.notes.exact[0].tolist()) == bool(outliers)
        if outliers:
            out, _ = index.attend(state, q, chosen, PlainReader(keys, values), tail, 1.0)
            assert (out - values[:, 203:204]).norm() < 0.1 * values[:, 203].norm()
    assert found == {0: False, 1: True}


# On the device


@settings(max_examples=12, derandomize=True, deadline=None, phases=[Phase.generate])
@given(
    seed=st.integers(0, 99), of=st.sampled_from(["", ":chunk=4", ":chunk=4:refine=3", ":outliers=2:refine=1"]),
    params=st.sampled_from([PARAMS, BARE]), pages=st.integers(8, 40), share=st.floats(0, 1.2),
)  # fmt: skip
def test_a_ranking_reads_what_select_chooses(seed: int, of: str, params: IndexParams, pages: int, share: float) -> None:
    """All of it exactly where the budget covers that; otherwise the same chunks or tokens, with the same keys."""
    index, total = shadowkv(of, params), pages * 16
    keys, q = low_rank(total + 48, seed), query(seed)
    state = index.build(keys)
    ranking, budget = index.ranking(state), max(7 * 16, int(share * total))
    assert ranking is not None
    assert ranking.rebuilding is not None
    unit, each = ranking.unit, ranking.rebuilding.unit
    units, wanted = total // unit, budget // unit
    ids, counts, rebuilt = rebuilt_units(ranking, q, torch.tensor([units]), units, wanted)
    of_exact, of_rebuilt = ranking.rebuilding.split(units, wanted)
    assert counts.tolist() == [of_exact] * SHAPE[0]
    assert rebuilt.counts.tolist() == [of_rebuilt] * SHAPE[0]
    exact, others = tokens_of(ids[:, :of_exact], unit), tokens_of(rebuilt.ids[:, :of_rebuilt], each)
    if wanted >= units:
        assert exact.tolist() == [list(range(total))] * SHAPE[0]
        assert not of_rebuilt
        return
    chosen = index.select(state, q, total, budget)
    assert torch.equal(exact, tokens_of(chosen.notes.exact, chosen.unit))
    assert torch.equal(others, tokens_of(chosen.notes.rebuilt, chosen.unit))
    known = index._rebuilt(state, others, 1)
    assert_close("keys", rebuilt.keys[:, : others.shape[1]], known)


def tokens_of(units: Tensor, unit: int) -> Tensor:
    return (units.unsqueeze(-1) * unit + torch.arange(unit)).flatten(1)


@pytest.mark.parametrize("settings_of", ["", ":chunk=4:refine=2"])
def test_widths_follow_from_the_budget(settings_of: str) -> None:
    """What is read of any length within them fits."""
    index = shadowkv(settings_of)
    ranking = index.ranking(index.build(low_rank(320, 0)))
    assert ranking is not None
    rebuilding = ranking.rebuilding
    assert rebuilding is not None
    for total in (30, 31, 200):
        most = rebuilding.most(total, 30)
        for wanted in range(25, 31):
            split = rebuilding.split(total, wanted)
            assert split[0] <= most[0]
            assert split[1] <= most[1]
    assert rebuilding.most(30, 30)[0] == 30
    assert rebuilding.most(31, 30)[0] < 30
