"""Our decoder layers against transformers' own: equal to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from as_transformers import assert_equal
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, save_tiny_model


def randomised(folder: Path) -> Path:
    """Norms and biases as random as the rest: ones and zeros would hide which is used where."""
    path = folder / "model.safetensors"
    draw = torch.Generator().manual_seed(7)
    weights = load_file(path)
    for name, tensor in weights.items():
        if tensor.dim() == 1:
            weights[name] = tensor + 0.5 * torch.randn(tensor.shape, generator=draw)
    save_file(weights, path, {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_equals_transformers_to_the_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    assert_equal(randomised(save_tiny_model(tmp_path, family)), dtype)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "olmo2", "smollm3", "granite", "cohere2"])
def test_biases_are_where_the_family_has_them(family: str, tmp_path: Path) -> None:
    assert_equal(randomised(save_tiny_model(tmp_path, family, attention_bias=True, mlp_bias=True)))
