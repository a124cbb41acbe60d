"""The whitened basis, anchors, and when to fit anew."""

from __future__ import annotations

import pytest
import torch
from indexes import HalfSplitRope
from torch import Tensor

from stratakv.kernels.topk_pages import group_scores
from stratakv.retrieval import IndexParams, make_index
from stratakv.retrieval.index import Index
from stratakv.retrieval.indexes.spectral import SpectralIndex, SpectralState
from stratakv.retrieval.structures.whitening import captured_share, covariance, query_whitened_basis, second_moment

GROUPS, REPEATS, DIM, SIZE = 2, 3, 64, 16
PARAMS = IndexParams(page_size=SIZE, sink=16, local=64)


def text_like(tokens: int, seed: int = 0, *, subspace: int = 24) -> tuple[Tensor, Tensor]:
    """Rotated keys `[G, n, D]` with a few strong directions, a common part, and some tokens that stand out; queries of
    each page's last token `[G, R, pages, D]` that look for such tokens through directions of their own."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(GROUPS, subspace, DIM, generator=generator) / subspace**0.5
    raw = torch.randn(GROUPS, tokens, subspace, generator=generator) @ mix + 2 * mix[:, :1]
    q = torch.randn(GROUPS, REPEATS * (tokens // SIZE), subspace // 4, generator=generator) @ mix[:, : subspace // 4]
    rope = HalfSplitRope()
    at = torch.arange(SIZE - 1, tokens, SIZE).repeat(REPEATS)
    queries = rope.rotate(q * DIM**-0.5 * 3, at).view(GROUPS, REPEATS, -1, DIM)
    return rope.rotate(raw, torch.arange(tokens)), queries


def mass(keys: Tensor, q: Tensor, index: Index, state: object, budget: int) -> float:
    """Share of the attention on what is chosen."""
    chosen = index.select(state, q, keys.shape[1], budget)
    tokens = (chosen.ids.unsqueeze(-1) * chosen.unit + torch.arange(chosen.unit)).flatten(1)
    return float(group_scores(q @ keys.transpose(1, 2)).gather(1, tokens).sum(1).mean())


# Whitening


def test_the_basis_keeps_what_queries_see() -> None:
    """Keys vary most where no query looks: principal directions of keys alone keep that, whitened ones do not."""
    generator = torch.Generator().manual_seed(0)
    scales = torch.tensor([8.0, 8, 8, 8, 1, 1, 1, 1])
    keys = torch.randn(1, 2000, 8, generator=generator) * scales
    queries = torch.randn(1, 1, 500, 8, generator=generator) / scales**2
    cov, moment = covariance(keys), second_moment(queries)
    errors = {}
    for name, seen in (("keys alone", torch.eye(8).unsqueeze(0)), ("whitened", moment)):
        basis = query_whitened_basis(cov, seen, 4, 4)
        centred = keys - keys.mean(1, keepdim=True)
        near = (queries[0] @ basis.of_queries[0]) @ (centred @ basis.of_keys)[0].T
        true = queries[0] @ centred[0].T
        errors[name] = float((near - true).square().mean() / true.square().mean())
        assert captured_share(moment, cov, basis) == pytest.approx(1 - errors[name], abs=0.02)
    assert errors["whitened"] < 0.1 < 0.5 < errors["keys alone"]


def test_all_directions_lose_nothing() -> None:
    keys, queries = text_like(320)
    basis = query_whitened_basis(covariance(keys), second_moment(queries), DIM, 8)
    near = queries.flatten(1, 2) @ basis.of_queries @ (keys @ basis.of_keys).transpose(1, 2)
    assert torch.allclose(near, queries.flatten(1, 2) @ keys.transpose(1, 2), atol=1e-3)
    assert captured_share(second_moment(queries), covariance(keys), basis) == pytest.approx(1, abs=1e-4)


def test_parts_have_alike_variance() -> None:
    keys, queries = text_like(640, subspace=64)
    moment = second_moment(queries)
    basis = query_whitened_basis(covariance(keys), moment, 48, 6)
    variance = (keys @ basis.of_keys).var(1).view(GROUPS, 6, 8).sum(2)
    assert (variance.amax(1) < 3 * variance.amin(1)).all()


@pytest.mark.parametrize("width", [0, 7, 66])
def test_widths_that_do_not_fit_are_refused(width: int) -> None:
    eye = torch.eye(64).unsqueeze(0)
    with pytest.raises(ValueError, match=f"multiple of 6 parts from 1 to the head dim 64, not {width}"):
        query_whitened_basis(eye, eye, width, 6)


# The index


def built(tokens: int = 2048, settings: str = "") -> tuple[Index, SpectralState, Tensor, Tensor]:
    index = make_index("spectral" + settings, PARAMS)
    keys, queries = text_like(tokens)
    return index, index.build(keys, queries), keys, queries


def test_eight_bytes_per_token_and_kv_head_at_head_dim_64() -> None:
    """Half of page bounds: a maximum and a minimum per channel in 16 bits for 16 tokens."""
    _, state, keys, _ = built()
    per_token = (state.codes.data.nbytes + state.anchors.data.nbytes) / (GROUPS * keys.shape[1])
    assert per_token == 8 == (2 * DIM * 2 / SIZE) / 2


def test_tokens_beat_pages_at_half_the_bytes() -> None:
    """Over queries of a later part of the text."""
    index, state, keys, queries = built()
    bounds = make_index("bounds", PARAMS)
    other = bounds.build(keys)
    ask = [queries[:, :, at] for at in range(64, 128, 8)]
    ours = sum(mass(keys, q, index, state, 256) for q in ask)
    theirs = sum(mass(keys, q, bounds, other, 256) for q in ask)
    best = make_index("oracle", PARAMS)
    ceiling = best.build(keys)
    most = sum(mass(keys, q, best, ceiling, 256) for q in ask)
    assert most - ours < 0.35 * (most - theirs)


def test_anchors_hold_what_turns_slowly() -> None:
    """Fewer tokens to an anchor leave less to be coded; a common part of all keys leaves nothing at all."""
    keys, _ = text_like(2048)
    left = []
    for segment in (16, 64, 512):
        index = make_index(f"spectral:segment={segment}", PARAMS)
        left.append(float(index.build(keys).cov.diagonal(dim1=1, dim2=2).sum()))
    assert left == sorted(left)
    index = make_index("spectral", PARAMS)
    alike = keys[:, :1].expand(-1, 1024, -1)
    assert float(index.build(alike).cov.abs().max()) < 1e-4


def test_a_segments_anchor_is_the_mean_of_its_first_page() -> None:
    _, state, keys, _ = built(320)
    expected = torch.stack([keys[:, at : at + SIZE].mean(1) for at in range(0, 320, 64)], 1)
    assert torch.equal(state.anchors.data, expected.bfloat16())


# When to fit anew


@pytest.mark.parametrize("tokens", [SIZE, 48, 64, 80, 640, 1008])
def test_scores_are_those_of_anchor_and_decoded_rest(tokens: int) -> None:
    keys, queries = text_like(1024)
    index = make_index("spectral", PARAMS)
    assert isinstance(index, SpectralIndex)
    state = index.build(keys, queries)
    q = queries[:, :, 9]
    codes = state.codes.data[:, :tokens].long()
    parts = [state.codebooks[:, m].float() for m in range(codes.shape[2])]
    places = [codes[..., m, None].expand(-1, -1, part.shape[2]) for m, part in enumerate(parts)]
    decoded = torch.cat([part.gather(1, place) for part, place in zip(parts, places, strict=True)], -1)
    anchors = state.anchors.data.float()[:, torch.arange(tokens) // 64]
    expected = (q @ state.basis.of_queries) @ decoded.transpose(1, 2) + q @ anchors.transpose(1, 2)
    found = index.scores(state, q, tokens)
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_outgrown_when_the_text_has_doubled() -> None:
    index, state, _, _ = built(1024)
    assert not index.is_outgrown(state)
    more, _ = text_like(1008, seed=1)
    index.append(state, more, None)
    assert not index.is_outgrown(state)
    index.append(state, more[:, :16], None)
    assert index.is_outgrown(state)
    assert not index.is_outgrown(index.fit(*sample(torch.cat([more] * 2, 1)), None, state))


def sample(keys: Tensor) -> tuple[Tensor, Tensor]:
    return keys, torch.arange(keys.shape[1])


def test_outgrown_when_queries_turn_elsewhere() -> None:
    """Not by more of the same."""
    index, state, keys, queries = built(2048)
    index.append(state, keys[:, : 32 * SIZE], queries[:, :, :32])
    assert not index.is_outgrown(state)
    unseen = torch.linalg.qr(state.basis.of_queries, mode="complete").Q[..., -8:]  # what the basis cannot see
    turned = (
        torch.randn(GROUPS, REPEATS * 16, 8, generator=torch.Generator().manual_seed(3)) @ unseen.transpose(1, 2)
    ) * 9
    index.append(state, keys[:, : 16 * SIZE], turned.view(GROUPS, REPEATS, 16, DIM))
    assert index.is_outgrown(state)
    anew = index.fit(*sample(keys), None, state)
    assert anew.facts[3] > state.facts[4], "the new basis sees them"


def test_outgrown_when_the_first_queries_come() -> None:
    """Pages that were adopted have none. What is learned from some is not learned again from each."""
    index = make_index("spectral", PARAMS)
    keys, queries = text_like(2048)
    state = index.build(keys)
    assert state.num_queried == 0
    index.append(state, keys[:, : 3 * SIZE], queries[:, :, :3])
    assert not index.is_outgrown(state)
    index.append(state, keys[:, : 61 * SIZE], queries[:, :, 3:64])
    assert index.is_outgrown(state)
    anew = index.fit(*sample(keys), None, state)
    index.append(anew, keys)
    assert not index.is_outgrown(anew)
    assert not torch.equal(anew.basis.of_keys, state.basis.of_keys)
    assert captured_share(second_moment(queries), anew.cov, anew.basis) > captured_share(
        second_moment(queries), state.cov, state.basis
    )


def test_old_queries_fade() -> None:
    index, state, keys, queries = built(1024)
    turned = queries.flip(-1)
    for _ in range(40):
        index.append(state, keys[:, :0], turned)
    away = (state.moment - second_moment(turned)).norm() / second_moment(turned).norm()
    assert away < 0.05


@pytest.mark.parametrize("wrong", ["parts=0", "segment=-1", "part_width=0"])
def test_settings_are_checked(wrong: str) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        make_index(f"spectral:{wrong}", PARAMS)
