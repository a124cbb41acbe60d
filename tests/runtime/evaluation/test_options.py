"""Settings of a run that mean nothing are refused."""

from __future__ import annotations

from typing import Any

import pytest

from stratakv.runtime.evaluation.options import EvalOptions


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"samples": 0}, "samples is at least 1, not 0"),
        ({"seed": -1}, "seed is a whole number from 0"),
        ({"seed": 1 << 63}, "seed is a whole number from 0"),
        ({"ctx": 511}, "ctx is at least 512 tokens, not 511"),
        ({"question": "first"}, "question is one of sparse, exact, prompt; not 'first'"),
    ],
)
def test_out_of_range(wrong: dict[str, Any], says: str) -> None:
    settings: dict[str, Any] = {"ctx": 1024, "samples": 2, **wrong}
    with pytest.raises(ValueError, match=says):
        EvalOptions(**settings)


def test_the_least_of_each() -> None:
    EvalOptions(512, 1, seed=(1 << 63) - 1)
