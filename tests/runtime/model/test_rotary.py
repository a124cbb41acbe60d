"""The tables of every kind are transformers', and those of a text follow from its reach alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from as_transformers import assert_equal
from tiny_models import save_tiny_model

from stratakv.runtime.model.rotary import Rotary
from stratakv.runtime.untrusted.family import EVERY_LAYER
from stratakv.runtime.untrusted.rope import Rope

ROPE: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}},
    "dynamic": {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
                "max_position_embeddings": 512},
    "yarn": {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0,
                                 "original_max_position_embeddings": 1024}},
    "llama3": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
                                   "high_freq_factor": 4.0, "original_max_position_embeddings": 256}},
}  # fmt: skip


@pytest.mark.parametrize("rope", ROPE)
def test_rotary_tables_of_every_kind(rope: str, tmp_path: Path) -> None:
    assert_equal(save_tiny_model(tmp_path, "llama", **ROPE[rope]))


def test_rotary_tables_of_a_long_phi3(tmp_path: Path) -> None:
    parameters = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0, 1.1], "long_factor": [2.0, 8.0],
        "partial_rotary_factor": 0.5, "original_max_position_embeddings": 1024,
    }  # fmt: skip
    changes = {"rope_parameters": parameters, "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.5}
    assert_equal(save_tiny_model(tmp_path, "phi3", **changes))


def test_rotary_tables_by_kind_of_layer(tmp_path: Path) -> None:
    parameters = {
        "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
    assert_equal(save_tiny_model(tmp_path, "gemma3_text", rope_parameters=parameters))


def rotary(dtype: torch.dtype | None = None, **table: Any) -> Rotary:
    """Of two kinds of layers that share a table, for heads of 8 numbers."""
    tables = {EVERY_LAYER: {"rope_type": "default", "rope_theta": 100.0, **table}}
    kinds = ["sliding_attention", "full_attention"]
    return Rotary(Rope(tables, dict.fromkeys(tables, 8), 512, 512), kinds, torch.device("cpu"), dtype)


def test_angles_are_positions_over_powers_of_the_base() -> None:
    found = rotary()(torch.tensor([[0, 7]]), torch.float64, [0])
    angles = 7 * 100.0 ** -(torch.arange(4, dtype=torch.float64) / 4)
    assert found.keys() == {"full_attention", "sliding_attention"}
    for cos, sin in found.values():
        assert cos.shape == sin.shape == (1, 2, 8)
        torch.testing.assert_close(cos[0], torch.stack([torch.ones(8).double(), angles.cos().repeat(2)]))
        torch.testing.assert_close(sin[0], torch.stack([torch.zeros(8).double(), angles.sin().repeat(2)]))


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_tables_are_in_the_dtype_of_the_family_or_the_asked_one(dtype: torch.dtype | None) -> None:
    cos, sin = rotary(dtype)(torch.tensor([[3]]), torch.bfloat16, [0])["full_attention"]
    assert cos.dtype is sin.dtype is (dtype or torch.bfloat16)


def test_each_row_has_the_tables_of_its_own_reach_whatever_was_asked_before() -> None:
    made = rotary(rope_type="dynamic", factor=4.0)
    positions, reaches = torch.tensor([[5, 40], [5, 40], [700, 701]]), [0, 600, 900]
    alone = [made(positions[b : b + 1], torch.float32, [reach])["full_attention"] for b, reach in enumerate(reaches)]
    assert not torch.equal(alone[0][0], alone[1][0])
    for other in range(1000, 1020):  # more than are kept
        made(positions[:1], torch.float32, [other])
    assert len(made._known) == 8
    together = made(positions, torch.float32, reaches)["full_attention"]
    for number, table in enumerate(together):
        assert torch.equal(table, torch.cat([row[number] for row in alone]))
