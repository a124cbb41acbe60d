"""The loss of a sparse step, measured against reading everything with the same query and the same cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ...kernels.topk_pages import group_scores
from ..engine.sequence import Sequence
from ..layers.paged import PagedLayer, paged_layers
from ..layers.step import Step
from ..layers.workspace import KEY_BLOCK


class Probe:
    """Watches the tiered layers of one sequence; means over layers, heads and the steps looked at.

    Every step counts for `tokens_read`; the rest costs a dense attention, so it is taken at every
    `every`-th position only, or at none. The steps that one layer takes in a row (all of them, in
    `Engine.decode_known`) are looked at together: the layer's keys and values are then read once.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self._read, self._steps = 0, 0
        self._layer: PagedLayer | None = None
        self._waiting: list[tuple[int, int, Step]] = []
        """Numbers of sealed tokens and of all tokens at waiting steps of `_layer`, and what each step did."""
        self._mass: list[float] = []
        self._error: list[float] = []
        self._recall: list[float] = []

    def attach(self, sequence: Sequence) -> None:
        for layer in paged_layers(sequence.layers):
            layer.watch = self._see

    def result(self) -> dict[str, float]:
        """`tokens_read` per KV head and step; `mass`: share of the attention weight on what was read;
        `output_error`: relative L2 error of the attention output; `recall`: share of the tokens that
        exact top-k would add to sinks and window, at the same count, which were read.

        Call it before the sequence is closed: it may still have to look at the last layer."""
        self._look()
        means = {"mass": self._mass, "output_error": self._error, "recall": self._recall}
        read = {"tokens_read": self._read / self._steps} if self._steps else {}
        return read | {name: sum(values) / len(values) for name, values in means.items() if values}

    def _see(self, layer: PagedLayer, step: Step) -> None:
        self._read += layer.tokens_read
        self._steps += 1
        length = layer.sealed + layer.tail_len
        if step.ids is None or self.every is None or length % self.every:
            return
        if layer is not self._layer:
            self._look()
        self._layer = layer
        self._waiting.append((layer.sealed, length, step))

    def _look(self) -> None:
        """Look at the waiting steps. The tokens they could read are still there: sequences grow, and pages keep their
        bytes."""
        layer, waiting = self._layer, self._waiting
        self._layer, self._waiting = None, []
        if layer is None:
            return
        queries = torch.cat([step.query.float() * step.scale for _, _, step in waiting], 1)
        scores = torch.cat([queries @ keys.float().transpose(1, 2) for keys, _ in _blocks(layer)], -1)
        lengths = torch.tensor([length for _, length, _ in waiting], device=scores.device)
        ahead = torch.arange(scores.shape[-1], device=scores.device) >= lengths.unsqueeze(1)
        heads = waiting[0][2].query.shape[1]
        scores.masked_fill_(ahead.repeat_interleave(heads, 0), float("-inf"))
        weights, full, begin = scores.softmax(-1), torch.zeros_like(queries), 0
        for _, values in _blocks(layer):
            full += weights[:, :, begin : begin + values.shape[1]] @ values.float()
            begin += values.shape[1]
        for place, (sealed, _, step) in enumerate(waiting):
            rows = slice(place * heads, (place + 1) * heads)
            read = _read(step, sealed)
            unread = weights[:, rows, :sealed].masked_fill(read.unsqueeze(1), 0).sum(-1)
            self._mass.append(1 - unread.mean().item())
            lost = (step.out.float() - full[:, rows]).norm(dim=-1) / full[:, rows].norm(dim=-1).clamp_min(1e-12)
            self._error.append(lost.mean().item())
            self._recall += _share_found(layer, step, group_scores(scores[:, rows, :sealed]), read)


def _blocks(layer: PagedLayer) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield keys and values `[G, n, D]` of all tokens, in order; each is good until the next."""
    for begin in range(0, layer.sealed, KEY_BLOCK):
        yield layer.reader.block(begin, min(begin + KEY_BLOCK, layer.sealed))
    if layer.tail_len:
        yield layer.tail


def _read(step: Step, sealed: int) -> Tensor:
    """True for the sealed tokens that were read, bool `[G, sealed]`."""
    assert step.ids is not None
    units = torch.from_numpy(step.ids.copy()).to(step.query.device)
    tokens = (units.unsqueeze(-1) * step.unit + torch.arange(step.unit, device=units.device)).flatten(1)
    tokens = tokens.where(tokens >= 0, sealed)  # a head that keeps fewer than others is padded by -1
    read = torch.zeros(len(units), sealed + 1, dtype=torch.bool, device=units.device).scatter_(1, tokens, True)
    return read[:, :sealed]


def _share_found(layer: PagedLayer, step: Step, scores: Tensor, read: Tensor) -> list[float]:
    """The share of the oracle's choice that was read; `scores` `[G, sealed]` are the oracle's. Empty if nothing but
    sinks and window was read."""
    assert step.ids is not None
    params = layer.index.params
    chosen = step.ids.shape[1] * step.unit - params.sink - params.local
    middle = scores[:, params.sink : scores.shape[1] - params.local]
    best = middle.topk(min(chosen, middle.shape[1]), -1).indices + params.sink
    return [read.gather(1, best).float().mean().item()] if best.numel() else []
