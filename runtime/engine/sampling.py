"""Choosing the next token: greedy, or Hugging Face's own logits processors and a seeded draw."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..api.config import GenerationConfig


class Sampler:
    """One sequence's choices; with the same seed and logits it makes the same ones."""

    def __init__(self, config: GenerationConfig, device: torch.device) -> None:
        self._config = config
        self._processors = _processors(config)
        self._generator = torch.Generator(device=device)
        if config.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(config.seed)

    def choose(self, logits: Tensor, tokens: np.ndarray) -> int:
        """The next token after `tokens` (all so far), from fp32 logits `[vocabulary]`."""
        if not self._processors:
            return int(logits.argmax())
        ids = torch.from_numpy(tokens.astype(np.int64)).to(logits.device).unsqueeze(0)
        scores = logits.unsqueeze(0)
        for processor in self._processors:
            scores = processor(ids, scores)
        if not self._config.do_sample:
            return int(scores.argmax())
        return int(torch.multinomial(torch.softmax(scores, -1)[0], 1, generator=self._generator))


def _processors(config: GenerationConfig) -> list[Any]:
    if not config.do_sample and config.repetition_penalty == 1.0:
        return []
    from transformers.generation import logits_process as hf

    found: list[Any] = []
    if config.repetition_penalty != 1.0:
        found.append(hf.RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.do_sample:
        found.append(hf.TemperatureLogitsWarper(config.temperature))
        if config.top_k:
            found.append(hf.TopKLogitsWarper(config.top_k))
        if config.top_p < 1.0:
            found.append(hf.TopPLogitsWarper(config.top_p))
        if config.min_p:
            found.append(hf.MinPLogitsWarper(config.min_p))
    return found
