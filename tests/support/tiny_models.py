"""Small random models of every supported family, with a byte-level tokenizer. Nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
VOCABULARY = 256 + len(SPECIAL)

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 4096,
    "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
_DELTA_NETS: dict[str, Any] = {
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 12,
    "linear_conv_kernel_dim": 4,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-sliding": ("Mistral", {"sliding_window": 40}),
    "mixtral": (  # gate and up are one product in transformers: of this width it has the bits of two
        "Mixtral",
        {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": None, "intermediate_size": 64},
    ),
    "ministral3": (
        "Ministral3",
        {"head_dim": 16, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 32,
            "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}},
    ),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen2_moe": (
        "Qwen2Moe",
        {"num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "shared_expert_intermediate_size": 56},
    ),
    "qwen3_moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32,
         "norm_topk_prob": True, "mlp_only_layers": [1]},
    ),
    "qwen3_moe-shares": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "norm_topk_prob": False, "decoder_sparse_step": 2},
    ),
    "gemma3_text": (
        "Gemma3Text",
        {"head_dim": 16, "sliding_window": 40, "query_pre_attn_scalar": 16,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "gemma4_text": (
        "Gemma4Text",
        {"head_dim": 16, "num_key_value_heads": 3, "global_head_dim": 32, "num_global_key_value_heads": 2,
         "attention_k_eq_v": True, "sliding_window": 40, "final_logit_softcapping": 30.0,
         "hidden_size_per_layer_input": 0,
         "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "gemma4_text-shared": (  # E2B: the last layers have no keys of their own
        "Gemma4Text",
        {"head_dim": 16, "num_key_value_heads": 2, "global_head_dim": 32, "num_hidden_layers": 6,
         "sliding_window": 40, "final_logit_softcapping": 30.0, "hidden_size_per_layer_input": 12,
         "vocab_size_per_layer_input": VOCABULARY, "num_kv_shared_layers": 2, "use_double_wide_mlp": True,
         "layer_types": ["sliding_attention", "full_attention"] * 3},
    ),
    "gemma4_text-experts": (
        "Gemma4Text",
        {"head_dim": 16, "num_key_value_heads": 3, "global_head_dim": 32, "num_global_key_value_heads": 2,
         "attention_k_eq_v": True, "sliding_window": 40, "final_logit_softcapping": 30.0,
         "hidden_size_per_layer_input": 0, "enable_moe_block": True, "num_experts": 6, "top_k_experts": 2,
         "moe_intermediate_size": 32, "layer_types": ["sliding_attention", "full_attention", "full_attention"]},
    ),
    "gpt_oss": (
        "GptOss",
        {"head_dim": 16, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 32,
         "swiglu_limit": 1.5, "sliding_window": 40,
         "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5, "sliding_window": None}),
    "olmo2": ("Olmo2", {}),
    "olmo3": (
        "Olmo3",
        {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "rope_parameters": {
             "full_attention": {
                 "rope_type": "yarn", "rope_theta": 5e5, "factor": 8.0, "original_max_position_embeddings": 64,
                 "attention_factor": 1.2},
             "sliding_attention": {"rope_type": "default", "rope_theta": 5e5}}},
    ),
    "granite": (
        "Granite",
        {"embedding_multiplier": 12.0, "logits_scaling": 7.0, "residual_multiplier": 0.22,
         "attention_multiplier": 0.15},
    ),
    "exaone4": (
        "Exaone4",
        {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]},
    ),
    "exaone4-whole": ("Exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 3}),
    "cohere2": (
        "Cohere2",
        {"sliding_window": 40, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
         "logit_scale": 0.3},
    ),
    "glm4": ("Glm4", {"head_dim": 16}),
    "glm4_moe_lite": (
        "Glm4MoeLite",
        {"num_key_value_heads": 6, "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 12,
         "qk_rope_head_dim": 8, "v_head_dim": 20, "n_routed_experts": 6, "n_shared_experts": 1,
         "num_experts_per_tok": 2, "moe_intermediate_size": 32, "rms_norm_eps": 1e-2},
    ),
    "glm4_moe_lite-groups": (
        "Glm4MoeLite",
        {"num_key_value_heads": 6, "kv_lora_rank": 32, "q_lora_rank": None, "qk_nope_head_dim": 12,
         "qk_rope_head_dim": 8, "v_head_dim": 12, "n_routed_experts": 8, "n_shared_experts": 2, "n_group": 4,
         "topk_group": 2, "num_experts_per_tok": 3, "moe_intermediate_size": 16, "norm_topk_prob": False,
         "rope_interleave": False, "mlp_layer_types": ["sparse", "dense", "sparse"],
         "rope_parameters": {
             "rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 64,
             "mscale": 0.7, "mscale_all_dim": 0.9}},
    ),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "qwen3_5_text": ("Qwen3_5Text", _DELTA_NETS),
    "qwen3_5_moe_text": (
        "Qwen3_5MoeText",
        {**_DELTA_NETS, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "shared_expert_intermediate_size": 56},
    ),
    "qwen3_next": (
        "Qwen3Next",
        {**_DELTA_NETS, "num_experts": 5, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
         "shared_expert_intermediate_size": 56, "mlp_only_layers": [2]},
    ),
    "lfm2": (  # its class halves a width of 48 otherwise, and rounds it up to 256
        "Lfm2",
        {"layer_types": ["conv", "full_attention", "conv"], "block_auto_adjust_ff_dim": False, "norm_eps": 1e-5,
         "tie_word_embeddings": True},
    ),
}  # fmt: skip
"""Name -> (transformers class prefix, what differs from the common shape)."""
FORMS = ("llama", "gemma3_text", "gemma4_text", "phi3", "olmo3", "cohere2", "ministral3", "qwen2_moe", "gpt_oss")
"""Families that have between them every part that a layer may have (`test_families`), for what takes long."""


def tolerance(family: str) -> float:
    """How far fp32 logits may be from transformers', as a share of the largest: sums are taken in another order, and
    transformers computes in fp32 how much a delta net forgets, of which little is left where that is much. Gemma 4
    multiplies scores by one, so that each of many layers multiplies what they are off by: transformers' two ways to
    attend are 3e-5 apart there, and the one we compare with is 6e-5 from fp64."""
    return 1e-4 if FAMILIES[family][1].keys() & {"linear_num_key_heads", "num_kv_shared_layers"} else 1e-5


def save_tiny_model(folder: Path, family: str = "llama", *, chat: bool = True, **changes: Any) -> Path:
    """A random model of `family` in `folder`, the same weights every time."""
    import transformers
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    prefix, differs = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**_SHAPE, **differs, **changes})
    torch.manual_seed(0)
    model_class = f"{prefix.removesuffix('Text')}ForCausalLM"
    model = getattr(transformers, model_class)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # larger than at initialisation, so that attention is not flat
                parameter.normal_(0.0, 0.2)
    model.save_pretrained(folder)

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[2], additional_special_tokens=SPECIAL
    )
    if chat:
        tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return folder


def moved(folder: Path, by: float = 0.5) -> Path:
    """The model with norms and biases as random as the rest: ones and zeros would hide which is used where."""
    from safetensors.torch import load_file, save_file

    path, draw = folder / "model.safetensors", torch.Generator().manual_seed(7)
    weights = load_file(path)
    for name, weight in weights.items():
        if weight.dim() == 1:
            weights[name] = weight + by * torch.randn(weight.shape, generator=draw)
    save_file(weights, path, {"format": "pt"})
    return folder


def reference_model(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """transformers' own model, dense SDPA attention."""
    attention = "eager" if "gpt_oss" in (folder / "config.json").read_text() else "sdpa"  # which has no sinks
    return their_model(folder, dtype, attention)


def their_model(folder: Path, dtype: torch.dtype, attention: str) -> Any:
    """transformers' own model. 5.17's gpt-oss has the published limit of activations, whatever the file says."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()
    for module in model.modules():
        if hasattr(module, "limit") and hasattr(module, "alpha"):
            module.limit, module.alpha = model.config.swiglu_limit, getattr(model.config, "swiglu_alpha", module.alpha)
    return model
