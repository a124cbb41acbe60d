"""The heads of each layer are those that the file says, in either spelling."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime.model.head_shapes import head_shapes
from stratakv.runtime.model.model_files import read_configuration

GEMMA4 = {
    "model_type": "gemma4_text", "num_hidden_layers": 3, "head_dim": 16, "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"], "hidden_size": 48,
    "num_attention_heads": 6, "num_key_value_heads": 2,
}  # fmt: skip
BY_LAYER = {"2": {"head_dim": 32, "num_key_value_heads": 3}}


@pytest.mark.parametrize(
    ("settings", "full"),
    [
        ({"global_head_dim": 32, "num_global_key_value_heads": 3, "attention_k_eq_v": True}, (6, 3, 32)),
        ({"global_head_dim": 32, "num_global_key_value_heads": 3}, (6, 2, 32)),
        ({"per_layer_config": None, "global_head_dim": 32}, (6, 2, 32)),
        ({"per_layer_config": BY_LAYER, "global_head_dim": 64, "num_global_key_value_heads": 1}, (6, 3, 32)),
        ({}, (6, 2, 512)),
    ],
    ids=str,
)
def test_sizes_of_a_layer_are_the_files(settings: dict[str, Any], full: tuple[int, ...], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(GEMMA4 | settings))
    config = read_configuration(tmp_path, "own", has_weights=False)
    assert head_shapes(config) == [(6, 2, 16), (6, 2, 16), full]
    assert config.rope.head_dims == {"full_attention": full[2], "sliding_attention": 16}
    assert config.rope.tables["full_attention"]["rope_type"] == "proportional"
