"""Of what would go, one in every so many by its signature stays."""

from __future__ import annotations

import pytest
import torch
from placed_text import GROUPS, REPEATS, attention, placement, plain_text, queries, seen

from stratakv.retrieval.placement import Rows

COUNT = 60


def test_mass_is_each_query_heads_own() -> None:
    one, text = placement("kvcrush"), plain_text(COUNT)
    rows = Rows(queries(20), COUNT - 20, text)
    state = seen(one, text, rows)
    torch.testing.assert_close(state["mass"], attention(rows).sum(2).transpose(1, 2))
    torch.testing.assert_close(one.scores(state, text)[1], attention(rows).sum((0, 1, 2)))


@pytest.mark.parametrize("anchor", range(5))
def test_representatives_are_evenly_spaced_by_bits_that_differ(anchor: int) -> None:
    """Beside the same with lists and loops."""
    one, text = placement(f"kvcrush:recent=0.2:crush=0.5:anchor={anchor}", layer=3), plain_text(COUNT)
    state, budget = seen(one, text, Rows(queries(COUNT), 0, text)), 30
    free = list(range(2, COUNT - 6))  # sinks and the last fifth of the budget stay
    heads = [state["mass"][g, :, r].tolist() for g in range(GROUPS) for r in range(REPEATS)]
    bits = []
    for mass in heads:
        upper = sorted(free, key=lambda at: -mass[at])[: len(free) // 2]
        bits.append({at: at in upper for at in free})
    coins = torch.rand(len(heads), generator=torch.Generator().manual_seed(3)) < 0.5
    anchors = {
        0: coins.tolist(), 1: [False] * 6, 2: [True] * 6,
        3: [sum(each.values()) / len(free) > 0.5 for each in bits], 4: [False, True] * 3,
    }  # fmt: skip
    order = sorted(free, key=lambda at: -sum(mass[at] for mass in heads))
    best, rest = order[:11], sorted(order[11:])
    rest.sort(key=lambda at: sum(each[at] != bit for each, bit in zip(bits, anchors[anchor], strict=True)))
    expected = {0, 1, *range(COUNT - 6, COUNT), *best, *(rest[i * len(rest) // 11] for i in range(11))}
    kept = one.keep(state, text, budget)
    assert set(kept[0].nonzero()[:, 0].tolist()) == expected
    assert torch.equal(kept[0], kept[1])
    assert len(expected) == budget


def test_a_kind_that_gets_little_is_not_let_go_of_whole() -> None:
    """Tokens that one head alone looks at, below all others: heavy hitters would keep none of them."""
    one, text = placement("kvcrush:recent=0:anchor=1:crush=0.25"), plain_text(COUNT)
    mass = torch.full((GROUPS, COUNT, REPEATS), 1.0)
    mass[0, 2:40] = 2.0
    mass[1, 40:] = 1.5
    kept = one.keep({"mass": mass}, text, 26)[0]
    assert kept.sum() == 26
    assert 0 < kept[40:56].sum() < 16


def test_more_room_than_tokens_keeps_all_and_settings_have_ranges() -> None:
    one, text = placement("kvcrush"), plain_text(20)
    for budget in (20, 21, 22, 50):
        assert one.keep(seen(one, text), text, budget).all()
    for setting, message in (
        ("crush=2", "crush is a share"), ("recent=-1", "recent is a share"), ("anchor=5", "anchor is one of 0 random"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            placement(f"kvcrush:{setting}")
