"""The contract of `stratakv.retrieval.Index`, for every index there is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from closeness import assert_close, poison_empty
from indexes import INDEX_CASES, PAGES, PARAMS, SHAPES, IndexCase, PlainReader, draw, forced_pages, mass_of
from torch import Tensor

from stratakv.kernels.sinks import with_sinks
from stratakv.retrieval import Index, IndexParams, index_names, make_index
from stratakv.retrieval.registry import AUTO, INDEXES
from stratakv.retrieval.stored import Geometry, check_stored

LATENT, VALUES = 256, 192
"""The head dim of keys that contain the values here, and how many of the first channels those are."""
every_index = pytest.mark.parametrize("case", INDEX_CASES, ids=lambda case: case.name)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_param = pytest.mark.parametrize("params", PARAMS, ids=lambda p: f"page{p.page_size}-sink{p.sink}-local{p.local}")


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    poison_empty(monkeypatch)


def budgets(params: IndexParams, total: int) -> list[int]:
    """The smallest legal one, one that is no whole page, about half, and one less than all."""
    least = (forced_pages(params) + 1) * params.page_size
    return [least, least + params.page_size + 1, total // 2 + 3, total - 1]


def fitted(index: Index, keys: Tensor) -> Any:
    """A state that has learned from all of `keys` and holds none of them yet."""
    return index.fit(keys, torch.arange(keys.shape[1]))


def holding(index: Index, learned_from: Tensor, keys: Tensor) -> Any:
    state = fitted(index, learned_from)
    index.append(state, keys)
    return state


def same_state(index: Index, a: Any, b: Any) -> bool:
    one, two = index.export(a), index.export(b)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_the_list_is_the_registry() -> None:
    assert sorted(case.name for case in INDEX_CASES) == sorted(INDEXES)
    assert index_names() == ["auto", *sorted(INDEXES)]
    assert make_index("auto", PARAMS[0]).name == AUTO
    for case in INDEX_CASES:
        assert case.make(PARAMS[0]).name == case.name
    with pytest.raises(ValueError, match=r"auto, .*window; not 'quest'"):
        make_index("quest", PARAMS[0])


@pytest.mark.parametrize("wrong", [{"page_size": 0}, {"sink": -1}, {"local": -1}], ids=str)
def test_parameters_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        IndexParams(**wrong)


@every_index
@every_shape
@every_param
def test_selections(case: IndexCase, shape: tuple[int, int, int], params: IndexParams) -> None:
    """Within the budget, ascending, in range, sinks and the local window present, equally long rows."""
    keys, q = draw(shape, params)
    total = keys.shape[1]
    index = case.make(params, shape)
    state = index.build(keys)
    for budget in budgets(params, total):
        chosen = case.select(index, state, keys, q, total, budget)
        unit = case.unit_of(params.page_size)
        assert chosen.unit == unit
        assert chosen.ids.dtype == torch.int64
        assert chosen.ids.shape[0] == shape[0]
        assert chosen.num_tokens == chosen.ids.shape[1] * unit
        assert (chosen.ids.diff() > 0).all(), "ascending, so unique"
        assert chosen.ids.min() >= 0
        assert chosen.ids.max() < total // unit
        forced = {*range(params.sink), *range(total - params.local, total)}
        for row in chosen.ids.tolist():
            assert {token // unit for token in forced} <= set(row)
        if not case.keeps_budget:
            assert chosen.num_tokens == total
            continue
        assert chosen.num_tokens <= budget
        if case.fills_budget:
            assert chosen.num_tokens > budget - params.page_size, "all of the budget but a part of a page"


@every_index
@pytest.mark.parametrize(
    ("steps", "shape"),
    [([36, 1], SHAPES[0]), ([3] * 12 + [1], SHAPES[0]), *(([0, 1, 5, 2, 29], shape) for shape in SHAPES)],
    ids=str,
)
def test_append_equals_build(case: IndexCase, shape: tuple[int, int, int], steps: list[int]) -> None:
    """Keys arrive in a buffer that is written over after each call. What is learned is learned from the same."""
    params = PARAMS[1]
    keys, q = draw(shape, params)
    index = case.make(params, shape)
    whole = holding(index, keys, keys)
    assert same_state(index, whole, index.build(keys))
    buffer = torch.empty_like(keys)
    state, start = fitted(index, keys), 0
    for pages in steps:
        run = buffer[:, : pages * params.page_size]
        run.copy_(keys[:, start : start + run.shape[1]])
        index.append(state, run)
        start += run.shape[1]
        run.fill_(float("nan"))
    assert same_state(index, state, whole)
    found, expected = (case.select(index, s, keys, q, keys.shape[1], 150) for s in (state, whole))
    assert torch.equal(found.ids, expected.ids)


@every_index
@pytest.mark.parametrize(
    ("kept", "shape"), [(0, SHAPES[0]), (1, SHAPES[0]), (37, SHAPES[0]), *((20, shape) for shape in SHAPES)], ids=str
)
def test_truncate_equals_build_of_the_prefix(case: IndexCase, shape: tuple[int, int, int], kept: int) -> None:
    """And what is appended afterwards is what counts, not what was there before."""
    params = PARAMS[1]
    keys, q = draw(shape, params)
    prefix = keys[:, : kept * params.page_size]
    index = case.make(params, shape)
    state = holding(index, keys, keys[:, : 30 * params.page_size])
    index.append(state, keys[:, 30 * params.page_size :])
    index.truncate(state, prefix.shape[1])
    assert same_state(index, state, holding(index, keys, prefix))
    other, _ = draw(shape, params, seed=1)
    index.append(state, other)
    whole = holding(index, keys, torch.cat([prefix, other], 1))
    assert same_state(index, state, whole)
    keys = torch.cat([prefix, other], 1)
    found, expected = (case.select(index, s, keys, q, keys.shape[1], 150) for s in (state, whole))
    assert torch.equal(found.ids, expected.ids)


@every_index
@every_shape
def test_select_changes_nothing(case: IndexCase, shape: tuple[int, int, int]) -> None:
    params = PARAMS[0]
    keys, q = draw(shape, params)
    index = case.make(params, shape)
    state = index.build(keys)
    before = {name: tensor.clone() for name, tensor in index.export(state).items()}
    query = q.clone()
    first = case.select(index, state, keys, q, keys.shape[1], 150)
    second = case.select(index, state, keys, q, keys.shape[1], 150)
    assert torch.equal(first.ids, second.ids)
    assert torch.equal(q, query)
    after = index.export(state)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@every_index
def test_select_sees_only_the_tokens_it_is_told(case: IndexCase) -> None:
    """`num_tokens` may lie behind what the state holds."""
    params = PARAMS[1]
    keys, q = draw(SHAPES[0], params)
    index = case.make(params)
    total = 20 * params.page_size
    found, expected = (
        case.select(index, holding(index, keys, held), held, q, total, 150) for held in (keys, keys[:, :total])
    )
    assert torch.equal(found.ids, expected.ids)


@every_index
@every_shape
def test_states_survive_a_session(case: IndexCase, shape: tuple[int, int, int]) -> None:
    params = PARAMS[0]
    keys, q = draw(shape, params, dtype=torch.bfloat16)
    half = 18 * params.page_size
    index = case.make(params, shape)
    state = index.build(keys[:, :half])
    saved = {name: tensor.clone() for name, tensor in index.export(state).items()}
    assert index.state_bytes(state) == sum(tensor.nbytes for tensor in saved.values())
    restored = case.make(params, shape).restore(saved)
    assert same_state(index, restored, state)
    for s in (state, restored):
        index.append(s, keys[:, half:])
    assert same_state(index, restored, state)
    found, expected = (case.select(index, s, keys, q, keys.shape[1], 150) for s in (restored, state))
    assert torch.equal(found.ids, expected.ids)
    for name in saved:
        with pytest.raises(KeyError):
            index.restore({other: tensor for other, tensor in saved.items() if other != name})


@every_index
def test_a_copy_is_independent(case: IndexCase) -> None:
    """A forked conversation: both go back to a shared prefix and take different ways, in the room they have."""
    params = PARAMS[0]
    keys, _ = draw(SHAPES[0], params)
    ours, _ = draw(SHAPES[0], params, seed=1, pages=9)
    theirs, _ = draw(SHAPES[0], params, seed=2, pages=9)
    half = keys[:, : 18 * params.page_size]
    index = case.make(params)
    state = holding(index, keys, keys)
    twin = index.copy(state)
    for s, further in ((state, ours), (twin, theirs)):
        index.truncate(s, half.shape[1])
        index.append(s, further)
    assert same_state(index, state, holding(index, keys, torch.cat([half, ours], 1)))
    assert same_state(index, twin, holding(index, keys, torch.cat([half, theirs], 1)))


@every_index
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_keys_may_have_half_precision(case: IndexCase, dtype: torch.dtype) -> None:
    """The query is fp32; what is chosen is what the same keys in fp32 would choose."""
    params = PARAMS[0]
    keys, q = draw(SHAPES[2], params, dtype=dtype)
    index = case.make(params, SHAPES[2])
    found, expected = (
        case.select(index, index.build(same), same, q, keys.shape[1], 150) for same in (keys, keys.float())
    )
    assert torch.equal(found.ids, expected.ids)


# Attention


@every_index
@every_shape
def test_attention_over_what_was_chosen(case: IndexCase, shape: tuple[int, int, int]) -> None:
    """One softmax over the chosen units, the tail and learned sinks, whatever order they were fetched in. Where keys
    contain the values, as latents do, an index that wants values alone has no use, and says so."""
    params = PARAMS[0]
    groups, repeats, dim = shape
    keys, q = draw(shape, params)
    index = case.make(params, shape)
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(keys.shape, generator=generator)
    tail = (torch.randn(groups, 7, dim, generator=generator), torch.randn(groups, 7, dim, generator=generator))
    if dim == LATENT and not index.reads_values_alone:
        values, tail = keys[..., :VALUES], (tail[0], tail[0][..., :VALUES])
    state, reader = index.build(keys), PlainReader(keys, values)
    chosen = index.select(state, q, keys.shape[1], 150)
    out, lse = index.attend(state, q, chosen, reader, tail, 1.0)
    tokens = (chosen.ids.unsqueeze(-1) * chosen.unit + torch.arange(chosen.unit)).flatten(1)
    k, v = (
        torch.cat([run.gather(1, tokens.unsqueeze(-1).expand(-1, -1, run.shape[2])), newest], 1)
        for run, newest in zip((keys, values), tail, strict=True)
    )
    scores = q.double() @ k.double().transpose(1, 2)
    assert reader.values_moved == chosen.num_tokens
    if not index.reads_exactly:  # estimates keys, or the softmax of all tokens: how well is tested by itself
        every = (q.double() @ torch.cat([keys, tail[0]], 1).double().transpose(1, 2)).logsumexp(-1)
        assert ((scores.logsumexp(-1) - 2 < lse) & (lse < every + 2)).all(), "sinks are added to it"
        return
    assert_close("out", out, scores.softmax(-1) @ v.double())
    assert_close("lse", lse, scores.logsumexp(-1))
    sinks = torch.randn(groups, repeats, generator=generator)
    shares = torch.cat([scores, sinks.unsqueeze(-1)], -1).softmax(-1)[..., :-1]
    assert_close("out with sinks", with_sinks(out, lse, sinks), shares @ v.double())
    assert reader.keys_moved == chosen.num_tokens


@every_index
def test_queries_of_another_layer(case: IndexCase) -> None:
    """Layers without keys of their own search another one's, in turns with it: what is found for either depends on
    the query alone, and a key that answers it is found, though no such query was there when keys were learned."""
    params, shape = PARAMS[0], SHAPES[-1]
    keys, q = draw(shape, params)
    own = torch.randn(1, 8, PAGES, shape[2], generator=torch.Generator().manual_seed(2))
    other = draw(shape, params, seed=3)[1]
    other = other[:, :1] + 0.1 * other  # query heads that agree, with a key in the middle
    keys[:, 20 * params.page_size + 3] = 100 * other.mean(1)
    index = case.make(params, shape)
    state = index.build(keys, own if index.uses_queries else None)
    before = {name: tensor.clone() for name, tensor in index.export(state).items()}
    first, theirs, second = (case.select(index, state, keys, each, keys.shape[1], 150) for each in (q, other, q))
    assert torch.equal(first.ids, second.ids)
    assert all(torch.equal(index.export(state)[name], tensor) for name, tensor in before.items())
    assert theirs.num_tokens <= 150 or not case.keeps_budget
    assert ((20 * params.page_size + 3) // theirs.unit in theirs.ids[0].tolist()) == (case.name != "window")


# Quality


@every_shape
def test_bounds_cover_more_than_a_window(shape: tuple[int, int, int]) -> None:
    """Worth its cost: over twenty drawn contexts it finds more of the attention than its floor does."""
    params = PARAMS[3]
    found = {"bounds": 0.0, "window": 0.0}
    for seed in range(20):
        keys, q = draw(shape, params, seed=seed)
        for name in found:
            index = make_index(name, params)
            chosen = index.select(index.build(keys), q, keys.shape[1], 40)
            found[name] += mass_of(keys, q, chosen.ids, chosen.unit).mean().item() / 20
    assert found["bounds"] > found["window"] + 0.02


@every_index
@every_shape
def test_a_state_that_was_saved_is_told_from_a_hostile_one(case: IndexCase, shape: tuple[int, int, int]) -> None:
    groups, repeats, dim = shape
    params = IndexParams(page_size=8, sink=8, local=16)
    index, pages = case.make(params, shape), 37
    keys, queries = torch.randn(groups, 8 * pages, dim), torch.randn(groups, repeats, pages, dim)
    state = index.build(keys[:, :160], queries[:, :, :20])
    index.append(state, keys[:, 160:], queries[:, :, 20:])
    for kept in (8 * pages, 8, 0):
        index.truncate(state, kept)
        of, whole = Geometry(keys[:, :0], kept, repeats), index.export(state)
        check_stored(whole, index.stored(of, whole))
        for name, tensor in whole.items():
            for wrong in hostile(tensor):
                with pytest.raises(ValueError, match=r"'\w+': "):
                    check_stored(whole | {name: wrong}, index.stored(of, whole | {name: wrong}))
            rest = {other: t for other, t in whole.items() if other != name}
            with pytest.raises(ValueError, match=r"'\w+'"):
                check_stored(rest, index.stored(of, rest))
        with pytest.raises(ValueError, match="'more': unknown"):
            check_stored(whole | {"more": keys}, index.stored(of, whole))


def hostile(tensor: Tensor) -> list[Tensor]:
    """Of another dtype or shape, or with values that no state has."""
    wrong = [tensor.to(torch.int32), tensor.unsqueeze(0), torch.cat([tensor.reshape(-1), tensor.new_ones(3)])]
    if tensor.numel() and tensor.is_floating_point():
        wrong += [torch.full_like(tensor, torch.nan), torch.full_like(tensor, torch.inf)]
    if tensor.numel() and tensor.dtype in (torch.int16, torch.int64):
        wrong += [torch.full_like(tensor, -1)]
    return wrong
