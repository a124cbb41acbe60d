"""What llama.cpp's converter makes of a transformers model's weights: by which names, in which order of rows.

tensors_of(family, model)         all of them, as numpy, by their names in a file
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gguf
import numpy as np
import torch
from torch import Tensor

_PAIRS = frozenset({"llama", "smollm3", "granite", "mistral3"})
"""Rotated in consecutive pairs: the rows of q and k stand in another order than in transformers' half-split form."""
HYBRIDS = frozenset({"qwen35", "qwen35moe", "qwen3next"})
ONE_MORE = frozenset({"gemma3"}) | HYBRIDS
"""Norms are stored as they are used, 1 more than transformers' weight."""


def rope_of(config: Any) -> dict[str, Any]:
    """Of the layers that are scaled, where a model has two kinds."""
    said: dict[str, Any] = config.rope_parameters
    return said.get("full_attention", said)


def of_delta_net(family: str, name: str, weight: Tensor, config: Any) -> Iterable[tuple[str, Tensor]]:
    """A delta net's weight as the converter leaves it: value heads tiled, or rows by key head taken apart."""
    groups, heads = config.linear_num_key_heads, config.linear_num_value_heads
    keys, width = groups * config.linear_key_head_dim, config.linear_value_head_dim

    def tiled(rows: Tensor, size: int) -> Tensor:
        """Value heads of neighbouring key heads: first those that are the first of theirs."""
        of_each = rows.unflatten(0, (groups, heads // groups, size))
        return of_each.transpose(0, 1).flatten(0, 2) if family != "qwen3next" else rows

    part = name.split("linear_attn.")[1]
    if part == "in_proj_qkvz.weight":
        sizes = [keys // groups, keys // groups, heads // groups * width, heads // groups * width]
        *qkv, z = weight.unflatten(0, (groups, -1)).split(sizes, 1)
        yield name.replace("qkvz", "qkv"), torch.cat([rows.flatten(0, 1) for rows in qkv])
        yield name.replace("qkvz", "z"), z.flatten(0, 1)
    elif part in ("in_proj_qkv.weight", "conv1d.weight"):
        yield name, torch.cat([weight[: 2 * keys], tiled(weight[2 * keys :], width)]).squeeze(1)
    elif part == "in_proj_z.weight":
        yield name, tiled(weight, width)
    elif part == "out_proj.weight":
        yield name, tiled(weight.T, width).T
    elif part == "A_log":
        yield name, -tiled(weight, 1).exp()
    elif part in ("dt_bias", "in_proj_a.weight", "in_proj_b.weight"):
        yield name, tiled(weight, 1)
    else:
        yield name, weight


def _parts(family: str, model: Any) -> Iterable[tuple[str, Tensor]]:
    """The model's weights; gate and up of experts, which transformers has in one, apart."""
    for name, weight in model.state_dict().items():
        if family == "gpt-oss" and ".experts." in name:
            rows = weight if name.endswith("_bias") else weight.transpose(1, 2)
            stem, end = name.removesuffix("_bias"), "bias" if name.endswith("_bias") else "weight"
            gates = {"gate_proj": rows[:, ::2], "up_proj": rows[:, 1::2]} if "gate_up" in stem else {"down_proj": rows}
            for part, some in gates.items():
                yield f"{stem.rpartition('.')[0]}.{part}.{end}", some
        elif name.endswith("experts.gate_up_proj"):
            for part, half in zip(("gate_proj", "up_proj"), weight.chunk(2, 1), strict=True):
                yield name.replace("gate_up_proj", f"{part}.weight"), half
        elif name.endswith("experts.down_proj"):
            yield f"{name}.weight", weight
        elif name.endswith("kv_b_proj.weight"):
            config, stem = model.config, name.removesuffix("kv_b_proj.weight")
            each = weight.unflatten(0, (config.num_attention_heads, -1))
            keys, values = each.split([config.qk_nope_head_dim, config.v_head_dim], 1)
            yield f"{stem}k_b_proj.weight", keys.transpose(1, 2)
            yield f"{stem}v_b_proj.weight", values
        elif ".linear_attn." in name:
            yield from of_delta_net(family, name, weight, model.config)
        else:
            yield name, weight


def tensors_of(family: str, model: Any) -> dict[str, np.ndarray]:
    """What the converter makes of a model's weights, by their names in a file."""
    config = model.config
    arch = next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == family)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    found: dict[str, np.ndarray] = {}
    for name, weight in _parts(family, model):
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        called = _called(name) or names.get_name(name, (".weight", ".bias"))
        assert called, name
        if family in ONE_MORE and "norm" in name and "linear_attn" not in name:
            weight = weight + 1
        if family in _PAIRS and ".self_attn." in name and name.split(".")[-2] in ("q_proj", "k_proj"):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            weight = as_pairs(weight, heads)
        row = weight.squeeze(0) if weight.dim() > 1 else weight  # which stands as a vector
        row = row.squeeze(1) if "shortconv.conv" in called else row
        found[called] = row.contiguous().numpy()
    return found | _rope_tensors(model)


_NAMES = {
    "layer_scalar": "layer_output_scale.weight", "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale", "experts.gate_proj.weight": "ffn_gate_exps.weight",
    "experts.up_proj.weight": "ffn_up_exps.weight", "dt_bias": "ssm_dt.bias",
    ".mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "self_attn.sinks": "attn_sinks.weight",
}  # fmt: skip
"""Names that the library does not know."""


def _called(name: str) -> str | None:
    for ours, theirs in _NAMES.items():
        if name.endswith(ours) and (".mlp." in ours or ".mlp." not in name):
            return f"blk.{name.split('.')[2]}.{theirs}"
    return None


def as_pairs(rows: Tensor, heads: int) -> Tensor:
    """Rows of q or k, or their biases, in the order in which consecutive ones are rotated together."""
    return rows.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def _rope_tensors(model: Any) -> dict[str, np.ndarray]:
    rope = rope_of(model.config)
    if rope["rope_type"] == "longrope":
        return {f"rope_factors_{name}.weight": np.float32(rope[f"{name}_factor"]) for name in ("long", "short")}
    if rope["rope_type"] == "proportional":  # a part of the head is rotated, by factors that stop the rest
        half = model.config.per_layer_config[model.config.num_hidden_layers - 1].head_dim // 2
        turned = int(rope["partial_rotary_factor"] * half)
        return {"rope_freqs.weight": np.float32([1.0] * turned + [1e30] * (half - turned))}
    if rope["rope_type"] == "llama3":
        scaled = model.model.rotary_emb.inv_freq.double()
        plain = rope["rope_theta"] ** -(torch.arange(len(scaled), dtype=torch.float64) / len(scaled))
        return {"rope_freqs.weight": (plain / scaled).float().numpy()}
    return {}
