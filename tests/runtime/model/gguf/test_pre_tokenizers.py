"""Every rule splits texts as llama.cpp does (kept in tests/data/tokens), or as the model was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from gguf_tokenizers import made, words
from places import TESTS
from vocabularies import VOCABULARIES

from stratakv.runtime.model.gguf.pre_tokenizers import RULES

BYTES = VOCABULARIES["bytes"]
PIECES: list[dict[str, Any]] = json.loads((TESTS / "data" / "tokens" / "pieces.json").read_text())
_MARKS = {"e\u0301te\u0301", "Üb\u0308 a\u0308A", "क्षि", "ٱلسَّلَام ١٢٣"}
_CAPITALS = {"ÉCOLE éÉa"}
_CASES = _CAPITALS | {"HelloWorld fooBar", "Üb\u0308 a\u0308A"}
_BLANKS = {"a\u3000b\u2003"}
AS_TRAINED = {
    "tekken": _MARKS | _CAPITALS, "gpt-4o": _MARKS | _CAPITALS, "granite-embed-multi-97m": _CAPITALS,
    "tiny_aya": _CASES, "youtu": _CASES, "kimi-k2": _MARKS | _CASES | {"々〇日"}, "deepseek-llm": _BLANKS,
    "deepseek-coder": _BLANKS,
}  # fmt: skip
"""Where llama.cpp says a rule with less than the model was trained with: one name of the rule -> texts that show it."""


@pytest.mark.parametrize("kept", PIECES, ids=lambda kept: str(kept["rules"][0]))
def test_every_rule_splits_as_in_llama_cpp_or_as_the_model_was_trained(kept: dict[str, Any], tmp_path: Path) -> None:
    pieces: dict[str, list[str]] = kept["texts"]
    for rule in kept["rules"]:
        tokenizer = made(BYTES | {"tokenizer.ggml.pre": rule}, tmp_path)
        differing = {text for text, theirs in pieces.items() if words(tokenizer, text) != theirs}
        assert differing == set().union(*(AS_TRAINED.get(name, ()) for name in kept["rules"])), rule


def test_every_rule_was_compared() -> None:
    compared = [rule for kept in PIECES for rule in kept["rules"]]
    assert sorted(compared) == sorted(rule for rule, found in RULES.items() if found.byte_level)


@pytest.mark.parametrize(("rule", "text", "pieces"), [
    ("tekken", "ÉCOLE éÉa", ["ÉCOLE", " é", "Éa"]),
    ("gpt-4o", "e\u0301te\u0301's x\u0301", ["e\u0301te\u0301's", " x\u0301"]),
    ("deepseek-coder", "a\u3000b", ["a", "\u3000", "b"]),
    ("kimi-k2", "HelloWorld 々〇日a", ["Hello", "World", " ", "々〇日", "a"]),
])  # fmt: skip
def test_a_rule_that_llama_cpp_cannot_say_is_the_one_of_the_training(
    rule: str, text: str, pieces: list[str], tmp_path: Path
) -> None:
    assert words(made(BYTES | {"tokenizer.ggml.pre": rule}, tmp_path), text) == pieces
