"""Associative recall: pairs of a key and a value hidden in filler, then questions. Only attention solves it.

A context is random filler in which pairs `k v` stand at random places, every key once. A question is
`? k`; its answer is the value that followed `k` in the context. Keys, values and places are drawn anew
for each context: a model that does not read the pair guesses, and is right once in `NUM_VALUES`.

The trained model is in `tests/data/recall`, made by `tests/support/train_recall.py`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.uint32]

END, QUERY = 0, 1
NUM_KEYS = NUM_VALUES = 128
FIRST_KEY = 2
FIRST_VALUE = FIRST_KEY + NUM_KEYS
FIRST_FILLER = FIRST_VALUE + NUM_VALUES
VOCABULARY = 512
NAMES = [
    "<end>",
    "?",
    *(f"k{i}" for i in range(NUM_KEYS)),
    *(f"v{i}" for i in range(NUM_VALUES)),
    *(f"f{i}" for i in range(VOCABULARY - FIRST_FILLER)),
]
"""How each id is written."""


def make_context(rng: np.random.Generator, tokens: int, pairs: int) -> tuple[Ids, Ids]:
    """A context `[tokens]`, and its keys with their values `[pairs, 2]` in another random order."""
    if not 0 < pairs <= NUM_KEYS or 2 * pairs > tokens:
        raise ValueError(f"{pairs} pairs in {tokens} tokens: from 1 to {NUM_KEYS}, and two tokens each")
    keys = rng.permutation(NUM_KEYS)[:pairs] + FIRST_KEY
    values = rng.integers(FIRST_VALUE, FIRST_FILLER, pairs)
    ids = rng.integers(FIRST_FILLER, VOCABULARY, tokens)
    starts = np.sort(rng.permutation(tokens - pairs)[:pairs]) + np.arange(pairs)
    ids[starts], ids[starts + 1] = keys, values
    answers = np.stack([keys, values], 1)[rng.permutation(pairs)]
    return ids.astype(np.uint32), answers.astype(np.uint32)


def questions(answers: Ids) -> Ids:
    """`? key value` for each row of `answers`, `[3 * rows]`: what follows a key is its answer."""
    marks = np.full((len(answers), 1), QUERY, dtype=np.uint32)
    return np.concatenate([marks, answers], 1).reshape(-1)
