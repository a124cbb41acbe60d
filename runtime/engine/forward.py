"""From the newest tokens of a batch to their logits: what a decode step computes."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor

from ..layers.lookahead import FIRST_GUESSED
from ..layers.prefetch import Prefetcher
from ..layers.recurrent import mixing
from ..model.model import Model
from ..process.spare_cores import FittingThreads
from .compiled_step import CompiledStep
from .resident_step import ResidentStep
from .sequence import Sequence


def forward(
    model: Model, sequences: list[Sequence], tokens: list[int] | Tensor, *, compiled: CompiledStep | None,
    threads: FittingThreads, resident: ResidentStep | None, prefetcher: Prefetcher | None,
) -> Tensor:  # fmt: skip
    """Give each layer of each sequence a token, and return the logits after it, fp32 `[B, vocabulary]`.

    Args:
        tokens: of each sequence, or int64 `[B]` on the model's device.

    Raises CapacityError; some layers may have their token then.
    """
    lengths, reaches = zip(*((sequence.num_tokens, sequence.past.reach) for sequence in sequences), strict=True)
    tables, mix = model.step_tables(list(lengths), list(reaches)), mixing([s.layers for s in sequences])

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        outs = [sequence.layers[layer].step(q[b], k[b], v[b], scale) for b, sequence in enumerate(sequences)]
        return torch.stack(outs) if len(outs) > 1 else outs[0].unsqueeze(0)

    def query(layer: int, hidden: Tensor, b: int) -> Tensor:
        return model.query(layer, hidden[b : b + 1], tables.of(b))

    def ahead(layer: int, hidden: Tensor) -> None:
        """Guess what `layer` will read from the input `[B, hidden]` of the layer below it."""
        if prefetcher is not None and FIRST_GUESSED <= layer < model.num_layers:
            for b, sequence in enumerate(sequences):
                sequence.layers[layer].look_ahead(partial(query, layer, hidden, b))

    with prefetcher.step() if prefetcher else nullcontext():
        if compiled is not None:
            with threads.lent() as lent:
                known = tokens.tolist() if isinstance(tokens, Tensor) else tokens
                return compiled.run(sequences, known, tables, ahead, lent)
        if resident is not None and (logits := resident.run(sequences, tokens, tables, ahead)) is not None:
            return logits
        ids = tokens if isinstance(tokens, Tensor) else torch.tensor(tokens, device=model.device)
        hidden = model.embed(ids)
        inputs = model.inputs(ids, hidden)
        for layer in range(model.num_layers):
            ahead(layer + 1, hidden)
            hidden = model.step_layer(layer, hidden, tables, attend, mix, inputs.of(layer))
        return model.step_logits(hidden)
