"""Choices of the next token."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stratakv.runtime import GenerationConfig
from stratakv.runtime.engine.sampling import Sampler

LOGITS = torch.tensor([1.0, 4.0, 3.9, 0.0, -2.0])
NONE = np.empty(0, dtype=np.uint32)


def choices(config: GenerationConfig, count: int = 60, tokens: np.ndarray = NONE) -> list[int]:
    sampler = Sampler(config, torch.device("cpu"))
    return [sampler.choose(LOGITS, tokens) for _ in range(count)]


def test_greedy_takes_the_likeliest() -> None:
    assert set(choices(GenerationConfig())) == {1}


def test_a_penalty_counts_for_what_was_said() -> None:
    config = GenerationConfig(repetition_penalty=2.0)
    assert choices(config, 1) == [1]
    assert choices(config, 1, np.array([1], dtype=np.uint32)) == [2]


def test_a_seed_makes_the_same_choices() -> None:
    config = GenerationConfig(do_sample=True, temperature=2.0, seed=3)
    assert choices(config) == choices(config)
    assert choices(config) != choices(GenerationConfig(do_sample=True, temperature=2.0, seed=4))


@pytest.mark.parametrize(
    ("settings", "possible"),
    [
        ({"top_k": 2, "top_p": 1.0, "min_p": 0.0}, {1, 2}),
        ({"top_k": 0, "top_p": 0.4, "min_p": 0.0}, {1}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.5}, {1, 2}),
        ({"top_k": 0, "top_p": 1.0, "min_p": 0.0}, {0, 1, 2, 3, 4}),
    ],
)
def test_what_may_be_drawn(settings: dict[str, float], possible: set[int]) -> None:
    config = GenerationConfig(do_sample=True, temperature=3.0 if len(possible) > 2 else 1.0, seed=0, **settings)
    assert set(choices(config, 300)) == possible
