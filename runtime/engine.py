"""Prefill and decode.

Prefill is layer-major: a span of tokens goes through layer l before any of it enters layer l + 1,
so only one layer's K and V need room on the compute device. Rows go in chunks on a fixed grid of
positions; a prompt longer than one span is several spans, and what earlier spans sealed survives an
interruption.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..retrieval import Index, split_spec
from ..storage import TieredStore
from .config import KVConfig
from .interrupt import Interrupts
from .layer_cache import TieredLayer
from .lookahead import FIRST_GUESSED
from .model import Attend, Model, RotaryTables, StepTables
from .prefetch import Prefetcher
from .prefixes import StoredPrefixes
from .recompute import recompute
from .sequence import GENERATED, PROMPT, Sequence
from .sliding_layer import SlidingLayer
from .workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a prefill is. `processed` counts whole-model tokens; both include `cached` ones."""

    total: int
    cached: int
    processed: int
    elapsed_s: float

    @property
    def eta_s(self) -> float:
        """Seconds to go at the average speed so far; infinite before the first step."""
        done = self.processed - self.cached
        return self.elapsed_s * (self.total - self.processed) / done if done else float("inf")


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What a prefill did. `logits` `[vocabulary]` of the last token, unless they were not wanted."""

    logits: Tensor | None
    num_cached: int
    num_computed: int


class Engine:
    """One model over one store. Not re-entrant: one call at a time."""

    def __init__(
        self,
        model: Model,
        store: TieredStore,
        indexes: list[Index],
        config: KVConfig,
        workspace: Workspace,
        chunk: int,
        prefetcher: Prefetcher | None = None,
    ) -> None:
        self.model, self.store, self.config = model, store, config
        self.indexes = dict(zip(model.tiered, indexes, strict=True))
        self.workspace, self.chunk, self.prefetcher = workspace, chunk, prefetcher
        self.interrupts = Interrupts()
        self.num_steps = 0
        self.tokens_read = 0
        settings = {**config.retrieval_settings(), "index": self.index_identity}
        if model.weights != "own":
            settings["weights"] = model.weights
        self.prefixes = StoredPrefixes(model, store, self.index_identity)
        self.salt = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode(), digest_size=16).digest()

    @property
    def index_name(self) -> str:
        return split_spec(self.config.index)[0]

    @property
    def index_identity(self) -> str:
        """The index and everything its states depend on besides the tokens."""
        return "; ".join(sorted({index.identity for index in self.indexes.values()}))

    def new_sequence(self, *, keep_queries: bool = False) -> Sequence:
        """An empty one. With `keep_queries` it also keeps the queries that indexes learn from, for forks by other
        engines."""
        sequence = Sequence([], self.config.page_size, self.salt)
        layout, model = self.store.layout, self.model
        for layer, window in enumerate(model.windows):
            if window is not None:
                sequence.layers.append(SlidingLayer(layer, window, layout, model.dtype, model.device))
            else:
                recover = partial(recompute, self.model, self.store, sequence, layer)
                tiered = TieredLayer(
                    layer, self.store, self.indexes[layer], self.workspace, self.config.budget_tokens, recover,
                    self.prefetcher,
                )  # fmt: skip
                tiered.queries.kept = [] if keep_queries else None
                sequence.layers.append(tiered)
        return sequence

    def fork(self, sequence: Sequence) -> Sequence:
        """An independent sequence with the same past; pages are shared, not copied.

        `sequence` may be another engine's over the same store: one prefill then serves several
        indexes and budgets.

        Raises CapacityError if there is no room for its open pages; nothing is held then.
        """
        twin = self.new_sequence()
        try:
            twin.follow(sequence)
        except BaseException:
            twin.close()
            raise
        return twin

    # Prefill

    @torch.inference_mode()
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

        An exception or Ctrl-C leaves the sequence after its last whole span.

        Raises:
            ValueError: no tokens, or more than the model's window; nothing was done.
            CapacityError: the tiers are full.
        """
        total = len(tokens)
        if total == 0:
            raise ValueError("prefill needs at least one token")
        started = time.perf_counter()
        cached = self.prefixes.adopt(sequence, tokens, want_logits=want_logits) if reuse else 0
        done, logits = cached, None

        def report(share: float) -> None:
            if on_progress is not None:
                processed = done + int(share * len(span))
                on_progress(Progress(total, cached, processed, time.perf_counter() - started))

        with self.interrupts.deferred():
            for stop in self._span_ends(sequence.num_tokens, total - cached):
                span = tokens[done : done + stop - sequence.num_tokens]
                is_last = done + len(span) == total
                logits = self._span(sequence, span, want_logits and is_last, report)
                done += len(span)
        for cache in sequence.layers:
            if isinstance(cache, TieredLayer):
                cache.index_sealed()
        self.prefixes.leave_state(sequence, total - cached)
        return Prefilled(logits, cached, total - cached)

    def _span_ends(self, start: int, count: int) -> Iterator[int]:
        """Ends of spans, on the chunk grid except for the last."""
        end = start + count
        while start < end:
            start = min(end, (start + self.workspace.span_tokens) // self.chunk * self.chunk)
            yield start

    def _span(
        self, sequence: Sequence, tokens: np.ndarray, want_logits: bool, report: Callable[[float], None]
    ) -> Tensor | None:
        start, count = sequence.num_tokens, len(tokens)
        model = self.model
        chains, pages = sequence.chains_for(tokens, np.full(count, PROMPT, dtype=np.uint8))
        length = sequence.tail_len + count
        snapshot = sequence.snapshot()
        hidden = model.embed_wide(tokens)
        grid = range((start // self.chunk + 1) * self.chunk, start + count, self.chunk)
        chunks = list(pairwise([start, *grid, start + count]))
        tables = [model.tables(a, b) for a, b in chunks]
        try:
            for layer, cache in enumerate(sequence.layers):
                cache.begin()
                module = model.layer(layer, prefill=True)
                for (a, b), table in zip(chunks, tables, strict=True):
                    self.interrupts.check()
                    rows = slice(a - start, b - start)
                    hidden[:, rows] = model.run_layer(module, hidden[:, rows], self._attend_rows(cache, a, table))
                    report((layer + (b - start) / count) / model.num_layers)
                if isinstance(cache, TieredLayer):
                    cache.finish(chains, pages, length)
        except BaseException:
            sequence.rollback(snapshot)
            raise
        sequence.log(tokens, PROMPT)
        sequence.chains += chains
        return model.logits(hidden[:, -1])[0].float() if want_logits else None

    def _attend_rows(self, cache: TieredLayer | SlidingLayer, start: int, table: RotaryTables) -> Attend:
        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            q, k = self.model.rotate(layer, q, k, table)
            return cache.extend(q[0], k[0], v[0], start, scale).unsqueeze(0)

        return attend

    # Decode

    @torch.inference_mode()
    def decode(self, sequences: list[Sequence], tokens: list[int]) -> Tensor:
        """One step for several sequences of any lengths: append a token each, return their logits.

        An exception or Ctrl-C leaves every sequence as it was.

        Returns:
            fp32 `[len(sequences), vocabulary]`.
        """
        model = self.model
        lengths = [sequence.tail_len for sequence in sequences]
        tables = model.step_tables([sequence.num_tokens for sequence in sequences])

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            outs = [sequence.layers[layer].step(q[b], k[b], v[b], scale) for b, sequence in enumerate(sequences)]
            return torch.stack(outs) if len(outs) > 1 else outs[0].unsqueeze(0)

        with self.interrupts.deferred():
            try:
                hidden = model.embed(torch.tensor(tokens, device=model.device))
                with self.prefetcher.step() if self.prefetcher else nullcontext():
                    for layer in range(model.num_layers):
                        self._look_ahead(sequences, layer + 1, hidden, tables)
                        hidden = model.step_layer(layer, hidden, tables, attend)
            except BaseException:
                self._undo(sequences, lengths)
                raise
            for sequence, token in zip(sequences, tokens, strict=True):
                self._commit(sequence, token)
        self.num_steps += 1
        self.tokens_read = max(
            (cache.tokens_read for s in sequences for cache in s.layers if isinstance(cache, TieredLayer)), default=0
        )
        return model.step_logits(hidden).float()

    def _look_ahead(self, sequences: list[Sequence], layer: int, hidden: Tensor, tables: StepTables) -> None:
        """Guess what `layer` will read from the input `[B, hidden]` of the layer below it."""
        if self.prefetcher is None or not FIRST_GUESSED <= layer < self.model.num_layers:
            return

        def query(b: int) -> Tensor:
            return self.model.query(layer, hidden[b : b + 1], tables.of(b))

        for b, sequence in enumerate(sequences):
            cache = sequence.layers[layer]
            if isinstance(cache, TieredLayer):
                cache.look_ahead(partial(query, b))

    @torch.inference_mode()
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
        model, start, count = self.model, sequence.num_tokens, len(tokens)
        if not count:
            raise ValueError("decode_known needs at least one token")
        chains, pages = sequence.chains_for(tokens, np.full(count, GENERATED, dtype=np.uint8))
        snapshot = sequence.snapshot()
        table = model.tables(start, start + count)

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            q, k = model.rotate(layer, q, k, table)
            cache = sequence.layers[layer]
            if isinstance(cache, SlidingLayer):
                return cache.extend(q[0], k[0], v[0], start, scale).unsqueeze(0)
            names = iter(zip(chains, pages, strict=True))
            outs = []
            for row in range(count):
                outs.append(cache.step(q[0, :, row], k[0, :, row], v[0, :, row], scale))
                if cache.is_full:
                    cache.seal(*next(names))
            return torch.stack(outs, 1).unsqueeze(0)

        with self.interrupts.deferred():
            try:
                hidden = model.embed_wide(tokens)
                for layer in range(model.num_layers):
                    self.interrupts.check()
                    hidden = model.run_layer(model.layer(layer, prefill=True), hidden, attend)
            except BaseException:
                sequence.rollback(snapshot)
                raise
            sequence.log(tokens, GENERATED)
            sequence.chains += chains
        return model.logits(hidden[0]).float()

    def _undo(self, sequences: list[Sequence], lengths: list[int]) -> None:
        for sequence, length in zip(sequences, lengths, strict=True):
            for cache in sequence.layers:
                cache.undo_step(length, sequence.num_tokens)

    def _commit(self, sequence: Sequence, token: int) -> None:
        """The step is complete: log its token, seal the page it filled."""
        chains, pages = sequence.chains_for(np.array([token]), np.array([GENERATED], dtype=np.uint8))
        for cache in sequence.layers:
            if chains and isinstance(cache, TieredLayer):
                cache.seal(chains[0], pages[0])
        sequence.log(np.array([token], dtype=np.uint32), GENERATED)
        sequence.chains += chains
