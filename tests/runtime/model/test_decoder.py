"""Our decoder layers against transformers' own: equal to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from as_transformers import assert_equal
from tiny_models import FAMILIES, moved, save_tiny_model

from stratakv.runtime.untrusted.families import FAMILIES as SUPPORTED

ALIKE = [name for name in FAMILIES if not SUPPORTED[name.split("-")[0]].form.is_latent]
"""Latent attention is computed in another order than transformers' (docs/decisions/0046)."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", ALIKE)
def test_a_family_equals_transformers_to_the_bit(family: str, dtype: torch.dtype, tmp_path: Path) -> None:
    assert_equal(moved(save_tiny_model(tmp_path, family)), dtype)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3_text", "olmo2", "smollm3", "granite", "cohere2", "glm4"])
def test_biases_are_where_the_family_has_them(family: str, tmp_path: Path) -> None:
    assert_equal(moved(save_tiny_model(tmp_path, family, attention_bias=True, mlp_bias=True)))
