"""A model computes contexts layer by layer, and keeps nothing of them: for looking at its queries and keys."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from ...kernels.prefill_attention import prefill_attention
from ...kernels.sinks import with_sinks
from ...storage import PageLayout
from ..layers.base import Advance
from ..layers.recurrent import RecurrentLayer
from ..layers.sliding import SlidingLayer
from ..model.model import Model

PAGE_SIZE = 16
"""Tokens a page, of layers that have no pages here but ask."""
Sides = tuple[Tensor, Tensor]
"""Queries `[H, T, D]` and keys `[G, T, D]`."""
See = Callable[[int, Sides, Sides, Tensor, float], None]
"""(layer, queries and keys before RoPE, and after, values `[G, T, D]`, scale) of one context."""


def layer_by_layer(model: Model, contexts: list[np.ndarray], see: See, enter: Callable[[int], None]) -> Iterator[int]:
    """Compute contexts of one length up to the last tiered layer; all pass a layer before any enters the next.

    Args:
        see: is shown each context in each tiered layer. enter: called with each layer's number before it.

    Yields each tiered layer's number when all contexts have passed it.
    """
    size, device = len(contexts[0]), model.device
    tables = model.rotary(torch.arange(size, device=device).unsqueeze(0), model.prefill_dtype, model.rope.reach(size))
    dtype = str(model.prefill_dtype).removeprefix("torch.")
    hidden = [model.embed(torch.from_numpy(ids).to(device).unsqueeze(0)).to(model.prefill_dtype) for ids in contexts]
    inputs = [model.inputs(ids[None], rows) for ids, rows in zip(contexts, hidden, strict=True)]

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        window, sinks, plain = model.windows[layer], model.sinks[layer], (q[0], k[0])
        q, k = model.rotate(layer, q, k, tables)
        if window is not None:
            layout = PageLayout(num_heads=k.shape[1], page_size=PAGE_SIZE, head_dim=k.shape[3], dtype=dtype)
            sliding = SlidingLayer(layer, window, layout, k.dtype, device, sinks)
            return sliding.extend(q[0], k[0], v[0], 0, scale).unsqueeze(0)
        see(layer, plain, (q[0], k[0]), v[0], scale)
        out, lse = prefill_attention(q[0], k[0], v[0], scale=scale, causal=True)
        return (out if sinks is None else with_sinks(out, lse, sinks.unsqueeze(-1))).unsqueeze(0)

    def mix(layer: int, inputs: tuple[Tensor, ...], advance: Advance) -> Tensor:
        state = RecurrentLayer(layer, model.states[layer] or {}, PAGE_SIZE, device)
        return state.mix(tuple(rows[0] for rows in inputs), advance).unsqueeze(0)

    for layer in range(max(model.tiered) + 1):
        enter(layer)
        module = model.layer(layer, prefill=True)
        for place, rows in enumerate(hidden):
            hidden[place] = model.run_layer(module, rows, attend, mix, inputs[place].of(layer))
        if layer in model.tiered:
            yield layer
