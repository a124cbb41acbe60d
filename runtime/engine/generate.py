"""The decode loop: from logits to tokens to text, for one sequence or a ragged batch.

Where a step waits for the host, the two take turns: the host chooses the tokens, the step follows from them. Where it
does not (`Engine.is_ahead`), the device chooses, and the host is one step behind:

    device   | step 1, choose | step 2, choose | step 3, choose |
    host             | begin step 2 | read 1, text | begin step 3 | read 2, text |

Step t + 1 is begun before anybody knows what step t has led to. Once the host knows, it settles that step: for a reply
that goes on it counts, for one that has ended it is undone, and what the reply has is what it would have had.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor

from ...storage import StorageError
from ...storage.transfer import clock
from ..api.config import GenerationConfig
from ..api.errors import ConversationError
from ..api.figures import Stopwatch
from ..api.progress import OnProgress
from ..api.reply import Reply
from .begun_step import BegunStep
from .device_sampling import DeviceSampler
from .engine import Engine
from .repetition import Repetition
from .sampling import Sampler
from .sequence import Sequence
from .told import Told


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
        self.stream = Stream(engine.model.tokenizer, config.stop_strings)
        self.eos = frozenset() if config.ignore_eos else engine.model.eos_ids
        self.repetition = Repetition(0 if config.ignore_eos else config.max_repeats or 0)
        self.limit = min(config.max_new_tokens, engine.model.max_positions - sequence.num_tokens)
        self.done = False

    @property
    def may_go_on(self) -> bool:
        """Whether there may be a token after the next one."""
        return not self.done and len(self.reply.tokens) + 1 < self.limit

    def take(self, token: int) -> str:
        """The next token; returns new text and sets `done` when this was the last."""
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
    yield from (_ahead if engine.is_ahead else _in_turns)(engine, jobs, logits, asked)


def _in_turns(engine: Engine, jobs: list[_Job], logits: list[Tensor], asked: float) -> Iterator[tuple[int, str]]:
    samplers = [Sampler(job.config, engine.model.device) for job in jobs]

    def take(rows: dict[int, Tensor]) -> dict[int, str]:
        return {i: jobs[i].take(samplers[i].choose(row, jobs[i].sequence.tokens)) for i, row in rows.items()}

    rows = dict(enumerate(logits))
    texts = take(rows)
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
            texts = take(rows)
        for i in active:
            jobs[i].reply.timings.note_step(step.seconds)


def _ahead(engine: Engine, jobs: list[_Job], logits: list[Tensor], asked: float) -> Iterator[tuple[int, str]]:
    batch = _Ahead(engine, jobs, torch.stack(logits))
    texts = batch.take_first()
    for job in jobs:
        job.reply.timings.note_first(clock.now() - asked)
    while True:
        yield from texts.items()
        if batch.failure is not None:
            raise batch.failure
        if all(job.done for job in jobs):
            return
        texts = batch.take_next()


class _Ahead:
    """A batch whose tokens the device chooses, and the host takes while the device goes on.

    Args:
        logits: after each job's last token, fp32 `[B, vocabulary]`.
    """

    def __init__(self, engine: Engine, jobs: list[_Job], logits: Tensor) -> None:
        self._engine, self._jobs, self._device = engine, jobs, engine.model.device
        self._rows = list(range(len(jobs)))
        """The jobs that the sampler's rows are of. One that is done leaves with the next step."""
        tokens = [job.sequence.tokens for job in jobs]
        self._sampler = DeviceSampler([job.config for job in jobs], tokens, logits.shape[-1], self._device)
        self._newest: Told | None = self._choose(logits, Told(self._device))
        """Tells the tokens after the newest step; None: they are taken."""
        self.failure: StorageError | ConversationError | None = None
        """Why the step after the tokens that were taken last could not be settled: raised behind their text."""

    def take_first(self) -> dict[int, str]:
        """The first token of each job, before anything else is begun. Returns the texts, by job."""
        assert self._newest is not None
        texts, self._newest = self._take(self._newest.read(), self._rows), None
        return texts

    def take_next(self) -> dict[int, str]:
        """The next token of each job that goes on; the step after these is begun first, if it can be."""
        told, after = self._newest or self._step(), Told(self._device)
        going = [row for row, job in enumerate(self._rows) if self._jobs[job].may_go_on]
        with self._begun(told, going, after) as step:
            rows = self._rows
            if step is not None:
                self._keep(going)
                self._choose(step.logits, after)
            tokens = told.read()
            texts = self._take(tokens, rows)
            if step is not None:
                self._settle(step, [tokens[row] for row in going])
        for job in texts:
            self._jobs[job].reply.timings.note_step(told.seconds)
        self._newest = None if step is None else after
        return texts

    def _take(self, tokens: list[int], rows: list[int]) -> dict[int, str]:
        pairs = zip(rows, tokens, strict=True)
        return {job: self._jobs[job].take(token) for job, token in pairs if not self._jobs[job].done}

    def _keep(self, rows: list[int]) -> None:
        self._sampler.keep(rows)
        self._rows = [self._rows[row] for row in rows]

    def _choose(self, logits: Tensor, told: Told) -> Told:
        self._sampler.draw()
        told.note(self._sampler.choose(logits))
        return told

    def _step(self) -> Told:
        """The step after the tokens that were taken."""
        self._keep([row for row, job in enumerate(self._rows) if not self._jobs[job].done])
        jobs, told = [self._jobs[job] for job in self._rows], Told(self._device)
        sequences, tokens = [job.sequence for job in jobs], [job.reply.tokens[-1] for job in jobs]
        return self._choose(self._engine.decode(sequences, tokens, within=told), told)

    def _begun(self, told: Told, rows: list[int], after: Told) -> AbstractContextManager[BegunStep | None]:
        """The step after tokens that the host does not know yet, of the rows whose replies may go on."""
        if not rows:
            return nullcontext()
        tokens = torch.stack([told.tokens[row] for row in rows])
        sequences = [self._jobs[self._rows[row]].sequence for row in rows]
        return self._engine.decode_ahead(sequences, tokens, within=after)

    def _settle(self, step: BegunStep, tokens: list[int]) -> None:
        try:
            step.settle(tokens, [not self._jobs[job].done for job in self._rows])
        except (StorageError, ConversationError) as error:  # what was taken is good: whoever reads gets that first
            self.failure = error
