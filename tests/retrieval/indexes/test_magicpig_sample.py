"""MagicPIG: which tokens are sampled, and the state that they are sampled from."""

from __future__ import annotations

import pytest
import torch
from magicpig_cases import index_of, normal

from stratakv.kernels.simhash import random_planes, simhash
from stratakv.retrieval import IndexParams
from stratakv.retrieval.indexes.magicpig import Weighing

# The sample


@pytest.mark.parametrize("budget", [110, 300, 1000])
def test_selection_is_what_comparing_codes_finds(budget: int) -> None:
    """Every token that collides twice, and who saw it; the rest is sinks, window and padding."""
    params = IndexParams(page_size=16, sink=20, local=70)
    keys, q = normal(3, 1600, 64) + 2, normal(3, 3, 64, seed=1)
    index = index_of(":bits=9:tables=80:seed=5", params, layer=2)
    state, total = index.build(keys), 1552
    chosen = index.select(state, q, total, budget)
    weighing: Weighing = chosen.notes
    planes = random_planes(64, 9, 80, 7)
    codes = index.export(state)["codes"]
    assert torch.equal(codes, simhash(keys - keys[:, 20:].double().mean(1).float().unsqueeze(1), planes))
    wanted = simhash(q, planes).transpose(1, 2)
    widths = []
    for head in range(3):
        shift, taken = 9 - int(weighing.depth[head]), int(weighing.tables[head])
        equal = (codes[head, :taken] >> shift).unsqueeze(0) == (wanted[head, :, :taken] >> shift).unsqueeze(-1)
        seen = equal.sum(1) >= 2
        forced = torch.zeros(1600, dtype=torch.bool)
        forced[:20] = forced[total - 70 : total] = True
        seen[:, forced] = False
        seen[:, total:] = False
        ids = chosen.ids[head]
        assert torch.equal(weighing.always[head], forced[ids])
        assert torch.equal(weighing.seen[head], seen[:, ids])
        assert seen[:, ids].sum() == seen.sum(), "none is left out"
        widths.append(int(forced.sum() + seen.any(0).sum()))
    assert max(widths) == chosen.num_tokens <= budget
    assert min(widths) < max(widths), "some row is padded"
    assert chosen.num_tokens > 0.9 * budget


# The state


def test_the_mean_is_that_of_keys_behind_the_sinks() -> None:
    keys = normal(2, 64, 32)
    keys[:, :16] += 1000
    params = IndexParams(page_size=16, sink=16, local=0)
    index = index_of(params=params)
    state = index.fit(keys[:, [*range(8), *range(32, 64)]], torch.tensor([*range(8), *range(32, 64)]))
    assert torch.allclose(state.mean, keys[:, 32:].mean(1), atol=1e-6)
    assert torch.equal(index.fit(keys[:, :16], torch.arange(16)).mean, torch.zeros(2, 32)), "nothing but sinks"
    assert torch.equal(index.fit(keys[:, :0], torch.arange(0)).mean, torch.zeros(2, 32))


def test_a_mean_is_outgrown_when_the_sequence_has_doubled() -> None:
    index, keys = index_of(":tables=2"), normal(1, 400, 16)
    empty = index.fit(keys[:, :0], torch.arange(0))
    assert not index.is_outgrown(index.build(keys))
    index.append(empty, keys[:, :16])
    assert index.is_outgrown(empty)
    state = index.fit(keys[:, 80:96], torch.arange(80, 96))
    index.append(state, keys[:, :176])
    assert not index.is_outgrown(state)
    index.append(state, keys[:, 176:192])
    assert index.is_outgrown(state)
    assert index.is_outgrown(index.restore(index.export(state)))


def test_long_sequences_in_pieces_cut_and_restored() -> None:
    """Long enough that tables are sorted: past the contract's sizes."""
    index, keys, q = index_of(":bits=6:tables=8"), normal(2, 9000, 16), normal(2, 2, 16, seed=1)
    whole = index.fit(keys, torch.arange(9000))
    index.append(whole, keys)
    pieces = index.fit(keys, torch.arange(9000))
    for begin, end in [(0, 1008), (1008, 1040), (1040, 7008), (7008, 8992), (8992, 9000)]:
        index.append(pieces, keys[:, begin:end])
    longer = index.copy(whole)
    index.append(longer, normal(2, 3000, 16, seed=2))
    index.truncate(longer, 9000)
    saved = {name: tensor.clone() for name, tensor in index.export(whole).items()}
    assert (
        index.state_bytes(whole) == sum(tensor.nbytes for tensor in saved.values()) == 2 * 8 * 9000 * 2 + 2 * 16 * 4 + 8
    )
    expected = index.select(whole, q, 9000, 700)
    for state in (pieces, longer, index.restore(saved)):
        assert all(torch.equal(tensor, saved[name]) for name, tensor in index.export(state).items())
        found = index.select(state, q, 9000, 700)
        assert torch.equal(found.ids, expected.ids)
        assert all(torch.equal(a, b) for a, b in zip(found.notes, expected.notes, strict=True))


def test_layers_and_seeds_draw_their_own_planes() -> None:
    keys = normal(1, 64, 16)
    codes = lambda settings, layer: (index := index_of(settings, layer=layer)).export(index.build(keys))["codes"]  # noqa: E731
    assert torch.equal(codes("", 0), codes(":seed=0", 0))
    assert not torch.equal(codes("", 0), codes("", 1))
    assert not torch.equal(codes("", 0), codes(":seed=9", 0))


@pytest.mark.parametrize("wrong", ["bits=3", "bits=13", "tables=1", "tables=1001", "seed=-1", "estimate=2"])
def test_settings_are_checked(wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong.split("=")[0]):
        index_of(":" + wrong)
