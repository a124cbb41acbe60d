"""A text for which a token changes the positions is read again before it joins, and an error changes nothing."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from stratakv.runtime.engine.reaching import in_reach, within_reach
from stratakv.runtime.engine.sequence import PROMPT, Past, Sequence
from stratakv.runtime.untrusted.family import EVERY_LAYER
from stratakv.runtime.untrusted.rope import Rope
from stratakv.storage import CapacityError

LIMIT = 70
"""Tokens of the longest text that the short table turns."""
LONG = LIMIT + 1
"""The reach of all texts beyond it."""
LONGROPE = Rope(
    {EVERY_LAYER: {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": LIMIT,
                   "short_factor": [1.0], "long_factor": [3.0]}},
    head_dims={EVERY_LAYER: 2}, max_positions=400, window=400,
)  # fmt: skip
DYNAMIC = Rope({EVERY_LAYER: {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}}, {EVERY_LAYER: 8}, LIMIT, 280)


def text(length: int, reach: int = 0) -> Sequence:
    """A sequence of a model without layers."""
    sequence = Sequence(Past(reach), 16, b"")
    sequence.commit(sequence.name_pages(np.arange(length), PROMPT))
    return sequence


class Reader:
    """Reads texts again, and knows what it was asked."""

    def __init__(self, fails_at: int = -1) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self._fails_at = fails_at

    def __call__(self, sequence: Sequence, more: np.ndarray, reach: int, *rest: Any) -> None:
        if len(self.asked) == self._fails_at:
            raise KeyboardInterrupt
        self.asked.append((sequence, more.tolist(), reach, *rest))
        sequence.past = Past(reach)


@pytest.mark.parametrize(
    ("length", "reach", "fit"),
    [(0, 0, 30), (LIMIT - 30, 0, 30), (LIMIT - 10, 0, 10), (LIMIT, 0, 0), (LIMIT, LONG, 30), (200, LONG, 30)],
)
def test_so_many_tokens_join_with_the_tables_that_are_there(length: int, reach: int, fit: int) -> None:
    assert within_reach(LONGROPE, text(length, reach), 30) == fit


def test_tables_that_change_with_every_token_are_no_limit() -> None:
    assert within_reach(DYNAMIC, text(LIMIT - 10), 30) == 30


def test_a_text_that_grows_over_the_limit_is_read_again_alone(caplog: pytest.LogCaptureFixture) -> None:
    short, last, over = text(LIMIT - 1), text(LIMIT), text(LIMIT + 9, LONG)
    sequences, read_again = [short, last, over], Reader()
    before = [sequence.past for sequence in sequences]
    with caplog.at_level(logging.WARNING, "stratakv"), in_reach(LONGROPE, sequences, read_again):
        assert read_again.asked == [(last, [], LONG, False, True, None)]
        assert last.past.reach == LONG
    assert [sequence.past is past for sequence, past in zip(sequences, before, strict=True)] == [True, False, True]
    (record,) = caplog.records
    assert record.message.startswith(
        f"the text is {LIMIT + 1} tokens long now, for which the model has other positions"
    )


def test_a_step_that_fails_leads_back_to_the_tables_before() -> None:
    sequences = [text(LIMIT), text(5)]
    before = [sequence.past for sequence in sequences]

    def step() -> None:
        assert [sequence.past.reach for sequence in sequences] == [LONG, 0]
        raise CapacityError("the host tier is full")

    with pytest.raises(CapacityError), in_reach(LONGROPE, sequences, Reader()):
        step()
    assert [sequence.past for sequence in sequences] == before


def test_reading_again_that_is_interrupted_leads_back_for_all_texts() -> None:
    sequences = [text(LIMIT), text(LIMIT)]
    before, read_again = [sequence.past for sequence in sequences], Reader(fails_at=1)
    with pytest.raises(KeyboardInterrupt), in_reach(LONGROPE, sequences, read_again):
        raise AssertionError("no step is taken")
    assert len(read_again.asked) == 1
    assert [sequence.past for sequence in sequences] == before
