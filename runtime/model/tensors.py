"""The map from tensors in a model directory to weights of the model, and the errors where it is incomplete.

Every weight of the model comes from the files, in its shape. Every tensor of the files is a weight of the model, or is
known to change nothing, or is an error that names it: a tensor that is left over was meant to change the result.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..api.errors import ModelFileError
from ..untrusted.directory import check_weights
from ..untrusted.families import FAMILIES
from ..untrusted.family import Family
from ..untrusted.numbers import shown
from . import mxfp4
from .mlp import Mixture
from .sharing import num_writing

logger = logging.getLogger(__name__)

_MARK = "layers.0.post_attention_layernorm.weight"
"""Ends a name in every family's decoder; of other parts, in those for pictures and sound alone. The text before it is
before all names of the decoder."""
_HEAD = "lm_head.weight"
_EXPERT = re.compile(r"(.*\.experts)\.(\d+)\.(gate_proj|up_proj|down_proj)\.(weight|bias)")
"""Matches the name of an expert's weight or bias: the layer's experts, the number, the product, what of it."""
_GATE_UP = ("gate_proj", "up_proj")
_COMPUTED = re.compile(r"(.*\.)?rotary_emb\.(inv_freq|cos_cached|sin_cached)", re.DOTALL)
"""Matches tensors of old files that are computed from `config.json` since."""
_OF_KEYS = re.compile(r"(?:.*\.)?layers\.(\d{1,9})\.self_attn\.(?:k_proj|v_proj|k_norm|v_norm)\.(?:weight|bias)")
_NO_EFFECT = {
    r"(model\.)?(visual|vision_tower|vision_model|multi_modal_projector|mm_projector|image_newline|embed_vision)(\..*)?":
        "the part for pictures, and only text is read",
    r"(model\.)?(audio_tower|embed_audio)(\..*)?": "the part for sound, and only text is read",
    r"(model\.)?mtp\..*": "a part that predicts several tokens at once, which is not asked to",
}  # fmt: skip
"""Tensors that a text's logits do not depend on, each with what it is."""
_OF_EXPERTS = r".*(expert|moe|router|mlp\.gate\.).*"
_LEFT_OVER = {
    r".*(lora_|base_layer\.|modules_to_save\.).*": "it is of an adapter; merge that into the model first",
    r".*(scales?|scale_inv|zeros|g_idx|qweight|absmax|quant_map|quant_state.*|weight_packed|weight_shape|SCB)":
        "its weights are quantised; take the model's plain files or a GGUF",
    _OF_EXPERTS: "it is of a mixture of experts, which this family is not",
}  # fmt: skip
"""Other tensors with what they are likely to be, the most telling first."""
_ANY, _NOTHING = r".*", r"(?!)"
_LAYER = r"(?:.*\.)?layers\.(\d{1,9})\..*"


def account(directory: Path, decoder: Any, shapes: Mapping[str, tuple[int, ...]] | None = None) -> dict[str, str]:
    """Map the names of tensors in the directory's files to the weights of `decoder`, some of which may be those of all
    experts of a layer together (`split_experts`).

    Args:
        shapes: of tensors that are in memory, in place of those in the files.

    Raises ModelFileError: a tensor that is no weight of the model and may change the result, or one of another shape.
    """
    shapes = check_weights(directory).shapes if shapes is None else shapes
    wanted = {name: tuple(tensor.shape) for name, tensor in decoder.state_dict().items()}
    family = FAMILIES[decoder.config.model_type]
    wanted |= _fused(wanted, family)
    spelled = family.spelled
    names = _names(directory, shapes.keys(), wanted.keys(), spelled)
    left = sorted(name for name in shapes if name not in names and not _COMPUTED.fullmatch(name))
    left = [name for name in left if not _is_of_sharing(name, num_writing(decoder.config))]
    layers, drafts = decoder.config.num_hidden_layers, getattr(decoder.config, "num_nextn_predict_layers", None) or 0
    drafting = rf"(.*\.)?layers\.({'|'.join(map(str, range(layers, layers + drafts)))})\..*" if drafts else _NOTHING
    for pattern, what in {**_NO_EFFECT, drafting: "layers that only draft"}.items():
        some = [name for name in left if re.fullmatch(pattern, name, re.DOTALL)]
        left = [name for name in left if name not in set(some)]
        if some:
            logger.warning("%s: not used are %d tensors: %s (%s, ...)", directory, len(some), what, shown(some[0]))
    if left:
        raise ModelFileError(_told(directory, left, decoder.config))
    for name, own in names.items():
        if shapes[name] != wanted[own]:
            raise ModelFileError(
                f"{directory}: tensor {shown(name)}: its shape is {list(shapes[name])}, config.json asks for "
                f"{list(wanted[own])}"
            )
    return names


