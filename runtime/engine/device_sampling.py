"""Choosing the next tokens of a batch on the device, which nobody waits for.

A row's choices are those of `sampling.Sampler` with the same settings, seed and logits, whatever its neighbours are: on
a CPU to the bit; on CUDA sums over a row of a batch may be added up in another order than over a row alone.

`choose` is a fixed list of operations on tensors of fixed shapes and places: settings are read from the device, and no
number decides what is launched. So one CUDA graph of it serves all batches of its `Kind`, whatever their settings.

`draw` makes the noise that the next `choose` reads, and is called in front of the graph, on the same stream. Inside it
each generator would have to be registered with the graph, which then holds on to that generator: no row could move up
when another's reply has ended, trial runs before a capture would use up draws, and a graph that is captured again in
the middle of a reply would have to know how far each had come. Outside it a generator's state follows from its seed and
the number of choices alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..api.config import GenerationConfig


class Kind(NamedTuple):
    """What some sequence of a batch asks for, as `GenerationConfig` calls it. What none does is not launched.

    `top_k` and `top_p` sort all rows, once each.
    """

    repetition_penalty: bool
    do_sample: bool
    top_k: bool
    top_p: bool
    min_p: bool

    @classmethod
    def of(cls, configs: list[GenerationConfig]) -> Kind:
        drawn = [config for config in configs if config.do_sample]
        return cls(
            any(config.repetition_penalty != 1.0 for config in configs),
            bool(drawn),
            any(config.top_k for config in drawn),
            any(config.top_p < 1.0 for config in drawn),
            any(config.min_p for config in drawn),
        )


class _Settings(NamedTuple):
    """Of each row, `[rows, 1]`. With those of a row that asks for nothing an operation changes none of its numbers."""

    draws: Tensor
    """bool"""
    penalty: Tensor
    """fp32"""
    temperature: Tensor
    """fp32"""
    top_k: Tensor
    """int64, at most the vocabulary"""
    rest: Tensor
    """fp32, the share that `top_p` leaves out"""
    min_p: Tensor
    """fp32"""

    @classmethod
    def of(cls, configs: list[GenerationConfig], vocabulary: int) -> _Settings:
        rows = [
            (True, one.repetition_penalty, one.temperature, min(one.top_k or vocabulary, vocabulary),
             1 - one.top_p if one.top_p < 1.0 else -1.0, one.min_p)
            if one.do_sample else (False, one.repetition_penalty, 1.0, vocabulary, -1.0, 0.0)
            for one in configs
        ]  # fmt: skip
        kinds = torch.bool, torch.float32, torch.float32, torch.int64, torch.float32, torch.float32
        columns = zip(zip(*rows, strict=True), kinds, strict=True)
        return cls(*(torch.tensor(column, dtype=kind).unsqueeze(1) for column, kind in columns))


class DeviceSampler:
    """The choices of up to as many sequences as it was made for, a row each.

    Args:
        tokens: of each sequence, all so far.
        vocabulary: length V of a row of logits.
    """

    def __init__(
        self, configs: list[GenerationConfig], tokens: list[np.ndarray], vocabulary: int, device: torch.device
    ) -> None:
        self.kind, self._vocabulary = Kind.of(configs), vocabulary
        rows = len(configs)
        with torch.inference_mode(False):  # who writes there later need not be in that mode
            self._settings = _Settings(*(one.to(device) for one in _Settings.of(configs, vocabulary)))
            self._said = torch.zeros(
                rows if self.kind.repetition_penalty else 0, vocabulary, dtype=torch.bool, device=device
            )
            """What each row's sequence has in it."""
            self._noise = torch.ones(rows if self.kind.do_sample else 0, vocabulary, dtype=torch.float32, device=device)
        self._generators = [torch.Generator(device=device) for _ in configs]
        self._drawn: list[int] = []
        """The rows that draw."""
        self.serve(configs, tokens)

    def serve(self, configs: list[GenerationConfig], tokens: list[np.ndarray]) -> None:
        """Choose for these sequences from now on, in the same tensors, so that graphs stay good. May wait.

        Raises ValueError if they are more, or ask for more (`Kind`), than those that this was made for.
        """
        kind = Kind.of(configs)
        if len(configs) > len(self._generators) or any(asked > has for asked, has in zip(kind, self.kind, strict=True)):
            raise ValueError(f"{len(configs)} rows of {kind} for a sampler of {len(self._generators)} of {self.kind}")
        for mine, new in zip(self._settings, _Settings.of(configs, self._vocabulary), strict=True):
            mine[: len(configs)] = new.to(mine.device)
        for generator, config in zip(self._generators, configs, strict=False):
            if config.seed is None:
                generator.seed()
            else:
                generator.manual_seed(config.seed)
        self._drawn = [row for row, config in enumerate(configs) if config.do_sample]
        if self.kind.repetition_penalty:
            said = np.zeros((len(tokens), self._vocabulary), dtype=np.bool_)
            for row, some in zip(said, tokens, strict=True):
                row[some[some < self._vocabulary]] = True  # models may embed more tokens than they can say
            self._said[: len(said)] = torch.from_numpy(said).to(self._said.device)

    def keep(self, rows: list[int]) -> None:
        """The others' replies have ended: these rows, ascending, are the first ones from now on."""
        for held in (*self._settings, self._said, self._noise):
            if len(held):
                held[: len(rows)] = torch.stack([held[row] for row in rows])
        others = [row for row in range(len(self._generators)) if row not in rows]
        self._generators = [self._generators[row] for row in [*rows, *others]]
        self._drawn = [row for row, before in enumerate(rows) if before in self._drawn]

    def draw(self) -> None:
        """Make the noise of the next choice: what `torch.multinomial` draws for one sample of a row."""
        for row in self._drawn:
            self._noise[row].exponential_(1, generator=self._generators[row])

    def choose(self, logits: Tensor) -> Tensor:
        """The next tokens int64 `[B]` of the first B rows, from fp32 logits `[B, V]`. Notes them as said.

        `draw` comes before each.
        """
        draws, penalty, temperature, top_k, rest, min_p = (one[: len(logits)] for one in self._settings)
        scores = logits
        if self.kind.repetition_penalty:
            said = self._said[: len(logits)]
            penalised = torch.where(scores < 0, scores * penalty, _divided(scores, penalty))
            scores = torch.where(said, penalised, scores)
        tokens = scores.argmax(-1, keepdim=True)
        if self.kind.do_sample:
            scores = _divided(scores, temperature)
            if self.kind.top_k:
                scores = _of_highest(scores, top_k)
            if self.kind.top_p:
                scores = _without_rest(scores, rest)
            if self.kind.min_p:
                shares = scores.softmax(-1)
                scores = scores.masked_fill(shares < min_p * shares.amax(-1, keepdim=True), -torch.inf)
            drawn = (scores.softmax(-1) / self._noise[: len(logits)]).argmax(-1, keepdim=True)
            tokens = torch.where(draws, drawn, tokens)
        if self.kind.repetition_penalty:
            said.scatter_(1, tokens, True)
        return tokens.squeeze(1)


def _of_highest(scores: Tensor, top_k: Tensor) -> Tensor:
    """`scores` `[B, V]` with -inf for all but the `top_k` highest and those as high as the last of them."""
    least = scores.sort(-1).values.gather(-1, scores.shape[-1] - top_k)
    return scores.masked_fill(scores < least, -torch.inf)


def _without_rest(scores: Tensor, rest: Tensor) -> Tensor:
    """`scores` `[B, V]` with -inf for the lowest ones, which have the share `rest` together; the highest always stays.

    Which of equal ones stay is up to the sort, so it is given what `sampling` gives it: not the order from before."""
    ordered, where = scores.sort(-1)
    goes = ordered.softmax(-1).cumsum(-1) <= rest
    goes[:, -1] = False
    return scores.masked_fill(goes.scatter(-1, where, goes), -torch.inf)


def _divided(scores: Tensor, divisor: Tensor) -> Tensor:
    """As PyTorch divides by a number: on CUDA it multiplies with the reciprocal."""
    return scores * divisor.reciprocal() if scores.is_cuda else scores / divisor
