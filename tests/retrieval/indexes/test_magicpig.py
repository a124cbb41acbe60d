"""MagicPIG: what is sampled, how probable that was, and what follows for attention.

Figures are those of the paper's estimator (arXiv 2410.16179): 1024 keys of 64 dimensions around a mean that is four
times their spread, logits with standard deviation 1.5, many draws of the planes.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from closeness import assert_close
from indexes import PlainReader
from magicpig_cases import index_of, normal
from torch import Tensor

from stratakv.kernels.simhash import inclusion_probability_reference, random_planes, simhash
from stratakv.retrieval import IndexParams
from stratakv.retrieval.index import Selection
from stratakv.retrieval.indexes.magicpig import MagicPIGState, Weighing
from stratakv.retrieval.reading import Run
from stratakv.retrieval.structures.collision_sample import collision_sample
from stratakv.retrieval.structures.hash_tables import HashTables

BITS, TABLES, DRAWS = 10, 600, 40


def whole_selection(seen: Tensor, depth: Tensor, tables: Tensor, always: Tensor | None = None) -> Selection:
    """Of all tokens, of which each head has sampled those `seen` `[G, R, n]`."""
    groups, _, count = seen.shape
    forced = torch.zeros(groups, count, dtype=torch.bool) if always is None else always
    return Selection(torch.arange(count).expand(groups, -1), 1, Weighing(forced, seen, depth, tables))


NO_TAIL: Run = (torch.zeros(1, 0, 64), torch.zeros(1, 0, 64))


class Draws(NamedTuple):
    """One context, hashed by `DRAWS` draws of planes."""

    keys: Tensor
    values: Tensor
    q: Tensor
    """`[1, 1, D]`; scale 1."""
    mean: Tensor
    codes: Tensor
    """int16 `[DRAWS, TABLES, n]`, of the centred keys."""
    wanted: Tensor
    """int16 `[DRAWS, TABLES, 1]`."""
    collided: Tensor
    """Where they are equal."""
    uncentred: Tensor
    """Codes of the keys as they are, in the first 150 tables of the first 20 draws."""
    cosine: Tensor
    """float64 `[n]`: of query and centred keys."""
    out: Tensor
    """float64 `[D]`: dense attention."""
    lse: Tensor

    def seen(self, tables: int) -> Tensor:
        """Who collides twice, bool `[draws, n]`, where `tables` tables make one draw of the planes."""
        return self.collided.view(-1, tables, self.collided.shape[-1]).sum(1, dtype=torch.int16) >= 2

    def attend(self, seen: Tensor, tables: int) -> tuple[Tensor, Tensor]:
        """Every draw is a query head with the same query: out float64 `[draws, D]`, lse `[draws]`."""
        index = index_of()
        state = index.fit(self.keys, torch.arange(self.keys.shape[1]))
        q = self.q.expand(1, len(seen), -1)
        chosen = whole_selection(seen.unsqueeze(0), torch.tensor([BITS]), torch.tensor([tables]))
        out, lse = index.attend(state, q, chosen, PlainReader(self.keys, self.values), NO_TAIL, 1.0)
        return out[0].double(), lse[0].double()

    def off(self, out: Tensor) -> tuple[float, float, float]:
        """Root mean square error of `out` `[draws, D]`, bias, and the bias that chance alone would show; all as a
        part of the true output's norm."""
        error, size = out - self.out, self.out.norm()
        chance = error.std(0).norm() / len(error) ** 0.5
        return (
            float(error.square().sum(-1).mean().sqrt() / size),
            float(error.mean(0).norm() / size),
            float(chance / size),
        )


@pytest.fixture
def draws() -> Draws:
    return drawn()


