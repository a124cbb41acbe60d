"""Prefill and decode.

Prefill is layer-major: a span of tokens goes through layer l before any of it enters layer l + 1,
so only one layer's K and V need room on the compute device. Rows go in chunks on a fixed grid of
positions; a prompt longer than one span is several spans. What was sealed before an interruption stays in the store
and is found again, but the sequence is as it was.

Threads: an engine may be called from several. They take turns at its model, a layer of a span or a decode step at a
time, in the order in which they ask. A sequence belongs to one caller at a time.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ...retrieval import Index, split_spec
from ...retrieval.placement import Placement
from ...storage import StorageError, TieredStore
from ...storage.transfer import clock
from ..api.config import KVConfig
from ..api.progress import OnProgress, Progress
from ..layers.prefetch import Prefetcher
from ..layers.workspace import Workspace
from ..model.model import Model
from ..process.apart import apart
from ..process.interrupt import Interrupts
from ..process.spare_cores import FittingThreads
from .begun_step import BegunStep
from .compiled_form import compiled_step
from .forward import forward
from .known_tokens import append_known
from .pasts import Pasts
from .placing import facts_of, is_placed, make_placements, place
from .prefixes import StoredPrefixes
from .reaching import in_reach, within_reach
from .resident_step import resident_step
from .sequence import Sequence, Snapshot
from .span_run import run_span

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Prefilled:
    """The outcome of a prefill. `logits` are the last token's, fp32 `[vocabulary]`; None if they were not wanted."""

    logits: Tensor | None
    num_cached: int
    num_computed: int


