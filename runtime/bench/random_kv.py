"""Contexts of random keys and values, for lengths at which a prefill would take longer than what is measured.

Pages, tiers, index and tail end up as a prefill of the same tokens leaves them; indexes that learn from queries
are given random ones. A step costs the same; the pages it finds, and so hit rates, are not those of a text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from ..engine.engine import Engine
from ..engine.sequence import PROMPT, Sequence
from ..layers.tiered import TieredLayer, tiered_layers
from ..model.head_shapes import head_shapes


def fill_sequence(engine: Engine, sequence: Sequence, tokens: np.ndarray, seed: int) -> None:
    """Append `tokens` to an empty sequence, each with random keys and values in every layer.

    Raises:
        ValueError: the model has sliding-window layers, whose state is not in the store.
        CapacityError: the tiers are full.
    """
    layers = tiered_layers(sequence.layers)
    if len(layers) < len(sequence.layers):
        raise ValueError("random KV needs a model whose layers are all full attention; leave out random_kv")
    assert not sequence.num_tokens, "random KV is the beginning of a sequence"
    random = torch.Generator(engine.model.device).manual_seed(seed)
    named = sequence.name_pages(tokens, PROMPT)
    with torch.inference_mode(), engine.turns.taken():
        for cache in layers:
            _fill_layer(engine, cache, named.chains, named.tokens, len(tokens), random)
    sequence.commit(named)


def _fill_layer(
    engine: Engine, cache: TieredLayer, chains: list[bytes], pages: np.ndarray, length: int, random: torch.Generator
) -> None:
    """Span by span, then the index. One layer at a time: what is noted for the index is large."""
    size, learns = cache.layout.page_size, cache.index.learns
    room = engine.workspace.span_tokens // size
    for first in range(0, -(-length // size), room):
        some = slice(first, first + room)
        count = min(room * size, length - first * size)
        cache.begin()
        cache.span.rows(0, count).normal_(generator=random)
        if not learns:
            _note_queries(engine, cache, len(chains[some]), random)
        cache.finish(chains[some], pages[some], count)
    if learns:
        _note_queries(engine, cache, len(chains), random)
    cache.end_prefill()


def _note_queries(engine: Engine, cache: TieredLayer, pages: int, random: torch.Generator) -> None:
    """Note random queries, as reading a prompt would: without any, an index would learn anew while steps are timed."""
    if cache.upkeep.queries.is_wanted and pages:
        model = engine.model
        queries = torch.randn(
            model.num_heads, pages, model.head_dim, generator=random, dtype=torch.float32, device=model.device
        )
        cache.upkeep.queries.note(queries, model.head_dim**-0.5)


def fill_cache(cache: Any, config: Any, batch: int, count: int, dtype: torch.dtype, device: torch.device) -> None:
    """Fill a cache of transformers likewise: `count` random tokens in each of `batch` sequences."""
    random = torch.Generator(device).manual_seed(0)
    for layer, (_, kv_heads, dim) in enumerate(head_shapes(config)):
        kv = torch.empty(2, batch, kv_heads, count, dim, dtype=dtype, device=device).normal_(generator=random)
        cache.update(kv[0], kv[1], layer)
