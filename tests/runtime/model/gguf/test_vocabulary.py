"""Vocabularies that no model has: refused in one line before anything takes long."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from gguf_tokenizers import keys
from vocabularies import VOCABULARIES

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.gguf import merges
from stratakv.runtime.model.gguf.tokenizer import write_tokenizer
from stratakv.runtime.model.gguf.vocabulary import MAX_LETTERS, MAX_TOKENS
from stratakv.runtime.untrusted import json_files
from stratakv.runtime.untrusted.directory import MAX_TEMPLATE
from stratakv.runtime.untrusted.settings import MAX_ADDED


def by_score(tokens: list[str]) -> dict[str, Any]:
    return keys("llama", tokens, scores=[0.0] * len(tokens))


LONG = [f"{number:01000d}" for number in range(MAX_ADDED)]
BYTES = VOCABULARIES["bytes"]
HOSTILE: dict[str, tuple[dict[str, Any], str]] = {
    "too many tokens": (keys("gpt2", ["a"] * (MAX_TOKENS + 1)), "tokens: expected a list of up to"),
    "a long token": (keys("gpt2", ["a" * (MAX_LETTERS + 1)]), "one is 1025 letters long"),
    "too many merges": (keys("gpt2", ["a"], merges=["a a"] * (MAX_TOKENS + 1)), "merges: expected a list of up to"),
    "too many control tokens": (keys("gpt2", list(map(str, range(MAX_ADDED + 1))), 3), "at most 16384 of"),
    "long control tokens": (keys("gpt2", LONG, 3), "of 16384000 letters together, at most"),
    "long words by score": (by_score(LONG[:400]), "too many long ones"),
    "no token": (keys("gpt2", []), "the file has none"),
    "a number for a token": (keys("gpt2", [1]), "tokens: expected a list of up to"),
    "a text for a score": (keys("llama", ["a"], scores=["a"]), "scores: expected one float for each"),
    "a long template": (BYTES | {"tokenizer.chat_template": "a" * (MAX_TEMPLATE + 1)}, "expected a text of up to"),
    "too many templates": (BYTES | {f"tokenizer.chat_template.t{n}": "a" for n in range(65)}, "65 templates, at most"),
    "too many ends": (BYTES | {"tokenizer.ggml.eos_token_ids": [1] * 129}, "expected a list of up to 128 token ids"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_what_no_model_has_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    stated, said = HOSTILE[name]
    with pytest.raises(ModelFileError, match=said) as refused:
        write_tokenizer(Path("file.gguf"), stated, tmp_path)
    assert str(refused.value).startswith("file.gguf: tokenizer.")
    assert len(str(refused.value)) < 400
    assert "\n" not in str(refused.value)


def test_pairs_and_bytes_are_bounded_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = by_score(["a" * length for length in range(1, 60)])
    write_tokenizer(Path("file.gguf"), runs, tmp_path)
    monkeypatch.setattr(merges, "MAX_PAIRS", 1000)
    with pytest.raises(ModelFileError, match=r"tokens: more than 1000 pairs of tokens make another one"):
        write_tokenizer(Path("file.gguf"), runs, tmp_path)
    monkeypatch.setattr(json_files, "VOCABULARY", json_files.Limits(1000, 1000))
    with pytest.raises(ModelFileError, match=r"larger than can be read again \(\d+ bytes, at most 1000 are allowed\)"):
        write_tokenizer(Path("file.gguf"), BYTES, tmp_path)
