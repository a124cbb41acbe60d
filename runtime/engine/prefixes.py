"""Prefixes that the store has already: a sequence takes them over, and leaves what later ones will need."""

from __future__ import annotations

import logging
import sys
from itertools import islice

import numpy as np
import safetensors.torch
from torch import Tensor

from ...storage import StorageFullError, TieredStore
from ...storage.codecs.compression import usual_ratio
from ..api.config import KVConfig
from ..layers.stored import stored_state
from ..model.model import Model
from .held import held_by
from .sequence import PROMPT, Sequence
from .state_interval import state_interval

logger = logging.getLogger(__name__)

_LEAST_READ = 256
"""A prefill of at least this many tokens leaves for later prefixes what pages alone do not tell."""
_MOST_LOOKED_AT = 4
"""So many of the states of a prefix are looked through for what an index learned: they may be large."""


class StoredPrefixes:
    """The prefixes that sequences of one model over one store share.

    Args:
        identity: of the index (`Engine.index_identity`).
        learns_from_queries: it has an index that does, so that what it learned is worth looking for.
    """

    def __init__(
        self, model: Model, store: TieredStore, config: KVConfig, identity: str, *, learns_from_queries: bool
    ) -> None:  # fmt: skip
        self.model, self.store = model, store
        self.identity, self._learns = identity, learns_from_queries
        layout = store.layout
        state = held_by(model, layout).left_bytes
        token = layout.token_bytes * len(model.tiered) * usual_ratio(config.codec, layout)
        default = state_interval(state, token, layout.page_size)
        self.state_every = default if config.state_every is None or not state else config.state_every
        """Tokens between the places where states are left; 0: only where a prompt ends."""
        self._worth = max(_LEAST_READ, int(state / token) if token else 0)
        """Tokens whose pages take as much room as a state."""

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

    def next_place(self, start: int) -> int:
        """The first place behind `start` where states are left in a prompt that is longer. Rows are computed in groups
        that end there, so that whoever goes on from there computes the same groups."""
        return (start // self.state_every + 1) * self.state_every if self.state_every else sys.maxsize

    def leave_inside(self, sequence: Sequence) -> None:
        """A part of a prompt was computed: leave the states at its end if that is a place for them."""
        if self.state_every and sequence.num_tokens % self.state_every == 0:
            self._leave(sequence, 0)

    def leave_at_end(self, sequence: Sequence, computed: int) -> None:
        """A prompt was read and so many tokens of it computed: leave what whoever goes on from the last page's end
        needs, and what an index learned. Behind generated tokens, where only the same session can come again, this has
        to be worth its room."""
        is_behind_a_reply = bool(sequence.origins[: sequence.num_sealed].any())
        if computed >= (self._worth if is_behind_a_reply else _LEAST_READ):
            self._leave(sequence, computed)

    def _leave(self, sequence: Sequence, computed: int) -> None:
        """Store what pages alone do not tell (`LayerKV.leave`) under the last page's chain."""
        disk = self.store.disk
        if disk is None or self.store.disk_error or not sequence.chains:
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
            except StorageFullError as error:  # where the cap is reached, nothing is displaced for it
                level = logging.INFO if error.is_at_cap else logging.WARNING
                logger.log(level, "what this prompt leaves for later ones is not stored: %s", error)

    def _learned(self, chains: list[bytes]) -> dict[str, Tensor]:
        """Find what the index learned when it last read the longest of these prefixes; empty if nothing was left."""
        disk = self.store.disk
        if disk is None or not self._learns:
            return {}
        left = (state for chain in reversed(chains) if (state := stored_state(disk, chain, [], 0)) is not None)
        for tensors, identity in islice(left, _MOST_LOOKED_AT):
            learned = {name: tensor for name, tensor in tensors.items() if _is_learned(name)}
            if learned and identity == self.identity:
                return learned
        return {}


def _is_learned(name: str) -> bool:
    """Whether a tensor that a layer left is what an index learned (`LAYER.PART`), not a state."""
    return "." in name
