"""Models of known shapes with random weights: as fast as the real ones, and nothing is downloaded.

Speed does not depend on what the weights are, with one exception: which tokens an index finds, and so which pages
are wanted again at the next step, does. A hit rate of random weights is not that of a trained model.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..api.errors import DoesNotFitError
from ..engine.planner import free_memory
from ..model.decoder import is_recurrent, without_memory
from ..model.head_shapes import head_shapes
from ..model.model import Model
from ..model.model_files import read_configuration
from ..untrusted.families import FAMILIES

_POSITIONS = 1 << 18
"""The window of a model that is only asked for its sizes."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A family, and the settings in `config.json` that decide what a step costs."""

    family: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    rope_theta: float
    is_tied: bool = False
    """True if the head shares the embedding's weights."""
    most_layers: int = 0
    """The layers that it may be asked for, where they are more than it has."""
    experts: tuple[int, int, int] | None = None
    """How many there are, how many a token has, and their width."""
    kinds: tuple[str, ...] = ()
    """Those of the first layers, which come again and again. Empty: the family's own."""
    sharing: int = 0
    """The layers, the last ones, that have no keys of their own. Fewer layers are the first of all."""
    more: Mapping[str, Any] = field(default_factory=dict)
    """Settings that only such families have, or that they have otherwise, as in `config.json`."""

    def settings(self, positions: int, layers: int | None) -> dict[str, Any]:
        """Settings as in the family's `config.json`, with a window of at least `positions`."""
        count = self.layers if layers is None else layers
        found = {
            "num_hidden_layers": count,
            "hidden_size": self.hidden, "intermediate_size": self.intermediate,
            "num_attention_heads": self.heads, "num_key_value_heads": self.kv_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocabulary, "tie_word_embeddings": self.is_tied, "max_position_embeddings": positions,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.rope_theta}, "sliding_window": None,
            "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
        }  # fmt: skip
        if self.family.startswith("qwen"):
            found["use_sliding_window"] = False
        if self.experts is not None:
            found |= dict(
                zip(("num_experts", "num_experts_per_tok", "moe_intermediate_size"), self.experts, strict=True)
            )
            found["norm_topk_prob"] = True
        if self.kinds:
            found["layer_types"] = [self.kinds[at % len(self.kinds)] for at in range(count)]
        if self.sharing:
            found["num_kv_shared_layers"] = max(0, count - (self.layers - self.sharing))
        return {**found, **self.more}


def _delta_nets(value_heads: int) -> dict[str, Any]:
    """The settings that Qwen's hybrids have besides: every fourth layer attends."""
    return {
        "full_attention_interval": 4, "linear_num_key_heads": 16, "linear_num_value_heads": value_heads,
        "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_conv_kernel_dim": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
    }  # fmt: skip


_GEMMA4 = {
    "global_head_dim": 512, "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    },
}  # fmt: skip
_GEMMA4_31B = {
    **_GEMMA4, "layer_types": None, "num_global_key_value_heads": 4, "attention_k_eq_v": True, "sliding_window": 1024,
    "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0,
}  # fmt: skip
_GEMMA4_E2B = {
    **_GEMMA4, "num_global_key_value_heads": None, "attention_k_eq_v": False, "sliding_window": 512,
    "hidden_size_per_layer_input": 256, "vocab_size_per_layer_input": 262144, "use_double_wide_mlp": True,
}  # fmt: skip
_MINISTRAL3_14B = {
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
        "beta_fast": 32.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
    },
}  # fmt: skip
_GLM47_FLASH = {
    "kv_lora_rank": 512, "q_lora_rank": 768, "qk_nope_head_dim": 192, "qk_rope_head_dim": 64, "v_head_dim": 256,
    "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 4, "moe_intermediate_size": 1536,
    "n_group": 1, "topk_group": 1, "norm_topk_prob": True, "routed_scaling_factor": 1.8, "rope_interleave": True,
}  # fmt: skip

_GPT_OSS_20B = {
    "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128, "swiglu_limit": 7.0,
    "attention_bias": True, "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 150_000.0, "factor": 32.0, "original_max_position_embeddings": 4096,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    },
}  # fmt: skip

