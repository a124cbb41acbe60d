"""A layer for prefill has the numbers of its own, in another dtype; layers take turns in one layer's memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import save_tiny_model

from stratakv.runtime.model.model import Model
from stratakv.runtime.model.widened import Widened, multiplies_slowly

CPU = torch.device("cpu")


@torch.inference_mode()
def test_copies_take_turns_in_the_memory_of_one(tiny_llama: Path) -> None:
    model, widened = Model.load(tiny_llama, CPU, torch.bfloat16), Widened(torch.float32, CPU, None)
    first = widened(model.inner.layers[0])
    for mine, own in zip(first.parameters(), model.inner.layers[0].parameters(), strict=True):
        assert mine.dtype is torch.float32
        assert torch.equal(mine, own.float())
    held = widened.num_bytes
    assert held == sum(weight.nbytes for weight in first.parameters())
    second = widened(model.inner.layers[1])
    assert [a.data_ptr() for a in first.parameters()] == [b.data_ptr() for b in second.parameters()]
    assert all(
        torch.equal(a, b.float()) for a, b in zip(first.parameters(), model.inner.layers[1].parameters(), strict=True)
    )
    assert widened.num_bytes == held


@torch.inference_mode()
def test_a_layer_is_copied_once_and_its_numbers_each_time(tiny_llama: Path) -> None:
    model, widened = Model.load(tiny_llama, CPU, torch.bfloat16), Widened(torch.float32, CPU, None)
    layers = model.inner.layers
    first = widened(layers[0])
    assert widened(layers[1]) is not first
    assert widened(layers[0]) is first
    assert all(torch.equal(a, b.float()) for a, b in zip(first.parameters(), layers[0].parameters(), strict=True))


@torch.inference_mode()
def test_experts_are_not_copied(tmp_path: Path) -> None:
    model = Model.load(save_tiny_model(tmp_path, "qwen2_moe"), CPU, torch.bfloat16)
    own: Any = model.inner.layers[0]
    copied: Any = Widened(torch.float32, CPU, None)(own)
    assert copied.mlp.experts is own.mlp.experts
    assert copied.mlp.gate.weight.dtype is copied.mlp.shared_expert.up_proj.weight.dtype is torch.float32


@pytest.mark.parametrize("is_fast", [False, True])
def test_16_bit_matrices_are_slow_unless_the_processor_has_products_of_them(
    is_fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: is_fast)
    assert multiplies_slowly(CPU, torch.bfloat16) is not is_fast
    assert not multiplies_slowly(CPU, torch.float32)
    assert not multiplies_slowly(torch.device("cuda"), torch.bfloat16)
