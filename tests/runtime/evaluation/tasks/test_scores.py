"""RULER's scorers, on replies as models write them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from stratakv.runtime.evaluation.tasks.scores import all_of, any_of


@pytest.mark.parametrize(
    ("reply", "references", "all_share", "any_share"),
    [
        ("It is 12, and 34.", ("12", "34"), 1.0, 1.0),
        ("It is 12.", ("12", "34"), 0.5, 1.0),
        ("I do not know.", ("12", "34"), 0.0, 0.0),
        ("", ("12",), 0.0, 0.0),
        ("ADELAIDE", ("Adelaide",), 1.0, 1.0),
        ("12\x0134", ("1234",), 0.0, 0.0),
    ],
)
def test_references_are_looked_for(reply: str, references: tuple[str, ...], all_share: float, any_share: float) -> None:
    assert all_of(reply, references) == all_share
    assert any_of(reply, references) == any_share


@pytest.mark.parametrize("references", [(), ("a", "")])
@pytest.mark.parametrize("score", [all_of, any_of])
def test_what_every_reply_contains_is_no_reference(
    score: Callable[[str, tuple[str, ...]], float], references: tuple[str, ...]
) -> None:
    with pytest.raises(ValueError, match="references must be there and not empty"):
        score("anything", references)
