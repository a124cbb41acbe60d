"""The lean decoder layer against transformers' own module, with norms and biases that are not what they begin as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import FAMILIES, save_tiny_model
from torch import Tensor

from stratakv.runtime.model.model import Model
from stratakv.runtime.untrusted.families import FAMILIES as SUPPORTED

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""As a share of the largest value: bf16 keeps 8 bits, and the two round at other places."""
BATCH = 3


def has_experts(family: str) -> bool:
    names = SUPPORTED[family.split("-")[0]].form.experts
    return names is not None and (names.switch is None or names.switch in FAMILIES[family][1])


def loaded(family: str, folder: Path, dtype: torch.dtype, **changes: Any) -> Model:
    """A tiny model whose vectors are random as well: a weight of one would hide which norm it belongs to."""
    saved = save_tiny_model(folder, family, **changes)
    shares = family == "gemma4_text-shared"
    modules = "own" if has_experts(family) or shares else "transformers"  # which has them in another form
    model = Model.load(saved, torch.device("cpu"), dtype, modules=modules)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.inner.layers.named_parameters():
            if parameter.dim() == 1:
                base = 0.0 if name.endswith("bias") or "gemma3" in family else 1.0
                parameter.copy_(base + 0.5 * torch.randn(parameter.shape, generator=draw))
    return Model(model.hf, model.tokenizer)  # what is fused and derived is made at construction


def outputs(model: Model, hidden: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """What every layer hands to attention and gives: by the lean form, and by transformers' module."""

    kept: dict[int, Tensor] = {}

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        found.extend([q, torch.tensor([scale]), *([k, v] if k.numel() else [])])
        v = kept.setdefault(model.sources[layer], v)
        return q[..., -v.shape[-1] :] * v.repeat_interleave(q.shape[1] // v.shape[1], 1)

    sides, inputs = [], model.inputs(torch.arange(3, 3 + BATCH), hidden)
    tables = model.step_tables([5, 900, 31])
    lean = model.halves
    with torch.inference_mode():
        for layers in (lean, [None] * model.num_layers):
            kept.clear()
            found: list[Tensor] = []
            model.halves = list(layers)
            for layer in range(model.num_layers):
                found.append(model.step_layer(layer, hidden, tables, attend, more=inputs.of(layer)))
            sides.append(found)
    model.halves = lean
    return sides[0], sides[1]


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        (family, dtype) for family in FAMILIES for dtype in TOLERANCE
        if not SUPPORTED[family.split("-")[0]].form.mixer  # whose layers are modules' in decode, too
        if dtype is torch.float32 or not has_experts(family)  # rounded otherwise, a token may get another expert
    ],
    ids=str,
)  # fmt: skip
def test_lean_equals_the_module(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = loaded(family, tmp_path, dtype)
    assert None not in model.lean
    hidden = torch.randn(BATCH, model.config.hidden_size, generator=torch.Generator().manual_seed(1)).to(dtype)
    for mine, theirs in zip(*outputs(model, hidden), strict=True):
        assert mine.shape == theirs.shape
        assert (mine - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max()


def test_biases_of_every_product_are_used(tmp_path: Path) -> None:
    model = loaded("llama", tmp_path, torch.float32, attention_bias=True, mlp_bias=True)
    assert None not in model.lean
    for mine, theirs in zip(*outputs(model, torch.randn(BATCH, model.config.hidden_size)), strict=True):
        assert (mine - theirs).abs().max() <= TOLERANCE[torch.float32] * theirs.abs().max()


def test_weights_are_held_once(tiny_llama: Path) -> None:
    model = Model.load(tiny_llama, torch.device("cpu"), torch.float32)
    for layer, lean in zip(model.inner.layers, model.lean, strict=True):
        assert lean is not None
        held = {part.untyped_storage().data_ptr() for part in layer.parameters()}
        assert {weight.untyped_storage().data_ptr() for weight in (lean.qkv.weight, lean.gate_up.weight)} <= held
