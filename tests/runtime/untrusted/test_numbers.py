"""Bounds on numbers that decide how much is allocated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import ModelFileError
from stratakv.runtime.untrusted import numbers
from stratakv.runtime.untrusted.numbers import BOUNDS, MAY_BE_0, check_number, is_count, reading, shown

PATH = Path("config.json")
SIZES = {
    "vocab_size": 100, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 4, "intermediate_size": 16,
}  # fmt: skip
NEEDED = 100 * 8 + 2 * 8 * (3 * 16 + (2 * 2 + 2 * 1) * 4)


@pytest.mark.parametrize("name", BOUNDS)
def test_whole_numbers_within_their_bounds(name: str) -> None:
    least = int(name not in MAY_BE_0)
    for fine in (2, BOUNDS[name], *([] if least else [0])):
        check_number(PATH, "field", name, fine)
    for wrong in (least - 1, -1, BOUNDS[name] + 1, 2.0, True, "2"):
        with pytest.raises(ModelFileError, match=rf"config.json: field: .*expected a whole number from {least}"):
            check_number(PATH, "field", name, wrong)


def test_some_may_be_missing() -> None:
    check_number(PATH, "field", "head_dim", None)
    with pytest.raises(ModelFileError):
        check_number(PATH, "field", "hidden_size", None)


def test_odd_heads_and_fractions() -> None:
    with pytest.raises(ModelFileError, match="rotation works in pairs"):
        check_number(PATH, "field", "head_dim", 63)
    check_number(PATH, "field", "partial_rotary_factor", 0.25)
    for wrong in (0, 1.5, True, "1", None):
        with pytest.raises(ModelFileError, match="expected a number above 0 and up to 1"):
            check_number(PATH, "field", "partial_rotary_factor", wrong)


def test_a_model_is_no_larger_than_its_file() -> None:
    numbers.check_allocation(PATH, SIZES, NEEDED, 2, 2)
    with pytest.raises(ModelFileError, match=f"ask for {NEEDED} weights, the file has {NEEDED - 1}"):
        numbers.check_allocation(PATH, SIZES, NEEDED - 1, 2, 2)
    with pytest.raises(ModelFileError, match="num_hidden_layers: 2, but the weights are only 1 tensors"):
        numbers.check_allocation(PATH, SIZES, NEEDED, 1, 1)


@pytest.mark.parametrize("changes", [{"num_key_value_heads": 3}, {"head_dim": 5}, {"head_dim": 0}])
def test_shapes_that_cannot_be(changes: dict[str, int]) -> None:
    numbers.check_shape(PATH, SIZES)
    with pytest.raises(ModelFileError):
        numbers.check_shape(PATH, {**SIZES, **changes})


@pytest.mark.parametrize(("value", "expected"), [(0, True), (5, True), (-1, False), (True, False), (1.0, False)])
def test_counts(value: Any, expected: bool) -> None:
    assert is_count(value) is expected


def test_values_are_short_and_harmless() -> None:
    assert shown("é\x1b[2J") == r"'\xe9\x1b[2J'"
    assert len(shown("x" * 1000)) == 60
    assert shown(1 << 4000) == "a number of 4001 bits"


def test_whatever_a_parser_raises_names_the_file() -> None:
    says = r"config.json: not readable; is it complete\? \(KeyError: 'a'\)"
    with pytest.raises(ModelFileError, match=says), reading(PATH, "readable"):
        raise KeyError("a")
    for untouched in (MemoryError, KeyboardInterrupt):
        with pytest.raises(untouched), reading(PATH, "readable"):
            raise untouched