def _is_of_sharing(name: str, writing: int) -> bool:
    """Whether a tensor is for keys or values of a layer that attends to another one's: published files have them."""
    found = _OF_KEYS.fullmatch(name)
    return found is not None and int(found[1]) >= writing


def _fused(wanted: dict[str, tuple[int, ...]], family: Family) -> dict[str, tuple[int, ...]]:
    """The names and shapes of tensors in which a file may have the same weight of all experts of a layer."""
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in wanted.items():
        if (expert := _EXPERT.fullmatch(name)) is None:
            continue
        count, together = int(expert[2]) + 1, "gate_up_proj" if expert[3] in _GATE_UP else expert[3]
        rows, at = 2 * shape[0] if expert[3] in _GATE_UP else shape[0], f"{expert[1]}.{together}"
        if expert[4] == "bias":
            found[f"{at}_bias"] = count, rows
            continue
        is_turned = family.form.experts is not None and family.form.experts.clamp is not None
        found[at] = (count, shape[1], rows) if is_turned else (count, rows, shape[1])
        if family.packed == "mxfp4" and shape[1] % mxfp4.NUMBERS == 0:
            blocks = count, rows, shape[1] // mxfp4.NUMBERS
            found[f"{at}{mxfp4.BLOCKS}"], found[f"{at}{mxfp4.SCALES}"] = (*blocks, mxfp4.NUMBERS // 2), blocks
    return found


def split_experts(name: str, tensor: Tensor, *, is_turned: bool = False) -> dict[str, Tensor]:
    """The weights of single experts in one of `account`'s weights: views, unless they are turned
    (`ExpertNames.clamp`); of any other weight, itself."""
    stem, _, last = name.rpartition(".")
    if not stem.endswith(".experts"):
        return {name: tensor}
    together, end = last.removesuffix("_bias"), "bias" if last.endswith("_bias") else "weight"
    if is_turned and end == "weight":
        tensor = tensor.transpose(1, 2)
    parts = {together: tensor}
    if together == "gate_up_proj":
        halves = (tensor[:, ::2], tensor[:, 1::2]) if is_turned else tensor.chunk(2, 1)
        parts = dict(zip(_GATE_UP, halves, strict=True))
    return {
        f"{stem}.{number}.{part}.{end}": weight.contiguous() for part, weights in parts.items()
        for number, weight in enumerate(weights)
    }  # fmt: skip


def _spelled(name: str, spelled: Mapping[str, str]) -> str:
    found = f".{name}."
    for part, other in spelled.items():
        found = found.replace(f".{part}.", f".{other}.")
    return found[1:-1]


def _names(directory: Path, there: Any, wanted: Any, spelled: Mapping[str, str]) -> dict[str, str]:
    """Map names, allowing for wrappers, compilers and tools that put something before the names, or take it away."""
    mark = _spelled(_MARK, spelled) if any(name.endswith(_spelled(_MARK, spelled)) for name in there) else _MARK
    marks = [name for name in there if name == mark or name.endswith(f".{mark}")]
    before = sorted(
        name.removesuffix(mark) for name in marks if not any(re.fullmatch(part, name) for part in _NO_EFFECT)
    )
    if len(before) > 1:
        raise ModelFileError(
            f"{directory}: it has {len(before)} decoders, {shown(before[0] + mark)} and {shown(before[1] + mark)}; "
            "expected one"
        )
    prefix = before[0] if before else "model."
    found = {
        prefix + name.removeprefix("model."): own
        for own in wanted if own.startswith("model.") for name in (own, _spelled(own, spelled))
    }  # fmt: skip
    found |= dict.fromkeys((f"{prefix}{_HEAD}", f"{prefix.removesuffix('model.')}{_HEAD}", _HEAD), _HEAD)
    return {name: own for name, own in found.items() if name in there}


def _told(directory: Path, left: list[str], config: Any) -> str:
    """One line about the most telling of the tensors that are left."""
    layers = config.num_hidden_layers
    for pattern, what in {**_LEFT_OVER, _LAYER: f"num_hidden_layers is {layers}", _ANY: "it would be left out"}.items():
        if pattern == _OF_EXPERTS and Mixture.of(config) is not None:
            continue
        for name in left:
            found = re.fullmatch(pattern, name, re.DOTALL)
            if found is not None and (pattern != _LAYER or int(found[1]) >= layers):
                more = f", and {len(left) - 1} more," if len(left) > 1 else ""
                return f"{directory}: tensor {shown(name)}{more} is no weight of what config.json describes: {what}"
    raise AssertionError("some pattern fits every name")
