"""The decode loop: from logits to tokens to text, for one sequence or a ragged batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from tokenizers.decoders import DecodeStream
from torch import Tensor

from ...storage.transfer import clock
from ..api.config import GenerationConfig
from ..api.figures import Stopwatch
from ..api.progress import OnProgress
from ..api.reply import Reply
from .engine import Engine
from .repetition import Repetition
from .sampling import Sampler
from .sequence import Sequence


class Stream:
    """Tokens in, text pieces out; watches for stop strings that may span pieces."""

    def __init__(self, tokenizer: Any, stop_strings: tuple[str, ...]) -> None:
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._backend = tokenizer.backend_tokenizer
        self._stops = stop_strings
        self._hold = max((len(stop) for stop in stop_strings), default=1) - 1
        self._pending = ""
        self.stopped = False

    def push(self, token: int) -> str:
        """The text that is now certain. Sets `stopped` when a stop string is complete."""
        self._pending += self._decoder.step(self._backend, token) or ""
        found = [at for stop in self._stops if (at := self._pending.find(stop)) >= 0]
        if found:
            self.stopped = True
            text, self._pending = self._pending[: min(found)], ""
            return text
        cut = len(self._pending) - self._hold
        if cut <= 0:
            return ""
        text, self._pending = self._pending[:cut], self._pending[cut:]
        return text

    def rest(self) -> str:
        """The text that was held back for a stop string that did not come."""
        text, self._pending = self._pending, ""
        return text


class _Job:
    """One sequence being generated."""

    def __init__(self, engine: Engine, sequence: Sequence, config: GenerationConfig, reply: Reply) -> None:
        self.sequence, self.config, self.reply = sequence, config, reply
        self.sampler = Sampler(config, engine.model.device)
        self.stream = Stream(engine.model.tokenizer, config.stop_strings)
        self.eos = frozenset() if config.ignore_eos else engine.model.eos_ids
        self.repetition = Repetition(0 if config.ignore_eos else config.max_repeats or 0)
        self.limit = min(config.max_new_tokens, engine.model.max_positions - sequence.num_tokens)
        self.done = False

    def take(self, logits: Tensor) -> str:
        """Choose a token; returns new text and sets `done` when this was the last."""
        token = self.sampler.choose(logits, self.sequence.tokens)
        self.reply.tokens.append(token)
        self.reply.usage.completion_tokens += 1
        if token in self.eos:
            return self._finish("eos", self.stream.rest())
        text = self.stream.push(token)
        if self.stream.stopped:
            return self._finish("stop", text)
        if self.repetition.push(token):
            return self._finish("repeats", text + self.stream.rest())
        if len(self.reply.tokens) >= self.limit:
            return self._finish("length", text + self.stream.rest())
        self.reply.text += text
        return text

    def _finish(self, reason: str, text: str) -> str:
        self.done, self.reply.finish_reason = True, reason
        self.reply.text += text
        return text


def read_prompt(
    engine: Engine, sequence: Sequence, tokens: np.ndarray, reply: Reply, on_progress: OnProgress | None = None
) -> Tensor:
    """Append the prompt that `reply` answers, and note what that took. Returns the logits of its last token.

    Raises as `Engine.prefill`.
    """
    with Stopwatch() as reading:
        done = engine.prefill(sequence, tokens, on_progress=on_progress)
    assert done.logits is not None
    reply.note_prompt(sequence.num_tokens, sequence.num_from_store, done.num_computed, reading.seconds)
    return done.logits


def generate(
    engine: Engine, sequences: list[Sequence], logits: list[Tensor], configs: list[GenerationConfig],
    replies: list[Reply], asked: float,
) -> Iterator[tuple[int, str]]:  # fmt: skip
    """Decode until every sequence is done; yields (which, text piece) for every token: the text that has become
    certain, which may be none.

    The last token of a finished reply is not yet in its sequence: whoever continues it feeds it.

    A step is the whole batch's, from feeding it a token each to having chosen the next ones. Each reply is told the
    time of the steps that it took part in; whoever reads the pieces can take as long as they like.

    Args:
        logits: of each sequence's last token, fp32 `[vocabulary]`.
        asked: `clock.now()` when the request arrived, for the time to the first token.
    """
    jobs = [_Job(engine, *job) for job in zip(sequences, configs, replies, strict=True)]
    rows = dict(enumerate(logits))
    texts = {i: jobs[i].take(row) for i, row in rows.items()}
    for job in jobs:
        job.reply.timings.note_first(clock.now() - asked)
    while True:
        yield from texts.items()
        active = [i for i in rows if not jobs[i].done]
        if not active:
            return
        step = Stopwatch()
        new = engine.decode(
            [jobs[i].sequence for i in active], [jobs[i].reply.tokens[-1] for i in active], within=step
        )  # fmt: skip
        rows = dict(zip(active, new, strict=True))
        with step:
            texts = {i: jobs[i].take(row) for i, row in rows.items()}
        for i in active:
            jobs[i].reply.timings.note_step(step.seconds)
