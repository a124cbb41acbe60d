"""Texts that decode makes so long that the model has other positions for all of their tokens."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ..api.progress import OnProgress
from ..untrusted.rope import Rope
from .sequence import Sequence

logger = logging.getLogger(__name__)

ReadAgain = Callable[[Sequence, np.ndarray, int, bool, bool, OnProgress | None], object]
"""(sequence, more tokens, reach, want_logits, reuse, on_progress), as `Engine` computes a text again."""


@contextmanager
def in_reach(rope: Rope, sequences: list[Sequence], read_again: ReadAgain) -> Iterator[None]:
    """Make room in the positions: inside, a token can join each of the sequences. A sequence for which the model's
    positions change with it has been read again. An exception leads back to how they were."""
    before = [sequence.past for sequence in sequences]
    try:
        for sequence in sequences:
            length = sequence.num_tokens + 1
            reach = rope.reach_of_step(sequence.past.reach, length)
            if reach != sequence.past.reach:
                logger.warning(
                    "the text is %d tokens long now, for which the model has other positions: all of it is computed "
                    "again, once", length,
                )  # fmt: skip
                read_again(sequence, np.empty(0, dtype=np.uint32), reach, False, True, None)
        yield
    except BaseException:
        for sequence, past in zip(sequences, before, strict=True):
            sequence.past = past
        raise


def within_reach(rope: Rope, sequence: Sequence, count: int) -> int:
    """How many of the next `count` tokens can join the sequence with the rotary tables that it has."""
    reach, start = sequence.past.reach, sequence.num_tokens
    return next((n for n in range(count) if rope.reach_of_step(reach, start + n + 1) != reach), count)
