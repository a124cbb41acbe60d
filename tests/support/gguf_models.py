"""Tiny valid GGUF files of every architecture, written from transformers models that are made on the spot.

    model = random_model("qwen3", num_hidden_layers=2)         transformers' own, fp32, no two layers alike
    write_gguf(path, model)                                    what llama.cpp's converter would write of it
    write_gguf(path, model, keys={...}, change=fused)          the same with other keys, with other tensors

`keys` are added or replace others, `None` leaves one out. `change(name, values)` gives (name, values) pairs in place of
one tensor, or (name, bytes, type). llama.cpp b11549 reads every file of `FAMILIES` that is written so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf_weights import HYBRIDS, ONE_MORE, rope_of, tensors_of

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|unused|>"]
Entry = tuple[str, np.ndarray] | tuple[str, np.ndarray, gguf.GGMLQuantizationType]
Change = Callable[[str, np.ndarray], Iterable[Entry]]

_COMMON: dict[str, Any] = {
    "vocab_size": len(SPECIAL) + 257, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 8192, "bos_token_id": 0,
    "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False, "attn_implementation": "sdpa",
}  # fmt: skip
_DELTA_NETS: dict[str, Any] = {
    "head_dim": 32, "num_hidden_layers": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
    "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4, "num_key_value_heads": 2,
}  # fmt: skip
_GATED_EXPERTS: dict[str, Any] = {
    "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 64,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
    "qwen2moe": (
        "Qwen2Moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "shared_expert_intermediate_size": 64},
    ),
    "qwen3moe": (
        "Qwen3Moe",
        {"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "norm_topk_prob": True},
    ),
    "gemma3": (
        "Gemma3",
        {"head_dim": 32, "num_hidden_layers": 6, "sliding_window": 100, "query_pre_attn_scalar": 32,
         "tie_word_embeddings": True},
    ),
    "phi3": ("Phi3", {"sliding_window": None}),
    "olmo2": ("Olmo2", {}),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 4, "no_rope_layer_interval": 4, "tie_word_embeddings": True}),
    "mistral3": (
        "Ministral3",
        {"head_dim": 16, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 2048,
            "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
    ),
    "granite": (
        "Granite",
        {"embedding_multiplier": 12.0, "logits_scaling": 8.0, "residual_multiplier": 0.7,
         "attention_multiplier": 0.4},
    ),
    "exaone4": ("Exaone4", {"sliding_window": None}),
    "glm4": ("Glm4", {"head_dim": 32}),
    "gemma4": (  # the 31B model; with experts the 26B
        "Gemma4",
        {"head_dim": 32, "global_head_dim": 64, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
         "num_hidden_layers": 4, "sliding_window": 100, "final_logit_softcapping": 30.0,
         "hidden_size_per_layer_input": 0, "tie_word_embeddings": True},
    ),
    "gpt-oss": (
        "GptOss",
        {"head_dim": 32, "num_local_experts": 6, "num_experts_per_tok": 2, "num_hidden_layers": 4,
         "sliding_window": 100, "attn_implementation": "eager", "rope_parameters": {
             "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0,
             "truncate": False, "original_max_position_embeddings": 256}},
    ),
    "lfm2": ("Lfm2", {"block_auto_adjust_ff_dim": False, "tie_word_embeddings": True}),
    "qwen35": ("Qwen3_5", _DELTA_NETS),
    "qwen35moe": ("Qwen3_5Moe", {**_DELTA_NETS, **_GATED_EXPERTS}),
    "qwen3next": ("Qwen3Next", {**_DELTA_NETS, **_GATED_EXPERTS}),
    "deepseek2": (  # GLM-4.7-Flash; llama.cpp gives the norms inside the epsilon of the others
        "Glm4MoeLite",
        {"num_key_value_heads": 4, "q_lora_rank": 48, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
         "qk_rope_head_dim": 16, "v_head_dim": 24, "n_routed_experts": 6, "n_shared_experts": 1,
         "num_experts_per_tok": 2, "moe_intermediate_size": 32, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-6},
    ),
    "cohere2": (
        "Cohere2",
        {"num_hidden_layers": 4, "sliding_window": 100, "logit_scale": 0.25, "tie_word_embeddings": True},
    ),
}  # fmt: skip
"""GGUF architecture -> (transformers' class prefix, what differs from the common shape)."""
_SLIDING = {"olmo2": "Olmo3"}
"""Architecture -> transformers' class prefix of models with a window."""


def random_model(family: str, seed: int = 0, **settings: Any) -> Any:
    """transformers' model of a GGUF architecture, the same weights every time."""
    import transformers

    prefix, differs = FAMILIES[family]
    if "num_local_experts" in settings:
        prefix = {"llama": "Mixtral"}[family]
    if "sliding_window" in settings:
        prefix = _SLIDING.get(family, prefix)
    if prefix == "Exaone4" and "layer_types" not in settings:  # its class makes none where no layer slides
        settings["layer_types"] = ["full_attention"] * {**_COMMON, **settings}["num_hidden_layers"]
    if prefix in ("Gemma4", "Lfm2") and "layer_types" not in settings:
        count = {**_COMMON, **differs, **settings}["num_hidden_layers"]
        kinds = ("conv" if prefix == "Lfm2" else "sliding_attention", "full_attention")
        settings["layer_types"] = [kinds[at % 2] for at in range(count)]
    if prefix.startswith("Qwen3") and family in HYBRIDS and "layer_types" not in settings:
        count = {**_COMMON, **differs, **settings}["num_hidden_layers"]
        settings["layer_types"] = ["full_attention" if at % 4 == 1 else "linear_attention" for at in range(count)]
    text = "Text" if prefix in ("Gemma3", "Gemma4", "Qwen3_5", "Qwen3_5Moe") else ""
    config = getattr(transformers, f"{prefix}{text}Config")(**{**_COMMON, **differs, **settings})
    model = getattr(transformers, f"{prefix}ForCausalLM")(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        moved = ("layer_scalar", "correction_bias")
        scalars = [(name, weight) for name, weight in model.named_buffers() if name.endswith(moved)]
        for name, weight in [*model.named_parameters(), *scalars]:
            drawn = torch.randn(weight.shape, generator=generator)
            if "norm" in name or name.endswith(("scale", "scalar")):
                drawn = 0.2 * drawn + (0.0 if family in ONE_MORE and "linear_attn" not in name else 1.0)
                drawn = 0.15 * drawn if family == "gemma4" and "q_norm" in name else drawn  # scores are as they are
            elif weight.dim() == 1:
                drawn = 0.3 * drawn
            elif "embed" not in name:
                drawn = 1.5 * drawn * weight.shape[-1] ** -0.5
            weight.copy_(drawn)
    model.tie_weights()
    return model


def tokenizer_keys() -> dict[str, Any]:
    """A byte-level vocabulary with one merge."""
    from tokenizers import pre_tokenizers

    tokens = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet()), "th"]
    return {
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "qwen2", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)),
        "tokenizer.ggml.merges": ["t h"], "tokenizer.ggml.bos_token_id": 0, "tokenizer.ggml.eos_token_id": 2,
    }  # fmt: skip


