"""Bounds on the numbers in a model file that decide how much is allocated, and a guard around other libraries' parsers.

A number passes twice: on its own against `BOUNDS` before any parser computes with it (a layer count of 2^60
would already build a list of that length), then all together against the weights that are really in the
file (`check_allocation`): a model never needs more numbers than its file has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from ..api.errors import ModelFileError
from .families import FAMILIES

BOUNDS: dict[str, int] = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 20,
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 4096,
    "global_head_dim": 4096,
    "num_global_key_value_heads": 1024,
    "vocab_size": 1 << 22,
    "max_position_embeddings": 1 << 27,
    "sliding_window": 1 << 20,
    "num_labels": 1 << 16,
    "num_experts": 1 << 12,
    "num_local_experts": 1 << 12,
    "num_experts_per_tok": 1 << 8,
    "top_k_experts": 1 << 8,
    "num_kv_shared_layers": 512,
    "hidden_size_per_layer_input": 1 << 16,
    "vocab_size_per_layer_input": 1 << 22,
    "moe_intermediate_size": 1 << 20,
    "shared_expert_intermediate_size": 1 << 20,
    "decoder_sparse_step": 512,
    "full_attention_interval": 512,
    "conv_L_cache": 64,
    "linear_conv_kernel_dim": 64,
    "linear_key_head_dim": 1024,
    "linear_num_key_heads": 1024,
    "linear_num_value_heads": 1024,
    "linear_value_head_dim": 1024,
    "block_ff_dim": 1 << 20,
    "block_multiple_of": 1 << 16,
    "n_routed_experts": 1 << 12,
    "n_shared_experts": 1 << 8,
    "n_group": 1 << 8,
    "topk_group": 1 << 8,
    "kv_lora_rank": 1 << 14,
    "q_lora_rank": 1 << 16,
    "qk_nope_head_dim": 4096,
    "qk_rope_head_dim": 4096,
    "v_head_dim": 4096,
}
"""Name in `config.json` -> largest value; the smallest is 1, or 0 in `MAY_BE_0`. Each is several times what any known
model has."""
NULLABLE = frozenset({
    "head_dim", "num_key_value_heads", "sliding_window", "num_labels", "global_head_dim", "num_global_key_value_heads",
    "num_experts", "moe_intermediate_size", "top_k_experts", "block_ff_dim", "full_attention_interval", "q_lora_rank",
})  # fmt: skip
MAY_BE_0 = frozenset({"num_kv_shared_layers", "hidden_size_per_layer_input"})
FRACTIONS = frozenset({"partial_rotary_factor"})
"""Numbers above 0 and up to 1: of the head's width, how much is rotated."""
FACTORS = frozenset({
    "attention_multiplier", "block_ffn_dim_multiplier", "embedding_multiplier", "final_logit_softcapping",
    "logit_scale", "logits_scaling", "residual_multiplier", "routed_scaling_factor", "swiglu_alpha", "swiglu_limit",
})  # fmt: skip
"""Numbers above 0 that others are multiplied with, or divided by. A missing cap may be stated as null."""
_MOST_FACTOR = 1e6


def check_number(path: Path, field: str, name: str, value: object) -> None:
    """Raise ModelFileError unless `value` is within the bounds of `name`; `field` is what the file calls it."""
    if name in FRACTIONS:
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise ModelFileError(f"{path}: {field}: {shown(value)}, expected a number above 0 and up to 1")
    elif name in FACTORS:
        if value is None and name == "final_logit_softcapping":
            return
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= _MOST_FACTOR:
            raise ModelFileError(
                f"{path}: {field}: {shown(value)}, expected a number above 0 and up to {_MOST_FACTOR:g}"
            )
    elif name in BOUNDS and not (value is None and name in NULLABLE):
        bound, least = BOUNDS[name], int(name not in MAY_BE_0)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= bound:
            raise ModelFileError(f"{path}: {field}: {shown(value)}, expected a whole number from {least} to {bound}")
        if name in ("head_dim", "global_head_dim", "qk_rope_head_dim") and value % 2:
            raise ModelFileError(f"{path}: {field}: {value}, expected an even number: rotation works in pairs")


def check_family(path: Path, family: object) -> None:
    """Raise ModelFileError unless `family` is one whose forward pass we know."""
    if not isinstance(family, str) or family not in FAMILIES:
        raise ModelFileError(
            f"{path}: model family {shown(family)} is not supported; supported: {', '.join(sorted(FAMILIES))}"
        )


def check_shape(path: Path, numbers: Mapping[str, int]) -> None:
    """Raise ModelFileError unless query heads share KV heads evenly, and the head's width, which may be derived from
    other numbers, is even."""
    heads, kv_heads, head_dim = (numbers[name] for name in ("num_attention_heads", "num_key_value_heads", "head_dim"))
    if heads % kv_heads:
        raise ModelFileError(f"{path}: num_key_value_heads: {kv_heads}, which do not divide {heads} attention heads")
    if head_dim < 2 or head_dim % 2:
        raise ModelFileError(f"{path}: head_dim: {head_dim}, expected an even number from 2")


def check_allocation(path: Path, numbers: Mapping[str, int], elements: int, tensors: int, with_heads: int) -> None:
    """Raise ModelFileError if a model of these sizes has more weights than the file holds.

    Args:
        numbers: by their names in `config.json`; all of `BOUNDS` that decide a weight's shape.
        elements: number of elements of the file's tensors together.
        with_heads: layers that have weights for each head's q, k and v; others have other weights in their place, which
            are not counted.
    """
    layers, hidden = numbers["num_hidden_layers"], numbers["hidden_size"]
    if layers > tensors:
        raise ModelFileError(f"{path}: num_hidden_layers: {layers}, but the weights are only {tensors} tensors")
    heads = 2 * numbers["num_attention_heads"] + 2 * numbers["num_key_value_heads"]
    in_layers = layers * 3 * numbers["intermediate_size"] + with_heads * heads * numbers["head_dim"]
    needed = hidden * (numbers["vocab_size"] + in_layers)
    if needed > elements:
        raise ModelFileError(
            f"{path}: its sizes ({', '.join(f'{name}={value}' for name, value in numbers.items())}) ask for "
            f"{needed} weights, the file has {elements}"
        )


def check_complete(path: Path, found: Mapping[str, Any]) -> None:
    """Raise ModelFileError if the model has weights that the file does not: transformers would make them up.

    Args:
        found: transformers' report on what it did (`output_loading_info`).
    """
    missing = sorted(found["missing_keys"])
    if missing:
        raise ModelFileError(f"{path}: {len(missing)} of the model's weights are not there, the first is {missing[0]}")


def is_count(value: object) -> TypeGuard[int]:
    """True for a whole number from 0 on; JSON's true is none."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def shown(value: object) -> str:
    """A value from a file, short enough for a message and harmless in a terminal."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@contextmanager
def reading(path: Path, what: str) -> Iterator[None]:
    """Turn every error that a library's parser raises on a damaged file into a ModelFileError that names the file.
    Parsers raise whatever their indexing hits, and Rust's panics are not even Exceptions."""
    try:
        yield
    except (ModelFileError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = (str(error).splitlines() or [""])[0]
        raise ModelFileError(f"{path}: not {what}; is it complete? ({type(error).__name__}: {reason})") from error
