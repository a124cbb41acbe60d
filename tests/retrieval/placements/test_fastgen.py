"""Each head keeps what the cheapest way that serves it keeps."""

from __future__ import annotations

import pytest
import torch
from placed_text import GROUPS, PARAMS, REPEATS, attention, placement, plain_text, queries, seen
from torch import Tensor

from stratakv.retrieval.placement import PUNCTUATION, SPECIAL, Facts, Rows, State
from stratakv.retrieval.placement_registry import placement_spec

COUNT, TEXT = 60, plain_text(60)
KIND = torch.zeros(COUNT, dtype=torch.uint8)
KIND[[7, 20]] = SPECIAL
KIND[[9, 30, 31]] = PUNCTUATION
ALWAYS = {0, 1, *range(COUNT - 4, COUNT)}


def state(*masses: dict[int, float]) -> State:
    """Heads that give these weights, and the rest of it evenly."""
    mass = torch.zeros(GROUPS, COUNT)
    for row, given in zip(mass, masses, strict=True):
        row += (1 - sum(given.values())) / COUNT
        for at, weight in given.items():
            row[at] += weight
    return {"mass": mass, "kind": KIND.expand(GROUPS, -1)}


def kept(spec: str, known: State, budget: int) -> list[set[int]]:
    return [set(row.nonzero()[:, 0].tolist()) for row in placement(spec).keep(known, TEXT, budget)]


def test_mass_is_the_mean_weight_of_the_last_queries_and_kinds_are_the_ids() -> None:
    one = placement_spec("fastgen:queries=8").make(PARAMS, 0, Facts(REPEATS, classes=torch.tensor([0, 1, 2]).byte()))
    rows = Rows(queries(8), COUNT - 8, TEXT)
    known = seen(one, TEXT, rows)
    assert one.rows == 8
    torch.testing.assert_close(known["mass"], attention(rows).mean((1, 2)))
    ids = torch.arange(COUNT).expand(GROUPS, -1) % 3
    assert one.read(known, ids)["kind"].tolist() == ids.tolist()


def test_ways_add_up_in_order() -> None:
    one = placement("fastgen:heavy=0.1:window=0.2")
    known = state({40: 0.5}, {12: 0.5})
    known["mass"] = torch.rand(GROUPS, COUNT)
    rows = [[set(row.nonzero()[:, 0].tolist()) for row in way] for way in one.ways(known, TEXT, 30)]
    for g in range(GROUPS):
        heavy = set(sorted(range(COUNT), key=lambda at: -known["mass"][g, at].item())[:6])
        special, marks = ALWAYS | {7, 20}, ALWAYS | {7, 20, 9, 30, 31}
        near = marks | heavy | set(range(48, COUNT))
        assert [way[g] for way in rows] == [ALWAYS, special, marks, marks | heavy, near, set(range(COUNT))]


def test_each_head_gets_the_cheapest_that_serves_it() -> None:
    """And no more: the budget is used up to the last token, so the heads' ways are given exactly that here."""
    known = state({7: 0.5, 20: 0.45}, {30: 0.7, 7: 0.25})
    assert kept("fastgen", known, 10) == [ALWAYS | {7, 20} | FILL[0], ALWAYS | {7, 20, 9, 30, 31} | FILL[1]]


FILL: tuple[set[int], set[int]] = ({2}, set())
"""Of 20 places 19 are taken; of equals the first."""


def test_a_head_that_looks_everywhere_takes_the_others_room() -> None:
    known = state({7: 0.95}, {})
    found = kept("fastgen", known, 40)
    assert found[1] == set(range(COUNT))
    assert len(found[0]) == 20
    assert kept("fastgen", known, COUNT) == [set(range(COUNT))] * 2


def test_a_small_budget_lowers_what_must_be_covered() -> None:
    known = state({7: 0.3, 33: 0.6}, {30: 0.3, 44: 0.6})
    found = kept("fastgen", known, 9)
    assert sum(map(len, found)) == 18
    assert 33 in found[0]
    assert 44 in found[1]


def test_padding_is_never_kept() -> None:
    mass: Tensor = torch.rand(GROUPS, COUNT)
    text = TEXT._replace(positions=TEXT.positions.clone())
    text.positions[1, :50] = -1
    found = placement("fastgen").keep({"mass": mass, "kind": KIND.expand(GROUPS, -1)}, text, COUNT)
    assert found.sum(1).tolist() == [COUNT, 10]


def test_settings_have_ranges() -> None:
    for setting, message in (("recover=0", "recover is a share"), ("queries=0", "queries is 1 to 1024")):
        with pytest.raises(ValueError, match=message):
            placement(f"fastgen:{setting}")
