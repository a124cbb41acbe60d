"""Which layers have a lean form, and which of them only one for compiled steps."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny_models import save_tiny_model
from torch import nn

from stratakv.runtime.model.lean_forms import lean_layer
from stratakv.runtime.model.model import Model


def test_a_layer_with_a_part_that_is_not_known_is_left_to_transformers(tiny_llama: Path) -> None:
    model = Model.load(tiny_llama, torch.device("cpu"), torch.float32)
    shape = (model.num_heads, model.num_kv_heads, model.head_dim)
    layer = model.inner.layers[0]
    assert lean_layer(layer, *shape, is_rotated=True) is not None
    layer.self_attn.gate_proj = nn.Linear(4, 4)
    assert lean_layer(layer, *shape, is_rotated=True) is None
    del layer.self_attn.gate_proj

    class Quantised(nn.Linear):
        """Whose weight means something else."""

    layer.mlp.up_proj = Quantised(4, 4)
    assert lean_layer(layer, *shape, is_rotated=True) is None


def test_recurrent_layers_and_gates_are_for_compiled_steps_alone(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path, "qwen3_5_text")
    model = Model.load(folder, torch.device("cpu"), torch.float32)
    assert model.can_compile
    assert model.halves == [None, None, None]
