"""The plan of which tensors of a file each weight is made from: all of both are used, or the file is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from types import SimpleNamespace
from typing import Any

from ...api.errors import ModelFileError
from ...untrusted.families import FAMILIES
from ...untrusted.numbers import shown
from ..sharing import num_writing
from .architectures import OUTER, Architecture
from .container import Contents
from .number_types import Tensor

_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")
_BLOCK = re.compile(r"blk\.(\d+)\.")
_EXPERT = re.compile(r"(.*\.experts\.)(\d+)(\..*)")
_OF_KEYS = re.compile(r"blk\.(\d+)\.attn_(?:k|v|k_norm)\.(?:weight|bias)")
_GATE_UP, _GATED = "ffn_gate_up_exps", ("ffn_gate_exps", "ffn_up_exps")
_FUSED = ("attn_q", "attn_k", "attn_v")
"""The tensors whose rows `attn_qkv` has one after the other."""
_REMEDY = "take another file of this model, or its directory of safetensors"


@dataclass(frozen=True, slots=True)
class TensorRows:
    """Some rows of a tensor, and the number they are multiplied by."""

    tensor: Tensor
    first: int
    rows: int
    scale: Tensor | None
    is_turned: bool = False
    """They are the columns of the part."""


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight of the model: its parts are one below the other; without any part it is zero."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[TensorRows, ...]
    offset: float = 0.0
    pairs: int = 0
    """The number of heads whose rows stand in pairs in the file (`architectures.in_halves`); 0: they stand as in the
    family."""
    is_decay: bool = False
    """The file has minus the exponential of the numbers."""
    is_exact: bool = False
    """It is fp32 whatever the model's dtype."""

    @property
    def elements(self) -> int:
        return prod(self.shape)


