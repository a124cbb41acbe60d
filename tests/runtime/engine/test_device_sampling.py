"""Choices on the device: those of each sequence's own sampler, with nothing that the host would wait for."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from stratakv.runtime import GenerationConfig
from stratakv.runtime.engine.device_sampling import DeviceSampler
from stratakv.runtime.engine.sampling import Sampler

CPU = torch.device("cpu")
VOCABULARY = 301
NONE = np.empty(0, dtype=np.uint32)


def logits_of(rows: int, seed: int, vocabulary: int = VOCABULARY) -> torch.Tensor:
    """Of which many are equal."""
    drawn = torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed))
    return (drawn * 12).round() / 4


def said(rows: int, count: int = 40) -> list[np.ndarray]:
    """Some of it beyond what can be said."""
    return [np.random.default_rng(row).integers(0, VOCABULARY + 9, count).astype(np.uint32) for row in range(rows)]


def drawing(**settings: Any) -> GenerationConfig:
    return GenerationConfig(**{"do_sample": True, "top_k": 0, "top_p": 1.0, "seed": 0, **settings})


class Alone:
    """Each sequence with a sampler of its own."""

    def __init__(self, configs: list[GenerationConfig], tokens: list[np.ndarray]) -> None:
        self.samplers, self.tokens = [Sampler(config, CPU) for config in configs], tokens

    def choose(self, logits: torch.Tensor) -> list[int]:
        pairs = zip(self.samplers, logits, self.tokens, strict=True)
        chosen = [sampler.choose(row, tokens) for sampler, row, tokens in pairs]
        pairs = zip(self.tokens, chosen, strict=True)
        self.tokens = [np.append(tokens, np.uint32(token)) for tokens, token in pairs]
        return chosen


def next_of(sampler: DeviceSampler, logits: torch.Tensor) -> list[int]:
    sampler.draw()
    tokens: list[int] = sampler.choose(logits).tolist()
    return tokens


EVERY = [
    drawing(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, repetition_penalty=penalty, seed=number)
    for number, (temperature, top_k, top_p, min_p, penalty) in enumerate(
        product([0.7, 2.5], [0, 1, 40, 900], [1.0, 0.9, 0.2], [0.0, 0.15], [1.0, 1.3, 0.8])
    )
] + [GenerationConfig(repetition_penalty=penalty) for penalty in (1.0, 1.3, 0.8)]  # fmt: skip
MIXED = [EVERY[number::49] for number in range(49)]
LIKE = [EVERY[number : number + 6] for number in range(0, len(EVERY), 6)]


@pytest.mark.parametrize("batches", [MIXED, LIKE], ids=["mixed", "alike"])
def test_each_row_is_chosen_as_its_own_sampler_does(batches: list[list[GenerationConfig]]) -> None:
    """All combinations of settings, some 3,000 choices."""
    for number, configs in enumerate(batches):
        tokens = said(len(configs))
        together, alone = DeviceSampler(configs, tokens, VOCABULARY, CPU), Alone(configs, tokens)
        for step in range(10):
            logits = logits_of(len(configs), 100 * number + step)
            assert next_of(together, logits) == alone.choose(logits), (configs, step)


def test_a_large_vocabulary_is_no_different() -> None:
    configs = [drawing(), drawing(top_k=50, top_p=0.95, seed=1), drawing(top_p=0.5, min_p=0.01, seed=2)]
    together, alone = DeviceSampler(configs, [NONE] * 3, 128_256, CPU), Alone(configs, [NONE] * 3)
    for step in range(4):
        logits = logits_of(3, step, 128_256)
        assert next_of(together, logits) == alone.choose(logits)


def test_rows_move_up_when_others_have_ended() -> None:
    configs = [drawing(), GenerationConfig(), drawing(top_k=9, repetition_penalty=1.5, seed=7), drawing(seed=3)]
    together, alone = DeviceSampler(configs, said(4), VOCABULARY, CPU), Alone(configs, said(4))
    for step, rows in enumerate([[0, 1, 2, 3], [1, 2, 3], [0, 1, 2], [1, 2], [1], [0]]):
        together.keep(rows)
        alone.samplers, alone.tokens = [alone.samplers[i] for i in rows], [alone.tokens[i] for i in rows]
        logits = logits_of(len(rows), step)
        assert next_of(together, logits) == alone.choose(logits)


def test_it_serves_other_sequences_where_it_served_the_first() -> None:
    """As a captured graph needs it: what `choose` reads and writes stays where it was."""
    first = [drawing(top_k=3, repetition_penalty=2.0), drawing(seed=5), GenerationConfig()]
    sampler = DeviceSampler(first, said(3), VOCABULARY, CPU)
    before = [one.data_ptr() for one in (*sampler._settings, sampler._said, sampler._noise)]
    next_of(sampler, logits_of(3, 0))
    others = [drawing(top_k=40, seed=9), replace(first[0], seed=4)]
    sampler.serve(others, said(2, 7))
    alone = Alone(others, said(2, 7))
    for step in range(10):
        logits = logits_of(2, step)
        assert next_of(sampler, logits) == alone.choose(logits)
    assert [one.data_ptr() for one in (*sampler._settings, sampler._said, sampler._noise)] == before
    with pytest.raises(ValueError, match="4 rows"):
        sampler.serve([GenerationConfig()] * 4, [NONE] * 4)


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (GenerationConfig(top_k=5), set()),
        (GenerationConfig(repetition_penalty=1.1), {"repetition_penalty"}),
        (drawing(), {"do_sample"}),
        (drawing(min_p=0.2), {"do_sample", "min_p"}),
        (drawing(top_p=0.9), {"do_sample", "top_p"}),
        (drawing(top_k=9), {"do_sample", "top_k"}),
    ],
)
def test_what_none_asks_for_is_not_computed(
    config: GenerationConfig, kind: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, launched = GenerationConfig(), []
    sampler = DeviceSampler([plain, config], [NONE] * 2, VOCABULARY, CPU)
    for name in ("sort", "softmax"):
        made = getattr(torch.Tensor, name)
        monkeypatch.setattr(
            torch.Tensor, name, lambda *of, _made=made, _name=name: launched.append(_name) or _made(*of)
        )
    next_of(sampler, logits_of(2, 0))
    assert {name for name, is_asked in sampler.kind._asdict().items() if is_asked} == kind
    assert launched.count("sort") == len(kind & {"top_k", "top_p"})
    assert launched.count("softmax") == len(kind & {"do_sample", "top_p", "min_p"})
    if kind:
        with pytest.raises(ValueError, match="for a sampler of"):
            DeviceSampler([plain], [NONE], VOCABULARY, CPU).serve([config], [NONE])


def test_without_a_seed_each_draws_afresh() -> None:
    flat, configs = torch.zeros(2, VOCABULARY), [drawing(seed=None)] * 2
    sampler = DeviceSampler(configs, [NONE] * 2, VOCABULARY, CPU)
    found = np.array([next_of(sampler, flat) for _ in range(8)])
    assert (found[:, 0] != found[:, 1]).any()


def test_nothing_of_a_choice_returns_to_the_host() -> None:
    """Tensors without numbers can be chosen from all the same: no number is looked at, and no shape follows from
    one."""
    configs = [drawing(top_k=3, top_p=0.9, min_p=0.1, repetition_penalty=2.0), GenerationConfig()]
    sampler = DeviceSampler(configs, said(2), VOCABULARY, CPU)
    with FakeTensorMode(allow_non_fake_inputs=True) as fake:
        for rows in ([0, 1], [1]):
            sampler.keep(rows)
            tokens = sampler.choose(fake.from_tensor(logits_of(len(rows), 0)))
            assert (tokens.shape, tokens.dtype) == ((len(rows),), torch.int64)
        with pytest.raises(DataDependentOutputException):
            tokens[0].item()
