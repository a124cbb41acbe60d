"""Beside llama.cpp: what tests/data/tokens keeps is what it says, and our tokenizers say the same
(`tests/runtime/model/gguf/test_tokenizer.py`)."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from beside import needs_llama_cpp
from llama_tokens import DATA, ids, pieces
from vocabularies import VOCABULARIES

pytestmark = needs_llama_cpp
ALL = bool(os.environ.get("COMPARE"))
PIECES = json.loads((DATA / "pieces.json").read_text())
IDS = json.loads((DATA / "ids.json").read_text())
RULES = {rule: kept["texts"] for kept in PIECES for rule in kept["rules"]}


@pytest.mark.parametrize("rule", RULES if ALL else ["smollm", "llama-bpe", "deepseek-llm"])
def test_pieces_are_what_was_kept(rule: str, tmp_path: Path) -> None:
    assert pieces(rule, tmp_path) == RULES[rule]


@pytest.mark.parametrize("name", VOCABULARIES if ALL else ["sentencepiece", "bytes"])
def test_ids_and_ends_are_what_was_kept(name: str, tmp_path: Path) -> None:
    assert ids(VOCABULARIES[name], tmp_path) == IDS[name]
