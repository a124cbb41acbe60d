"""Chat templates as pieces around the user's text, so that history is never rendered again.

A conversation is an append-only token log. Each turn adds: what the template puts between the last
reply and the user's text, that text, and what follows it up to where the reply begins.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

_USER, _REPLY = "\u241euser\u241e", "\u241ereply\u241e"


class Turn(NamedTuple):
    """Template text around one user message."""

    before: str
    after: str


class Template:
    """A tokenizer's chat template, or plain text for a base model without one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def is_plain(self) -> bool:
        return not self._tokenizer.chat_template

    def first(self, system: str | None) -> Turn:
        """Raises ValueError if the template has no place for a system prompt."""
        if self.is_plain:
            return Turn((self._tokenizer.bos_token or "") + (f"{system}\n\n" if system else ""), "")
        messages = [{"role": "system", "content": system}] if system else []
        text = self._render([*messages, {"role": "user", "content": _USER}])
        if system and system not in text:
            raise ValueError("this model's chat template has no place for a system prompt")
        before, _, after = text.partition(_USER)
        return Turn(before, after)

    def next(self) -> Turn:
        """A later turn; `before` starts right after the previous reply's text."""
        if self.is_plain:
            return Turn("", "")
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _REPLY},
            {"role": "user", "content": _USER},
        ]
        before, _, after = self._render(messages).partition(_REPLY)[2].partition(_USER)
        return Turn(before, after)

    def encode(self, text: str) -> list[int]:
        """Template text: special tokens are what they look like."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """A person's text: special tokens in it are just characters."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def _render(self, messages: list[dict[str, str]]) -> str:
        text: str = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return text


def as_array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.uint32)
