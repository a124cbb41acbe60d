"""Tokens by class, as byte-level and SentencePiece vocabularies write them."""

from __future__ import annotations

from typing import Any

from stratakv.retrieval.placement import PUNCTUATION, SPECIAL
from stratakv.runtime.model.token_classes import token_classes


class Added:
    def __init__(self, *, special: bool) -> None:
        self.special = special


class Vocabulary:
    """Stands for a tokenizer."""

    words = ("<s>", "a", ",", "\u0120.", "\u2581!?", "b.", "\u0120", "\u010a", "<turn>", "<tool>", "--\u010a", ";")

    def __init__(self) -> None:
        self.all_special_ids = [0]
        self.added_tokens_decoder = {8: Added(special=True), 9: Added(special=False)}

    def get_vocab(self) -> dict[str, int]:
        return {word: number for number, word in enumerate(self.words)}


def test_marks_alone_are_punctuation_and_control_tokens_special() -> None:
    vocabulary: Any = Vocabulary()
    classes = token_classes(vocabulary, 11).tolist()
    assert [number for number, kind in enumerate(classes) if kind == SPECIAL] == [0, 8]
    assert [number for number, kind in enumerate(classes) if kind == PUNCTUATION] == [2, 3, 4, 10]
    assert len(classes) == 11
