"""What every placement keeps to, whatever heads a layer has."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from placed_text import PlainText
from placements import PLACEMENT_CASES
from torch import Tensor

from stratakv.retrieval.params import IndexParams
from stratakv.retrieval.placement import EVERY, SPECIAL, Facts, Placement, Rows, State
from stratakv.retrieval.placement_registry import placement_spec

PROMPT, MORE, BUDGET = 96, 16, 48
SINK, LOCAL = 3, 9
SHAPES = [(1, 8, 64), (2, 4, 128), (3, 3, 64), (8, 1, 256)]
"""KV heads, query heads each, head dim."""


class Case(NamedTuple):
    """A placement of one layer, a text, and what it knows after the prompt."""

    one: Placement
    text: PlainText
    queries: Tensor
    state: State


def case(spec: str, shape: tuple[int, int, int]) -> Case:
    groups, repeats, dim = shape
    rng = torch.Generator().manual_seed(sum(shape))
    keys, values = torch.randn(2, groups, PROMPT + MORE, dim, generator=rng)
    queries = torch.randn(groups, repeats, PROMPT + MORE, dim, generator=rng) * dim**-0.5
    looks_back = {0: torch.rand(2, groups, generator=rng)}
    facts = Facts(repeats, looks_back, torch.tensor([SPECIAL, 0, 0], dtype=torch.uint8))
    one = placement_spec(spec).make(IndexParams(page_size=16, sink=SINK, local=LOCAL), 0, facts)
    text = PlainText(torch.arange(PROMPT).expand(groups, -1), keys[:, :PROMPT], values[:, :PROMPT], PROMPT)
    state = {**one.start(keys[:, :0], values[:, :0]), **entered(one, text, 0)}
    state |= one.compare(state, torch.linspace(0, 1, PROMPT))
    first = {EVERY: 0, 0: PROMPT}.get(one.rows, max(0, PROMPT - one.rows))
    if first < PROMPT:
        state |= one.observe(state, Rows(queries[:, :, first:PROMPT], first, text))
    if one.reads:
        state |= one.read(state, (torch.arange(PROMPT) % 3).expand(groups, -1))
    return Case(one, text, queries, state)


def entered(one: Placement, text: PlainText, first: int) -> State:
    return one.enter(text.keys[:, first:], text.values[:, first:], text.positions[0, first:])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("spec", PLACEMENT_CASES)
def test_a_prompt_is_pruned_to_its_budget(spec: str, shape: tuple[int, int, int]) -> None:
    """Sinks and the last tokens stay, the same calls keep the same, nothing is written into, all of a small text stays,
    and layers share what there is."""
    found = case(spec, shape)
    before = {name: tensor.clone() for name, tensor in found.state.items()}
    kept = found.one.keep(found.state, found.text, BUDGET)
    assert kept.shape == found.text.positions.shape
    assert kept.sum() <= BUDGET * shape[0]
    assert kept[:, :SINK].all()
    assert kept[:, -LOCAL:].all()
    assert all(torch.equal(found.state[name], tensor) for name, tensor in before.items())
    again = case(spec, shape)
    assert torch.equal(again.one.keep(again.state, again.text, BUDGET), kept)
    assert found.one.keep(found.state, found.text, PROMPT).all()
    wishes = [found.one.wish(found.state, found.text)] * 4
    given = found.one.divide(wishes, BUDGET)
    assert len(given) == 4
    assert BUDGET * 4 - 8 <= sum(given) <= BUDGET * 4
    for name in found.one.columns:
        assert found.state[name].shape[:2] == found.text.positions.shape
        assert not found.state[name].is_floating_point() or bool(found.state[name].isfinite().all())
