"""How keys become config.json in families whose layers are of several kinds, each with sizes of its own."""

from __future__ import annotations

from typing import Any

from .container import Contents
from .rope import plain_rope, read_rope, scattered_rope, share
from .said import Said
from .settings import check_scale, no_window

_ROTATED = "rope.dimension_count"


def rotated(said: Said, width: int, name: str = _ROTATED) -> int:
    """The number of elements of a head that are rotated, in families that rotate all `width`."""
    if (found := said.whole(name, default=width)) != width:
        raise said.refuse(name, found, f"the family rotates all {width} numbers of a head")
    return width


def rotated_part(said: Said, width: int) -> int:
    """The number of elements of a head that are rotated, in families that may rotate a part."""
    rotated = said.whole(_ROTATED, default=width)
    if not 2 <= rotated <= width or rotated % 2:
        raise said.fail(_ROTATED, rotated, f"expected an even number from 2 to {width}")
    return rotated


def kinds(slides: list[bool]) -> list[str]:
    """`layer_types`, from which layers slide."""
    return ["sliding_attention" if one else "full_attention" for one in slides]


def pattern(said: Said, layers: int, usual: int | None) -> tuple[list[bool], dict[str, int]]:
    """Read which layers slide, from a list or from n (all but every n-th; the family's usual one where the file is
    silent), and the setting by which config.json states n."""
    name = "attention.sliding_window_pattern"
    found = said.value(name, usual)
    if isinstance(found, list):
        if len(found) < layers or not all(one in (0, 1) for one in found):  # llama.cpp takes numbers, too
            raise said.fail(name, found, f"expected true or false for each of {layers} layers")
        return [bool(one) for one in found], {}
    if type(found) is not int or not 0 <= found <= 512:
        raise said.fail(name, found, "expected a whole number up to 512")
    return [found == 0 or (at + 1) % found != 0 for at in range(layers)], {"_sliding_window_pattern": found}


_CAP = 30.0
"""Gemma 4's of logits, where the file is silent."""


def _no_drafts(said: Said) -> None:
    """Raise ModelFileError for blocks that only draft, which would have kinds, too."""
    if found := said.whole("nextn_predict_layers", default=0):
        raise said.refuse("nextn_predict_layers", found, "no block of the family only drafts")


