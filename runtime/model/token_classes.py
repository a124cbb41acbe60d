"""Which of a vocabulary's tokens are special, and which are punctuation."""

from __future__ import annotations

import string
from typing import Any

import torch
from torch import Tensor

from ...retrieval.placement import PUNCTUATION, SPECIAL

_BLANKS = " \t\n\u0120\u010a\u2581"
"""Blanks and line ends, also as byte-level and SentencePiece vocabularies write them."""


def token_classes(tokenizer: Any, size: int) -> Tensor:
    """The class of each token id, uint8 `[size]`. Punctuation is what has marks of ASCII alone, and blanks beside."""
    classes = torch.zeros(size, dtype=torch.uint8)
    words = tokenizer.get_vocab().items()
    marks = [number for word, number in words if (bare := word.strip(_BLANKS)) and set(bare) <= set(string.punctuation)]
    special = [number for number, token in tokenizer.added_tokens_decoder.items() if token.special]
    for kind, numbers in ((PUNCTUATION, marks), (SPECIAL, special + tokenizer.all_special_ids)):
        classes[[number for number in numbers if number < size]] = kind
    return classes
