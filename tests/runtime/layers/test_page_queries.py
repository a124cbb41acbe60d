"""An index is told the queries of exactly the pages that were sealed, and a fork's those of all, if all are known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from stratakv.runtime.layers.page_queries import PageQueries

SCALE = 0.5


def queries(first: int, pages: int) -> Tensor:
    """Those of 4 heads: each is its page's number, then its head's."""
    numbers = torch.arange(first, first + pages, dtype=torch.float32).expand(4, pages)
    return torch.stack([numbers, torch.arange(4.0).unsqueeze(1).expand(4, pages)], -1)


def pages_of(found: Tensor | None) -> list[float]:
    assert found is not None
    return (found[0, 0, :, 0] / SCALE).tolist()


@pytest.fixture
def used() -> PageQueries:
    return PageQueries(2, used=True)


def test_heads_are_grouped_by_the_kv_head_that_they_share_and_scaled(used: PageQueries) -> None:
    used.note(queries(0, 3).half(), SCALE)
    found = used.take(3)
    assert found is not None
    assert (found.shape, found.dtype) == ((2, 2, 3, 2), torch.float32)
    assert torch.equal(found[1, 0], SCALE * queries(0, 3)[2])


def test_what_was_noted_in_pieces_is_taken_once_in_order(used: PageQueries) -> None:
    used.note(queries(0, 2), SCALE)
    used.note(queries(2, 1), SCALE)
    assert pages_of(used.take(3)) == [0, 1, 2]
    assert used.take(0) is None


@pytest.mark.parametrize("sealed", [0, 1, 2, 3])
def test_queries_of_pages_that_were_not_sealed_are_dropped(used: PageQueries, sealed: int) -> None:
    for first, pages in ((0, 2), (2, 2)):
        used.note(queries(first, pages), SCALE)
    used.drop(sealed)
    used.note(queries(7, 2), SCALE)
    assert pages_of(used.take(sealed + 1)) == [*range(sealed), 7]


def test_an_index_that_does_not_learn_is_told_nothing_but_forks_may_be() -> None:
    found = PageQueries(2, used=False)
    assert not found.is_wanted
    found.kept = []
    assert found.is_wanted
    assert found.all_kept() is None
    for first in (0, 2):
        found.note(queries(first, 2), SCALE)
        assert found.take(2) is None
    assert pages_of(found.all_kept()) == [0, 1, 2, 3]


def test_pages_that_are_cut_off_take_their_queries_with_them(used: PageQueries) -> None:
    used.kept = []
    used.truncate(0)
    for first in (0, 2):
        used.note(queries(first, 2), SCALE)
        used.take(2)
    used.truncate(3)
    used.note(queries(8, 1), SCALE)
    used.take(1)
    assert pages_of(used.all_kept()) == [0, 1, 2, 8]


def test_after_a_page_whose_queries_nobody_knows_none_are_kept(used: PageQueries) -> None:
    used.kept = []
    used.note(queries(0, 2), SCALE)
    used.take(1)
    used.note(queries(2, 1), SCALE)
    used.forget()
    assert used.take(1) is None
    used.note(queries(3, 1), SCALE)
    assert pages_of(used.take(1)) == [3], "the index goes on learning"
    assert used.all_kept() is None
