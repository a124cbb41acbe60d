"""The table of families: all that is known of each, as data. A new family is one entry of `FAMILIES`.

Whoever needs to know in what a family differs asks this table: what its `config.json` may say (`settings`, `rope`), how
its layers compute (`model.decoder`, `model.lean_layer`), what its GGUF files hold (`model.gguf.architectures`), and how
its tokenizer is found (`model.tokens`). What can be said of one is in `family`.
"""

from __future__ import annotations

from dataclasses import replace

from .common_names import (
    ALL_BIASES,
    AROUND,
    ATTENTION,
    ATTENTION_BIASES,
    BEHIND,
    COMMON,
    DENSE,
    EXPERTS,
    FACTORS,
    FREQUENCIES,
    GATED,
    GATED_NAMES,
    HEAD_NORMS,
    LAYERS_THAT_SLIDE,
    LLAMA,
    MLP,
    NORMS,
    NORMS_BEHIND,
    OF_DELTA_NETS,
    OF_EXPERTS,
    SHARED_EXPERT,
    WINDOWS,
)  # fmt: skip
from .family import EVERY_LAYER, ExpertNames, Family, Form, GgufNames, Norms

WRAPPERS: dict[str, str | None] = {
    "gemma3": "gemma3_text", "gemma4": "gemma4_text", "llava": None, "mistral3": None, "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
}  # fmt: skip
"""Models of pictures and text whose text runs through the family of their `text_config` as it would alone -> that
family where the file does not say it; None: it must."""

