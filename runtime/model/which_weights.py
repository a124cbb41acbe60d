"""The weights that decode multiplies with where nobody names them (docs/decisions/0038).

They are a GGUF file's as they stand in it, wherever decode is compiled and reads every matrix of the file there; else
the model's own.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch

from ..process import compiled
from ..untrusted.families import FAMILIES
from .locate import gguf_here
from .packing import packing_of, require_device
from .products import ALL_KNOWN, INT8_EXPERTS, WEIGHTS

AUTO = "auto"
_ASKED = (AUTO, *WEIGHTS)


def which_weights(asked: str, model: str, device: torch.device, dtype: str, kv_dtype: str) -> str:
    """The one of `WEIGHTS` that decode is to multiply with.

    Args:
        asked: one of them, or `auto`: `file` where the whole file is read so, else `own`.
        model: as `locate` takes it. dtype: of the model. kv_dtype: of the cache; `auto`: the model's.

    Raises ValueError: there are no such weights, or `file` or `int4` cannot be here. ModelFileError: the GGUF file is
    damaged, or parts of it are missing.
    """
    if asked not in _ASKED:
        raise ValueError(f"weights is {', '.join(_ASKED[:-1])} or {_ASKED[-1]}, not {asked!r}")
    if (packing := packing_of(asked, device)) is not None:
        require_device(packing, device, dtype)
        return asked
    needed = _needed_for_file(device, dtype)
    if asked == "file" and needed is None and not compiled.can_compile():
        needed = "a numba that can be used here"
    if asked == "file" and needed is not None:
        raise ValueError(f"weights=file needs {needed}; leave it out, or use weights=own")
    if asked in ("int8", "file") and (files := gguf_here(model)):
        _check_layers(asked, files)  # before it is converted for nothing
    if asked != AUTO:
        return asked
    if needed is not None or kv_dtype == "float16":  # PyTorch would compute each step, from weights made for it
        return "own"
    files = gguf_here(model)
    return "file" if files and _is_read_there(files, dtype) and compiled.can_compile() else "own"


def _needed_for_file(device: torch.device, dtype: str) -> str | None:
    """What a model needs for its weights to be used as they stand in a file; None if it has all of it."""
    if device.type != "cpu":
        return f"a CPU, not {device}"
    if dtype == "float16":
        return "dtype float32 or bfloat16, not float16"
    if not compiled.is_available():
        return f"compiled decode: numba, and {compiled.SWITCH} other than 0"
    return None


def _check_layers(asked: str, files: list[Path]) -> None:
    """Raise ValueError if the layers of a GGUF file's model cannot have such weights."""
    from .gguf.directory import read_model

    config = read_model(files).config
    form = FAMILIES[config["model_type"]].form
    if asked == "int8" and form.experts is not None and form.experts.are_there(SimpleNamespace(**config)):
        raise ValueError(INT8_EXPERTS)
    if not form.has_other_weights:
        raise ValueError(f"weights={asked} {ALL_KNOWN}")


def _is_read_there(files: list[Path], dtype: str) -> bool:
    """True if all matrices can stay in the file, and are no wider there than converted."""
    from .file_weights import can_stay
    from .gguf.directory import read_model

    found = read_model(files)
    if not FAMILIES[found.config["model_type"]].form.has_other_weights:
        return False
    matrices = [weight for weight in found.weights if len(weight.shape) > 1]
    return can_stay(matrices, getattr(torch, dtype))