@cache
def drawn() -> Draws:
    """Values have a large common part, as a model's do, and go along with the logit, so that a wrong weight shows."""
    count, dim = 1024, 64
    common = normal(1, 1, dim, seed=1)
    keys = normal(1, count, dim) + 4 * common
    mean = keys.double().mean(1).float()
    centred = keys - mean.unsqueeze(1)
    q = normal(1, 1, dim, seed=2)
    q = q - (q * common).sum() / common.norm() ** 2 * common - 3 * common / common.norm()
    q = q * 1.5 / (q @ centred.transpose(1, 2)).std()
    logits = q @ keys.transpose(1, 2)
    way = torch.nn.functional.normalize(normal(dim, seed=3), dim=0)
    values = 8.2 * normal(1, 1, dim, seed=4) + 0.8 * normal(1, count, dim, seed=5)
    values = values + 4 * (logits - logits.mean())[0, 0, :, None] * way
    planes = [random_planes(dim, BITS, TABLES, seed) for seed in range(DRAWS)]
    weights = logits.double().softmax(-1)
    codes = torch.stack([simhash(centred[0], some) for some in planes])
    wanted = torch.stack([simhash(q[0], some) for some in planes])
    return Draws(
        keys,
        values,
        q,
        mean,
        codes,
        wanted,
        codes == wanted,
        torch.stack([simhash(keys[0], some._replace(normals=some.normals[:, :150])) for some in planes[:20]]),
        torch.nn.functional.cosine_similarity(q.double(), centred.double(), dim=-1)[0],
        (weights @ values.double())[0, 0],
        logits.double().logsumexp(-1)[0, 0],
    )


# The estimator


@pytest.mark.parametrize("tables", [75, 150, 300, 600])
def test_tokens_are_sampled_as_often_as_said(draws: Draws, tables: int) -> None:
    """z-scores of each key's frequency; keys share their planes, so that the z-scores of one run go together."""
    seen = draws.seen(tables).double()
    expected = inclusion_probability_reference(draws.cosine, BITS, tables)
    z = (seen.mean(0) - expected) / (expected * (1 - expected) / len(seen)).sqrt()
    assert 0.93 < z.std() < 1.07
    assert abs(z.mean()) < 0.1


@pytest.mark.parametrize("tables", [75, 150, 300, 600])
def test_the_denominator_is_right_on_average(draws: Draws, tables: int) -> None:
    """Up to what adding 1e-4 to every probability takes away, less than 2 %."""
    _, lse = draws.attend(draws.seen(tables), tables)
    ratio = (lse - draws.lse).exp()
    weights = (draws.q @ draws.keys.transpose(1, 2)).double().softmax(-1)[0, 0]
    likely = inclusion_probability_reference(draws.cosine, BITS, tables)
    expected = float((weights * likely / (likely + 1e-4)).sum())
    assert 0.98 < expected < 1
    assert abs(ratio.mean() - expected) < 3 * ratio.std() / len(ratio) ** 0.5


def test_more_tables_make_it_exact(draws: Draws) -> None:
    """The error halves as tables double, and is scatter, not bias; without the weights it would be bias."""
    measured = {}
    for tables in (75, 150, 300, 600):
        seen = draws.seen(tables)
        found = seen.any(-1)
        assert found.double().mean() > 0.99, "a few draws of 75 tables sample nothing"
        measured[tables] = draws.off(draws.attend(seen[found], tables)[0])
    for tables, error in [(75, 0.057), (150, 0.027), (300, 0.0135), (600, 0.0066)]:
        rmse, bias, chance = measured[tables]
        assert rmse == pytest.approx(error, rel=0.15)
        assert bias < 2 * chance
        assert bias < 0.1 * error + 0.0005
    logits = (draws.q @ draws.keys.transpose(1, 2))[0]
    unweighted = logits.masked_fill(~draws.seen(150), -torch.inf).softmax(-1).double() @ draws.values[0].double()
    assert draws.off(unweighted)[1] > 10 * measured[150][1]
    assert draws.off(unweighted)[1] > 0.05


def test_keys_that_are_not_centred_are_hardly_ever_sampled(draws: Draws) -> None:
    """All of them lie to one side of the query."""
    collided = draws.uncentred == draws.wanted[:20, :150]
    assert (collided.sum(1) >= 2).sum(-1).double().mean() < 0.001 * 1024
    assert draws.seen(150).sum(-1).double().mean() > 0.01 * 1024


