"""The table of families: all that is known of each, as data. A new family is one entry of `FAMILIES`.

Whoever needs to know in what a family differs asks this table: what its `config.json` may say (`settings`, `rope`), how
its layers compute (`model.decoder`, `model.lean_layer`), what its GGUF files hold (`model.gguf.architectures`), and how
its tokenizer is found (`model.tokens`). What can be said of one is in `family`.
"""

from __future__ import annotations

from dataclasses import replace

from .family import EVERY_LAYER, ExpertNames, Family, Form, GgufNames, Norms

WRAPPERS: dict[str, str | None] = {
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "llava": None, "mistral3": None, "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}  # fmt: skip
"""Models of pictures and text whose text runs through the family of their `text_config` as it would alone -> that
family where the file does not say it; None: it must."""

_AROUND = Norms("input", "post_attention", "pre_feedforward", "post_feedforward")
_BEHIND = Norms(None, "post_attention", None, "post_feedforward")
_MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_ATTENTION = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip
_NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
_NORMS_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.*.gate_proj", "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}  # fmt: skip
_SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_DENSE = {tensor: weight.replace("mlp.", "mlp.dense.") for tensor, weight in _MLP.items()}
_LLAMA = {**_NORMS, **_ATTENTION, **_MLP}
_ATTENTION_BIASES = {"attention_bias": tuple(_ATTENTION)}
_ALL_BIASES = {**_ATTENTION_BIASES, "mlp_bias": tuple(_MLP)}
_FREQUENCIES, _FACTORS = ("rope_freqs.weight",), ("rope_factors_short.weight", "rope_factors_long.weight")

_COMMON = frozenset({
    "attention_bias", "attention_dropout", "attn_logit_softcapping", "bos_token_id", "eos_token_id",
    "final_logit_softcapping", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "original_max_position_embeddings", "pad_token_id", "partial_rotary_factor", "rms_norm_eps", "rope_parameters",
    "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "use_bidirectional_attention", "vocab_size",
})  # fmt: skip
"""Names of all families. Some a family does not have: `model_files` refuses them where they are set."""
_LAYERS_THAT_SLIDE = frozenset({"layer_types", "sliding_window"})
"""Left over in files of families whose layers see everything: transformers' classes do not look at them."""
_WINDOWS = frozenset({"max_window_layers", "use_sliding_window"})
_OF_EXPERTS = frozenset({
    "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_experts",
    "num_experts_per_tok",
})  # fmt: skip
_OF_DELTA_NETS = frozenset({
    "full_attention_interval", "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads",
    "linear_num_value_heads", "linear_value_head_dim", "linear_value_heads_are_tiled",
})  # fmt: skip
"""The last one is our own, for GGUF files, where value head j has key head j modulo their number."""

