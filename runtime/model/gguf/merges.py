"""The merges of a vocabulary: which letters are joined to tokens, and in which order, as pairs for `tokenizers`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from ...api.errors import ModelFileError
from .vocabulary import Kind, Vocabulary

logger = logging.getLogger(__name__)

MAX_PAIRS = 1 << 20
"""The most pairs. Gemma 3's 262,144 tokens have 514,906."""
MAX_WORK = 1 << 28
"""The most work, as the sum of the squares of the tokens' lengths; Gemma 3's make 15 million."""


def stated_pairs(path: Path, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The pairs that the file states. A pair that joins or makes no token is left out with a warning: `tokenizers` has
    no place for it."""
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
    """All pairs of tokens that make a token, the highest score first.

    SentencePiece joins whichever neighbours make the token of the highest score. Among pairs that make the same token,
    the one with the longer left part is first: in a run of one letter that is the one further left, as there.
    """
    words = {
        token: vocabulary.scores[number]
        for number, (token, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind not in (Kind.UNKNOWN, Kind.CONTROL, Kind.BYTE)
    }
    if sum(len(token) ** 2 for token in words) > MAX_WORK:
        raise ModelFileError(f"{path}: tokenizer.ggml.tokens: too many long ones to tell which pairs make them")
    pairs: list[tuple[str, str]] = []
    for token in sorted(words, key=words.__getitem__, reverse=True):
        pairs += [
            (token[:cut], token[cut:])
            for cut in range(len(token) - 1, 0, -1)
            if token[:cut] in words and token[cut:] in words
        ]
        if len(pairs) > MAX_PAIRS:
            raise ModelFileError(
                f"{path}: tokenizer.ggml.tokens: more than {MAX_PAIRS} pairs of tokens make another one"
            )
    _warn_of_differences(path, vocabulary, words, pairs)
    return pairs


def _warn_of_differences(
    path: Path, vocabulary: Vocabulary, words: Mapping[str, float], pairs: list[tuple[str, str]]
) -> None:
    """Warn where results may differ: SentencePiece takes the one further left of two equal scores, and joins letters
    that are no tokens."""
    added = {vocabulary.tokens[number] for number in vocabulary.added}
    made = {left + right for left, right in pairs} - added
    alike = len(made) - len({words[token] for token in made})
    lone = len({letter for token in words.keys() - added for letter in token} - words.keys())
    if alike or lone:
        logger.warning(
            "%s: tokenizer.ggml.scores: %d tokens share a score and %d letters are in longer tokens only; a text that "
            "has them can get other tokens than it should", path, alike, lone,
        )  # fmt: skip
