"""What a sparse step lost, measured against reading everything with the same query and the same cache."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels.decode_attention import decode_attention
from ...kernels.merge_states import merge_states
from ...kernels.topk_pages import group_scores
from ..layer_cache import Step, TieredLayer
from ..sequence import Sequence
from ..workspace import KEY_BLOCK


class Probe:
    """Watches the tiered layers of one sequence; means over layers, heads and the steps looked at.

    Every step counts for `tokens_read`; the rest costs a dense attention, so it is taken at every
    `every`-th position only, or at none.
    """

    def __init__(self, every: int | None) -> None:
        self.every = every
        self._read, self._steps = 0, 0
        self._mass: list[float] = []
        self._error: list[float] = []
        self._recall: list[float] = []

    def attach(self, sequence: Sequence) -> None:
        for layer in sequence.layers:
            if isinstance(layer, TieredLayer):
                layer.watch = self._see

    def result(self) -> dict[str, float]:
        """`tokens_read` per KV head and step; `mass`: share of the attention weight on what was read;
        `output_error`: relative L2 error of the attention output; `recall`: share of the tokens that
        exact top-k would add to sinks and window, at the same count, which were read."""
        means = {"mass": self._mass, "output_error": self._error, "recall": self._recall}
        read = {"tokens_read": self._read / self._steps} if self._steps else {}
        return read | {name: sum(values) / len(values) for name, values in means.items() if values}

    def _see(self, layer: TieredLayer, step: Step) -> None:
        self._read += layer.tokens_read
        self._steps += 1
        if step.ids is None or self.every is None or (layer.sealed + layer.tail_len) % self.every:
            return
        outs, lses = [], []
        parts: list[Tensor] = []
        for begin in range(0, layer.sealed, KEY_BLOCK):
            keys, values = layer.block(begin, min(begin + KEY_BLOCK, layer.sealed))
            parts.append((step.query.float() * step.scale) @ keys.float().transpose(1, 2))
            out, lse = decode_attention(step.query, [(keys, values)], scale=step.scale)
            outs.append(out)
            lses.append(lse)
        out, tail_lse = decode_attention(step.query, [layer.tail], scale=step.scale)
        full, lse = merge_states([*outs, out], [*lses, tail_lse])
        read, scores = _read(layer, step), torch.cat(parts, -1)
        seen = torch.exp(scores - lse.unsqueeze(-1)).masked_fill(~read.unsqueeze(1), 0).sum(-1)
        self._mass.append((seen + torch.exp(tail_lse - lse)).mean().item())
        lost = (step.out.float() - full.float()).norm(dim=-1) / full.float().norm(dim=-1).clamp_min(1e-12)
        self._error.append(lost.mean().item())
        self._recall.append(self._share_found(layer, step, group_scores(scores), read))

    def _share_found(self, layer: TieredLayer, step: Step, scores: Tensor, read: Tensor) -> float:
        assert step.ids is not None
        params = layer.index.params
        chosen = step.ids.shape[1] * step.unit - params.sink - params.local
        middle = scores[:, params.sink : scores.shape[1] - params.local]
        best = middle.topk(min(chosen, middle.shape[1]), -1).indices + params.sink
        return read.gather(1, best).float().mean().item()


def _read(layer: TieredLayer, step: Step) -> Tensor:
    """Which sealed tokens were read, bool `[G, sealed]`."""
    assert step.ids is not None
    units = torch.from_numpy(step.ids.copy()).to(step.query.device)
    tokens = (units.unsqueeze(-1) * step.unit + torch.arange(step.unit, device=units.device)).flatten(1)
    return torch.zeros(len(units), layer.sealed, dtype=torch.bool, device=units.device).scatter_(1, tokens, True)
