"""Letters are joined in the order that the file states, or that its scores ask for; what that leaves open is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from gguf_tokenizers import keys, made
from vocabularies import VOCABULARIES

from stratakv.runtime.model.gguf.merges import pairs_by_score, stated_pairs
from stratakv.runtime.model.gguf.vocabulary import Vocabulary, read_vocabulary

FILE = Path("file.gguf")
SENTENCEPIECE = VOCABULARIES["sentencepiece"]


def scored(words: dict[str, float], **said: Any) -> Vocabulary:
    """A word of each score, behind the unknown one."""
    kinds = [2] + [1] * len(words)
    scores = [0.0, *words.values()]
    return read_vocabulary(FILE, keys("llama", ["<unk>", *words], **{"scores": scores, "token_type": kinds, **said}))


WORDS = {"a": -5.0, "b": -6.0, "ab": -1.0, "aa": -2.0, "aaa": -3.0, "aab": -4.0}


def test_the_highest_score_is_joined_first_and_of_one_token_the_longer_left_part() -> None:
    assert pairs_by_score(FILE, scored(WORDS)) == [
        ("a", "b"), ("a", "a"), ("aa", "a"), ("a", "aa"), ("aa", "b"), ("a", "ab"),
    ]  # fmt: skip


def test_control_tokens_and_bytes_are_joined_from_nothing_and_to_nothing() -> None:
    for kind in (2, 3, 6):
        vocabulary = scored(WORDS, token_type=[2, 1, 1, kind, 1, 1, 1])
        assert pairs_by_score(FILE, vocabulary) == [("a", "a"), ("aa", "a"), ("a", "aa"), ("aa", "b")]


def test_letters_that_are_no_tokens_are_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert pairs_by_score(FILE, scored({"ab": -1.0, "ac": -1.0, "a": -2.0})) == []
    (record,) = caplog.records
    assert "0 tokens share a score and 2 letters are in longer tokens only" in record.getMessage()


def test_stated_pairs_keep_their_order_and_are_about_tokens(caplog: pytest.LogCaptureFixture) -> None:
    """The first blank behind the first letter is the border: a blank can be a letter, too."""
    merges = ["ab b", "a b", "  b", "a b", "x b", "b x", "b b", "ab"]
    stated = keys("gpt2", ["a", "b", "ab", "abb", " ", " b", "xb", "bx"], merges=merges)
    with caplog.at_level(logging.WARNING):
        assert stated_pairs(FILE, read_vocabulary(FILE, stated)) == [("ab", "b"), ("a", "b"), (" ", "b")]
    (record,) = caplog.records
    assert "tokenizer.ggml.merges: 4 of 7 are left out" in record.getMessage()


def test_scores_that_leave_the_order_open_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens, scores = SENTENCEPIECE["tokenizer.ggml.tokens"], list(SENTENCEPIECE["tokenizer.ggml.scores"])
    made(SENTENCEPIECE, tmp_path)
    assert caplog.records == []
    scores[tokens.index("he")] = scores[tokens.index("el")]
    made(SENTENCEPIECE | {"tokenizer.ggml.scores": scores}, tmp_path)
    assert "1 tokens share a score and 0 letters are in longer tokens only" in caplog.text
