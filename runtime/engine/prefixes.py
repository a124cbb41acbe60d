"""Prefixes that the store has already: a sequence takes them over, and leaves what later ones will need."""

from __future__ import annotations

import logging

import numpy as np
import safetensors.torch
from torch import Tensor

from ...storage import StorageFullError, TieredStore
from ..layers.stored import stored_state
from ..model.model import Model
from .sequence import PROMPT, Sequence

logger = logging.getLogger(__name__)

STATE_EVERY = 256
"""A prefill of at least this many tokens leaves for later prefixes what pages alone do not tell."""


class StoredPrefixes:
    """The prefixes that sequences of one model over one store share.

    Args:
        identity: of the index (`Engine.index_identity`).
        learns_from_queries: it has an index that does, so that what it learned is worth looking for.
    """

    def __init__(self, model: Model, store: TieredStore, identity: str, *, learns_from_queries: bool) -> None:
        self.model, self.store = model, store
        self.identity, self._learns = identity, learns_from_queries

    def adopt(self, sequence: Sequence, tokens: np.ndarray, *, want_logits: bool) -> int:
        """Adopt stored pages that continue the sequence with prompt `tokens`; returns how many of those they cover."""
        named = sequence.name_pages(tokens, PROMPT)
        chains, pages = named.chains, named.tokens
        tail, size = sequence.tail_len, sequence.page_size
        is_whole = len(chains) * size == tail + len(tokens)
        known, left = self._reusable(sequence, chains[:-1] if want_logits and is_whole else chains)
        if known * size <= tail:
            return 0
        snapshot = sequence.snapshot()
        if not sequence.chains:
            left |= self._learned(chains[: known + 1])
        try:
            for cache in sequence.layers:
                cache.adopt(chains[:known], pages[:known], sequence.num_sealed + known * size, left)
        except BaseException:
            sequence.rollback(snapshot)
            raise
        sequence.commit(named.first(known), from_store=True)
        return known * size - tail

    def _reusable(self, sequence: Sequence, chains: list[bytes]) -> tuple[int, dict[str, Tensor]]:
        """How many leading `chains` can be adopted, and what layers for which pages are not all left there."""
        known = self.store.num_known(chains, self.model.tiered)
        others = [cache for cache in sequence.layers if not cache.is_paged]
        if not others:
            return known, {}
        for count in range(known, 0, -1):
            end = sequence.num_sealed + count * sequence.page_size
            state = stored_state(self.store.disk, chains[count - 1], others, end)
            if state is not None:
                return count, {name: tensor for name, tensor in state[0].items() if not _is_learned(name)}
        return 0, {}

    def leave_state(self, sequence: Sequence, computed: int) -> None:
        """Store, after a prefill that computed so many tokens, what pages alone do not tell whoever goes on from the
        last page's end (`LayerKV.leave`), under that page's chain."""
        disk = self.store.disk
        if computed < STATE_EVERY or disk is None or self.store.disk_error or not sequence.chains:
            return
        states: dict[str, Tensor] = {}
        for cache in sequence.layers:
            left = cache.leave(sequence.tail_len, computed)
            if not (left or cache.is_paged):
                return  # nobody could go on from what the others leave
            states |= left
        if states:
            payload = {name: t.cpu().contiguous() for name, t in states.items()}
            packed = safetensors.torch.save(payload, {"index": self.identity})
            try:
                disk.put_state(sequence.chains[-1], packed)
            except StorageFullError as error:
                logger.warning("what this prompt leaves for later ones is not stored: %s", error)

    def _learned(self, chains: list[bytes]) -> dict[str, Tensor]:
        """Find what the index learned when it last read the longest of these prefixes; empty if nothing was left."""
        disk = self.store.disk
        if disk is None or not self._learns:
            return {}
        for chain in reversed(chains):
            state = stored_state(disk, chain, [], 0)
            if state is not None and state[1] == self.identity:
                return {name: tensor for name, tensor in state[0].items() if _is_learned(name)}
        return {}


def _is_learned(name: str) -> bool:
    """Whether a tensor that a layer left is what an index learned (`LAYER.PART`), not a state."""
    return "." in name