def keys_of(family: str, model: Any) -> dict[str, Any]:
    """What the converter writes of a model's configuration."""
    config = model.config
    heads = config.num_attention_heads
    each = [config.per_layer_config[at] for at in range(config.num_hidden_layers)] if family == "gemma4" else [config]
    width = getattr(each[-1], "head_dim", None) or config.hidden_size // heads
    rope = rope_of(config)
    found = {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": getattr(config, "intermediate_size", None),
        "attention.head_count": heads, "attention.head_count_kv": each[0].num_key_value_heads,
        "vocab_size": config.vocab_size,
        "rope.freq_base": float(rope["rope_theta"]),
        "rope.dimension_count": int(width * (1 if family == "gemma4" else rope.get("partial_rotary_factor", 1.0))),
    }  # fmt: skip
    if width * heads != config.hidden_size or family in ("qwen3", "qwen3moe", "gemma3", "gemma4"):
        found |= {"attention.key_length": width, "attention.value_length": width}
    if family == "gemma4":
        found |= {
            "attention.key_length_swa": each[0].head_dim, "attention.value_length_swa": each[0].head_dim,
            "rope.dimension_count_swa": each[0].head_dim, "attention.sliding_window": config.sliding_window,
            "attention.head_count_kv": [one.num_key_value_heads for one in each],
            "attention.sliding_window_pattern": [kind == "sliding_attention" for kind in config.layer_types],
            "attention.shared_kv_layers": config.num_kv_shared_layers,
            "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
            "final_logit_softcapping": config.final_logit_softcapping or 0.0,
            "rope.freq_base_swa": float(config.rope_parameters["sliding_attention"]["rope_theta"]),
        }  # fmt: skip
        if config.use_double_wide_mlp:
            found["feed_forward_length"] = [layer.mlp.gate_proj.out_features for layer in model.model.layers]
        if config.enable_moe_block:
            found |= {
                "expert_count": config.num_experts, "expert_used_count": config.top_k_experts,
                "expert_feed_forward_length": config.moe_intermediate_size,
            }  # fmt: skip
    if family == "gemma3":
        found["attention.sliding_window"] = config.sliding_window
    if family == "cohere2":
        found |= {"attention.layer_norm_epsilon": config.layer_norm_eps, "logit_scale": config.logit_scale}
    else:
        found["attention.layer_norm_rms_epsilon"] = config.norm_eps if family == "lfm2" else config.rms_norm_eps
    if family == "lfm2":
        found |= {
            "shortconv.l_cache": config.conv_L_cache,
            "attention.head_count_kv": [config.num_key_value_heads * (kind != "conv") for kind in config.layer_types],
        }  # fmt: skip
    if family in HYBRIDS:
        found |= {
            "ssm.conv_kernel": config.linear_conv_kernel_dim, "ssm.state_size": config.linear_key_head_dim,
            "ssm.group_count": config.linear_num_key_heads, "ssm.time_step_rank": config.linear_num_value_heads,
            "ssm.inner_size": config.linear_num_value_heads * config.linear_value_head_dim,
            "full_attention_interval": 4, "rope.dimension_sections": [3, 3, 2, 0],
            "attention.recurrent_layers": [kind == "linear_attention" for kind in config.layer_types],
        }  # fmt: skip
    if family in ("qwen2moe", "qwen35moe", "qwen3next"):
        found["expert_shared_feed_forward_length"] = config.shared_expert_intermediate_size
    if family in ("qwen2moe", "qwen3moe", "qwen35moe", "qwen3next"):
        found |= {"expert_count": config.num_experts, "expert_feed_forward_length": config.moe_intermediate_size}
    if hasattr(config, "num_local_experts") and family in ("llama", "gpt-oss"):
        found["expert_count"] = config.num_local_experts
    if family == "gpt-oss":
        found |= {
            "expert_feed_forward_length": config.intermediate_size, "attention.sliding_window": config.sliding_window,
        }  # fmt: skip
    if hasattr(config, "num_experts_per_tok"):
        found["expert_used_count"] = config.num_experts_per_tok
    if family == "mistral3":
        found["attention.temperature_scale"] = rope["llama_4_scaling_beta"]
        found["rope.scaling.yarn_log_multiplier"] = rope["mscale_all_dim"]
    if family == "granite":
        found |= {
            "embedding_scale": config.embedding_multiplier, "residual_scale": config.residual_multiplier,
            "attention.scale": config.attention_multiplier, "logit_scale": config.logits_scaling,
        }  # fmt: skip
    if family in ("cohere2", "exaone4", "olmo2") and getattr(config, "sliding_window", None):
        found["attention.sliding_window"] = config.sliding_window
    if family == "phi3":
        found["attention.sliding_window"] = config.sliding_window or 0
    if family == "deepseek2":
        found |= {
            "attention.head_count_kv": 1, "attention.key_length": config.kv_lora_rank + config.qk_rope_head_dim,
            "attention.value_length": config.kv_lora_rank, "attention.q_lora_rank": config.q_lora_rank,
            "attention.kv_lora_rank": config.kv_lora_rank, "rope.dimension_count": config.qk_rope_head_dim,
            "attention.key_length_mla": config.qk_nope_head_dim + config.qk_rope_head_dim,
            "attention.value_length_mla": config.v_head_dim, "expert_count": config.n_routed_experts,
            "expert_feed_forward_length": config.moe_intermediate_size, "expert_gating_func": 2,
            "expert_shared_count": config.n_shared_experts, "expert_weights_scale": config.routed_scaling_factor,
            "expert_weights_norm": config.norm_topk_prob, "expert_group_count": config.n_group,
            "expert_group_used_count": config.topk_group,
            "leading_dense_block_count": config.mlp_layer_types.count("dense"),
        }  # fmt: skip
    found |= _scaling(rope, model)
    return {f"{family}.{name}": value for name, value in found.items()}


