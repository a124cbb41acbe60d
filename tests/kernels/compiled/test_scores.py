"""Compiled scores are those of the indexes, whoever takes which item, and good for a choice whatever they are."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from compiled_rows import Buffer
from compiled_scores import Scored, run
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stratakv.kernels.compiled.record import BF16, F32
from stratakv.kernels.compiled.scores import make_tables, score_bounds, score_bytes, score_codes
from stratakv.kernels.page_bounds import bound_scores, page_bounds
from stratakv.kernels.topk_pages import group_scores
from stratakv.retrieval.indexes.bounds import BoundsIndex
from stratakv.retrieval.indexes.spectral import SpectralIndex, SpectralOptions
from stratakv.retrieval.layer import IndexedLayer
from stratakv.retrieval.params import IndexParams

drawn = settings(max_examples=40, derandomize=True, deadline=None)


def check_ids(ids: Tensor, units: int, sink: int, local: int) -> None:
    assert (ids.diff() > 0).all(), "ascending, so unique"
    assert ids.numel() == 0 or (ids.min() >= 0 and ids.max() < units)
    for row in ids.tolist():
        assert {*range(sink), *range(units - local, units)} <= set(row)


def check_best(ids: Tensor, scores: Tensor, sink: int, local: int) -> None:
    """`ids` are the best of `scores` `[G, units]`, up to what rounds otherwise, with the forced ones."""
    units = scores.shape[1]
    check_ids(ids, units, sink, local)
    taken = torch.zeros(scores.shape, dtype=torch.bool).scatter_(1, ids, True)
    middle, free = taken[:, sink : units - local], scores[:, sink : units - local]
    worst = free.masked_fill(~middle, torch.inf).amin(1) if free.shape[1] else torch.tensor(torch.inf)
    missed = free.masked_fill(middle, 0).amax(1) if free.shape[1] else torch.tensor(0.0)
    assert (worst >= missed * (1 - 1e-4)).all()


def order(data: st.DataObject, items: int) -> list[int]:
    return list(data.draw(st.permutations(range(items))))


def score_by_bounds(
    q: Tensor, bounds: Tensor, units: int, span: int, scale: float, items: list[int] | None = None
) -> Scored:
    groups, repeats, dim = q.shape
    scored = Scored(groups, repeats, units, span)
    run(score_bounds, items or range(groups * scored.parts), score_bytes(repeats, dim, span), S_DIM=dim, S_Q=q,
        S_SCALE=scale, S_BOUNDS=bounds, S_HEAD_PITCH=bounds.stride(0), S_KIND=F32 if bounds.dtype == torch.float32
        else BF16, **scored.fields)  # fmt: skip
    return scored


def score_by_codes(
    q: Tensor, index: SpectralIndex, state: Any, units: int, span: int, scale: float, items: list[int] | None = None
) -> Scored:
    groups, repeats, dim = q.shape
    codes, anchors = state.codes.data, state.anchors.data
    _, parts, _, width = state.codebooks.shape
    scored = Scored(groups, repeats, units, span)
    basis = state.basis.of_queries.transpose(1, 2).contiguous()
    books = state.codebooks.float().transpose(2, 3).contiguous()
    fields = {
        "S_DIM": dim, "S_Q": q, "S_SCALE": scale, "S_BOUNDS": codes, "S_HEAD_PITCH": codes.stride(0),
        "S_CODE_PARTS": parts, "S_CODE_DIM": width, "S_BASIS": basis, "S_BOOKS": books,
        "S_TABLES": Buffer(groups * -(-repeats // 4) * parts * 1024), "S_ANCHORS": anchors,
        "S_ANCHOR_PITCH": anchors.stride(0), "S_SEGMENT": index._segment, **scored.fields,
    }  # fmt: skip
    size = score_bytes(repeats, dim, span, width)
    run(make_tables, reversed(range(groups * parts)), size, **fields)
    fields["S_TABLES"].check()
    run(score_codes, items or range(groups * scored.parts), size, **fields)
    return scored


def params(page: int, sink: int, local: int) -> IndexParams:
    return IndexParams(page_size=page, sink=sink, local=local)


@drawn
@given(
    data=st.data(), groups=st.integers(1, 3), repeats=st.integers(1, 16), dim=st.sampled_from([8, 20, 96, 512]),
    pages=st.integers(1, 150), span=st.sampled_from([1, 7, 32, 200]),
    kind=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_by_bounds(data: st.DataObject, groups: int, repeats: int, dim: int, pages: int, span: int, kind: Any) -> None:
    torch.manual_seed(pages)
    q, scale = torch.randn(groups, repeats, dim), dim**-0.5 * data.draw(st.sampled_from([1, 5]))
    more = torch.randn(groups, (pages + 2) * 4, dim).to(kind)
    bounds = page_bounds(more, 4)
    of = bounds[:, :pages]
    scored = score_by_bounds(q, bounds, pages, span, scale, order(data, groups * -(-pages // span)))
    expected = bound_scores(q.double() * scale, of.float())
    torch.testing.assert_close(scored.scores(), expected.double(), rtol=1e-4, atol=1e-4)
    count = data.draw(st.integers(0, pages))
    sink = data.draw(st.integers(0, count))
    local = data.draw(st.integers(0, count - sink))
    ids = scored.choose(count, sink, local)
    check_best(ids, group_scores(expected), sink, local)
    if sink + local < count < pages:
        index = BoundsIndex(params(4, 4 * sink, 4 * local), IndexedLayer(0, 1), BoundsIndex.Options())
        state = index.fit(more[:, :0], torch.arange(0))
        index.append(state, more[:, : pages * 4])
        chosen = index.select(state, q * scale, pages * 4, count * 4).ids
        assert (chosen != ids).float().mean() <= 0.1, "but for what rounds otherwise"


@drawn
@given(
    data=st.data(), groups=st.integers(1, 3), repeats=st.integers(1, 16), dim=st.sampled_from([8, 20, 512]),
    pages=st.integers(1, 40), span=st.sampled_from([5, 64, 300]), parts=st.integers(1, 7),
    segment=st.sampled_from([1, 64]),
)  # fmt: skip
def test_by_codes(
    data: st.DataObject, groups: int, repeats: int, dim: int, pages: int, span: int, parts: int, segment: int
) -> None:
    torch.manual_seed(pages)
    index = SpectralIndex(params(16, 16, 16), IndexedLayer(0, 1), SpectralOptions(parts=parts, segment=segment))
    state = index.build(torch.randn(groups, pages * 16, dim))
    tokens = data.draw(st.integers(1, pages * 16))
    q, scale = torch.randn(groups, repeats, dim), dim**-0.5 * data.draw(st.sampled_from([1, 5]))
    scored = score_by_codes(q, index, state, tokens, span, scale, order(data, groups * -(-tokens // span)))
    expected = index.scores(state, q * scale, tokens)
    torch.testing.assert_close(scored.scores(), expected.double(), rtol=1e-4, atol=1e-4)
    count = data.draw(st.integers(0, tokens))
    sink, local = min(16, count), min(16, max(0, count - 16))
    ids = scored.choose(count, sink, local)
    check_best(ids, group_scores(expected), sink, local)


@pytest.mark.parametrize(("above", "rest"), [(80, [57, 58, 59]), (800, [1, 2, 3])])
def test_scores_far_below_the_best(above: float, rest: list[int]) -> None:
    """They keep their order as far as fp32 goes; from there on they are equal."""
    q, bounds = torch.ones(1, 1, 8), torch.zeros(1, 60, 16)
    bounds[0, :, 0] = torch.arange(60.0) / 60
    bounds[0, 0, 0] = above
    bounds[..., 8:] = bounds[..., :8]
    assert score_by_bounds(q, bounds, 60, 10, 1.0).choose(4, 0, 0).tolist() == [[0, *rest]]


@pytest.mark.parametrize("bad", [torch.nan, -torch.nan, torch.inf, -torch.inf, 3e38])
@pytest.mark.parametrize("every", [True, False])
def test_what_is_no_number_still_gives_a_selection(bad: float, every: bool) -> None:
    torch.manual_seed(0)
    q, keys = torch.randn(2, 3, 16), torch.randn(2, 160, 16)
    q[:, :: 1 if every else 2, ::5] = bad
    scored = score_by_bounds(q, page_bounds(keys, 4), 40, 16, 0.25)
    check_ids(scored.choose(9, 2, 3), 40, 2, 3)
    index = SpectralIndex(params(16, 16, 16), IndexedLayer(0, 1), SpectralOptions())
    scored = score_by_codes(q, index, index.build(keys), 160, 64, 0.25)
    check_ids(scored.choose(50, 16, 16), 160, 16, 16)
    keys[:, ::7] = bad
    scored = score_by_bounds(torch.randn(2, 3, 16), page_bounds(keys, 4), 40, 16, 0.25)
    check_ids(scored.choose(9, 2, 3), 40, 2, 3)


@pytest.mark.parametrize("sign", [1, -1])
def test_what_is_no_number_is_chosen_last(sign: int) -> None:
    """Whatever its sign: it would be above all numbers, as bits are ordered."""
    q, bounds = torch.ones(1, 1, 8), torch.zeros(1, 8, 16)
    bounds[0, :, 0] = bounds[0, :, 8] = torch.arange(8.0)
    bounds[0, 2] = math.copysign(torch.nan, sign)
    assert score_by_bounds(q, bounds, 8, 8, 1.0).choose(2, 0, 0).tolist() == [[6, 7]]


def test_items_leave_the_same_in_any_order() -> None:
    torch.manual_seed(0)
    q, keys = torch.randn(2, 5, 24), torch.randn(2, 336, 24)
    index = SpectralIndex(params(16, 16, 16), IndexedLayer(0, 1), SpectralOptions())
    state = index.build(keys)
    for score in (
        lambda items: score_by_bounds(q, page_bounds(keys, 4), 84, 20, 0.2, items),
        lambda items: score_by_codes(q, index, state, 330, 66, 0.2, items),
    ):
        once, again = score(list(range(10))), score([3, 7, 1, 9, 0, 2, 8, 4, 6, 5])
        assert once.powers.data.tobytes() == again.powers.data.tobytes()
        assert once.tops.data.tobytes() == again.tops.data.tobytes()
