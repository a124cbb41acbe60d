"""Numbers as people type them."""

from __future__ import annotations

import pytest

from stratakv.runtime.api.typed_numbers import real_number, whole_number


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), (" 12 ", 12), ("+7", 7), ("-3", -3), ("1e3", 1000), ("12.0", 12), ("9007199254740993", 2**53 + 1)],
)
def test_whole_numbers(text: str, number: int) -> None:
    found = whole_number(text)
    assert (found, type(found)) == (number, int)


@pytest.mark.parametrize("text", ["", "1.5", "twelve", "inf", "nan", "1e-3", "0x10"])
def test_what_is_no_whole_number(text: str) -> None:
    with pytest.raises(ValueError, match="a whole number, not "):
        whole_number(text)


def test_real_numbers() -> None:
    assert [real_number(text) for text in ("0.5", "1e3", "-2")] == [0.5, 1000, -2]


@pytest.mark.parametrize(("text", "says"), [("half", "a number, not"), ("nan", "a finite"), ("1e999", "a finite")])
def test_what_is_no_real_number(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        real_number(text)
