"""What GGUF files of our architectures can say: a tiny file for each, and the model that it was written from."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from gguf_models import Change, Entry, random_model, write_gguf


@dataclass(frozen=True, slots=True)
class Case:
    """A file, by what tells it from the plain one of its family."""

    family: str
    settings: dict[str, Any] = field(default_factory=dict)
    """Of transformers' configuration: what the file states, and what its logits must follow."""
    keys: dict[str, Any] = field(default_factory=dict)
    """Beside those that follow from the settings."""
    change: str = ""
    """Name of a function in `CHANGES`."""
    unlike_llama_cpp: str = ""
    """Why llama.cpp computes something else, where it does (docs/MODELS.md)."""
    short: bool = False
    """Whether the text stays within the original window."""

    def model(self) -> Any:
        """transformers' model that the file is written from."""
        return random_model(self.family, **self.settings)

    def write(self, path: Path, model: Any, **how: Any) -> list[Path]:
        change = CHANGES[self.change]() if self.change else None
        return write_gguf(path, model, self.family, keys=self.keys, change=change, **how)


def rope(kind: str, theta: float = 10_000.0, **more: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": theta, **more}}


LINEAR = rope("linear", factor=4.0)


def llama3(original: int) -> dict[str, Any]:
    """As Llama 3.1 to 3.3, which had read `original` tokens before they were stretched."""
    factors = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return rope("llama3", 5e5, original_max_position_embeddings=original, **factors)


def yarn(original: int, **more: float) -> dict[str, Any]:
    scaled = rope("yarn", 1e6, factor=4.0, original_max_position_embeddings=original, **more)
    return {**scaled, "max_position_embeddings": 4 * original}


def longrope(original: int, half: int = 8) -> dict[str, Any]:
    """Two tables of `half` factors."""
    tables = {"short_factor": np.linspace(1, 2, half).tolist(), "long_factor": np.linspace(1, 40, half).tolist()}
    scaled = rope("longrope", factor=32.0, original_max_position_embeddings=original, **tables)
    return {**scaled, "max_position_embeddings": 32 * original}


def phi3_longrope(original: int, half: int = 8, rotated: float = 1.0) -> dict[str, Any]:
    """The class has a length of its own beside that of the tables."""
    found = longrope(original, half)
    found["rope_parameters"] |= {"partial_rotary_factor": rotated}
    return {**found, "original_max_position_embeddings": original}


def ministral3(original: int) -> dict[str, Any]:
    """Queries grow from the original length on, cos and sin are not multiplied."""
    return yarn(original, mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.1)


def olmo3(original: int) -> dict[str, Any]:
    """Layers that slide are not stretched."""
    kinds = {"full_attention": yarn(original)["rope_parameters"], "sliding_attention": rope("default", 1e6)}
    kinds["sliding_attention"] = kinds["sliding_attention"]["rope_parameters"]
    return {
        "num_hidden_layers": 4, "sliding_window": 100, "rope_parameters": kinds,
        "max_position_embeddings": 4 * original,
    }  # fmt: skip


def gemma3_rope(local: float = 10_000.0, **full: Any) -> dict[str, Any]:
    of_full = {"rope_type": "default", "rope_theta": 1e6, **full}
    return {
        "rope_parameters": {
            "full_attention": of_full,
            "sliding_attention": {"rope_type": "default", "rope_theta": local},
        }
    }


def gemma4_rope(local: float) -> dict[str, Any]:
    """The wide heads turned by a half."""
    of_full = {"rope_type": "proportional", "rope_theta": 1e5, "partial_rotary_factor": 0.5}
    return {
        "rope_parameters": {
            "full_attention": of_full, "sliding_attention": {"rope_type": "default", "rope_theta": local}
        }
    }  # fmt: skip


GEMMA4_E2B = {
    "num_hidden_layers": 6, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "attention_k_eq_v": False,
    "num_key_value_heads": 1, "num_global_key_value_heads": None, "hidden_size_per_layer_input": 32,
    "vocab_size_per_layer_input": 261,
}  # fmt: skip
GEMMA4_EXPERTS = {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 32}


def _gemma3_attention(factor: float, original: int) -> dict[str, Any]:
    """cos and sin of all layers multiplied, of those that see everything by what YaRN puts there as well."""
    ones = {"short_factor": [1.0] * 16, "long_factor": [1.0] * 16, "original_max_position_embeddings": 8192}
    full = {"factor": 4.0, "attention_factor": factor * (1 + 0.1 * math.log(4))}
    found = gemma3_rope(rope_type="yarn", original_max_position_embeddings=original, **full)
    found["rope_parameters"]["sliding_attention"] |= {"rope_type": "longrope", "attention_factor": factor, **ones}
    return found


def _gemma3_layers(every: int, count: int) -> list[str]:
    return ["sliding_attention" if (number + 1) % every else "full_attention" for number in range(count)]


def _fused() -> Change:
    """q, k and v one under the other in one tensor, and their biases."""
    parts: dict[str, list[np.ndarray]] = {}

    def change(name: str, values: np.ndarray) -> Iterable[Entry]:
        where, _, kind = name.rpartition(".")
        block, _, part = where.rpartition(".")
        if part not in ("attn_q", "attn_k", "attn_v"):
            return [(name, values)]
        met = parts.setdefault(f"{block}.attn_qkv.{kind}", [])
        met.append(values)
        return [(f"{block}.attn_qkv.{kind}", np.concatenate(met))] if len(met) == 3 else []

    return change


def _experts_fused() -> Change:
    """Gate and up of all experts in one tensor, gate first."""
    gates: dict[str, np.ndarray] = {}

    def change(name: str, values: np.ndarray) -> Iterable[Entry]:
        if "ffn_gate_exps" in name:
            gates[name.replace("gate", "gate_up")] = values
            return []
        if "ffn_up_exps" in name:
            fused = name.replace("up", "gate_up")
            return [(fused, np.concatenate([gates[fused], values], 1))]
        return [(name, values)]

    return change


def _scaled(names: tuple[str, ...]) -> Change:
    """Factors beside the weights, as NVFP4 files have them."""

    def change(name: str, values: np.ndarray) -> Iterable[Entry]:
        if values.ndim == 2 and any(f".{part}." in name for part in names):
            return [(name, values / 4), (name.replace(".weight", ".scale"), np.array([4], np.float32))]
        return [(name, values)]

    return change


ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")
FEED_FORWARD = ("ffn_gate", "ffn_up", "ffn_down")
CHANGES: dict[str, Any] = {
    "fused": _fused,
    "experts fused": _experts_fused,
    "scaled": lambda: _scaled(ATTENTION + FEED_FORWARD),
    "scaled attention": lambda: _scaled(ATTENTION),
}


def cases(original: int) -> dict[str, Case]:
    """By what the file says beside the plain one of its family. llama.cpp b11549 has the same logits, where nothing is
    said about `unlike_llama_cpp`.

    Args:
        original: tokens of the window before it was stretched.
    """
    return {
        "llama": Case("llama"),
        "llama, Llama 3.1's frequencies": Case("llama", llama3(original)),
        "llama, linear": Case("llama", LINEAR),
        "llama, linear by its older name": Case(
            "llama", LINEAR,
            {"llama.rope.scaling.type": None, "llama.rope.scaling.factor": None, "llama.rope.scale_linear": 4.0},
        ),
        "llama, factor without a type": Case("llama", LINEAR, {"llama.rope.scaling.type": None}),
        "llama, factor of type none": Case(
            "llama", keys={"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}
        ),
        "llama, no base said": Case("llama", keys={"llama.rope.freq_base": None}),
        "llama, yarn": Case("llama", yarn(original)),
        "llama, yarn with betas": Case(
            "llama", yarn(original, beta_fast=16.0, beta_slow=2.0), unlike_llama_cpp="it takes betas for 32 and 1"
        ),
        "llama, yarn with a factor on attention": Case(
            "llama",
            yarn(original, attention_factor=0.5 * (1 + 0.1 * math.log(4))),
            {"llama.rope.scaling.attn_factor": 0.5},
        ),
        "llama, longrope": Case("llama", longrope(original), {"llama.rope.scaling.type": "longrope"}),
        "llama, biases": Case("llama", {"attention_bias": True, "mlp_bias": True}),
        "llama, tied": Case("llama", {"tie_word_embeddings": True}),
        "llama, wide heads": Case("llama", {"head_dim": 32}),
        "llama, other base": Case("llama", rope("default", 5e5)),
        "llama, other epsilon": Case("llama", {"rms_norm_eps": 1e-2}),
        "llama, fused": Case("llama", change="fused"),
        "llama, scaled": Case("llama", change="scaled"),
        "llama, counts by layer": Case(
            "llama",
            keys={
                "llama.attention.head_count": [4] * 3, "llama.attention.head_count_kv": [2] * 3,
                "llama.feed_forward_length": [96] * 3,
            },
        ),
        "llama, called mistral": Case("llama", keys={"general.name": "mistral"}),
        "llama, Mixtral": Case("llama", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen2": Case("qwen2"),
        "qwen2, tied": Case("qwen2", {"tie_word_embeddings": True}),
        "qwen2, yarn": Case("qwen2", yarn(original)),
        "qwen2, linear": Case("qwen2", LINEAR),
        "qwen2, fused": Case("qwen2", change="fused"),
        "qwen2, scaled": Case("qwen2", change="scaled attention"),
        "qwen3": Case("qwen3"),
        "qwen3, tied": Case("qwen3", {"tie_word_embeddings": True}),
        "qwen3, yarn": Case("qwen3", yarn(original)),
        "qwen3, fused": Case("qwen3", change="fused"),
        "qwen3, scaled": Case("qwen3", change="scaled"),
        "qwen2moe": Case("qwen2moe"),
        "qwen2moe, without biases": Case("qwen2moe", {"qkv_bias": False}),
        "qwen3moe": Case("qwen3moe"),
        "qwen3moe, yarn": Case("qwen3moe", yarn(original)),
        "qwen3moe, one expert": Case("qwen3moe", {"num_experts_per_tok": 1}),
        "qwen3moe, fused": Case("qwen3moe", change="fused"),
        "gemma3": Case("gemma3"),
        "gemma3, linear": Case("gemma3", gemma3_rope(rope_type="linear", factor=8.0)),
        "gemma3, every third is full": Case(
            "gemma3", {"layer_types": _gemma3_layers(3, 6)}, {"gemma3.attention.sliding_window_pattern": 3}
        ),
        "gemma3, kinds by layer": Case(
            "gemma3",
            {"layer_types": _gemma3_layers(2, 6)},
            {"gemma3.attention.sliding_window_pattern": [True, False] * 3},
        ),
        "gemma3, base of sliding layers": Case(
            "gemma3", gemma3_rope(50_000.0), {"gemma3.rope.freq_base_swa": 50_000.0}
        ),
        "gemma3, yarn with a factor on attention": Case(
            "gemma3", _gemma3_attention(1.5, original), {"gemma3.rope.scaling.attn_factor": 1.5}
        ),
        "gemma3, window over everything": Case("gemma3", {"sliding_window": 8192}),
        "gemma3, no window": Case(
            "gemma3", {"layer_types": ["full_attention"] * 6}, {"gemma3.attention.sliding_window": 0}
        ),
        "gemma3, 62 layers": Case("gemma3", {"num_hidden_layers": 62, "query_pre_attn_scalar": 16}),
        "gemma3, own head": Case("gemma3", {"tie_word_embeddings": False}),
        "gemma3, fused": Case("gemma3", change="fused"),
        "gemma3, scaled": Case("gemma3", change="scaled attention"),
        "phi3": Case("phi3"),
        "phi3, no window said": Case("phi3", keys={"phi3.attention.sliding_window": None}),
        "phi3, window": Case("phi3", {"sliding_window": 100}, unlike_llama_cpp="it leaves Phi-3's window out"),
        "phi3, longrope": Case("phi3", phi3_longrope(original)),
        "phi3, longrope, short text": Case("phi3", phi3_longrope(original), short=True),
        "phi3, part of the head rotated": Case("phi3", rope("default", partial_rotary_factor=0.75)),
        "phi3, part rotated, longrope": Case("phi3", phi3_longrope(original, 6, 0.75)),
        "phi3, tied": Case("phi3", {"tie_word_embeddings": True}),
        "olmo2": Case("olmo2"),
        "olmo2, all heads have keys": Case("olmo2", {"num_key_value_heads": 4}),
        "olmo2, yarn": Case("olmo2", yarn(original)),
        "olmo2, OLMo 3": Case("olmo2", olmo3(original)),
        "mistral3": Case("mistral3", ministral3(original)),
        "granite": Case("granite"),
        "granite, Llama 3's frequencies": Case("granite", llama3(original)),
        "granite, no factors": Case(
            "granite",
            {"embedding_multiplier": 1.0, "logits_scaling": 1.0, "residual_multiplier": 1.0,
             "attention_multiplier": 0.25},
            {"granite.embedding_scale": None, "granite.residual_scale": 0.0, "granite.attention.scale": None,
             "granite.logit_scale": 1.0},
        ),
        "granite, biases": Case("granite", {"attention_bias": True, "mlp_bias": True}),
        "exaone4": Case("exaone4"),
        "exaone4, Llama 3's frequencies": Case("exaone4", llama3(original)),
        "exaone4, 64 layers": Case(
            "exaone4",
            {"num_hidden_layers": 64, "sliding_window": 100, "layer_types": _gemma3_layers(4, 64)},
        ),
        "cohere2": Case("cohere2"),
        "cohere2, other base": Case("cohere2", rope("default", 5e4)),
        "gemma4": Case("gemma4"),
        "gemma4, values of their own, no cap": Case(
            "gemma4", {"attention_k_eq_v": False, "num_global_key_value_heads": None, "final_logit_softcapping": None}
        ),
        "gemma4, cap and base that are not said": Case(
            "gemma4", keys={"gemma4.final_logit_softcapping": None, "gemma4.rope.freq_base_swa": None}
        ),
        "gemma4, other bases": Case("gemma4", gemma4_rope(50_000.0)),
        "gemma4, experts": Case("gemma4", GEMMA4_EXPERTS),
        "gemma4, E2B": Case("gemma4", GEMMA4_E2B),
        "gemma4, E4B": Case("gemma4", {**GEMMA4_E2B, "num_key_value_heads": 2, "use_double_wide_mlp": False}),
        "gemma4, gate and up of experts in one": Case("gemma4", GEMMA4_EXPERTS, change="experts fused"),
        "lfm2": Case("lfm2"),
        "gpt-oss": Case("gpt-oss", unlike_llama_cpp="it rounds the bounds of YaRN's ramp"),
        "gpt-oss, not stretched": Case("gpt-oss", rope("default", 150_000.0)),
        "qwen35": Case("qwen35"),
        "qwen35, yarn": Case("qwen35", yarn(original)),
        "qwen35, every third layer attends": Case(
            "qwen35", {"layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"]},
            {"qwen35.attention.recurrent_layers": None, "qwen35.full_attention_interval": 3},
        ),
        "qwen35, as many value heads": Case("qwen35", {"linear_num_value_heads": 2, "tie_word_embeddings": True}),
        "qwen35moe": Case("qwen35moe"),
        "qwen35moe, gate and up of experts in one": Case("qwen35moe", change="experts fused"),
        "qwen3next": Case("qwen3next"),
        "lfm2, other base, four taps": Case(
            "lfm2", {**rope("default", 5e4), "conv_L_cache": 4, "num_hidden_layers": 4}
        ),
        "deepseek2": Case("deepseek2"),
        "deepseek2, groups of experts, shares as they come": Case(
            "deepseek2",
            {"n_routed_experts": 8, "n_group": 4, "topk_group": 2, "norm_topk_prob": False, "n_shared_experts": 2,
             **rope("default", 5e4)},
        ),
        "glm4": Case("glm4"),
        "glm4, a quarter rotated, no biases": Case(
            "glm4", {**rope("default", partial_rotary_factor=0.25), "attention_bias": False}
        ),
        "smollm3": Case("smollm3"),
        "smollm3, yarn": Case("smollm3", yarn(original)),
        "smollm3, own head": Case("smollm3", {"tie_word_embeddings": False}),
    }  # fmt: skip