def _scaling(rope: Mapping[str, Any], model: Any) -> dict[str, Any]:
    kind = rope["rope_type"]
    found: dict[str, Any] = {}
    if kind in ("linear", "yarn"):
        found = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind in ("yarn", "longrope"):
        found["rope.scaling.original_context_length"] = rope["original_max_position_embeddings"]
    if kind == "yarn":
        found |= {
            f"rope.scaling.yarn_{name}": float(rope[name]) for name in ("beta_fast", "beta_slow") if rope.get(name)
        }
    if kind == "longrope":
        found["rope.scaling.attn_factor"] = float(model.model.rotary_emb.attention_scaling)
    return found


def write_gguf(
    path: Path,
    model: Any,
    family: str,
    *,
    keys: Mapping[str, Any] | None = None,
    change: Change | None = None,
    tensors_per_part: int = 0,
) -> list[Path]:
    """The files that were written: `path`, or the parts of a split one beside it."""
    said = {**keys_of(family, model), **tokenizer_keys(), **(keys or {})}
    made: list[Entry] = []
    for name, values in tensors_of(family, model).items():
        made += [(name, values)] if change is None else change(name, values)
    return write_raw(path, family, said, made, tensors_per_part=tensors_per_part)


def write_raw(
    path: Path, architecture: str, keys: Mapping[str, Any], tensors: Iterable[Entry], *, tensors_per_part: int = 0
) -> list[Path]:
    """Any keys and tensors."""
    writer: Any = gguf.GGUFWriter(str(path), architecture, split_max_tensors=tensors_per_part)
    for name, value in keys.items():
        if value is not None:
            _add(writer, name, value)
    for name, values, *kind in tensors:
        writer.add_tensor(name, values, raw_dtype=kind[0] if kind else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return [path] if path.is_file() else sorted(path.parent.glob(f"{path.stem}-*-of-*.gguf"))


def _add(writer: Any, name: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(name, value)
    elif isinstance(value, int):
        writer.add_uint32(name, value)
    elif isinstance(value, float):
        writer.add_float32(name, value)
    elif isinstance(value, str):
        writer.add_string(name, value)
    else:
        writer.add_array(name, value)