@pytest.mark.parametrize("room", [20, 80, 160])
def test_choosing_tables_by_size_hardly_biases(draws: Draws, room: int) -> None:
    """Each draw of 150 tables is a KV head with its own depth and number of tables."""
    count, dim = draws.keys.shape[1:]
    codes, wanted = draws.codes.view(-1, 150, count), draws.wanted.view(-1, 1, 150)
    tables = HashTables(codes.numpy(), BITS)
    sample = collision_sample(tables, wanted.numpy(), 0, count, room)
    seen = torch.from_numpy(sample.second <= sample.tables[:, None, None])
    assert 0.95 * room < seen.sum(-1).double().mean() <= room
    assert len(np.unique(sample.tables)) > 10
    state = MagicPIGState(draws.mean.expand(len(codes), -1), count, tables)
    chosen = whole_selection(seen, torch.from_numpy(sample.depth), torch.from_numpy(sample.tables))
    q, empty = draws.q.expand(len(codes), -1, -1), torch.zeros(len(codes), 0, dim)
    reader = PlainReader(draws.keys.expand(len(codes), -1, -1), draws.values.expand(len(codes), -1, -1))
    out, lse = index_of().attend(state, q, chosen, reader, (empty, empty), 1.0)
    rmse, bias, chance = draws.off(out[:, 0].double())
    assert bias < 2 * chance
    assert bias < 0.1 * rmse
    ratio = (lse[:, 0].double() - draws.lse).exp()
    assert abs(ratio.mean() - 1) < 3 * ratio.std() / len(ratio) ** 0.5


# Attention


def weighed(q: Tensor, keys: Tensor, mean: Tensor, weighing: Weighing, scale: float) -> Tensor:
    """Logits `[G, R, n]` in float64, by the formula."""
    centred = keys.double() - mean.double().unsqueeze(1)
    cosine = torch.nn.functional.cosine_similarity(q.double().unsqueeze(2), centred.unsqueeze(1), dim=-1)
    likely = inclusion_probability_reference(cosine, weighing.depth.view(-1, 1, 1), weighing.tables.view(-1, 1, 1))
    logits = q.double() @ keys.double().transpose(1, 2) * scale
    sampled = (logits - (likely + 1e-4).log()).masked_fill(~weighing.seen, -torch.inf)
    return torch.where(weighing.always.unsqueeze(1), logits, sampled)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_parts_make_one_softmax(dtype: torch.dtype) -> None:
    """Sampled, static and padding tokens, read in blocks, and the tail, against the formula over all at once."""
    keys, values, q = normal(2, 200, 64) + 2, normal(2, 200, 64, seed=1), normal(2, 3, 64, seed=2)
    keys, values, q = keys.to(dtype), values.to(dtype), q.to(dtype)
    tail = (normal(2, 5, 64, seed=3).to(dtype), normal(2, 5, 64, seed=4).to(dtype))
    index = index_of()
    state = index.fit(keys, torch.arange(200))
    always = torch.zeros(2, 200, dtype=torch.bool)
    always[:, :10] = always[:, 190:] = True
    seen = (torch.rand(2, 3, 200, generator=torch.Generator().manual_seed(5)) < 0.2) & ~always.unsqueeze(1)
    seen[1, 1] = False
    chosen = whole_selection(seen, torch.tensor([9, 6]), torch.tensor([150, 40]), always)
    out, lse = index.attend(state, q, chosen, PlainReader(keys, values), tail, 0.125)
    logits = weighed(q, keys, state.mean, chosen.notes, 0.125)
    logits = torch.cat([logits, q.double() @ tail[0].double().transpose(1, 2) * 0.125], -1)
    assert out.dtype == dtype
    assert_close("lse", lse, logits.logsumexp(-1))
    assert_close("out", out, logits.softmax(-1) @ torch.cat([values, tail[1]], 1).double(), dtype)