FAMILIES: dict[str, Family] = {
    "llama": Family(
        names=COMMON - LAYERS_THAT_SLIDE | {"pretraining_tp"},
        has_plain_tokenizer=True,
        form=Form(qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias"),
        gguf=GgufNames(
            architecture="llama", layer=LLAMA, biases=ALL_BIASES, in_pairs=True,
            rope_tensors=FREQUENCIES + FACTORS,
        ),
    ),
    "mistral": Family(
        names=COMMON - {"layer_types"},
        refused={"layer_types": "Mistral's layers are all alike; Ministral is not supported"},
        form=Form(),
    ),
    "mixtral": Family(
        names=COMMON - {"layer_types"} | {"num_experts_per_tok", "num_local_experts"},
        spelled={"mlp": "block_sparse_moe", "gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"},
        form=Form(
            experts=ExpertNames(
                count="num_local_experts", width="intermediate_size", renormalises=True, rounds_shares=False,
            ),
        ),
        gguf=GgufNames(
            architecture="llama", layer=NORMS | ATTENTION | EXPERTS, in_pairs=True,
            rope_tensors=FREQUENCIES + FACTORS, only_with="expert_count",
        ),
    ),
    "ministral3": Family(
        names=COMMON - {"layer_types"},
        refused={"layer_types": "Ministral 3's layers are all alike"},
        thetas={EVERY_LAYER: 1_000_000.0},
        rope_kinds=("yarn",),
        query_growth="llama_4_scaling_beta",
        form=Form(),
        gguf=GgufNames(
            architecture="mistral3", layer=LLAMA, in_pairs=True,
            reads=frozenset({"attention.temperature_scale", "rope.scaling.yarn_log_multiplier"}),
        ),
    ),
    "qwen2": Family(
        names=COMMON | WINDOWS,
        form=Form(qkv_bias=True),
        gguf=GgufNames(architecture="qwen2", layer=LLAMA),
    ),
    "qwen3": Family(
        names=COMMON | WINDOWS,
        form=Form(head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias"),
        gguf=GgufNames(architecture="qwen3", layer=LLAMA | HEAD_NORMS, biases=ATTENTION_BIASES),
    ),
    "qwen2_moe": Family(
        names=COMMON | WINDOWS | OF_EXPERTS | {"qkv_bias", "shared_expert_intermediate_size"},
        form=Form(qkv_bias="qkv_bias", experts=ExpertNames(shared="shared_expert_intermediate_size")),
        gguf=GgufNames(
            architecture="qwen2moe", biases={"qkv_bias": ("attn_q", "attn_k", "attn_v")},
            layer=NORMS | ATTENTION | EXPERTS | SHARED_EXPERT,
        ),
    ),
    "qwen3_moe": Family(
        names=COMMON - {"layer_types"} | WINDOWS | OF_EXPERTS | {"num_local_experts"},
        form=Form(
            head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias", experts=ExpertNames(),
        ),
        gguf=GgufNames(
            architecture="qwen3moe", biases=ATTENTION_BIASES,
            layer=NORMS | ATTENTION | HEAD_NORMS | EXPERTS,
        ),
    ),
    "gemma3_text": Family(
        names=COMMON | {
            "hidden_activation", "query_pre_attn_scalar", "rope_local_base_freq", "sliding_window_pattern",
            "_sliding_window_pattern",
        },
        thetas={"full_attention": 1_000_000.0, "sliding_attention": 10_000.0},
        sliding_theta="rope_local_base_freq",
        form=Form(
            norms=AROUND, norm="offset", head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias",
            act="hidden_activation", scales_embedding=True, score_width="query_pre_attn_scalar",
            logit_cap="final_logit_softcapping",
        ),
        gguf=GgufNames(
            architecture="gemma3",
            layer=ATTENTION | MLP | HEAD_NORMS | NORMS_BEHIND | {
                "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm",
            },
            biases=ATTENTION_BIASES,
            norm_offset=-1.0,
        ),
    ),
    "gemma4_text": Family(
        names=COMMON - {"rope_scaling", "rope_theta"} | {
            "attention_k_eq_v", "enable_moe_block", "global_head_dim", "hidden_activation",
            "hidden_size_per_layer_input", "moe_intermediate_size", "num_experts", "num_global_key_value_heads",
            "num_kv_shared_layers", "per_layer_config", "top_k_experts", "use_double_wide_mlp",
            "vocab_size_per_layer_input",
        },
        refused=dict.fromkeys(
            ("rope_scaling", "rope_theta"), "which layers it is about is not said; state it in rope_parameters, by kind"
        ),
        needs_window=True, thetas={"full_attention": 1_000_000.0, "sliding_attention": 10_000.0},
        usual_tables={"full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25}},
        rope_kinds=("default", "linear", "proportional"),
        spelled={
            "inputs.table": "embed_tokens_per_layer.weight", "inputs.projection": "per_layer_model_projection",
            "inputs.norm": "per_layer_projection_norm", "input_gate": "per_layer_input_gate", "mlp.gate": "router.proj",
            "input_projection": "per_layer_projection", "after_input_layernorm": "post_per_layer_input_norm",
            "mlp.router_scale": "router.scale", "mlp.per_expert_scale": "router.per_expert_scale",
            "mlp.experts": "experts", "mlp.dense": "mlp", "mlp.before_dense": "pre_feedforward_layernorm",
            "mlp.after_dense": "post_feedforward_layernorm_1", "mlp.before_experts": "pre_feedforward_layernorm_2",
            "mlp.after_experts": "post_feedforward_layernorm_2",
        },
        form=Form(
            norms=AROUND, norm="wide", head_norm="head", qkv_bias="attention_bias", out_bias="attention_bias",
            act="hidden_activation", scales_embedding=True, score_scale=1.0, logit_cap="final_logit_softcapping",
            has_heads_by_kind=True, keys_are_values="attention_k_eq_v", norms_values=True, has_layer_scalar=True,
            sharing_layers="num_kv_shared_layers", doubles_sharing_mlp="use_double_wide_mlp",
            layer_inputs="hidden_size_per_layer_input", layer_vocabulary="vocab_size_per_layer_input",
            experts=ExpertNames(
                chosen="top_k_experts", renormalises=True, rounds_shares=False, switch="enable_moe_block",
                are_beside=True,
            ),
        ),
        gguf=GgufNames(
            architecture="gemma4",
            layer=ATTENTION | MLP | HEAD_NORMS | NORMS_BEHIND | {
                "attn_norm": "input_layernorm", "ffn_norm": "pre_feedforward_layernorm",
                "layer_output_scale.weight": "layer_scalar", "inp_gate": "input_gate", "proj": "input_projection",
                "post_norm": "after_input_layernorm",
            },
            outside={
                "per_layer_token_embd.weight": "inputs.table", "per_layer_model_proj": "inputs.projection",
                "per_layer_proj_norm": "inputs.norm",
            },
            with_experts=DENSE | EXPERTS | {
                "ffn_gate_inp.scale": "mlp.router_scale", "ffn_down_exps.scale": "mlp.per_expert_scale",
                "ffn_norm": "mlp.before_dense", "post_ffw_norm_1": "mlp.after_dense",
                "pre_ffw_norm_2": "mlp.before_experts", "post_ffw_norm_2": "mlp.after_experts",
            },
            biases=ATTENTION_BIASES, rope_tensors=FREQUENCIES,
            by_layer=frozenset({"attention.head_count_kv", "feed_forward_length"}),
            reads=frozenset({"final_logit_softcapping"}),
        ),
    ),
    "gpt_oss": Family(
        names=COMMON - {"original_max_position_embeddings", "partial_rotary_factor"} | {
            "num_experts_per_tok", "num_local_experts", "swiglu_alpha", "swiglu_limit",
        },
        refused=dict.fromkeys(
            ("original_max_position_embeddings", "partial_rotary_factor"), "state it in rope_scaling, or not at all"
        ),
        needs_window=True,
        thetas={EVERY_LAYER: 150_000.0},
        usual_tables={
            EVERY_LAYER: {
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
                "original_max_position_embeddings": 4096,
            },
        },
        spelled={"mlp.gate": "mlp.router"},
        packed="mxfp4",
        form=Form(
            norm="wide", qkv_bias="attention_bias", out_bias="attention_bias", has_sinks=True,
            experts=ExpertNames(
                count="num_local_experts", width="intermediate_size", renormalises=True, scores="chosen",
                clamp={"swiglu_limit": 7.0, "swiglu_alpha": 1.702},
            ),
        ),
        gguf=GgufNames(
            architecture="gpt-oss", biases=ATTENTION_BIASES,
            layer=ATTENTION | EXPERTS | {
                "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
                "attn_sinks.weight": "self_attn.sinks",
            },
        ),
    ),
    "phi3": Family(
        names=COMMON - {"layer_types"} | {"embd_pdrop", "resid_pdrop"},
        rope_kinds=("default", "longrope"),
        turned=1.0,
        original_positions=4096,
        form=Form(fuses_qkv=True, fuses_mlp=True),
        gguf=GgufNames(
            architecture="phi3",
            layer=NORMS | {
                "attn_qkv": "self_attn.qkv_proj", "attn_output": "self_attn.o_proj", "ffn_up": "mlp.gate_up_proj",
                "ffn_down": "mlp.down_proj",
            },
            rope_tensors=FACTORS,
        ),
    ),
    "olmo2": Family(
        names=COMMON - LAYERS_THAT_SLIDE,
        form=Form(
            norms=BEHIND, norm="wide", head_norm="all", qkv_bias="attention_bias",
            out_bias="attention_bias", rotary_dtype="float32",
        ),
        gguf=GgufNames(
            architecture="olmo2", layer=ATTENTION | MLP | HEAD_NORMS | NORMS_BEHIND, biases=ATTENTION_BIASES
        ),
    ),
    "olmo3": Family(
        names=COMMON,
        needs_window=True,
        thetas={"full_attention": 500_000.0, "sliding_attention": 500_000.0},
        form=Form(
            norms=BEHIND, norm="wide", head_norm="all", qkv_bias="attention_bias",
            out_bias="attention_bias", rotary_dtype="float32",
        ),
        gguf=GgufNames(
            architecture="olmo2", layer=ATTENTION | MLP | HEAD_NORMS | NORMS_BEHIND, biases=ATTENTION_BIASES,
            only_with="attention.sliding_window",
        ),
    ),
    "granite": Family(
        names=COMMON - LAYERS_THAT_SLIDE | {
            "attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier",
        },
        form=Form(
            qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias",
            score_scale="attention_multiplier", embedding_factor="embedding_multiplier",
            residual_factor="residual_multiplier", logit_divisor="logits_scaling",
        ),
        gguf=GgufNames(
            architecture="granite", layer=LLAMA, biases=ALL_BIASES, in_pairs=True,
            rope_tensors=FREQUENCIES + FACTORS,
            factors={
                "embedding_scale": "embedding_multiplier", "residual_scale": "residual_multiplier",
                "logit_scale": "logits_scaling",
            },
        ),
    ),
    "exaone4": Family(
        names=COMMON | {"sliding_window_pattern"},
        form=Form(norms=BEHIND, head_norm="head", rotates_in_windows=True),
        gguf=GgufNames(
            architecture="exaone4", layer=ATTENTION | MLP | HEAD_NORMS | NORMS_BEHIND, rope_tensors=FREQUENCIES
        ),
    ),
    "cohere2": Family(
        names=COMMON - {"rms_norm_eps"} | {"layer_norm_eps", "logit_scale", "sliding_window_pattern"},
        needs_window=True,
        form=Form(
            norms=Norms("input", None, None, None), norm="centred", norm_eps="layer_norm_eps", is_parallel=True,
            qkv_bias="attention_bias", out_bias="attention_bias", logit_factor="logit_scale", rotates_in_windows=True,
            in_pairs=True,
        ),
        gguf=GgufNames(
            architecture="cohere2", layer=ATTENTION | MLP | {"attn_norm": "input_layernorm"},
            biases=ATTENTION_BIASES, factors={"logit_scale": "logit_scale"},
        ),
    ),
    "glm4": Family(
        names=COMMON - LAYERS_THAT_SLIDE,
        turned=0.5,
        form=Form(
            norms=Norms("input", "post_self_attn", "post_attention", "post_mlp"), qkv_bias="attention_bias",
            fuses_mlp=True, in_pairs=True,
        ),
        gguf=GgufNames(
            architecture="glm4", biases={"attention_bias": ("attn_q", "attn_k", "attn_v")},
            layer=ATTENTION | {
                "attn_norm": "input_layernorm", "post_attention_norm": "post_self_attn_layernorm",
                "ffn_norm": "post_attention_layernorm", "post_ffw_norm": "post_mlp_layernorm",
                "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj",
            },
        ),
    ),
    "glm4_moe_lite": Family(
        names=COMMON - LAYERS_THAT_SLIDE - {"head_dim"} | {
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
            layer=NORMS | MLP | EXPERTS | SHARED_EXPERT | {
                "attn_q_a": "self_attn.q_a_proj", "attn_q_a_norm": "self_attn.q_a_layernorm",
                "attn_q_b": "self_attn.q_b_proj", "attn_kv_a_mqa": "self_attn.kv_a_proj_with_mqa",
                "attn_kv_a_norm": "self_attn.kv_a_layernorm", "attn_kv_b": "self_attn.kv_b_proj",
                "attn_output": "self_attn.o_proj", "exp_probs_b.bias": "mlp.gate.e_score_correction_bias",
            },
        ),
    ),
    "smollm3": Family(
        names=COMMON | WINDOWS | {"no_rope_layers", "no_rope_layer_interval"},
        thetas={EVERY_LAYER: 2_000_000.0},
        has_plain_tokenizer=True,
        form=Form(
            qkv_bias="attention_bias", out_bias="attention_bias", mlp_bias="mlp_bias", rotated_layers="no_rope_layers"
        ),
        gguf=GgufNames(architecture="smollm3", layer=LLAMA, biases=ALL_BIASES, in_pairs=True),
    ),
    "lfm2": Family(
        names=COMMON - {"hidden_act", "rms_norm_eps", "sliding_window"} | {
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
            layer=LLAMA | HEAD_NORMS | {
                "shortconv.in_proj": "conv.in_proj", "shortconv.conv": "conv.conv",
                "shortconv.out_proj": "conv.out_proj",
            },
        ),
    ),
    "qwen3_5_text": Family(
        names=COMMON - {"sliding_window"} | OF_DELTA_NETS,
        turned=0.25,
        form=GATED,
        gguf=GATED_NAMES,
    ),
    "qwen3_5_moe_text": Family(
        names=COMMON - {"intermediate_size", "sliding_window"} | OF_DELTA_NETS | {
            "moe_intermediate_size", "num_experts", "num_experts_per_tok", "shared_expert_intermediate_size",
        },
        turned=0.25,
        form=replace(GATED, experts=ExpertNames(renormalises=True, shared="shared_expert_intermediate_size")),
        gguf=replace(
            GATED_NAMES, architecture="qwen35moe", layer={**GATED_NAMES.layer, **EXPERTS, **SHARED_EXPERT}
        ),
    ),
    "qwen3_next": Family(
        names=COMMON - {"sliding_window"} | OF_DELTA_NETS | OF_EXPERTS | {"shared_expert_intermediate_size"},
        turned=0.25,
        form=replace(
            GATED, mixer="delta_by_key_head", experts=ExpertNames(shared="shared_expert_intermediate_size")
        ),
        gguf=replace(
            GATED_NAMES, architecture="qwen3next",
            layer={**GATED_NAMES.layer, **EXPERTS, **SHARED_EXPERT} | {
                "ssm_in": "linear_attn.in_proj_qkvz", "ssm_ba": "linear_attn.in_proj_ba",
            },
        ),
    ),
}  # fmt: skip
"""By `model_type` of `config.json`."""
