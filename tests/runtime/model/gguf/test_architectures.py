"""The settings of each architecture are those that its files state, in the words of its family's config.json."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gguf_contents import FAMILIES, changed
from gguf_weights import as_pairs

from stratakv.runtime.model.gguf.architectures import ARCHITECTURES, in_halves, read_settings


def test_the_table_has_the_architectures_that_are_tried() -> None:
    assert ARCHITECTURES.keys() == FAMILIES.keys()


SETTINGS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Phi-4": ("phi3", {"attention.sliding_window": 0}, {"sliding_window": None}),
    "Phi-3 mini": ("phi3", {"attention.sliding_window": 2047}, {"sliding_window": 2047}),
    "a window over all": ("phi3", {"attention.sliding_window": 8192}, {"sliding_window": None}),
    "over all, too": ("llama", {"attention.sliding_window": 8192}, {"num_hidden_layers": 1}),
    "no windows": ("gemma3", {"attention.sliding_window": 0}, {"layer_types": ["full_attention"] * 2}),
    "every second": (
        "gemma3", {"attention.sliding_window_pattern": 2}, {"layer_types": ["sliding_attention", "full_attention"]}
    ),
    "as listed": (
        "gemma3", {"attention.sliding_window_pattern": [False, True]},
        {"layer_types": ["full_attention", "sliding_attention"]},
    ),
    "as listed in numbers": (
        "gemma3", {"attention.sliding_window_pattern": [0, 1]}, {"layer_types": ["full_attention", "sliding_attention"]}
    ),
    "lists that are alike": (
        "gemma3", {"feed_forward_length": [96, 96], "attention.head_count": [4, 4]}, {"intermediate_size": 96}
    ),
    "scale as it is": ("llama", {"attention.scale": 0.25}, {"head_dim": 16}),
    "named": ("llama", {".general.name": "mistral"}, {"model_type": "llama"}),
    "no vocabulary size": ("llama", {"vocab_size": None}, {"vocab_size": 261}),
    "neutral": ("llama", {"expert_count": 0, "logit_scale": 1.0, "final_logit_softcapping": 0.0}, {"head_dim": 16}),
    "epsilon": ("qwen3", {"attention.layer_norm_rms_epsilon": 0.5}, {"rms_norm_eps": 0.5}),
    "ends": ("olmo2", {".tokenizer.ggml.bos_token_id": None}, {"bos_token_id": None, "eos_token_id": 2}),
    "no fourth layer": ("smollm3", {}, {"no_rope_layers": [1]}),
    "OLMo 3": (
        "olmo2", {"attention.sliding_window": 128, "block_count": 4},
        {"model_type": "olmo3", "sliding_window": 128, "layer_types": ["sliding_attention"] * 3 + ["full_attention"]},
    ),
    "EXAONE 4, 32B": (
        "exaone4", {"attention.sliding_window": 128, "block_count": 64},
        {"sliding_window": 128, "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 16},
    ),
    "EXAONE 4, 1.2B": ("exaone4", {}, {"sliding_window": None, "layer_types": ["full_attention"]}),
    "Granite's factors": (
        "granite", {"residual_scale": 0.5, "embedding_scale": 0.0, "attention.scale": None},
        {"residual_multiplier": 0.5, "embedding_multiplier": 1.0, "attention_multiplier": 0.25},
    ),
    "Command R7B": ("cohere2", {"logit_scale": 0.5}, {"logit_scale": 0.5, "layer_norm_eps": pytest.approx(1e-5)}),
    "Mixtral": (
        "llama", {"expert_count": 8, "expert_used_count": 2},
        {"model_type": "mixtral", "num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 96},
    ),
    "Qwen's mixtures": ("qwen2moe", {}, {"norm_topk_prob": False, "shared_expert_intermediate_size": 64}),
}  # fmt: skip


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_are_the_files(case: str) -> None:
    family, keys, expected = SETTINGS[case]
    found = read_settings(changed(family, keys))[1]
    assert {name: found[name] for name in expected} == expected


def test_gemma_27b_is_known_by_its_layers() -> None:
    found = [
        read_settings(changed("gemma3", {"block_count": layers}))[1]["query_pre_attn_scalar"] for layers in (61, 62)
    ]
    assert found == [32, 64 // 4]


def test_a_part_of_a_head_is_rotated_exactly() -> None:
    """88 numbers of a head of which 60 are rotated: 88 * (60 / 88) is less than 60."""
    keys = {
        "embedding_length": 352,
        "attention.key_length": 88,
        "attention.value_length": 88,
        "rope.dimension_count": 60,
    }
    share = read_settings(changed("phi3", keys))[1]["rope_parameters"]["partial_rotary_factor"]
    assert int(88 * share) == 60


@pytest.mark.parametrize("shape", [(12, 5), (12,)], ids=["weight", "bias"])
def test_rows_that_are_rotated_together_become_halves_of_their_head(shape: tuple[int, ...]) -> None:
    rows = torch.arange(12).view(12, *[1] * (len(shape) - 1)).expand(shape)
    found = in_halves(rows, heads=2)
    assert found.view(12, -1)[:, 0].tolist() == [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]
    assert torch.equal(in_halves(as_pairs(rows, 2), 2), rows)
