"""The rows that advance a recurrent layer's state do what its module does, however its rows and heads stand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from compiled_rows import nothing_yet, work
from torch import Tensor

from stratakv.kernels.compiled import record as r
from stratakv.runtime.layers.recurrent import RecurrentLayer
from stratakv.runtime.model.delta_net import DeltaNet
from stratakv.runtime.model.lean_layer import fused
from stratakv.runtime.model.lean_recurrent import LeanRecurrent
from stratakv.runtime.model.products import Product
from stratakv.runtime.model.short_conv import ShortConv
from stratakv.runtime.untrusted.families import FAMILIES

HIDDEN, BATCH, BEFORE = 24, 2, 5
DELTA = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 8, "linear_value_head_dim": 4,
    "linear_conv_kernel_dim": 4, "rms_norm_eps": 1e-6,
}  # fmt: skip
MIXERS: dict[str, Any] = {
    "delta": lambda: DeltaNet(config(**DELTA), 0, by_key_head=False),
    "delta, tiled": lambda: DeltaNet(config(**DELTA, linear_value_heads_are_tiled=True), 0, by_key_head=False),
    "delta by key head": lambda: DeltaNet(config(**DELTA), 0, by_key_head=True),
    "convolution": lambda: ShortConv(config(conv_bias=False, conv_L_cache=3), 0),
    "convolution, biases": lambda: ShortConv(config(conv_bias=True, conv_L_cache=3), 0),
}


def config(**settings: Any) -> Any:
    return SimpleNamespace(hidden_size=HIDDEN, **settings)


@pytest.mark.parametrize("name", MIXERS)
def test_a_token_is_mixed_as_by_the_module(name: str) -> None:
    torch.manual_seed(3)
    mixer = MIXERS[name]()
    for weight in mixer.parameters():
        weight.data = torch.randn(weight.shape) * (0.3 if weight.dim() > 1 else 1)
    layers = [RecurrentLayer(0, mixer.shapes, 16, torch.device("cpu")) for _ in range(BATCH)]
    twins = [RecurrentLayer(0, mixer.shapes, 16, torch.device("cpu")) for _ in range(BATCH)]
    lean = LeanRecurrent.__new__(LeanRecurrent)
    lean._take(SimpleNamespace(mixer=mixer), FAMILIES["lfm2"].form, fused(Product))
    kept: list[Tensor] = []

    def mix(some: list[RecurrentLayer]) -> Any:
        return lambda _, inputs, advance: torch.stack(
            [layer.mix(tuple(rows[b] for rows in inputs), advance) for b, layer in enumerate(some)]
        )

    def keep(numbers: Tensor) -> int:
        kept.append(numbers.detach().contiguous())
        return kept[-1].data_ptr()

    with torch.inference_mode():
        for some in (layers, twins):
            torch.manual_seed(4)
            mixer(torch.randn(BATCH, BEFORE, HIDDEN), mix(some))
        hidden = torch.randn(BATCH, HIDDEN)
        expected = mixer(hidden.unsqueeze(1), mix(twins))[:, 0]
        given, out = lean.qkv(hidden), nothing_yet(BATCH, lean.width)
        states, row = np.zeros((BATCH, 2 * len(mixer.shapes)), dtype=np.int64), np.zeros(r.WIDTH, dtype=np.int64)
        for b, layer in enumerate(layers):
            layer.begin_mix(states[b])
        lean.mix(row, BATCH, given, out, states, keep)
        work(row)
        torch.testing.assert_close(mixer.out_proj(out), expected, rtol=1e-4, atol=1e-5)
    for layer, twin in zip(layers, twins, strict=True):
        for part, tensor in twin.export().items():
            torch.testing.assert_close(layer.export()[part], tensor, rtol=1e-4, atol=1e-5)
        layer.undo_step(0, BEFORE)
        assert layer.snapshot()[0].end == BEFORE