_GATED = Form(
    norm="offset",
    head_norm="head",
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    gates_attention=True,
    mixer="delta",
)
"""Layers of Qwen's hybrids."""
_GATED_NAMES = GgufNames(
    architecture="qwen35",
    layer=_ATTENTION | _MLP | _HEAD_NORMS | {
        "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
        "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b", "ssm_conv1d": "linear_attn.conv1d",
        "ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias", "ssm_norm": "linear_attn.norm",
        "ssm_out": "linear_attn.out_proj",
    },
    norm_offset=-1.0, plain_norms=frozenset({"ssm_norm"}), decays=frozenset({"ssm_a"}),
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family(
        names=_COMMON - _LAYERS_THAT_SLIDE | {"pretraining_tp"},
        has_plain_tokenizer=True,
        form=Form(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
        gguf=GgufNames(
            architecture="llama", layer=_LLAMA, biases=_ALL_BIASES, in_pairs=True,
            rope_tensors=_FREQUENCIES + _FACTORS,
        ),
    ),
    "mistral": Family(
        names=_COMMON - {"layer_types"},
        refused={"layer_types": "Mistral's layers are all alike; Ministral is not supported"},
        form=Form(),
    ),
    "mixtral": Family(
        names=_COMMON - {"layer_types"} | {"num_experts_per_tok", "num_local_experts"},
        spelled={"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        form=Form(
            experts=ExpertNames(
                count="num_local_experts", width="intermediate_size", renormalises=True, rounds_shares=False,
            ),
        ),
        gguf=GgufNames(
            architecture="llama", layer=_NORMS | _ATTENTION | _EXPERTS, in_pairs=True,
            rope_tensors=_FREQUENCIES + _FACTORS, only_with="expert_count",
        ),
    ),
    "ministral3": Family(
        names=_COMMON - {"layer_types"},
        refused={"layer_types": "Ministral 3's layers are all alike"},
        thetas={EVERY_LAYER: 1_000_000.0},
        rope_kinds=("yarn",),
        query_growth="llama_4_scaling_beta",
        form=Form(),
        gguf=GgufNames(
            architecture="mistral3", layer=_LLAMA, in_pairs=True,
            reads=frozenset({"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"}),
        ),
    ),
    "qwen2": Family(
        names=_COMMON | _WINDOWS,
        form=Form(qkv_bias=True),
        gguf=GgufNames(architecture="qwen2", layer=_LLAMA),
    ),
    "qwen3": Family(
        names=_COMMON | _WINDOWS,
        form=Form(head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias"),
        gguf=GgufNames(architecture="qwen3", layer=_LLAMA | _HEAD_NORMS, biases=_ATTENTION_BIASES),
    ),
    "qwen2_moe": Family(
        names=_COMMON | _WINDOWS | _OF_EXPERTS | {"qkv_bias", "shared_expert_intermediate_size"},
        form=Form(qkv_bias="qkv_bias", experts=ExpertNames(shared="shared_expert_intermediate_size")),
        gguf=GgufNames(
            architecture="qwen2moe", biases={"qkv_bias": ("attn_q", "attn_k", "attn_v")},
            layer=_NORMS | _ATTENTION | _EXPERTS | _SHARED_EXPERT,
        ),
    ),
    "qwen3_moe": Family(
        names=_COMMON - {"layer_types"} | _WINDOWS | _OF_EXPERTS | {"num_local_experts"},
        form=Form(
            head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias", experts=ExpertNames(),
        ),
        gguf=GgufNames(
            architecture="qwen3moe", biases=_ATTENTION_BIASES,
            layer=_NORMS | _ATTENTION | _HEAD_NORMS | _EXPERTS,
        ),
    ),
    "gemma3_text": Family(
        names=_COMMON | {
            "hidden_activation", "query_pre_attn_scalar", "rope_local_base_freq", "sliding_window_pattern",
            "_sliding_window_pattern",
        },
        thetas={"full_attention": 1_000_000.0, "sliding_attention": 10_000.0},
        sliding_theta="rope_local_base_freq",
        form=Form(
            norms=_AROUND, norm="offset", head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias",
            act="hidden_activation", scales_embedding=True, score_width="query_pre_attn_scalar",
            logit_cap="final_logit_softcapping",
        ),
        gguf=GgufNames(
            architecture="gemma3",
            layer=_ATTENTION | _MLP | _HEAD_NORMS | _NORMS_BEHIND | {
                "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm",
            },
            biases=_ATTENTION_BIASES,
            norm_offset=-1.0,
        ),
    ),
    "gemma4_text": Family(
        names=_COMMON - {"rope_scaling", "rope_theta"} | {
            "attention_k_eq_v", "enable_moe_block", "global_head_dim", "hidden_activation",
            "hidden_size_per_layer_input", "moe_intermediate_size", "num_experts", "num_global_key_value_heads",
            "num_kv_shared_layers", "per_layer_config", "top_k_experts", "use_double_wide_mlp",
            "vocab_size_per_layer_input",
        },
        refused=dict.fromkeys(
            ("rope_scaling", "rope_theta"), "which layers it is about is not said; state it in rope_parameters, by kind"
        ),
        needs_window=True,
        thetas={"full_attention": 1_000_000.0, "sliding_attention": 10_000.0},
        usual_tables={"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25}},
        rope_kinds=("default", "linear", "proportional"),
        spelled={
            "mlp.gate": "router.proj", "mlp.router_scale": "router.scale",
            "mlp.per_expert_scale": "router.per_expert_scale", "mlp.experts": "experts", "mlp.dense": "mlp",
            "mlp.before_dense": "pre_feedforward_layernorm", "mlp.after_dense": "post_feedforward_layernorm_1",
            "mlp.before_experts": "pre_feedforward_layernorm_2",
            "mlp.after_experts": "post_feedforward_layernorm_2",
        },
        form=Form(
            norms=_AROUND, norm="wide", head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias",
            act="hidden_activation", scales_embedding=True, score_scale=1.0, logit_cap="final_logit_softcapping",
            has_heads_by_kind=True, keys_are_values="attention_k_eq_v", norms_values=True, has_layer_scalar=True,
            experts=ExpertNames(
                chosen="top_k_experts", renormalises=True, rounds_shares=False, switch="enable_moe_block",
                are_beside=True,
            ),
        ),
        gguf=GgufNames(
            architecture="gemma4",
            layer=_ATTENTION | _MLP | _HEAD_NORMS | _NORMS_BEHIND | {
                "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm",
                "layer_output_scale.weight": "layer_scalar",
            },
            with_experts=_DENSE | _EXPERTS | {
                "ffn_gate_inp.scale": "mlp.router_scale", "ffn_down_exps.scale": "mlp.per_expert_scale",
                "ffn_norm": "mlp.before_dense", "post_ffw_norm_1": "mlp.after_dense",
                "pre_ffw_norm_2": "mlp.before_experts", "post_ffw_norm_2": "mlp.after_experts",
            },
            biases=_ATTENTION_BIASES, rope_tensors=_FREQUENCIES,
            by_layer=frozenset({"attention.head_count_kv"}), reads=frozenset({"final_logit_softcapping"}),
        ),
    ),
    "phi3": Family(
        names=_COMMON - {"layer_types"} | {"embd_pdrop", "resid_pdrop"},
        rope_kinds=("default", "longrope"),
        turned=1.0,
        original_positions=4096,
        form=Form(fuses_qkv=True, fuses_mlp=True),
        gguf=GgufNames(
            architecture="phi3",
            layer=_NORMS | {
                "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
            rope_tensors=_FACTORS,
        ),
    ),
    "olmo2": Family(
        names=_COMMON - _LAYERS_THAT_SLIDE,
        form=Form(
            norms=_BEHIND, norm="wide", head_norm="all", qkv_bias="attention_bias",
            out_bias="attention_bias", rotary_dtype="float32",
        ),
        gguf=GgufNames(
            architecture="olmo2", layer=_ATTENTION | _MLP | _HEAD_NORMS | _NORMS_BEHIND, biases=_ATTENTION_BIASES
        ),
    ),
    "olmo3": Family(
        names=_COMMON,
        needs_window=True,
        thetas={"full_attention": 500_000.0, "sliding_attention": 500_000.0},
        form=Form(
            norms=_BEHIND, norm="wide", head_norm="all", qkv_bias="attention_bias",
            out_bias="attention_bias", rotary_dtype="float32",
        ),
        gguf=GgufNames(
            architecture="olmo2", layer=_ATTENTION | _MLP | _HEAD_NORMS | _NORMS_BEHIND, biases=_ATTENTION_BIASES,
            only_with="attention.sliding_window",
        ),
    ),
    "granite": Family(
        names=_COMMON - _LAYERS_THAT_SLIDE | {
            "attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier",
        },
        form=Form(
            qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias",
            score_scale="attention_multiplier", embedding_factor="embedding_multiplier",
            residual_factor="residual_multiplier", logit_divisor="logits_scaling",
        ),
        gguf=GgufNames(
            architecture="granite", layer=_LLAMA, biases=_ALL_BIASES, in_pairs=True,
            rope_tensors=_FREQUENCIES + _FACTORS,
            factors={
                "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
            },
        ),
    ),
    "exaone4": Family(
        names=_COMMON | {"sliding_window_pattern"},
        form=Form(norms=_BEHIND, head_norm="head", rotates_in_windows=True),
        gguf=GgufNames(
            architecture="exaone4", layer=_ATTENTION | _MLP | _HEAD_NORMS | _NORMS_BEHIND, rope_tensors=_FREQUENCIES
        ),
    ),
    "cohere2": Family(
        names=_COMMON - {"rms_norm_eps"} | {"layer_norm_eps", "logit_scale", "sliding_window_pattern"},
        needs_window=True,
        form=Form(
            norms=Norms("input", None, None, None), norm="centred", norm_eps="layer_norm_eps", is_parallel=True,
            qkv_bias="attention_bias", out_bias="attention_bias", logit_factor="logit_scale", rotates_in_windows=True,
            in_pairs=True,
        ),
        gguf=GgufNames(
            architecture="cohere2", layer=_ATTENTION | _MLP | {"attn_norm": "input_layernorm"},
            biases=_ATTENTION_BIASES, factors={"logit_scale": "logit_scale"},
        ),
    ),
    "glm4": Family(
        names=_COMMON - _LAYERS_THAT_SLIDE,
        turned=0.5,
        form=Form(
            norms=Norms("input", "post_self_attn", "post_attention", "post_mlp"), qkv_bias="attention_bias",
            fuses_mlp=True, in_pairs=True,
        ),
        gguf=GgufNames(
            architecture="glm4", biases={"attention_bias": ("attn_q", "attn_k", "attn_v")},
            layer=_ATTENTION | {
                "attn_norm": "input_layernorm", "post_attention_norm": "post_self_attn_layernorm",
                "ffn_norm": "post_attention_layernorm", "post_ffw_norm": "post_mlp_layernorm",
                "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj",
            },
        ),
    ),
    "glm4_moe_lite": Family(
        names=_COMMON - _LAYERS_THAT_SLIDE - {"head_dim"} | {
            "first_k_dense_replace", "kv_lora_rank", "mlp_layer_types", "moe_intermediate_size", "n_group",
            "n_routed_experts", "n_shared_experts", "norm_topk_prob", "num_experts_per_tok",
            "num_nextn_predict_layers", "pretraining_tp", "q_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim",
            "rope_interleave", "routed_scaling_factor", "topk_group", "v_head_dim",
        },
        spelled={"shared_expert": "shared_experts"},
        form=Form(
            is_latent=True, qkv_bias="attention_bias", out_bias="attention_bias", in_pairs="rope_interleave",
            experts=ExpertNames(
                count="n_routed_experts", shared_count="n_shared_experts", scores="sigmoid",
                groups=("n_group", "topk_group"), factor="routed_scaling_factor", rounds_shares=False,
            ),
        ),
        gguf=GgufNames(
            architecture="deepseek2",
            layer=_NORMS | _MLP | _EXPERTS | _SHARED_EXPERT | {
                "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
                "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
                "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj",
                "attn_output": "self_attn.o_proj", "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
            },
        ),
    ),
    "smollm3": Family(
        names=_COMMON | _WINDOWS | {"no_rope_layers", "no_rope_layer_interval"},
        thetas={EVERY_LAYER: 2_000_000.0},
        has_plain_tokenizer=True,
        form=Form(
            qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", rotated_layers="no_rope_layers"
        ),
        gguf=GgufNames(architecture="smollm3", layer=_LLAMA, biases=_ALL_BIASES, in_pairs=True),
    ),
    "lfm2": Family(
        names=_COMMON - {"hidden_act", "rms_norm_eps", "sliding_window"} | {
            "block_auto_adjust_ff_dim", "block_ff_dim", "block_ffn_dim_multiplier", "block_multiple_of", "conv_L_cache",
            "conv_bias", "full_attn_idxs", "norm_eps", "tie_embedding",
        },
        thetas={EVERY_LAYER: 1_000_000.0},
        spelled={
            "input_layernorm": "operator_norm", "post_attention_layernorm": "ffn_norm", "norm": "embedding_norm",
            "q_norm": "q_layernorm", "k_norm": "k_layernorm", "o_proj": "out_proj", "mlp": "feed_forward",
            "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2",
        },
        form=Form(head_norm="head", norm_eps="norm_eps", act=None, mixer="conv"),
        gguf=GgufNames(
            architecture="lfm2", final_norm="token_embd_norm", by_layer=frozenset({"attention.head_count_kv"}),
            layer=_LLAMA | _HEAD_NORMS | {
                "shortconv.in_proj": "conv.in_proj", "shortconv.conv": "conv.conv",
                "shortconv.out_proj": "conv.out_proj",
            },
        ),
    ),
    "qwen3_5_text": Family(
        names=_COMMON - {"sliding_window"} | _OF_DELTA_NETS,
        turned=0.25,
        form=_GATED,
        gguf=_GATED_NAMES,
    ),
    "qwen3_5_moe_text": Family(
        names=_COMMON - {"intermediate_size", "sliding_window"} | _OF_DELTA_NETS | {
            "moe_intermediate_size", "num_experts", "num_experts_per_tok", "shared_expert_intermediate_size",
        },
        turned=0.25,
        form=replace(_GATED, experts=ExpertNames(renormalises=True, shared="shared_expert_intermediate_size")),
        gguf=replace(
            _GATED_NAMES, architecture="qwen35moe", layer={**_GATED_NAMES.layer, **_EXPERTS, **_SHARED_EXPERT}
        ),
    ),
    "qwen3_next": Family(
        names=_COMMON - {"sliding_window"} | _OF_DELTA_NETS | _OF_EXPERTS | {"shared_expert_intermediate_size"},
        turned=0.25,
        form=replace(
            _GATED, mixer="delta_by_key_head", experts=ExpertNames(shared="shared_expert_intermediate_size")
        ),
        gguf=replace(
            _GATED_NAMES, architecture="qwen3next",
            layer={**_GATED_NAMES.layer, **_EXPERTS, **_SHARED_EXPERT} | {
                "ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba",
            },
        ),
    ),
}  # fmt: skip
"""By `model_type` of `config.json`."""
