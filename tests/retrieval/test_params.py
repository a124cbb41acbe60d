"""The settings that all indexes share."""

from __future__ import annotations

import pytest

from stratakv.retrieval.params import IndexParams


@pytest.mark.parametrize(("tokens", "unit", "expected"), [(0, 16, 0), (1, 16, 1), (16, 16, 1), (17, 16, 2), (5, 1, 5)])
def test_units_cover_the_tokens(tokens: int, unit: int, expected: int) -> None:
    assert IndexParams().units(tokens, unit) == expected


@pytest.mark.parametrize("wrong", [{"page_size": 0}, {"sink": -1}, {"local": -1}])
def test_settings_that_mean_nothing_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least"):
        IndexParams(**wrong)


def test_nothing_need_always_be_read() -> None:
    IndexParams(page_size=1, sink=0, local=0)
