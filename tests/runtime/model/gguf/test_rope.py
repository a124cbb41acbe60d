"""What a GGUF file says of positions becomes the parameters that transformers computes the same angles from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_contents import changed
from gguf_models import keys_of, random_model, tokenizer_keys, write_raw
from gguf_weights import tensors_of

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf.architectures import read_settings
from stratakv.runtime.model.gguf.directory import read_model

LIST = [1.0 + number for number in range(8)]
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 512}
ROPE: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "nothing": ({}, {"rope_type": "default"}),
    "no base": ({"rope.freq_base": None}, {"rope_type": "default", "rope_theta": 1e4}),
    "base": ({"rope.freq_base": 5e5}, {"rope_type": "default", "rope_theta": 5e5}),
    "none": ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, {"rope_type": "default"}),
    "linear": ({"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "no type": ({"rope.scaling.factor": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "old name": ({"rope.scale_linear": 4.0}, {"rope_type": "linear", "factor": 4.0}),
    "factor 0": ({"rope.scaling.factor": 0.0}, {"rope_type": "default"}),
    "yarn": (YARN, {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}),
    "yarn without an original length": (
        YARN | {"rope.scaling.original_context_length": 0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8192},
    ),
    "yarn of its own": (
        YARN | {"rope.scaling.yarn_beta_fast": 16.0, "rope.scaling.attn_factor": 0.5,
                "rope.scaling.yarn_attn_factor": 9.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512, "beta_fast": 16.0,
         "attention_factor": 0.5 * (0.1 * math.log(4) + 1)},
    ),
    "attention only": (
        {"rope.scaling.attn_factor": 1.5, "rope.scaling.factor": 2.0},
        {"rope_type": "longrope", "factor": 1.0, "attention_factor": 1.5, "original_max_position_embeddings": 8192,
         "short_factor": [2.0] * 8, "long_factor": [2.0] * 8},
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("divisors", "share"),
    [
        ([1.0] * 8 + [1e30] * 24, 0.25),
        ([1.0] * 32, 1.0),
        ([1.0] * 31 + [2.0], None),
        ([1e30] * 32, None),
        ([1.0, 1e30] * 16, None),
        ([1.0] * 16, None),
    ],
    ids=str,
)
def test_a_part_of_a_wide_head_is_stopped(divisors: list[float], share: float | None, tmp_path: Path) -> None:
    model = random_model("gemma4", num_hidden_layers=2)
    held = tensors_of("gemma4", model) | {"rope_freqs.weight": np.float32(divisors)}
    paths = write_raw(tmp_path / "m.gguf", "gemma4", keys_of("gemma4", model) | tokenizer_keys(), held.items())
    if share is None:
        with pytest.raises(ModelFileError, match=r"rope_freqs\.weight: "):
            read_model(paths)
        return
    expected = {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": share}
    assert read_model(paths).config["rope_parameters"]["full_attention"] == expected


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "gemma3", "olmo2", "smollm3"])
@pytest.mark.parametrize("case", ROPE)
def test_positions_are_scaled_as_the_file_says(case: str, family: str) -> None:
    keys, expected = ROPE[case]
    found = read_settings(changed(family, keys))[1]["rope_parameters"]
    theta = changed(family, keys).keys.get(f"{family}.rope.freq_base", 1e4)
    count = 16 if family in ("qwen3", "gemma3") else 8
    lists = {name: value[:1] * count for name, value in expected.items() if isinstance(value, list)}
    if family == "gemma3":
        sliding, found = found["sliding_attention"], found["full_attention"]
        assert sliding["rope_theta"] == 1e4
        assert sliding.get("attention_factor", 1.0) == keys.get("rope.scaling.attn_factor", 1.0)
        assert set(sliding.get("long_factor", [1.0])) == {1.0}
    assert found == {"rope_theta": theta} | expected | lists


def with_lists(folder: Path, family: str, lists: dict[str, list[float]], keys: dict[str, Any]) -> dict[str, Any]:
    model = random_model(family, num_hidden_layers=1)
    held = tensors_of(family, model) | {f"rope_{name}.weight": np.float32(one) for name, one in lists.items()}
    said = keys_of(family, model) | tokenizer_keys() | {f"{family}.rope.{name}": one for name, one in keys.items()}
    config = read_model(write_raw(folder / "m.gguf", family, said, held.items())).config
    return dict(config["rope_parameters"])


def test_divisors_of_frequencies_are_stated_as_they_are(tmp_path: Path) -> None:
    plain = {"rope_theta": 1e4, "attention_factor": 1.0}
    found = with_lists(tmp_path, "llama", {"freqs": LIST}, {"scaling.factor": 2.0})
    expected = {"rope_type": "longrope", "factor": 1.0, "original_max_position_embeddings": 8192}
    twice = [2 * one for one in LIST]
    assert found == plain | expected | {"short_factor": twice, "long_factor": twice}
    assert with_lists(tmp_path, "llama", {"freqs": [1.0] * 8}, {}) == {"rope_type": "default", "rope_theta": 1e4}
    lists = {"factors_short": LIST, "factors_long": LIST[::-1]}
    keys = {"scaling.original_context_length": 1024, "scaling.attn_factor": 1.25}
    found = with_lists(tmp_path, "phi3", lists, keys)
    expected |= {"factor": 8.0, "original_max_position_embeddings": 1024, "attention_factor": 1.25}
    expected |= {"short_factor": LIST, "long_factor": LIST[::-1], "partial_rotary_factor": 1.0}
    assert found == plain | expected
    for wrong in ({"factors_short": LIST}, {"freqs": LIST, **lists}, {"freqs": LIST[:7]}, {"freqs": [0.0] * 8}):
        with pytest.raises(ModelFileError, match=r"m\.gguf: rope_f.*; take another file"):
            with_lists(tmp_path, "llama", wrong, {})
    for original in (0, 1):
        with pytest.raises(
            ModelFileError, match=rf"original_context_length: {original}, expected a whole number from 2"
        ):
            with_lists(tmp_path, "phi3", lists, keys | {"scaling.original_context_length": original})
    with pytest.raises(ModelFileError, match=r"rope\.scaling\.type: 'yarn' is not supported: the file has divisors"):
        with_lists(tmp_path, "llama", {"freqs": LIST}, {"scaling.type": "yarn", "scaling.factor": 2.0})
    with pytest.raises(ModelFileError, match=r"tensor 'rope_freqs\.weight': it is not supported"):
        with_lists(tmp_path, "qwen3", {"freqs": LIST * 2}, {})
