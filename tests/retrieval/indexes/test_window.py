"""`window` reads the first tokens and the last ones, as many as the budget has room for."""

from __future__ import annotations

import torch

from stratakv.retrieval import IndexParams, make_index


def test_window_by_hand() -> None:
    index = make_index("window", IndexParams(page_size=4, sink=5, local=4))
    q = torch.zeros(2, 1, 8)
    assert index.select(None, q, 40, 24).ids.tolist() == [[0, 1, 6, 7, 8, 9]] * 2
    assert index.select(None, q, 40, 27).ids.tolist() == [[0, 1, 6, 7, 8, 9]] * 2


def test_a_window_takes_no_more_than_there_is() -> None:
    """Nor more than the budget: sinks come first, and of a short text nothing is read twice."""
    index = make_index("window", IndexParams(page_size=4, sink=5, local=4))
    choose = lambda total, budget: index.select(None, torch.zeros(1, 1, 8), total, budget).ids.tolist()  # noqa: E731
    assert choose(40, 8) == [[0, 1]]
    assert choose(40, 4) == [[0]]
    assert choose(12, 100) == [[0, 1, 2]]
    assert choose(12, 12) == [[0, 1, 2]]


def test_without_sinks_all_of_the_budget_is_the_window() -> None:
    index = make_index("window", IndexParams(page_size=4, sink=0, local=4))
    assert index.select(None, torch.zeros(1, 1, 8), 40, 12).ids.tolist() == [[7, 8, 9]]