class Engine:
    """One model over one store."""

    def __init__(
        self,
        model: Model,
        store: TieredStore,
        indexes: list[Index],
        config: KVConfig,
        workspace: Workspace,
        chunk: int,
        prefetcher: Prefetcher | None = None,
        placements: dict[int, Placement] | None = None,
    ) -> None:
        self.model, self.store, self.config = model, store, config
        self.indexes = dict(zip(model.tiered, indexes, strict=True))
        self.workspace, self.chunk, self.prefetcher = workspace, chunk, prefetcher
        self.interrupts, self.turns = Interrupts(), model.turns
        self.threads = FittingThreads.on(model.device)
        self.placing = config.placing
        facts = partial(facts_of, model)
        self.placements = make_placements(model.tiered, config, facts) if placements is None else placements
        self.pasts = Pasts(model, store, self.indexes, config, workspace, prefetcher, self.placements)
        self.compiled = compiled_step(model, store)
        """Decode in compiled loops; None: there are none."""
        self.resident = resident_step(model, store, indexes)
        """Decode that the device does by itself; None: PyTorch's operations, one by one."""
        self.is_ahead = self.resident is not None and model.device.type == "cuda"
        """Whether `generate` takes steps whose tokens only the device knows: where steps need not wait for the host."""
        self.num_steps = 0
        self.tokens_read = 0
        settings = {**config.retrieval_settings(), "index": self.index_identity}
        if model.weights != "own":
            settings["weights"] = model.weights
        learns = any(index.uses_queries for index in indexes)
        self.prefixes = StoredPrefixes(model, store, config, self.index_identity, learns_from_queries=learns)
        self.salt = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).digest()

    @property
    def index_name(self) -> str:
        return split_spec(self.config.index)[0]

    @property
    def index_identity(self) -> str:
        """The index and everything its states depend on besides the tokens; and what a placement's do."""
        placed = [self.placing.identity] if self.placing is not None else []
        return "; ".join([*sorted({index.identity for index in self.indexes.values()}), *placed])

    def new_sequence(self, *, keep_queries: bool = False, keep_rows: bool = False, reach: int = 0) -> Sequence:
        """Make an empty sequence. With `keep_queries` it also keeps the queries that indexes learn from, and with
        `keep_rows` all of a prompt's, for forks by other engines: with another index, or with a placement.

        Args:
            reach: of the KV that it will get from elsewhere (`Rope.reach`).
        """
        past = self.pasts.new(reach, keep_queries=keep_queries, keep_rows=keep_rows)
        return Sequence(past, self.config.page_size, self.salt)

    def fork(self, sequence: Sequence, *, places: bool = True) -> Sequence:
        """Make an independent sequence with the same past; pages are shared, not copied.

        `sequence` may be another engine's over the same store: one prefill then serves several
        indexes and budgets.

        Args:
            places: False leaves it to a fork of the fork to keep only what this engine's placement would.

        Raises CapacityError if there is no room for its open pages; nothing is held then.
        """
        twin = self.new_sequence(reach=sequence.past.reach)
        try:
            with self.turn():
                twin.follow(sequence)
                if places:
                    self._place(twin)
        except BaseException:
            twin.close()
            raise
        return twin

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the model alone, while interrupts wait for a safe point. Raises ConversationError if this thread
        holds it already."""
        with apart(), self._turn():
            yield

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """The same, for who is `apart` already."""
        with self.interrupts.deferred(), self.turns.taken(self.interrupts.check):
            while self.pasts.abandoned:
                self.pasts.abandoned.popleft().close()
            yield

    @torch.inference_mode()
    @apart()
    def rollback(self, sequence: Sequence, point: Snapshot) -> None:
        """Drop everything after `point`. What was sealed stays in the store as cache."""
        with self.interrupts.deferred(), self.turns.taken():  # no check: it is called to clean up
            sequence.rollback(point)

    # Prefill

    @torch.inference_mode()
    @apart()
    def prefill(
        self,
        sequence: Sequence,
        tokens: np.ndarray,
        *,
        want_logits: bool = True,
        reuse: bool = True,
        on_progress: OnProgress | None = None,
    ) -> Prefilled:
        """Append prompt tokens, reusing pages the store already has.

        An exception or Ctrl-C leaves the sequence as it was. What was sealed until then stays in a store that has a
        disk, so that another try goes on from there.

        Args:
            on_progress: called in between, while other threads wait for the model; it must not call back.

        Raises:
            ValueError: no tokens; nothing was done.
            CapacityError: the tiers are full.
            ConversationError: called from inside `on_progress`, or another call has changed the sequence.

        A text that grows to where the model's positions are others (`Rope.reach`) is computed again, all of it.
        """
        if len(tokens) == 0:
            raise ValueError("prefill needs at least one token")
        self.turns.require_free()
        point = sequence.snapshot()
        with self.interrupts.deferred():
            try:
                reach = self.model.rope.reach(sequence.num_tokens + len(tokens))
                if reach != sequence.past.reach:
                    return self._read_again(sequence, tokens, reach, want_logits, reuse, on_progress)
                return self._prefill(sequence, tokens, want_logits, reuse, on_progress)
            except BaseException:
                self.rollback(sequence, point)
                raise

    def _read_again(
        self, sequence: Sequence, tokens: np.ndarray, reach: int, want_logits: bool, reuse: bool,
        on_progress: OnProgress | None,
    ) -> Prefilled:  # fmt: skip
        """Compute all of the text again, `tokens` at its end, with the tables of `reach`. The sequence changes at the
        very end."""
        held = sequence.num_tokens
        twin = Sequence(self.pasts.instead_of(sequence.past, reach), sequence.page_size, self.salt)
        try:
            done = self._prefill(twin, np.concatenate([sequence.tokens, tokens]), want_logits, reuse, on_progress)
        except BaseException:
            with self.interrupts.deferred(), self.turns.taken():
                twin.close()
            raise
        sequence.become(twin)
        return Prefilled(done.logits, max(0, done.num_cached - held), done.num_computed)

    def _prefill(
        self, sequence: Sequence, tokens: np.ndarray, want_logits: bool, reuse: bool, on_progress: OnProgress | None
    ) -> Prefilled:
        started, total, cached = clock.now(), len(tokens), 0
        if reuse and not self._must_see_rows:
            with self.turn():
                cached = self.prefixes.adopt(sequence, tokens, want_logits=want_logits)
        done, logits = cached, None

        def report(share: float) -> None:
            if on_progress is not None:
                processed = done + int(share * len(span))
                on_progress(Progress(total, cached, processed, clock.now() - started))

        end = sequence.num_tokens + total - cached
        # Who reads the same prompt again adopts its pages and computes the rows after them, at least the last one. The
        # same rows are a group of their own here, so that the second time gives the same bits as the first.
        last_group = (end - want_logits) // sequence.page_size * sequence.page_size
        for stop in self._span_ends(sequence.num_tokens, total - cached):
            span = tokens[done : done + stop - sequence.num_tokens]
            is_last = done + len(span) == total
            logits = run_span(
                self.model, sequence, span, self.chunk, last_group, turn=self.turn, check=self.interrupts.check,
                report=report, want_logits=want_logits and is_last,
            )  # fmt: skip
            with self.turn():
                self.prefixes.leave_inside(sequence)
            done += len(span)
        for cache in sequence.layers:
            with self.turn():
                cache.end_prefill()
        with self.turn():
            self._place(sequence, is_anew=True)
            self.prefixes.leave_at_end(sequence, total - cached)
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)  # callers tell how long it took: all of it
        return Prefilled(logits, cached, total - cached)

    @property
    def _must_see_rows(self) -> bool:
        """Whether answers depend on how a prompt's rows attend, so that none may be taken from the store."""
        return (
            self.placing is not None and self.placing.is_visible and any(one.rows for one in self.placements.values())
        )

    def _place(self, sequence: Sequence, *, is_anew: bool = False) -> None:
        """A prompt, or the whole past of a fork, is here: keep what the placement wants to keep of it. A fork of its
        own kind has done so already, unless the text `is_anew`."""
        if self.placing is not None and sequence.num_tokens and (is_anew or not is_placed(sequence.layers)):
            place(sequence.layers, self.placing, sequence.tokens)

    def _span_ends(self, start: int, count: int) -> Iterator[int]:
        """Ends of spans, on the chunk grid or where states are left, except for the last."""
        end, most = start + count, self.workspace.span_tokens
        while start < end:
            start = min(end, (start + most) // self.chunk * self.chunk, self.prefixes.next_place(start))
            yield start

    # Decode

    @torch.inference_mode()
    @apart()
    def decode(
        self, sequences: list[Sequence], tokens: list[int], *, within: AbstractContextManager[object] | None = None
    ) -> Tensor:
        """Take one step with several sequences of any lengths: append a token to each and return their logits.

        An exception leaves every sequence as it was. Ctrl-C waits for the end of the step: either all sequences have
        their token then, or none has.

        Args:
            within: entered once the model's turn has come, so that a stopwatch counts no waiting for other threads;
                before that for a text that must be computed again.

        Returns:
            fp32 `[len(sequences), vocabulary]`.

        Raises:
            CapacityError: the tiers are full.
            ConversationError: called from a callback of another call.
        """
        with self.interrupts.deferred(), self._in_reach(sequences), self._turn(), within or nullcontext():
            return self._step(sequences, tokens)

    @contextmanager
    def decode_ahead(
        self, sequences: list[Sequence], tokens: Tensor, *, within: AbstractContextManager[object]
    ) -> Iterator[BegunStep | None]:
        """Begin a step with tokens int64 `[B]` that only the device knows. Inside the block, which has the model's turn
        and no interrupts, the caller settles it, once the host knows them too: else it is undone.

        Gives None, with nothing done, where the step must wait for its tokens: the host finds what it reads, the tiers
        are full, or a text grows to where its positions are others. `decode` takes it then, or says what is wrong.
        """
        with apart(), torch.inference_mode(), self.interrupts.deferred(), self._turn(), within:
            step, waits = None, self.resident is not None and self.resident.waits(sequences)
            if not waits and all(within_reach(self.model.rope, sequence, 1) for sequence in sequences):
                with suppress(StorageError):
                    step = self._begin(sequences, tokens)
            try:
                yield step
            finally:
                if step is not None:
                    step.undo()
            if step is not None:
                self._note_step(sequences)

    def _step(self, sequences: list[Sequence], tokens: list[int]) -> Tensor:
        step = self._begin(sequences, tokens)
        step.settle(tokens)
        self._note_step(sequences)
        return step.logits

    def _begin(self, sequences: list[Sequence], tokens: list[int] | Tensor) -> BegunStep:
        def compute() -> Tensor:
            return forward(
                self.model, sequences, tokens, compiled=self.compiled, threads=self.threads, resident=self.resident,
                prefetcher=self.prefetcher,
            )  # fmt: skip

        return BegunStep(sequences, compute)

    def _note_step(self, sequences: list[Sequence]) -> None:
        self.num_steps += 1
        self.tokens_read = max((cache.tokens_read for s in sequences for cache in s.layers), default=0)

    @torch.inference_mode()
    @apart()
    def decode_known(self, sequence: Sequence, tokens: np.ndarray) -> Tensor:
        """Append tokens that are already known, as `decode` would one by one (teacher forcing).

        A token's K and V in a layer depend on the layers below only, so all tokens pass a layer
        before any enters the next: the same selections and the same attention at a fraction of the
        time. Computes in `model.prefill_dtype`, as prefill does. An exception leaves the sequence as
        it was.

        Args:
            tokens: uint32 `[n]`.

        Returns:
            Logits after each token, fp32 `[n, vocabulary]`.

        Raises:
            ValueError: no tokens. CapacityError: the tiers are full.
        """
        if not len(tokens):
            raise ValueError("decode_known needs at least one token")
        self.turns.require_free()
        point, found = sequence.snapshot(), []
        with self.interrupts.deferred():
            try:
                while len(tokens):
                    with self._in_reach([sequence]):
                        count = within_reach(self.model.rope, sequence, len(tokens))
                        with self.turn():
                            found.append(append_known(self.model, sequence, tokens[:count], self.interrupts.check))
                    tokens = tokens[count:]
                return torch.cat(found)
            except BaseException:
                self.rollback(sequence, point)
                raise

    def _in_reach(self, sequences: list[Sequence]) -> AbstractContextManager[None]:
        return in_reach(self.model.rope, sequences, self._read_again)
