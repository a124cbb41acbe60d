"""Reading a model directory's weights into `decoder.Decoder`, as transformers does.

Tensors stay where safetensors maps them, in the file, unless they are of another dtype. What the model has and the
files do not is an error; what the files have besides is left out with a warning. A head that shares the embedding's
weights may be in the files once, under either name, or twice.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from .decoder import Decoder
from .directory_check import weight_files
from .numbers_check import check_complete, shown

logger = logging.getLogger(__name__)

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TABLES = ".rotary_emb.inv_freq"
"""In old files; computed since."""


def load_decoder(directory: Path, config: Any, dtype: torch.dtype) -> Decoder:
    """Raises ModelFileError if weights are missing; whatever torch and safetensors raise if they do not fit."""
    decoder = Decoder(config)
    wanted = set(decoder.state_dict())
    found, left = _read(directory, wanted, dtype)
    if left:
        logger.warning(
            "%s: %d tensors are no part of the model and are not used, the first is %s", directory, len(left), left[0]
        )
    is_tied = config.tie_word_embeddings and _tie(found, directory)
    check_complete(directory, {"missing_keys": wanted - found.keys()})
    decoder.load_state_dict(found, assign=True)
    if is_tied:
        decoder.lm_head.weight = decoder.model.embed_tokens.weight
    return decoder.eval()


def _read(directory: Path, wanted: set[str], dtype: torch.dtype) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the model's names, and the names of those that it has no place for."""
    found: dict[str, Tensor] = {}
    left: list[str] = []
    for path in weight_files(directory):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dict
                own = _own_name(name, wanted)
                if own is not None:
                    found[own] = _cast(file.get_tensor(name), dtype, name)
                elif not name.endswith(_TABLES):
                    left.append(shown(name))
    return found, sorted(left)


def _own_name(name: str, wanted: set[str]) -> str | None:
    """A model that was saved without its head has its names without `model.`."""
    return name if name in wanted else f"model.{name}" if f"model.{name}" in wanted else None


def _cast(tensor: Tensor, dtype: torch.dtype, name: str) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(f"{shown(name)} has {str(tensor.dtype).removeprefix('torch.')} numbers, no plain weights")
    return tensor.to(dtype)


def _tie(found: dict[str, Tensor], directory: Path) -> bool:
    """Have the head and the embedding under both names; whether they are one."""
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
