"""Files of families whose layers are of several kinds: sizes by kind, and what does not fit together is refused."""

from __future__ import annotations

from typing import Any

import pytest
from gguf_contents import changed, refusal

from stratakv.runtime.model.gguf.architectures import read_settings


def test_gemmas_kinds_have_heads_of_their_own() -> None:
    found = read_settings(changed("gemma4", {"final_logit_softcapping": 0.0}))[1]
    expected = {
        "head_dim": 32, "global_head_dim": 64, "num_key_value_heads": 2, "num_global_key_value_heads": 1,
        "attention_k_eq_v": True, "enable_moe_block": False, "final_logit_softcapping": None,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


@pytest.mark.parametrize(("widths", "is_wide"), [([96, 192], True), ([96, 96], False), (96, False)])
def test_gemmas_last_layers_may_share_and_be_wider(widths: object, is_wide: bool) -> None:
    keys = {
        "attention.shared_kv_layers": 1, "embedding_length_per_layer_input": 8, "feed_forward_length": widths,
    }  # fmt: skip
    found = read_settings(changed("gemma4", keys))[1]
    expected = {
        "num_kv_shared_layers": 1, "use_double_wide_mlp": is_wide, "intermediate_size": 96,
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": found["vocab_size"],
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


def test_layers_of_lfm2_without_heads_for_keys_are_convolutions() -> None:
    keys = {"attention.head_count_kv": [0, 2, 0], "block_count": 3, "shortconv.l_cache": 4}
    found = read_settings(changed("lfm2", keys))[1]
    expected = {
        "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 4, "num_key_value_heads": 2,
        "block_auto_adjust_ff_dim": False, "norm_eps": pytest.approx(1e-5),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no keys at all": ({"attention.shared_kv_layers": 2}, "attention.shared_kv_layers: 2, of 2 layers"),
    "a width of its own": (
        {"attention.shared_kv_layers": 1, "feed_forward_length": [96, 128]},
        "feed_forward_length: [96, 128] is not supported: layers are alike, and those without keys",
    ),
    "wider without sharing": (
        {"feed_forward_length": [96, 192]}, "feed_forward_length: [96, 192] is not supported: layers are alike"
    ),
    "counts of one kind": (
        {"attention.head_count_kv": [2, 1, 2], "block_count": 3,
                   "attention.sliding_window_pattern": [True, False, False]},
        "attention.head_count_kv: [2, 1, 2] is not supported: layers of one kind are alike",
    ),
    "no heads": ({"attention.head_count_kv": [2, 0]}, "attention.head_count_kv: [2, 0] is not supported"),
    "the last one slides": (
        {"attention.sliding_window_pattern": [False, True]}, "the family's last layer sees everything"
    ),
    "no pattern": (
        {"attention.sliding_window_pattern": None}, "attention.sliding_window_pattern: None, expected a whole"
    ),
    "stretched": (
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        "rope.scaling.factor: 4.0 is not supported: the family's positions are not stretched",
    ),
    "values of sliding layers": (
        {"attention.value_length_swa": 16}, "attention.value_length_swa: 16 is not supported: keys have 32"
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "problem"), [([0, 0], "0, expected a whole number"), ([2, 1], "[2, 1] is not supported: some layers")]
)
def test_what_lfm2_cannot_be_is_refused(counts: list[int], problem: str) -> None:
    said = refusal(read_settings, changed("lfm2", {"attention.head_count_kv": counts}))
    assert f"attention.head_count_kv: {problem}" in said


@pytest.mark.parametrize("case", REFUSED)
def test_what_gemma_cannot_be_is_refused(case: str) -> None:
    keys, problem = REFUSED[case]
    assert problem in refusal(read_settings, changed("gemma4", keys))


REFUSED_HYBRIDS: dict[str, tuple[dict[str, Any], str]] = {
    "value heads that no key head serves": (
        {"ssm.time_step_rank": 3}, "ssm.time_step_rank is 3, qwen35.ssm.group_count 2: each key head"
    ),
    "too few kinds": (
        {"attention.recurrent_layers": [True]}, "attention.recurrent_layers: [True], expected true or false for each"
    ),
    "no interval": (
        {"attention.recurrent_layers": None, "full_attention_interval": 0}, "full_attention_interval: 0, expected"
    ),
    "more than a head": ({"rope.dimension_count": 34}, "rope.dimension_count: 34, expected an even number"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED_HYBRIDS)
def test_what_a_hybrid_cannot_be_is_refused(case: str) -> None:
    keys, problem = REFUSED_HYBRIDS[case]
    assert problem in refusal(read_settings, changed("qwen35", keys))


def test_layers_of_a_hybrid_are_those_before_the_drafts() -> None:
    """The list counts blocks that only draft, as layers that attend."""
    keys = {"block_count": 3, "nextn_predict_layers": 1, "attention.recurrent_layers": [True, False, False]}
    _, config = read_settings(changed("qwen35", keys))
    assert config["layer_types"] == ["linear_attention", "full_attention"]
