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


def test_layers_of_lfm2_without_heads_for_keys_are_convolutions() -> None:
    keys = {"attention.head_count_kv": [0, 2, 0], "block_count": 3, "shortconv.l_cache": 4}
    found = read_settings(changed("lfm2", keys))[1]
    expected = {
        "layer_types": ["conv", "full_attention", "conv"], "conv_L_cache": 4, "num_key_value_heads": 2,
        "block_auto_adjust_ff_dim": False, "norm_eps": pytest.approx(1e-5),
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "shared keys": ({"attention.shared_kv_layers": 1}, "attention.shared_kv_layers: 1 is not supported"),
    "embeddings by layer": (
        {"embedding_length_per_layer_input": 8}, "embedding_length_per_layer_input: 8 is not supported"
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
