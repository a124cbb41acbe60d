"""Tokenizers made from the keys of a GGUF file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokenizers import Tokenizer

from stratakv.runtime.model.gguf.tokenizer import write_tokenizer
from stratakv.runtime.model.tokens import load_tokenizer


def made(keys: dict[str, Any], folder: Path) -> Tokenizer:
    write_tokenizer(Path("file.gguf"), keys, folder)
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


def loaded(keys: dict[str, Any], folder: Path, family: str = "qwen2") -> Any:
    write_tokenizer(Path("file.gguf"), keys, folder)
    return load_tokenizer(folder, SimpleNamespace(model_type=family))


def words(tokenizer: Tokenizer, text: str) -> list[str]:
    """What a text is split into, before it is spelled in bytes."""
    splits = tokenizer.pre_tokenizer.pre_tokenize_str(text)
    return [text[begin:end] for _, (begin, end) in splits]


def keys(model: str, tokens: list[Any], kind: int = 1, **said: Any) -> dict[str, Any]:
    """The keys of a file whose tokens are all of that kind."""
    found = {"model": model, "pre": "gpt-2", "tokens": tokens, "token_type": [kind] * len(tokens), "merges": [], **said}
    return {f"tokenizer.ggml.{name}": value for name, value in found.items()}
