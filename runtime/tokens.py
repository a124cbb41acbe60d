"""The tokenizer of a model directory: transformers' own, found without its table of all models where that can be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import json_check

_PLAIN = frozenset({"TokenizersBackend", "PreTrainedTokenizerFast"})
"""What a file says that is tokenizer.json and nothing else: two names of one class."""
_TAKE_IT = frozenset({"llama", "smollm3"})
"""Families in which transformers follows that. In others it has a class of its own, or looks for other files first."""


def load_tokenizer(directory: Path, config: Any) -> Any:
    """As `AutoTokenizer` finds it; raises what transformers raises. `config` is the model's."""
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if config.model_type in _TAKE_IT and _named(directory / "tokenizer_config.json") in _PLAIN:
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, **local)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(directory, config=config, **local)


def _named(path: Path) -> Any:
    if not path.is_file():
        return None
    return json_check.read(path, json_check.TOKENIZER_SETTINGS).get("tokenizer_class")
