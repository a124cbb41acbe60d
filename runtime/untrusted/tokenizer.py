"""Bounds on tokenizer.json, which says how often and by how much a text is rewritten.

The vocabulary is only outlined (`json_files`); `tokenizers` reads it, and `model.py` compares its ids with the
weights. Its regular expressions are not judged: one that backtracks for ever makes reading a text slow.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..api.errors import ModelFileError
from . import json_files
from .numbers import shown
from .settings import MAX_ADDED

MAX_STEPS = 32
"""The most normalizers, pre-tokenizers, post-processors and decoders each; known files have up to 6."""
MAX_DEPTH = 12
MAX_VALUES = 4096
MAX_GROWTH = 256
"""The most times longer that all replacements and prefixes together may make a text."""
_STAGES = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_tokenizer(path: Path) -> None:
    """Raise ModelFileError, which names file and field, unless the tokenizer's work is bounded."""
    found = json_files.read_without(path, "model", json_files.VOCABULARY, json_files.TOKENIZER_SETTINGS)
    added = found.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise ModelFileError(f"{path}: added_tokens: expected a list of up to {MAX_ADDED}")
    for name in _STAGES:
        _check_stage(path, name, found.get(name))


def _check_stage(path: Path, name: str, stage: Any) -> None:
    steps, growth = 0, 1
    for number, (depth, value) in enumerate(_walk(stage)):
        if depth > MAX_DEPTH or number >= MAX_VALUES:
            raise ModelFileError(f"{path}: {name}: more than {MAX_DEPTH} levels or {MAX_VALUES} values")
        if isinstance(value, dict) and isinstance(value.get("type"), str):
            steps += 1
            growth *= max(1, *(len(str(value.get(text) or "")) for text in ("content", "prepend", "replacement")))
        if steps > MAX_STEPS:
            raise ModelFileError(f"{path}: {name}: more than {MAX_STEPS} steps one after another")
        if growth > MAX_GROWTH:
            raise ModelFileError(f"{path}: {name}: its steps make a text {shown(growth)} times longer")


def _walk(root: Any) -> Iterator[tuple[int, Any]]:
    """Yield every value inside with its level, outermost first."""
    level = [root]
    for depth in range(MAX_DEPTH + 2):
        yield from ((depth, value) for value in level)
        level = [
            inner
            for value in level
            if isinstance(value, dict | list)
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
