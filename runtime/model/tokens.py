"""The tokenizer of a model directory: transformers' own, found without its table of all models where that can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..untrusted import json_files
from ..untrusted.families import FAMILIES

_PLAIN = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
"""Tokenizer classes, two names of one, that read tokenizer.json and nothing else."""

MADE_FROM, GGUF = "made_from", "gguf"
"""The mark in a tokenizer_config.json that we wrote: tokenizer.json says everything, whatever the family."""


def load_tokenizer(directory: Path, config: Any) -> Any:
    """Load the tokenizer that `AutoTokenizer` finds; raises what transformers raises. `config` is the model's."""
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    settings = _settings(directory / "tokenizer_config.json")
    plain = FAMILIES[config.model_type].has_plain_tokenizer and settings.get("tokenizer_class") in _PLAIN
    if plain or settings.get(MADE_FROM) == GGUF:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, **local)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, config=config, **local)


def _settings(path: Path) -> dict[str, Any]:
    return json_files.read(path, json_files.TOKENIZER_SETTINGS) if path.is_file() else {}