def gemma4(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Gemma 4: layers that see everything have heads of their own size, fewer for keys, and perhaps no product for
    values. Scores are as they are."""
    layers, context = config["num_hidden_layers"], config["max_position_embeddings"]
    check_scale(said, 1)
    _no_drafts(said)
    slides, _ = pattern(said, layers, None)
    if slides[-1]:
        raise said.refuse("attention.sliding_window_pattern", slides, "the family's last layer sees everything")
    width, wide = said.whole("attention.key_length_swa", "head_dim"), config["head_dim"]
    if (found := said.whole("attention.value_length_swa", "head_dim", width)) != width:
        raise said.refuse("attention.value_length_swa", found, f"keys have {width}")
    counts = said.by_layer("attention.head_count_kv", "num_key_value_heads")
    each = {kind: {counts[at] for at in range(layers) if slides[at] == kind} for kind in (False, True)}
    heads, of_sliding = max(each[False]), max(each[True] or each[False])
    keys_are_values = f"blk.{slides.index(False)}.attn_v.weight" not in contents.tensors
    if min(counts) == 0 or any(len(some) > 1 for some in each.values()) or not (keys_are_values or heads == of_sliding):
        why = "layers of one kind are alike, and those that have a product for values are alike in all kinds"
        raise said.refuse("attention.head_count_kv", counts, why)
    sliding = rotated(said, width, f"{_ROTATED}_swa")
    cap = said.number("final_logit_softcapping", _CAP)
    if not 0 <= cap <= 1e6:
        raise said.fail("final_logit_softcapping", cap, "expected a number from 0 to 1e6")
    return {
        "rope_parameters": {
            "full_attention": scattered_rope(said, contents, rotated(said, wide), context),
            "sliding_attention": plain_rope(said, "rope.freq_base_swa", sliding, context),
        },
        "layer_types": kinds(slides),
        "sliding_window": min(said.whole("attention.sliding_window", "sliding_window"), context),
        "head_dim": width, "global_head_dim": wide, "num_key_value_heads": of_sliding,
        "num_global_key_value_heads": heads, "attention_k_eq_v": keys_are_values,
        "final_logit_softcapping": cap or None, "hidden_activation": "gelu_pytorch_tanh", **_sharing(said, config),
    }  # fmt: skip


def _sharing(said: Said, config: dict[str, Any]) -> dict[str, Any]:
    """The settings of Gemma 4's small models: the last layers have no keys and perhaps a wider MLP, and all read
    embeddings by layer."""
    name = "attention.shared_kv_layers"
    shared = said.whole(name, "num_kv_shared_layers", 0)
    if shared >= config["num_hidden_layers"]:
        raise said.fail(name, shared, f"of {config['num_hidden_layers']} layers")
    widths, width = said.by_layer("feed_forward_length"), config["intermediate_size"]
    first = len(widths) - shared
    wide = set(widths[first:])
    if set(widths[:first]) != {width} or len(wide) > 1 or not wide <= {width, 2 * width}:
        why = "layers are alike, and those without keys of their own perhaps twice as wide"
        raise said.refuse("feed_forward_length", widths, why)
    found = {"hidden_size_per_layer_input": said.whole(
        "embedding_length_per_layer_input", "hidden_size_per_layer_input", 0
    )}  # fmt: skip
    if found["hidden_size_per_layer_input"]:
        found["vocab_size_per_layer_input"] = config["vocab_size"]
    if shared:
        found |= {"num_kv_shared_layers": shared, "use_double_wide_mlp": wide == {2 * width}}
    return found


def lfm2(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """LFM2: layers without heads for keys are convolutions."""
    hidden, heads, width = config["hidden_size"], config["num_attention_heads"], config["head_dim"]
    context = config["max_position_embeddings"]
    no_window(said, context)
    check_scale(said, width)
    _no_drafts(said)
    counts = said.by_layer("attention.head_count_kv")
    if len(set(counts) - {0}) != 1:
        raise said.refuse("attention.head_count_kv", counts, "some layers attend, all with as many heads")
    return {
        "rope_parameters": read_rope(said, contents, rotated(said, width), context),
        "layer_types": ["full_attention" if count else "conv" for count in counts],
        "conv_L_cache": said.whole("shortconv.l_cache", "conv_L_cache"), "conv_bias": False,
        "block_auto_adjust_ff_dim": False, "head_dim": None if hidden == heads * width else width,
    }  # fmt: skip


def qwen_hybrid(said: Said, contents: Contents, config: dict[str, Any]) -> dict[str, Any]:
    """Qwen3.5 and Qwen3-Next: layers that do not attend are delta nets."""
    width, context = config["head_dim"], config["max_position_embeddings"]
    no_window(said, context)
    check_scale(said, width)
    part = rotated_part(said, width)
    groups, heads = (
        said.whole(f"ssm.{name}", f"linear_num_{whose}_heads")
        for name, whose in (("group_count", "key"), ("time_step_rank", "value"))
    )
    inner = said.whole("ssm.inner_size")
    if heads % groups or inner % heads:
        names = f"{said.architecture}.ssm.time_step_rank is {heads}, {said.architecture}.ssm.group_count {groups}"
        raise said.fail("ssm.inner_size", inner, f"{names}: each key head serves as many value heads")
    return {
        "rope_parameters": {**read_rope(said, contents, part, context), "partial_rotary_factor": share(part, width)},
        "layer_types": _recurrent(said, config["num_hidden_layers"]), "hidden_act": "silu",
        "linear_num_key_heads": groups, "linear_num_value_heads": heads, "linear_value_head_dim": inner // heads,
        "linear_key_head_dim": said.whole("ssm.state_size", "linear_key_head_dim"),
        "linear_conv_kernel_dim": said.whole("ssm.conv_kernel", "linear_conv_kernel_dim"),
    }  # fmt: skip


def _recurrent(said: Said, layers: int) -> list[str]:
    """`layer_types`, from a list of which layers are recurrent, or from n: every n-th attends."""
    name = "attention.recurrent_layers"
    found, every = said.value(name), said.whole("full_attention_interval", "full_attention_interval", 4)
    if found is None:
        if not every:
            raise said.fail("full_attention_interval", every, "expected a whole number from 1")
        found = [(at + 1) % every != 0 for at in range(layers)]
    if not isinstance(found, list) or len(found) < layers or not all(one in (0, 1) for one in found):
        raise said.fail(name, found, f"expected true or false for each of {said.architecture}.block_count, {layers}")
    return ["linear_attention" if one else "full_attention" for one in found[:layers]]
