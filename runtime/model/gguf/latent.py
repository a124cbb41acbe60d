"""How keys become config.json in families with latent attention. Files state the heads of the latent form, one for
keys, as wide as a key that contains its value, and besides what a head's own key and value would be."""

from __future__ import annotations

from typing import Any

from .container import Contents
from .rope import unstretched_rope
from .said import Said
from .settings import check_scale, factor, no_window

_SOFTMAX, _SIGMOID = 1, 2
_SILENT = (47, 48), 154_880
"""Layers and tokens of GLM-4.7-Flash, whose files do not say that shares are sigmoids; 48 with the one that drafts."""


def glm4_moe_lite(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """GLM-4.7-Flash, and what has its shape: not DeepSeek's V2, nor files from before llama.cpp attended to latents."""
    layers, heads, context = (
        config[name] for name in ("num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    )
    no_window(said, context)
    if not said.has("attention.key_length_mla"):
        raise said.refuse("attention.key_length", config["head_dim"], "there is no attention.key_length_mla, so it "
                          "was written before llama.cpp attended to latents", "convert the model again")  # fmt: skip
    rank = said.whole("attention.kv_lora_rank", "kv_lora_rank")
    rotated = said.whole("rope.dimension_count", "qk_rope_head_dim")
    head, value = said.whole("attention.key_length_mla"), said.whole("attention.value_length_mla", "v_head_dim")
    widths = (
        ("attention.head_count_kv", config["num_key_value_heads"], 1),
        ("attention.key_length", config["head_dim"], rank + rotated),
        ("attention.value_length", said.whole("attention.value_length"), rank),
    )
    for name, found, expected in widths:
        if found != expected:
            names = f"{said.architecture}.attention.kv_lora_rank", f"{said.architecture}.rope.dimension_count"
            raise said.refuse(name, found, f"it is {expected} where {names[0]} is {rank} and {names[1]} {rotated}")
    if head <= rotated:
        raise said.fail("attention.key_length_mla", head, f"expected more than the {rotated} numbers that rotate")
    check_scale(said, head)
    if not said.has("attention.q_lora_rank"):
        raise said.refuse(
            "attention.kv_lora_rank", rank, "without attention.q_lora_rank it is a model of another shape"
        )
    _check_sigmoid(said, config["vocab_size"])
    dense = said.whole("leading_dense_block_count", default=0)
    if dense > layers:
        raise said.fail("leading_dense_block_count", dense, f"of {layers} layers")
    return {
        "rope_parameters": unstretched_rope(said, contents, rotated, context), "rope_interleave": True,
        "hidden_act": "silu", "attention_bias": False,
        "num_key_value_heads": heads, "head_dim": rotated, "kv_lora_rank": rank, "qk_rope_head_dim": rotated,
        "qk_nope_head_dim": head - rotated, "v_head_dim": value,
        "q_lora_rank": said.whole("attention.q_lora_rank", "q_lora_rank"),
        "mlp_layer_types": ["dense"] * dense + ["sparse"] * (layers - dense),
        **_choice(said, config["n_routed_experts"], config["num_experts_per_tok"]),
    }  # fmt: skip


def _choice(said: Said, experts: int, chosen: int) -> dict[str, Any]:
    """How a token's experts are chosen, and their shares multiplied."""
    groups, some = (
        said.whole("expert_group_count", "n_group", 1),
        said.whole("expert_group_used_count", "topk_group", 1),
    )
    each = experts // groups
    if experts % groups or some > groups or (groups > 1 and (each < 2 or chosen > some * each)):
        used = f"{said.architecture}.expert_group_used_count is {some}"
        raise said.fail("expert_group_count", groups, f"{used}: of these {experts} experts come {chosen} of a token's")
    is_norm = said.value("expert_weights_norm", False)
    if not isinstance(is_norm, bool):
        raise said.fail("expert_weights_norm", is_norm, "expected true or false")
    return {
        "n_group": groups, "topk_group": some, "norm_topk_prob": is_norm,
        "routed_scaling_factor": factor(said, "expert_weights_scale"),
    }  # fmt: skip


def _check_sigmoid(said: Said, vocabulary: int) -> None:
    """Raise ModelFileError if shares of experts are no sigmoids; where the file is silent, they are in models of known
    sizes alone."""
    layers, tokens = _SILENT
    is_known = said.whole("block_count") in layers and vocabulary == tokens
    found = said.whole("expert_gating_func", default=0) or (_SIGMOID if is_known else _SOFTMAX)
    if found != _SIGMOID:
        raise said.refuse("expert_gating_func", found, f"the family's is {_SIGMOID}, a sigmoid of each expert's score")
