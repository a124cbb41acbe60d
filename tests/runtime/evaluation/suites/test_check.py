"""A check passes within its bound; no number at all is no pass."""

from __future__ import annotations

import math

import pytest
import torch

from stratakv.runtime.evaluation.suites.check import Check, relative_error


@pytest.mark.parametrize(
    ("error", "passed"), [(0.0, True), (0.1, True), (0.11, False), (math.nan, False), (math.inf, False), (None, False)]
)
def test_within_the_bound(error: float | None, passed: bool) -> None:
    assert Check("one", error, 0.1).passed is passed


def test_json_has_no_nan() -> None:
    found = Check("one", math.nan, 0.1, "why").as_dict()
    assert found == {"name": "one", "error": None, "bound": 0.1, "note": "why", "passed": False}


def test_errors_are_shares_of_the_largest_expected_number() -> None:
    expected = torch.tensor([1.0, -20.0, 3.0])
    assert relative_error(expected + torch.tensor([0.0, 0.0, 2.0]), expected) == pytest.approx(0.1)
    assert relative_error(expected, expected) == 0
    assert math.isnan(relative_error(torch.tensor([math.nan, 0, 0]), expected))
