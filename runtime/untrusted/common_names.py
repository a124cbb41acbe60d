"""What several families have in common: where norms stand, tensors of GGUF files, names in `config.json`; and what
Qwen's hybrids are."""

from __future__ import annotations

from .family import Form, GgufNames, Norms

AROUND = Norms("input", "post_attention", "pre_feedforward", "post_feedforward")
BEHIND = Norms(None, "post_attention", None, "post_feedforward")
MLP = {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
ATTENTION = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
}  # fmt: skip
NORMS = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
NORMS_BEHIND = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
EXPERTS = {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.*.gate_proj", "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}  # fmt: skip
SHARED_EXPERT = {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
DENSE = {tensor: weight.replace("mlp.", "mlp.dense.") for tensor, weight in MLP.items()}
LLAMA = {**NORMS, **ATTENTION, **MLP}
ATTENTION_BIASES = {"attention_bias": tuple(ATTENTION)}
ALL_BIASES = {**ATTENTION_BIASES, "mlp_bias": tuple(MLP)}
FREQUENCIES, FACTORS = ("rope_freqs.weight",), ("rope_factors_short.weight", "rope_factors_long.weight")

COMMON = frozenset({
    "attention_bias", "attention_dropout", "attn_logit_softcapping", "bos_token_id", "eos_token_id",
    "final_logit_softcapping", "head_dim", "hidden_act", "hidden_size", "intermediate_size", "layer_types",
    "max_position_embeddings", "mlp_bias", "num_attention_heads", "num_hidden_layers", "num_key_value_heads",
    "original_max_position_embeddings", "pad_token_id", "partial_rotary_factor", "rms_norm_eps", "rope_parameters",
    "rope_scaling", "rope_theta", "sliding_window", "tie_word_embeddings", "use_bidirectional_attention", "vocab_size",
})  # fmt: skip
"""Names of all families. Some a family does not have: `model_files` refuses them where they are set."""
LAYERS_THAT_SLIDE = frozenset({"layer_types", "sliding_window"})
"""Left over in files of families whose layers see everything: transformers' classes do not look at them."""
WINDOWS = frozenset({"max_window_layers", "use_sliding_window"})
OF_EXPERTS = frozenset({
    "decoder_sparse_step", "mlp_only_layers", "moe_intermediate_size", "norm_topk_prob", "num_experts",
    "num_experts_per_tok",
})  # fmt: skip
OF_DELTA_NETS = frozenset({
    "full_attention_interval", "linear_conv_kernel_dim", "linear_key_head_dim", "linear_num_key_heads",
    "linear_num_value_heads", "linear_value_head_dim", "linear_value_heads_are_tiled",
})  # fmt: skip
"""The last one is our own, for GGUF files, where value head j has key head j modulo their number."""

GATED = Form(
    norm="offset",
    head_norm="head",
    qkv_bias="attention_bias",
    out_bias="attention_bias",
    gates_attention=True,
    mixer="delta",
)
"""Layers of Qwen's hybrids."""
GATED_NAMES = GgufNames(
    architecture="qwen35",
    layer=ATTENTION | MLP | HEAD_NORMS | {
        "attn_norm": "input_layernorm", "post_attention_norm": "post_attention_layernorm",
        "attn_qkv": "linear_attn.in_proj_qkv", "attn_gate": "linear_attn.in_proj_z",
        "ssm_alpha": "linear_attn.in_proj_a", "ssm_beta": "linear_attn.in_proj_b", "ssm_conv1d": "linear_attn.conv1d",
        "ssm_a": "linear_attn.A_log", "ssm_dt.bias": "linear_attn.dt_bias", "ssm_norm": "linear_attn.norm",
        "ssm_out": "linear_attn.out_proj",
    },
    norm_offset=-1.0, plain_norms=frozenset({"ssm_norm"}), decays=frozenset({"ssm_a"}),
)  # fmt: skip