def plan_weights(
    contents: Contents, entry: Architecture, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> list[Weight]:
    """List the weights to write, in the order of `shapes`.

    Args:
        shapes: the shape of every weight that the model of `config` has, by its name.

    Raises ModelFileError: a weight is not in the file, a tensor has another shape or no place in the model.
    """
    return _Plan(contents, entry, config, shapes).made()


class _Plan:
    def __init__(
        self, contents: Contents, entry: Architecture, config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
    ) -> None:
        self._contents, self._entry, self._config, self._shapes = contents, entry, config, shapes
        experts = FAMILIES[entry.family].form.experts
        has_experts = experts is not None and experts.are_there(SimpleNamespace(**config))
        named = {**entry.names.layer, **(entry.names.with_experts if has_experts else {})}
        self._of_layer = {weight: tensor for tensor, weight in named.items()}
        self._outside = {**OUTER, "model.norm": entry.names.final_norm}
        self._outside |= {f"model.{weight}": tensor for tensor, weight in entry.names.outside.items()}
        self._writing = num_writing(SimpleNamespace(**config))
        self._used: set[str] = set(entry.names.rope_tensors)

    def made(self) -> list[Weight]:
        is_tied = self._config["tie_word_embeddings"]
        found = [self._weight(name) for name in self._shapes if not (is_tied and name == "lm_head.weight")]
        self._refuse_rest()
        return found

    def _weight(self, name: str) -> Weight:
        shape = tuple(self._shapes[name])
        at = _LAYER.fullmatch(name)
        named, prefix, own = (self._outside, "", name) if at is None else (self._of_layer, f"blk.{at[1]}.", at[2])
        if own in named:
            part = self._part(f"{prefix}{named[own]}", shape)
            return Weight(name, shape, (part,), is_decay=named[own] in self._entry.names.decays)
        stem, _, end = own.rpartition(".")
        if (expert := _EXPERT.fullmatch(stem)) is not None:
            tensor = named[f"{expert[1]}*{expert[3]}"]
            return Weight(name, shape, (self._of_expert(prefix, tensor, end, shape, int(expert[2])),))
        tensor = named[stem]
        is_moved = len(shape) == 1 and "norm" in tensor and tensor not in self._entry.names.plain_norms
        offset = self._entry.names.norm_offset if is_moved and end == "weight" else 0.0
        parts = self._parts(prefix, tensor, end, shape)
        heads = self._entry.paired.get(tensor)
        return Weight(name, shape, parts, offset, 0 if heads is None else self._config[heads])

    def _parts(self, prefix: str, tensor: str, end: str, shape: tuple[int, ...]) -> tuple[TensorRows, ...]:
        """The parts of a weight: from the tensor of that name; or for q, k and v from one that has them all, or for all
        from each."""
        name = f"{prefix}{tensor}.{end}"
        flat = tuple(size for size in shape if size > 1)
        if flat != shape and name in self._contents.tensors and self._contents.tensors[name].shape == flat:
            whole = self._part(name, flat, 0, shape[0])  # a row may stand as a vector, and so on
            return (replace(whole, tensor=replace(whole.tensor, shape=shape)),)
        if name in self._contents.tensors:
            return (self._part(name, shape),)
        fused = f"{prefix}attn_qkv.{end}"
        if tensor in _FUSED and fused in self._contents.tensors:
            heights = [self._rows(one, prefix) for one in _FUSED]
            first = sum(heights[: _FUSED.index(tensor)])
            return (self._part(fused, (sum(heights), *shape[1:]), first, shape[0]),)
        if tensor == "attn_qkv" and f"{prefix}attn_q.{end}" in self._contents.tensors:
            return tuple(self._part(f"{prefix}{one}.{end}", (self._rows(one, prefix), *shape[1:])) for one in _FUSED)
        if tensor == "ssm_in":
            return self._by_key_head(prefix, end, shape)
        if tensor == "attn_kv_b":
            return self._of_latent(prefix, end)
        if end == "bias":  # the family has all biases or none, a file only those that are not zero
            return ()
        raise self._fail(name, "the file does not have it; is it complete?")

    def _by_key_head(self, prefix: str, end: str, shape: tuple[int, ...]) -> tuple[TensorRows, ...]:
        """Rows of q, k, v and z, which are those of each key head together in the model, from tensors of all rows of q,
        then of k and v, and of all of z."""
        heads, key = self._config["linear_num_key_heads"], self._config["linear_key_head_dim"]
        value = self._config["linear_num_value_heads"] * self._config["linear_value_head_dim"] // heads
        qkv, gate = ((2 * key + value) * heads, *shape[1:]), (value * heads, *shape[1:])
        return tuple(
            part for at in range(heads) for part in (
                self._part(f"{prefix}attn_qkv.{end}", qkv, at * key, key),
                self._part(f"{prefix}attn_qkv.{end}", qkv, (heads + at) * key, key),
                self._part(f"{prefix}attn_qkv.{end}", qkv, 2 * heads * key + at * value, value),
                self._part(f"{prefix}attn_gate.{end}", gate, at * value, value),
            )
        )  # fmt: skip

    def _of_latent(self, prefix: str, end: str) -> tuple[TensorRows, ...]:
        """The rows of each head that make its key, which stand as columns, and those that make its value."""
        heads, rank = self._config["num_attention_heads"], self._config["kv_lora_rank"]
        plain, value = self._config["qk_nope_head_dim"], self._config["v_head_dim"]
        keys = self._part(f"{prefix}attn_k_b.{end}", (heads, rank, plain))
        values = self._part(f"{prefix}attn_v_b.{end}", (heads, value, rank))
        k = replace(keys, tensor=replace(keys.tensor, shape=(heads * rank, plain)), rows=rank, is_turned=True)
        v = replace(values, tensor=replace(values.tensor, shape=(heads * value, rank)), rows=value)
        return tuple(
            part for at in range(heads) for part in (replace(k, first=at * rank), replace(v, first=at * value))
        )

    def _of_expert(self, prefix: str, tensor: str, end: str, shape: tuple[int, ...], number: int) -> TensorRows:
        """An expert's rows of a tensor that has those of all; gate and up may stand in one, gate first."""
        rows, *columns = shape
        name, first, each = f"{prefix}{tensor}.{end}", number * rows, rows
        fused = f"{prefix}{_GATE_UP}.{end}"
        if tensor in _GATED and name not in self._contents.tensors and fused in self._contents.tensors:
            name, first, each = fused, 2 * number * rows + _GATED.index(tensor) * rows, 2 * rows
        names = FAMILIES[self._entry.family].form.experts
        assert names is not None
        count = self._config[names.count]
        whole = self._part(name, (count, each, *columns))
        return replace(whole, tensor=replace(whole.tensor, shape=(count * each, *columns)), first=first, rows=rows)

    def _rows(self, tensor: str, prefix: str) -> int:
        own = self._shapes.get(f"model.layers.{prefix[4:]}{self._entry.names.layer.get(tensor)}.weight")
        if own is not None:
            return own[0]
        heads = "num_attention_heads" if tensor == "attn_q" else "num_key_value_heads"
        width = self._config.get("head_dim") or self._config["hidden_size"] // self._config["num_attention_heads"]
        rows: int = self._config[heads] * width
        return rows

    def _part(self, name: str, shape: tuple[int, ...], first: int = 0, rows: int | None = None) -> TensorRows:
        tensor = self._contents.tensors.get(name)
        if tensor is None:
            raise self._fail(name, "the file does not have it; is it complete?")
        if tensor.shape != shape:
            raise self._fail(name, f"its shape is {shown(list(tensor.shape))}, the file's keys ask for {list(shape)}")
        self._used.add(name)
        return TensorRows(tensor, first, shape[0] if rows is None else rows, self._scale(name))

    def _scale(self, name: str) -> Tensor | None:
        """A number by which llama.cpp multiplies the product, for whatever type of numbers; None if there is none."""
        stem, _, end = name.rpartition(".")
        is_other = stem.rpartition(".")[2] + ".scale" in self._of_layer.values()  # a weight by itself
        scale = self._contents.tensors.get(f"{stem}.scale") if end == "weight" and not is_other else None
        if scale is not None:
            if scale.elements != 1:
                raise self._fail(scale.name, f"{scale.elements} numbers, expected one for the whole weight; {_REMEDY}")
            self._used.add(scale.name)
        return scale

    def _refuse_rest(self) -> None:
        """Raise ModelFileError unless every tensor has a place in the model, or is known to be of no use here."""
        layers = self._config["num_hidden_layers"]
        for name in self._contents.tensors:
            block = _BLOCK.match(name)
            is_draft = block is not None and int(block[1]) >= layers and self._has_drafts
            is_for_rounding = name.endswith(".input_scale")  # scales of activations, which are not quantised here
            keys = _OF_KEYS.fullmatch(name)
            is_of_sharing = keys is not None and int(keys[1]) >= self._writing  # the layer attends to another's
            if not (name in self._used or is_draft or is_for_rounding or is_of_sharing):
                raise self._fail(name, f"it is not supported: no part of a {self._entry.family} model; {_REMEDY}")

    @property
    def _has_drafts(self) -> bool:
        keys = self._contents.keys
        return bool(keys.get(f"{keys['general.architecture']}.nextn_predict_layers"))

    def _fail(self, tensor: str, problem: str) -> ModelFileError:
        return ModelFileError(f"{self._contents.path}: tensor {shown(tensor)}: {problem}")