def test_sampling_all_for_certain_is_dense() -> None:
    """So many tables that every probability is one; the same if every token is static, whatever keys are centred by."""
    keys, values, q = normal(2, 130, 64) + 3, normal(2, 130, 64, seed=1), normal(2, 3, 64, seed=2)
    index = index_of()
    state = index.fit(keys, torch.arange(130))
    everything = torch.ones(2, 3, 130, dtype=torch.bool)
    logits = q.double() @ keys.double().transpose(1, 2) * 0.125
    exact = logits.softmax(-1) @ values.double()
    tables = torch.tensor([10**9, 10**9])
    certain = whole_selection(everything, torch.tensor([4, 10]), tables)
    tail = (torch.zeros(2, 0, 64), torch.zeros(2, 0, 64))
    out, lse = index.attend(state, q, certain, PlainReader(keys, values), tail, 0.125)
    assert_close("out", out, exact)
    assert torch.allclose(lse.double(), logits.logsumexp(-1) - np.log1p(1e-4), atol=1e-5)
    static = whole_selection(~everything, torch.tensor([4, 10]), tables, everything[:, 0])
    found = []
    for mean in (state.mean, torch.zeros_like(state.mean)):
        centred = MagicPIGState(mean, 130, state.tables)
        out, lse = index.attend(centred, q, static, PlainReader(keys, values), tail, 0.125)
        assert_close("out", out, exact)
        assert_close("lse", lse, logits.logsumexp(-1))
        found.append(out)
    assert (found[0] - found[1]).abs().max() < 1e-6 * exact.abs().max() * 5


def test_without_the_estimate_attention_is_plain() -> None:
    keys, values, q = normal(2, 100, 64), normal(2, 100, 64, seed=1), normal(2, 2, 64, seed=2)
    index = index_of(":estimate=0")
    chosen = whole_selection(torch.zeros(2, 2, 100, dtype=torch.bool), torch.tensor([10, 10]), torch.tensor([9, 9]))
    tail = (normal(2, 3, 64, seed=3), normal(2, 3, 64, seed=4))
    out, lse = index.attend(index.build(keys), q, chosen, PlainReader(keys, values), tail, 0.125)
    logits = q.double() @ torch.cat([keys, tail[0]], 1).double().transpose(1, 2) * 0.125
    assert_close("out", out, logits.softmax(-1) @ torch.cat([values, tail[1]], 1).double())
    assert_close("lse", lse, logits.logsumexp(-1))


def test_a_head_that_sampled_nothing_sees_nothing() -> None:
    keys, values, q = normal(1, 100, 64), normal(1, 100, 64, seed=1), normal(1, 2, 64, seed=2)
    index = index_of()
    state = index.fit(keys, torch.arange(100))
    seen = torch.zeros(1, 2, 100, dtype=torch.bool)
    seen[0, 1, 80] = True
    chosen = whole_selection(seen, torch.tensor([10]), torch.tensor([150]))
    out, lse = index.attend(state, q, chosen, PlainReader(keys, values), NO_TAIL, 1.0)
    assert lse[0, 0] == -torch.inf
    assert torch.equal(out[0, 0], torch.zeros(64))
    assert torch.allclose(out[0, 1], values[0, 80])
    tail = (normal(1, 1, 64, seed=3), normal(1, 1, 64, seed=4))
    out, _ = index.attend(state, q, chosen, PlainReader(keys, values), tail, 1.0)
    assert torch.allclose(out[0, 0], tail[1][0, 0])


@pytest.mark.parametrize("query", [0.0, 1.0])
def test_keys_without_direction_are_no_trouble(query: float) -> None:
    """All alike, so that centring leaves nothing; and a query of nothing."""
    keys, values = torch.full((1, 320, 64), 3.0), normal(1, 320, 64)
    index = index_of(params=IndexParams(page_size=16, sink=16, local=16))
    state, q = index.build(keys), torch.full((1, 2, 64), query)
    chosen = index.select(state, q, 320, 100)
    sampled = whole_selection(torch.ones(1, 2, 320, dtype=torch.bool), torch.tensor([10]), torch.tensor([150]))
    for some in (chosen, sampled):
        out, lse = index.attend(state, q, some, PlainReader(keys, values), (keys[:, :3], values[:, :3]), 1.0)
        assert out.isfinite().all()
        assert lse.isfinite().all()
