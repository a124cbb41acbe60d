"""The table of GGUF architectures: for each, how its keys become a family's config.json, and its tensors its weights.

An entry says only in what its files differ from Llama's. Names of tensors are given without `blk.N.` and their endings,
names of weights without `model.layers.N.`; shapes are the family's own (`decoder`), which `plan` compares.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...api.errors import ModelFileError
from ...untrusted.families import FAMILIES
from ...untrusted.family import GgufNames
from ...untrusted.numbers import shown
from .by_kind import gemma4, kinds, lfm2, pattern, qwen_hybrid, rotated, rotated_part
from .container import Contents
from .kinds import check_is_model
from .latent import glm4_moe_lite
from .rope import plain_rope, read_rope, share
from .said import Said
from .settings import WITHOUT_EFFECT, check_scale, common, no_window, window

Settings = Callable[[Said, Contents, dict[str, Any]], dict[str, Any]]
"""(keys, file, what `settings.common` found) -> what config.json says besides or instead. A value that only says how a
name is spelled out, such as `max_window_layers` where nothing slides, is as transformers writes it: a store knows its
model by what config.json says, and one from before stays that model's."""

OUTER = {"model.embed_tokens": "token_embd", "lm_head": "output"}
"""The tensors of weights that are in no layer, besides `GgufNames.final_norm`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """The content of files of one architecture, and how it is read."""

    family: str
    names: GgufNames
    settings: Settings

    @property
    def paired(self) -> Mapping[str, str]:
        """Tensor of a block whose rows, and bias, stand in pairs (`in_halves`) -> the setting that says of how many
        heads."""
        return _HEADS if self.names.in_pairs else {}


def in_halves(weight: Tensor, heads: int) -> Tensor:
    """Move rows of each head that are rotated in pairs (2i, 2i + 1) into halves (i, i + d/2), as transformers rotates
    them."""
    pairs = weight.view(heads, -1, 2, *weight.shape[1:])
    return pairs.transpose(1, 2).reshape(weight.shape)


_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def _rope(said: Said, contents: Contents, config: Mapping[str, Any]) -> dict[str, Any]:
    return read_rope(said, contents, rotated(said, config["head_dim"]), config["max_position_embeddings"])


def _own_head_dim(config: Mapping[str, Any]) -> dict[str, Any]:
    """The setting `head_dim` for families whose class derives it: stated only if it is another width."""
    heads, width = config["num_attention_heads"], config["head_dim"]
    return {"head_dim": None if config["hidden_size"] == heads * width else width}


def _llama(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    no_window(said, config["max_position_embeddings"])
    check_scale(said, config["head_dim"])
    return {"rope_parameters": _rope(said, contents, config), "hidden_act": "silu"}


def _mixtral(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    return {**_llama(said, contents, config), **_own_head_dim(config), "sliding_window": None}


def _qwen(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    return {
        **_llama(said, contents, config), "layer_types": ["full_attention"] * config["num_hidden_layers"],
        "sliding_window": None, "use_sliding_window": False, "max_window_layers": 28,
    }  # fmt: skip


def _qwen2(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    return {**_qwen(said, contents, config), **_own_head_dim(config)}


def _qwen2_moe(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Qwen 2 with experts and a shared one: shares are as they come, which no key says; no layer is dense."""
    return {
        **_qwen2(said, contents, config), "norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _qwen3_moe(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Qwen 3 with experts: their shares are divided by their sum, which no key says; no layer is dense."""
    return {
        **_llama(said, contents, config), "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "sliding_window": None, "use_sliding_window": False,
    }  # fmt: skip


def _smollm3(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """SmolLM3: every fourth layer does not rotate, which no key says."""
    layers = config["num_hidden_layers"]
    return {
        **_llama(said, contents, config), **_own_head_dim(config), "layer_types": ["full_attention"] * layers,
        "sliding_window": None, "use_sliding_window": False, "no_rope_layer_interval": 4,
        "no_rope_layers": [int((at + 1) % 4 != 0) for at in range(layers)],
    }  # fmt: skip


def _olmo2(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    return {**_llama(said, contents, config), **_own_head_dim(config)}


def _olmo3(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """OLMo 3: three layers of four slide, and are not stretched."""
    width, context = config["head_dim"], config["max_position_embeddings"]
    check_scale(said, width)
    return {
        "rope_parameters": {
            "full_attention": _rope(said, contents, config),
            "sliding_attention": plain_rope(said, "rope.freq_base", width, context),
        },
        **_sliding(said, config), "hidden_act": "silu", **_own_head_dim(config),
    }  # fmt: skip


def _ministral3(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Ministral 3: queries grow, beginning at the original length; YaRN's factor of cos and sin has a divisor."""
    no_window(said, config["max_position_embeddings"])
    check_scale(said, config["head_dim"])
    rope = _rope(said, contents, config)
    if rope["rope_type"] != "yarn":
        raise said.refuse("rope.scaling.type", rope["rope_type"], "the family's positions are YaRN's")
    beta, multiplier = (
        said.number("attention.temperature_scale", 0.0),
        said.number("rope.scaling.yarn_log_multiplier", 0.0),
    )
    if not 0 <= beta <= 1e3 or not 0 <= multiplier <= 1e3:
        raise said.fail(
            "attention.temperature_scale", beta, "expected a number from 0, as rope.scaling.yarn_log_multiplier"
        )
    usual = 0.1 * math.log(rope["factor"])
    rope["attention_factor"] = rope.get("attention_factor", usual + 1) / (multiplier * usual + 1)
    return {
        "rope_parameters": {**rope, "llama_4_scaling_beta": beta}, "sliding_window": None, "hidden_act": "silu",
    }  # fmt: skip


def _granite(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Granite: scores, embeddings, what layers add, and logits have factors of the file's own."""
    no_window(said, config["max_position_embeddings"])
    scale = said.number("attention.scale", 0.0)
    return {
        "rope_parameters": _rope(said, contents, config), "hidden_act": "silu", **_own_head_dim(config),
        "attention_multiplier": scale or config["head_dim"] ** -0.5,
    }  # fmt: skip


_SLIDING_EXAONE = 64
"""The layers of EXAONE 4's 32B model, the one whose layers slide: no key says so."""


def _exaone4(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    layers, context = config["num_hidden_layers"], config["max_position_embeddings"]
    check_scale(said, config["head_dim"])
    if layers == _SLIDING_EXAONE:
        window_and_kinds = _sliding(said, config)
    else:
        no_window(said, context, f"of EXAONE 4 the model of {_SLIDING_EXAONE} layers alone has layers that slide")
        window_and_kinds = {"layer_types": kinds([False] * layers), "sliding_window": None}
    return {
        "rope_parameters": _rope(said, contents, config), **window_and_kinds, "hidden_act": "silu",
        **_own_head_dim(config),
    }  # fmt: skip


def _gpt_oss(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """gpt-oss: every second layer sees everything. The bounds of YaRN's ramp are not rounded, which no key says and
    llama.cpp does otherwise: the model's own directory has it so."""
    check_scale(said, config["head_dim"])
    rope = _rope(said, contents, config)
    if rope["rope_type"] == "yarn":
        rope |= {"beta_fast": rope.get("beta_fast", 32.0), "beta_slow": rope.get("beta_slow", 1.0), "truncate": False}
    return {"rope_parameters": rope, **_sliding(said, config, 2), "hidden_act": "silu"}


def _cohere2(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    check_scale(said, config["head_dim"])
    return {
        "rope_parameters": _rope(said, contents, config), **_sliding(said, config), "hidden_act": "silu",
        **_own_head_dim(config),
    }  # fmt: skip


def _sliding(said: Said, config: Mapping[str, Any], usual: int = 4) -> dict[str, Any]:
    """The window, and which layers slide: all but every `usual`-th, unless the file says otherwise."""
    slides, _ = pattern(said, config["num_hidden_layers"], usual)
    sees = min(said.whole("attention.sliding_window", "sliding_window"), config["max_position_embeddings"])
    return {"layer_types": kinds(slides), "sliding_window": sees}


def _phi3(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Phi-3: the window counts, though llama.cpp leaves it out, since the model's own directory has it."""
    width, context = config["head_dim"], config["max_position_embeddings"]
    part = rotated_part(said, width)
    check_scale(said, width)
    rope = read_rope(said, contents, part, context, lists_only=True)
    original = said.whole("rope.scaling.original_context_length", default=context) or context
    return {
        "rope_parameters": {**rope, "partial_rotary_factor": share(part, width)}, **_own_head_dim(config),
        "original_max_position_embeddings": rope.get("original_max_position_embeddings", original),
        "sliding_window": window(said, context), "hidden_act": "silu",
    }  # fmt: skip


def _glm4(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """GLM-4: the first part of each head is rotated."""
    width, context = config["head_dim"], config["max_position_embeddings"]
    part = rotated_part(said, width)
    no_window(said, context)
    check_scale(said, width)
    rope = {**read_rope(said, contents, part, context), "partial_rotary_factor": share(part, width)}
    return {"rope_parameters": rope, "hidden_act": "silu"}


def _qwen3_next(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3-Next: the shares of its experts are divided by their sum, which no key says; no layer is dense."""
    return {
        **qwen_hybrid(said, contents, config), "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    }  # fmt: skip


def _qwen3_5(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    return {**qwen_hybrid(said, contents, config), "linear_value_heads_are_tiled": True}


def _gemma3(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 3: scaling is for the layers that see everything; the others have a base frequency of their own. The 27B
    model, known by its 62 layers, scales scores by its width, all others by their heads'."""
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scalar = config["hidden_size"] // heads if layers == 62 else config["head_dim"]
    check_scale(said, scalar)
    # A window over all the model may read is one still: layers that slide have a base frequency of their own.
    sees = min(said.whole("attention.sliding_window", default=0), config["max_position_embeddings"]) or None
    slides, said_so = pattern(said, layers, 6)
    return {
        "rope_parameters": {
            "full_attention": _rope(said, contents, config),
            "sliding_attention": plain_rope(
                said, "rope.freq_base_swa", config["head_dim"], config["max_position_embeddings"]
            ),
        },
        "layer_types": kinds([sees is not None and one for one in slides]), "sliding_window": sees,
        "query_pre_attn_scalar": scalar, **said_so,
        "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": False,
        "attn_logit_softcapping": None, "final_logit_softcapping": None,
    }  # fmt: skip


_SETTINGS: dict[str, Settings] = {
    "llama": _llama, "qwen2": _qwen2, "qwen3": _qwen, "gemma3_text": _gemma3, "phi3": _phi3, "olmo2": _olmo2,
    "smollm3": _smollm3, "olmo3": _olmo3, "granite": _granite, "exaone4": _exaone4, "cohere2": _cohere2,
    "ministral3": _ministral3, "qwen3_moe": _qwen3_moe, "qwen2_moe": _qwen2_moe, "mixtral": _mixtral,
    "glm4": _glm4, "gemma4_text": gemma4, "lfm2": lfm2, "gpt_oss": _gpt_oss,
    "qwen3_5_text": _qwen3_5, "qwen3_5_moe_text": _qwen3_5, "qwen3_next": _qwen3_next,
    "glm4_moe_lite": glm4_moe_lite,
}  # fmt: skip
"""Family -> what keys become in its config.json, where that is code."""
_ENTRIES = [
    Architecture(family=name, names=family.gguf, settings=_SETTINGS[name])
    for name, family in FAMILIES.items() if family.gguf is not None
]  # fmt: skip
ARCHITECTURES: dict[str, Architecture] = {
    entry.names.architecture: entry for entry in _ENTRIES if entry.names.only_with is None
}
"""The entries by `general.architecture`. Mistral's models are `llama` files."""
VARIANTS: dict[str, Architecture] = {
    entry.names.architecture: entry for entry in _ENTRIES if entry.names.only_with is not None
}
"""Other families with files of the same architecture, told by a key."""


def read_settings(contents: Contents) -> tuple[Architecture, dict[str, Any]]:
    """Find the entry of a file's architecture, and make its config.json.

    Raises ModelFileError if it is no model, of no supported architecture, or says something that the family cannot do.
    """
    name = check_is_model(contents)
    if name not in ARCHITECTURES:
        raise ModelFileError(
            f"{contents.path}: model family {shown(name)} is not supported; "
            f"supported in GGUF files: {', '.join(sorted(ARCHITECTURES))}"
        )
    entry, said = ARCHITECTURES[name], Said(contents, name)
    variant = VARIANTS.get(name)
    if variant is not None and variant.names.only_with and said.whole(variant.names.only_with, default=0):
        entry = variant
    config = common(said, contents, FAMILIES[entry.family])
    config |= {flag: _has_bias(contents, tensors) for flag, tensors in entry.names.biases.items()}
    config |= entry.settings(said, contents, config)
    said.refuse_rest(WITHOUT_EFFECT)
    return entry, {"model_type": entry.family, **{name: value for name, value in config.items() if name != "head_dim"
                   or value is not None}}  # fmt: skip


def _has_bias(contents: Contents, tensors: tuple[str, ...]) -> bool:
    fused = ("attn_qkv",) if "attn_q" in tensors else ()
    ends = tuple(f".{tensor}.bias" for tensor in (*tensors, *fused))
    return any(name.startswith("blk.") and name.endswith(ends) for name in contents.tensors)
