"""The lean decoder layer against transformers' own module, with norms and biases that are not what they begin as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, save_tiny_model
from torch import Tensor, nn

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.model.lean_layer import lean_layer
from stratakv.runtime.model.model import Model
from stratakv.runtime.model.products import Int8Product

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""As a share of the largest value: bf16 keeps 8 bits, and the two round at other places."""
BATCH = 3


def loaded(family: str, folder: Path, dtype: torch.dtype, **changes: Any) -> Model:
    """A tiny model whose vectors are random as well: a weight of one would hide which norm it belongs to."""
    saved = save_tiny_model(folder, family, **changes)
    model = Model.load(saved, torch.device("cpu"), dtype, modules="transformers")
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.inner.layers.named_parameters():
            if parameter.dim() == 1:
                base = 0.0 if name.endswith("bias") or "gemma" in family else 1.0
                parameter.copy_(base + 0.5 * torch.randn(parameter.shape, generator=draw))
    return Model(model.hf, model.tokenizer)  # what is fused and derived is made at construction


def outputs(model: Model, hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What every layer hands to attention and gives: by the lean form, and by transformers' module."""

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        found.extend([q, k, v, torch.tensor([scale])])
        return q * v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    sides = []
    tables = model.step_tables([5, 900, 31])
    lean = model._halves
    with torch.inference_mode():
        for layers in (lean, [None] * model.num_layers):
            found: list[Tensor] = []
            model._halves = list(layers)
            for layer in range(model.num_layers):
                found.append(model.step_layer(layer, hidden, tables, attend))
            sides.append(found)
    model._halves = lean
    return sides[0], sides[1]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_lean_equals_the_module(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = loaded(family, tmp_path, dtype)
    assert None not in model._lean
    hidden = torch.randn(BATCH, model.config.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    for mine, theirs in zip(*outputs(model, hidden), strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max()


def test_biases_of_every_product_are_used(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path, torch.float32, attention_bias=True, mlp_bias=True)
    assert None not in model._lean
    for mine, theirs in zip(*outputs(model, torch.randn(BATCH, model.config.hidden_size)), strict=True):
        assert (mine - theirs).abs().max() <= TOLERANCE[torch.float32] * theirs.abs().max()


def test_weights_are_held_once(tiny_llama: Path) -> None:
    model = Model.load(tiny_llama, torch.device("cpu"), torch.float32)
    for layer, lean in zip(model.inner.layers, model._lean, strict=True):
        assert lean is not None
        held = {part.untyped_storage().data_ptr() for part in layer.parameters()}
        assert {weight.untyped_storage().data_ptr() for weight in (lean.qkv.weight, lean.gate_up.weight)} <= held


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


WIDE = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}
"""Widths that 8-bit products take."""


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_int8_rounds_to_255_steps_of_a_scale_per_output(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(5)
    weight = torch.randn(192, 64, generator=draw).to(dtype)
    weight[3] = 0.0
    bias, x = torch.randn(192, generator=draw).to(dtype), torch.randn(BATCH, 64, generator=draw).to(dtype)
    product = Int8Product(weight, bias)
    steps = torch.round(weight.float() / product.scale.float().unsqueeze(1)).clamp(-127, 127)
    assert torch.equal(product.weight, steps.to(torch.int8))
    assert steps.abs().amax(1)[torch.arange(192) != 3].min() >= 126, "a scale that wastes steps"
    rounded = steps * product.scale.float().unsqueeze(1)
    assert (rounded - weight.float()).abs().max() <= 0.51 * weight.float().abs().max() / 126
    expected = x.float() @ rounded.T + bias.float()
    assert (product(x) - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_int8_decodes_near_the_own_weights_and_prefills_with_them(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", "llama", vocab_size=320, **WIDE)
    found = {}
    for weights in ("own", "int8"):
        kv = KVConfig(path=tmp_path / weights, index="dense")
        with Runtime.load(folder, dtype="float32", weights=weights, kv=kv) as runtime:
            sequence = runtime.engine.new_sequence()
            prefilled = runtime.engine.prefill(sequence, np.arange(3, 90, dtype=np.uint32)).logits
            assert prefilled is not None
            found[weights] = prefilled, runtime.engine.decode([sequence], [7])[0], sequence.salt
            assert runtime.stats()["weights"] == weights
    assert torch.equal(found["own"][0], found["int8"][0])
    own, rounded = found["own"][1], found["int8"][1]
    assert not torch.equal(own, rounded)
    assert (own - rounded).norm() <= 0.1 * own.norm()
    assert found["own"][2] != found["int8"][2], "pages of generated tokens must not be shared between the two"


def test_int8_of_widths_that_cannot_be_multiplied_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(ValueError, match=r"multiples of 64.*leave it out"):
        Runtime.load(tiny_llama, weights="int8")
    with pytest.raises(ValueError, match="own, int8 or file, not 'int4'"):
        Runtime.load(tiny_llama, weights="int4")
