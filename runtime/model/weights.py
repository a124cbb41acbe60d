"""Reading a model directory's weights into `decoder.Decoder`, as transformers does.

Tensors stay where safetensors maps them, in the file, unless they are of another dtype. Which is which, and what may
be there besides, is `tensors`' to say. A head that shares the embedding's weights may be in the files once, under
either name, or twice.

Weights that are rounded (`packing`) go to their device one by one, as they are read: it never has the whole model in
the files' dtype.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ..untrusted.directory import weight_files
from ..untrusted.families import FAMILIES
from ..untrusted.numbers import check_complete, shown
from . import mxfp4
from .decoder import Decoder
from .mlp import kept_exact
from .packed import PackedLinear
from .packing import Packing, packed_names, replace
from .tensors import account, split_experts

logger = logging.getLogger(__name__)

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"


def load_decoder(
    directory: Path, config: Any, dtype: torch.dtype, device: torch.device, packing: Packing | None = None
) -> Decoder:
    """Load a directory's weights onto a device, rounded where there is a `packing`. Raises ModelFileError if some are
    missing, mis-shaped or left over (`tensors.account`); whatever torch and safetensors raise if they cannot be
    read."""
    decoder = Decoder(config)
    names, rounded = account(directory, decoder), packed_names(decoder) if packing is not None else frozenset()
    shapes, found, packed = decoder.state_dict(), dict[str, Tensor](), dict[str, PackedLinear]()
    for name, tensor in _read(directory, names, dtype, kept_exact(decoder), is_turned=_is_turned(config)):
        if packing is not None and name in rounded:
            packed[name] = packing.pack(tensor, None, device)
        found[name] = shapes[name] if name in rounded else tensor.to(device)
    is_tied = config.tie_word_embeddings and _tie(found, directory)
    check_complete(directory, {"missing_keys": shapes.keys() - found.keys()})
    decoder.load_state_dict(found, assign=True)
    if is_tied:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    for name, layer in packed.items():
        replace(decoder, name, layer)
    decoder.packing = packing
    return decoder.eval()


def decoder_over(hf: Any) -> Decoder:
    """Make our decoder over the weights of a model of transformers: its parameters are ours, and of experts that lie
    together in one, ours are views, unless they are turned (`split_experts`)."""
    decoder, there = Decoder(hf.config), hf.state_dict(keep_vars=True)
    names = account(Path(hf.config.name_or_path), decoder, {name: tuple(found.shape) for name, found in there.items()})
    found: dict[str, Tensor] = {}
    for name, own in names.items():
        found |= split_experts(own, there[name], is_turned=_is_turned(hf.config))
    decoder.load_state_dict(found, assign=True)
    if hf.lm_head.weight is hf.model.embed_tokens.weight:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    decoder.generation_config = hf.generation_config
    return decoder.requires_grad_(False).eval()


def _is_turned(config: Any) -> bool:
    """Whether tensors of all experts together are as `ExpertNames.clamp` says."""
    experts = FAMILIES[config.model_type].form.experts
    return experts is not None and experts.clamp is not None


def _read(
    directory: Path, names: dict[str, str], dtype: torch.dtype, exact: frozenset[str], *, is_turned: bool
) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors with the model's names; `names` maps the files' names to those. `exact`: in fp32. `is_turned`:
    see `split_experts`."""
    packed: dict[str, dict[str, Tensor]] = {}
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                if name not in names:
                    continue
                stem, part = mxfp4.part_of(names[name])
                if not part:
                    kind = torch.float32 if stem in exact else dtype
                    whole = _cast(file.get_tensor(name), kind, name)
                    yield from split_experts(stem, whole, is_turned=is_turned).items()
                    continue
                parts = packed.setdefault(stem, {})
                parts[part] = file.get_tensor(name)
                if len(parts) == 2:
                    numbers = mxfp4.expanded(parts[mxfp4.BLOCKS], parts[mxfp4.SCALES], dtype).transpose(1, 2)
                    yield from split_experts(stem, numbers, is_turned=is_turned).items()
                    parts.clear()


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"{shown(name)} has {str(tensor.dtype).removeprefix('torch.')} numbers, no plain weights")
    return tensor.to(dtype)


def _tie(found: dict[str, Tensor], directory: Path) -> bool:
    """Put the head and the embedding under both names. Returns True if they are one."""
    if _EMBEDDING in found and _HEAD in found:
        if not torch.equal(found[_EMBEDDING], found[_HEAD]):
            logger.warning(
                "%s: config.json says that the head shares the embedding's weights, but both are there and differ; "
                "each is used as it is",
                directory,
            )
            return False
    elif _EMBEDDING in found or _HEAD in found:
        weight = found[_EMBEDDING] if _EMBEDDING in found else found[_HEAD]
        found[_EMBEDDING] = found[_HEAD] = weight
    return True
