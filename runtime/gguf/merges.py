"""Which letters are joined to tokens, and in which order, as `tokenizers` wants it: pairs, the first to be joined first."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

from ..errors import ModelFileError
from .vocabulary import Kind, Vocabulary

logger = logging.getLogger(__name__)

MAX_PAIRS = 1 << 20
"""Gemma 3's 262,144 tokens have 514,906."""


def stated_pairs(path: Path, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The file's own. What joins or makes no token is left out with a warning: `tokenizers` has no place for it."""
    there = set(vocabulary.tokens)
    pairs: dict[tuple[str, str], None] = {}
    for merge in vocabulary.merges:
        cut = merge.find(" ", 1)
        pairs.setdefault((merge[:cut], merge[cut + 1 :]) if cut > 0 else ("", ""))
    known = [pair for pair in pairs if pair[0] in there and pair[1] in there and pair[0] + pair[1] in there]
    if len(known) < len(pairs):
        logger.warning(
            "%s: tokenizer.ggml.merges: %d of %d are left out, since they are not about tokens of the vocabulary",
            path, len(pairs) - len(known), len(pairs),
        )  # fmt: skip
    return known


def pairs_by_score(path: Path, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens that make a token, the highest score first.

    SentencePiece joins whichever neighbours make the token of the highest score. Of pairs that make the same token,
    that with the longer left part is first: in a run of one letter that is the one further left, as there.
    """
    words = {
        token: number
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind not in (Kind.UNKNOWN, Kind.CONTROL, Kind.BYTE)
    }
    pairs: list[tuple[str, str]] = []
    for token in sorted(words, key=lambda token: -vocabulary.scores[words[token]]):
        pairs += _halves(token, words)
        if len(pairs) > MAX_PAIRS:
            raise ModelFileError(
                f"{path}: tokenizer.ggml.tokens: more than {MAX_PAIRS} pairs of tokens make another one"
            )
    return pairs


def _halves(token: str, words: dict[str, int]) -> Iterator[tuple[str, str]]:
    for cut in range(len(token) - 1, 0, -1):
        left, right = token[:cut], token[cut:]
        if left in words and right in words:
            yield left, right