SHAPES = {
    "tiny": Shape("llama", 3, 48, 80, 6, 2, 8, 259, 1e4, most_layers=8),
    "smollm2-135m": Shape("llama", 30, 576, 1536, 9, 3, 64, 49152, 1e5, is_tied=True),
    "llama-3.2-1b": Shape("llama", 16, 2048, 8192, 32, 8, 64, 128256, 5e5, is_tied=True),
    "llama-3.1-8b": Shape("llama", 32, 4096, 14336, 32, 8, 128, 128256, 5e5),
    "mistral-7b-v0.3": Shape("mistral", 32, 4096, 14336, 32, 8, 128, 32768, 1e6),
    "qwen2.5-0.5b": Shape("qwen2", 24, 896, 4864, 14, 2, 64, 151936, 1e6, is_tied=True),
    "qwen2.5-7b": Shape("qwen2", 28, 3584, 18944, 28, 4, 128, 152064, 1e6),
    "qwen3-8b": Shape("qwen3", 36, 4096, 12288, 32, 8, 128, 151936, 1e6),
    "qwen3-30b-a3b": Shape("qwen3_moe", 48, 2048, 6144, 32, 4, 128, 151936, 1e6, experts=(128, 8, 768)),
    "qwen3.8-27b": Shape("qwen3_5_text", 64, 5120, 17408, 24, 4, 256, 248320, 1e7, more=_delta_nets(48)),
    "qwen3.6-35b-a3b": Shape(
        "qwen3_5_moe_text", 40, 2048, 512, 16, 2, 256, 248320, 1e7, experts=(256, 8, 512),
        more={**_delta_nets(32), "shared_expert_intermediate_size": 512},
    ),
    "gemma4-31b": Shape("gemma4_text", 60, 5376, 21504, 32, 16, 256, 262144, 1e6, is_tied=True, more=_GEMMA4_31B),
    "gemma4-e2b": Shape(
        "gemma4_text", 35, 1536, 6144, 8, 1, 256, 262144, 1e6, is_tied=True, more=_GEMMA4_E2B,
        kinds=("sliding_attention",) * 4 + ("full_attention",), sharing=20,
    ),
    "gpt-oss-20b": Shape("gpt_oss", 24, 2880, 2880, 64, 8, 64, 201088, 150_000, more=_GPT_OSS_20B),
    "ministral3-14b": Shape("ministral3", 40, 5120, 16384, 32, 8, 128, 131072, 1e6, more=_MINISTRAL3_14B),
    "glm-4.7-flash": Shape("glm4_moe_lite", 47, 2048, 10240, 20, 20, 64, 154880, 1e6, more=_GLM47_FLASH),
}  # fmt: skip
"""The known shapes by name, of the models' published `config.json`; of those of pictures and text, their text part.
`tiny` is for tests."""


def configuration(name: str, folder: Path, positions: int, layers: int | None = None) -> Any:
    """Write the `config.json` of a shape into `folder`, and read it as any model's.

    Raises ValueError for a shape nobody knows, more layers than it has, or so few that none attends.
    """
    if name not in SHAPES:
        raise ValueError(f"shape is one of {', '.join(SHAPES)}; not {name!r}")
    shape = SHAPES[name]
    most = max(shape.layers, shape.most_layers)
    if layers is not None and layers > most:
        raise ValueError(f"layers is at most {most} for {name}, not {layers}")
    settings = {"model_type": shape.family, **shape.settings(positions, layers)}
    (folder / "config.json").write_text(json.dumps(settings))
    config = read_configuration(folder, "transformers", has_weights=False)
    if all(is_recurrent(config, at) for at in range(config.num_hidden_layers)):
        raise ValueError(f"none of the first {layers} layers of {name} attends; ask for more layers")
    return config


def model_without_weights(name: str, folder: Path) -> Model:
    """Make a model of that shape whose weights have no memory, to be asked for their sizes; `folder` gets its
    `config.json`."""
    return Model(without_memory(configuration(name, folder, _POSITIONS)).to(torch.bfloat16), None)


def random_weights(
    name: str, folder: Path, device: torch.device, dtype: torch.dtype, positions: int, layers: int | None = None
) -> Any:
    """Make transformers' model of that shape, the same weights every time, and its `config.json` in `folder`. It has no
    tokenizer.

    Raises as `configuration`. DoesNotFitError: memory has no room for it.
    """
    config = configuration(name, folder, positions, layers)
    needed = sum(weight.numel() for weight in without_memory(config).parameters()) * dtype.itemsize
    free = free_memory(device)
    if needed > free:
        raise DoesNotFitError(
            f"{name} does not fit: {needed / 1e9:.3g} GB of weights, and {free / 1e9:.3g} GB of memory are free; ask "
            "for fewer layers, or another shape"
        )
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if FAMILIES[config.model_type].form.score_scale == 1.0:  # trained norms make up for it; else one key has all weight
        for layer, heads in zip(hf.model.layers, head_shapes(config), strict=True):
            layer.self_attn.q_norm.weight.data.mul_(heads.dim**-0.5)
    return hf.requires_grad_(False).to(device).eval()
