"""Prefixes that the store has already: a sequence takes them over, and leaves what later ones will need."""

from __future__ import annotations

import logging

import numpy as np
import safetensors.torch
from torch import Tensor

from ...storage import StorageFullError, TieredStore
from ..layers.sliding import SlidingLayer
from ..layers.stored import is_sound_index, stored_state, tensors_under
from ..layers.tiered import TieredLayer
from ..model.model import Model
from .sequence import PROMPT, Sequence

logger = logging.getLogger(__name__)

STATE_EVERY = 256
"""A prefill of at least this many tokens leaves the sliding layers' state for later prefixes."""
LEARNED_EVERY = 512
"""And of at least this many what an index learned: as large as the KV of some hundred tokens."""


class StoredPrefixes:
    """For sequences of one model over one store, whose index is `identity` (`Engine.index_identity`)."""

    def __init__(self, model: Model, store: TieredStore, identity: str) -> None:
        self.model, self.store, self.identity = model, store, identity

    def adopt(self, sequence: Sequence, tokens: np.ndarray, *, want_logits: bool) -> int:
        """Adopt stored pages that continue the sequence with prompt `tokens`; returns how many of those they cover."""
        named = sequence.name_pages(tokens, PROMPT)
        chains, pages = named.chains, named.tokens
        tail, size = sequence.tail_len, sequence.page_size
        is_whole = len(chains) * size == tail + len(tokens)
        known, windows = self._reusable(sequence, chains[:-1] if want_logits and is_whole else chains)
        if known * size <= tail:
            return 0
        snapshot = sequence.snapshot()
        learned = {} if sequence.chains else self._learned(sequence, chains[: known + 1])
        try:
            for cache in sequence.layers:
                if isinstance(cache, TieredLayer):
                    mine = tensors_under(f"{cache.layer}.", learned)
                    repeats = self.model.num_heads // self.model.num_kv_heads
                    is_sound = bool(mine) and is_sound_index(cache, mine, 0, repeats)
                    cache.adopt(chains[:known], pages[:known], mine if is_sound else None)
                else:
                    cache.restore(windows[f"{cache.layer}"], sequence.num_sealed + known * size)
        except BaseException:
            sequence.rollback(snapshot)
            raise
        covered = known * size - tail
        sequence.commit(tokens[:covered], PROMPT, chains[:known], from_store=True)
        return covered

    def _reusable(self, sequence: Sequence, chains: list[bytes]) -> tuple[int, dict[str, Tensor]]:
        """How many leading `chains` can be adopted, and the sliding layers' windows there."""
        known = self.store.num_known(chains, self.model.tiered)
        sliding = [cache for cache in sequence.layers if isinstance(cache, SlidingLayer)]
        if not sliding:
            return known, {}
        for count in range(known, 0, -1):
            end = sequence.num_sealed + count * sequence.page_size
            state = stored_state(self.store.disk, chains[count - 1], sliding, end, self.model.dtype)
            if state is not None:
                return count, state[0]
        return 0, {}

    def leave_state(self, sequence: Sequence, computed: int) -> None:
        """After a prefill that computed so many tokens: store under the last page boundary's chain what pages alone do
        not tell whoever continues from there, the sliding layers' state and what an index learned from queries."""
        disk = self.store.disk
        if computed < STATE_EVERY or disk is None or self.store.disk_error or not sequence.chains:
            return
        states: dict[str, Tensor] = {}
        for cache in sequence.layers:
            if isinstance(cache, SlidingLayer):
                states[f"{cache.layer}"] = cache.at_boundary(sequence.tail_len)
            elif cache.index.uses_queries and computed >= LEARNED_EVERY:
                states |= {f"{cache.layer}.{name}": t for name, t in cache.learned().items()}
        if states:
            payload = {name: t.cpu().contiguous() for name, t in states.items()}
            packed = safetensors.torch.save(payload, {"index": self.identity})
            try:
                disk.put_state(sequence.chains[-1], packed)
            except StorageFullError as error:
                logger.warning("what this prompt leaves for later ones is not stored: %s", error)

    def _learned(self, sequence: Sequence, chains: list[bytes]) -> dict[str, Tensor]:
        """What the sequence's index learned when it last read the longest of these prefixes; empty if nothing was left.
        Names are `layer.tensor`."""
        disk = self.store.disk
        tiered = [cache for cache in sequence.layers if isinstance(cache, TieredLayer)]
        if disk is None or not any(cache.index.uses_queries for cache in tiered):
            return {}
        for chain in reversed(chains):
            state = stored_state(disk, chain, [], 0, self.model.dtype)
            if state is not None and state[1] == self.identity:
                return {name: t.to(self.model.device) for name, t in state[0].items() if "." in name}
        return {}
