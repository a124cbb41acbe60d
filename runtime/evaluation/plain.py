"""The model with its KV in plain tensors: no pages, no tiers, no kernels of ours, no incremental index.

The exactness suite compares the engine with it. It shares the model adapter and nothing else; where
a step reads only some tokens it is told which, and reads them from its own tensors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..model.model import Model


class PlainModel:
    """One sequence in fp32 whose every step makes new tensors: slow and obvious."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.length = self.reach = 0
        self.keys: list[Tensor] = [torch.empty(0, dtype=torch.float32)] * model.num_layers
        """Rotated keys and values, each `[G, n, D]` per layer."""
        self.values: list[Tensor] = [torch.empty(0, dtype=torch.float32)] * model.num_layers
        self.states: list[dict[str, Tensor]] = [
            {
                name: torch.zeros(shape, dtype=torch.float32, device=model.device)
                for name, shape in (shapes or {}).items()
            }
            for shapes in model.states
        ]
        """Of recurrent layers."""

    def copy(self) -> PlainModel:
        """An independent sequence with the same past."""
        twin = PlainModel(self.model)
        twin.length, twin.keys, twin.values = self.length, list(self.keys), list(self.values)
        twin.reach, twin.states = self.reach, list(self.states)
        return twin

    @torch.inference_mode()
    def read(self, tokens: np.ndarray, chosen: dict[int, Tensor] | None = None) -> Tensor:
        """Append tokens. Returns logits after the last, fp32 `[vocabulary]`."""
        return self.model.logits(self._hidden(tokens, chosen)[-1:])[0]

    @torch.inference_mode()
    def read_all(self, tokens: np.ndarray, chosen: dict[int, Tensor] | None = None) -> Tensor:
        """Append tokens. Returns logits after each, fp32 `[len(tokens), vocabulary]`."""
        return self.model.logits(self._hidden(tokens, chosen))

    def _hidden(self, tokens: np.ndarray, chosen: dict[int, Tensor] | None) -> Tensor:
        """Hidden states after the last layer `[len(tokens), hidden]`.

        Args:
            chosen: layer -> positions `[G, n]` that the one new token may see, its own among them; a layer
                that is not named sees everything its kind allows.
        """
        model, start, count = self.model, self.length, len(tokens)
        positions = torch.arange(start, start + count, device=model.device).unsqueeze(0)
        reach = model.rope.reach_of_step(self.reach, start + count) if start else model.rope.reach(count)
        if start and reach != self.reach:
            raise ValueError(f"{start} tokens are turned as {self.reach}, {count} more need {reach}: read all at once")
        self.reach = reach
        table = model.rotary(positions, torch.float32, model.rope.reach_at(reach, start))

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
            q, k = model.rotate(layer, q, k, table)
            if model.sources[layer] != layer:
                self.keys[layer], self.values[layer] = (kept[model.sources[layer]] for kept in (self.keys, self.values))
                seen = self._seen(layer, start, count, (chosen or {}).get(layer))
                return self._attention(q[0], layer, seen, scale).unsqueeze(0)
            self.keys[layer] = torch.cat([self.keys[layer].to(k), k[0]], 1) if start else k[0].clone()
            self.values[layer] = torch.cat([self.values[layer].to(v), v[0]], 1) if start else v[0].clone()
            seen = self._seen(layer, start, count, (chosen or {}).get(layer))
            return self._attention(q[0], layer, seen, scale).unsqueeze(0)

        def mix(layer: int, inputs: tuple[Tensor, ...], advance: Callable[..., Any]) -> Tensor:
            out, self.states[layer] = advance(tuple(rows[0] for rows in inputs), self.states[layer])
            found: Tensor = out.unsqueeze(0)
            return found

        ids = torch.from_numpy(tokens.astype(np.int64)).to(model.device).unsqueeze(0)
        hidden = model.embed(ids)
        inputs = model.inputs(ids, hidden)
        for layer in range(model.num_layers):
            hidden = model.run_layer(model.layer(layer, prefill=True), hidden, attend, mix, inputs.of(layer))
        self.length += count
        return hidden[0]

    def _seen(self, layer: int, start: int, count: int, chosen: Tensor | None) -> Tensor:
        """True for the keys that each row sees, bool `[G, rows, keys]`."""
        key = torch.arange(start + count, device=self.model.device)
        query = key[start:].unsqueeze(1)
        seen = key <= query
        window = self.model.windows[layer]
        if window is not None:
            seen &= query - key < window
        seen = seen.expand(self.model.shapes[layer].kv_heads, -1, -1)
        if chosen is None:
            return seen
        assert count == 1
        some = torch.zeros(seen.shape[0], len(key), dtype=torch.bool, device=key.device).scatter_(1, chosen, True)
        return some.unsqueeze(1)

    def _attention(self, q: Tensor, layer: int, seen: Tensor, scale: float) -> Tensor:
        """Attend with q `[H, T, D]`. Returns `[H, T, D]`."""
        repeats = q.shape[0] // self.keys[layer].shape[0]
        keys, values, seen = (t.repeat_interleave(repeats, 0) for t in (self.keys[layer], self.values[layer], seen))
        scores = (q @ keys.transpose(1, 2) * scale).masked_fill(~seen, float("-inf"))
        if (sinks := self.model.sinks[layer]) is not None:  # one more score, of a value that is zero
            scores = torch.cat([scores, sinks.to(scores)[:, None, None].expand(-1, scores.shape[1], 1)], -1)
            values = torch.cat([values, torch.zeros_like(values[:, :1])], 1)
        return scores.softmax(-1) @ values
