"""Checks for GGUF files that are no language model: the error says what each is, and what to take instead."""

from __future__ import annotations

from ...api.errors import ModelFileError
from ...untrusted.numbers import shown
from .container import Contents

_ALONE = {
    "adapter": "a LoRA adapter, which changes another model; merge it into that one (llama-export-lora) and take the "
    "merged file",
    "mmproj": "the part of a model that reads images or sound (mmproj); take the file of its language model, which "
    "lies beside it",
    "imatrix": "an importance matrix, which helps to quantise a model; take the model's own file",
    "controlvector": "a control vector, which steers another model; take that model's file",
    "vocab": "a vocabulary without weights; take the model's own file",
    "draft": "the draft block (MTP) of a model alone; take the file of the whole model",
}


def check_is_model(contents: Contents) -> str:
    """The architecture of a language model. Raises ModelFileError for any other file."""
    keys = contents.keys
    architecture = keys.get("general.architecture")
    kind = _kind(contents, architecture)
    if kind is not None:
        raise ModelFileError(f"{contents.path}: not a model but {_ALONE[kind]}")
    said = keys.get("general.type", "model")
    if said != "model":
        raise ModelFileError(f"{contents.path}: general.type: {shown(said)}, not a model; take a model's file")
    if not isinstance(architecture, str):
        raise ModelFileError(
            f"{contents.path}: not a readable GGUF model: general.architecture: {shown(architecture)}, expected a "
            "string; is it complete?"
        )
    return architecture


def _kind(contents: Contents, architecture: object) -> str | None:
    keys, names = contents.keys, contents.tensors
    said = keys.get("general.type")
    if said in _ALONE and said != "draft":
        return str(said)
    if "adapter.type" in keys or any(name.endswith((".lora_a", ".lora_b")) for name in names):
        return "adapter"
    if architecture == "clip":
        return "mmproj"
    if architecture == "controlvector":
        return "controlvector"
    if any(name.startswith("imatrix.") for name in keys) or any(name.endswith(".in_sum2") for name in names):
        return "imatrix"
    if not names and "tokenizer.ggml.tokens" in keys:
        return "vocab"
    if keys.get(f"{architecture}.nextn_predict_layers") and not any(name.startswith("blk.0.") for name in names):
        return "draft"
    return None
