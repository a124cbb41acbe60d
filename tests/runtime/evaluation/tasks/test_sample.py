"""A sample's texts in the order in which they are read."""

from __future__ import annotations

from typing import Any

import pytest

from stratakv.runtime.evaluation.tasks.fit import Fit
from stratakv.runtime.evaluation.tasks.sample import Exchange, Sample, depth_of, longest


def sample(context: str = "CONTEXT", **changes: Any) -> Sample:
    words: dict[str, Any] = {"question": "Q?", "prefix": " A:", "references": ("12",), "gold": " 12"}
    return Sample(context, **{**words, **changes})


def test_history_and_prompt() -> None:
    assert sample().prompt == "CONTEXT\nQ? A:"
    spoken = sample(earlier=(Exchange("U1", " R1"), Exchange("U2", " R2")))
    assert spoken.history == "CONTEXT\nU1 R1\nU2 R2"
    assert spoken.prompt == "CONTEXT\nU1 R1\nU2 R2\nQ? A:"


@pytest.mark.parametrize("references", [(), ("12", " ")])
def test_references_that_every_reply_has_are_refused(references: tuple[str, ...]) -> None:
    with pytest.raises(ValueError, match="references must be there and not blank"):
        sample(references=references)


def test_the_longest_that_fits() -> None:
    made = longest(lambda items: sample("x" * items), Fit(100, len))
    assert len(made.prompt) == 100


def test_depth() -> None:
    assert [depth_of(letter, "abcd") for letter in "acd"] == [0, 0.5, 0.75]
