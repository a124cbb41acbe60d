"""Chat templates as pieces around the user's text, so that history is never rendered again.

A conversation is an append-only token log. Each turn adds: what the template puts between the last
reply and the user's text, that text, and what follows it up to where the reply begins.

A template comes with the model and is not trusted: `template_render` says how it is bounded.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import ModelFileError
from .template_render import TemplateFailedError, render

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

    def check(self) -> None:
        """Render a small conversation. Raises ModelFileError, naming the file, if the template cannot do that."""
        if not self.is_plain:
            self.first(None)
            self.next()

    def first(self, system: str | None) -> Turn:
        """Raises ValueError if the template has no place for a system prompt."""
        if self.is_plain:
            return Turn((self._tokenizer.bos_token or "") + (f"{system}\n\n" if system else ""), "")
        messages = [{"role": "system", "content": system}] if system else []
        no_place = "this model's chat template has no place for a system prompt"
        try:
            text = self._render([*messages, {"role": "user", "content": _USER}])
        except ModelFileError as error:
            if not system:
                raise
            raise ValueError(f"{no_place} ({error})") from error
        if system and system not in text:
            raise ValueError(no_place)
        return self._around(_USER, text)

    def next(self) -> Turn:
        """A later turn; `before` starts right after the previous reply's text."""
        if self.is_plain:
            return Turn("", "")
        messages = [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": _REPLY},
            {"role": "user", "content": _USER},
        ]
        return self._around(_USER, self._around(_REPLY, self._render(messages)).after)

    def encode(self, text: str) -> list[int]:
        """Template text: special tokens are what they look like."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False).input_ids
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """A person's text: special tokens in it are just characters."""
        ids: list[int] = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids
        return ids

    def _around(self, text: str, rendered: str) -> Turn:
        before, found, after = rendered.partition(text)
        if not found:
            raise self._failed("leaves out what is said")
        return Turn(before, after)

    def _render(self, messages: list[dict[str, str]]) -> str:
        tokenizer = self._tokenizer
        found = tokenizer.chat_template
        template = found.get("default") if isinstance(found, dict) else found
        if not isinstance(template, str):
            raise self._failed("is no text, and none is called 'default'")
        try:
            return render(template, tuple(tokenizer.special_tokens_map.items()), json.dumps([messages]))[0]
        except TemplateFailedError as error:
            raise self._failed(str(error)) from error

    def _failed(self, why: str) -> ModelFileError:
        folder = Path(self._tokenizer.name_or_path)
        file = folder / "chat_template.jinja"
        if not file.is_file():
            file = folder / "tokenizer_config.json"
        return ModelFileError(f"{file}: chat_template: {why}; mend it, or remove it to talk to the model without one")


def as_array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.uint32)
