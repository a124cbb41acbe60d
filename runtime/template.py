"""Chat templates as pieces around the user's text, so that history is never rendered again.

A conversation is an append-only token log. Each turn adds: what the template puts between the last
reply and the user's text, that text, and what follows it up to where the reply begins.

Control tokens (whatever the tokenizer calls special, ends a turn, or the template writes) come from the template
only: what a person, a document or its name says is never one, however it is spelled.

A template comes with the model and is not trusted: `template_render` says how it is bounded.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .errors import ModelFileError
from .template_render import TemplateFailedError, render

_READ = "OK."
"""What the model is taken to have replied to a document: short, and true of any."""
_MARK = f"\u241e{secrets.token_hex(8)}\u241e"
_USER, _REPLY, _SYSTEM = f"user{_MARK}", f"reply{_MARK}", f"system{_MARK}"
"""What stands for people's words while a template is rendered: nothing that anybody says."""

_ENCODING = threading.Lock()


class Turn(NamedTuple):
    """Template text around one user message."""

    before: str
    after: str
    said: slice = slice(0, 0)
    """Where in `before` a system prompt stands that has control tokens in it, in the template's own form of it."""


class Template:
    """A tokenizer's chat template, or plain text for a base model without one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer` behind it."""
        return self._tokenizer.backend_tokenizer

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
            bos = self._tokenizer.bos_token or ""
            return Turn(bos + (f"{system}\n\n" if system else ""), "", slice(len(bos), len(bos) + len(system or "")))
        alone = [_user(_USER)]
        if not system:
            return self._around(_USER, self._render(alone)[0])
        no_place = "this model's chat template has no place for a system prompt"
        try:
            text, marked = self._render(*([_system(words), *alone] for words in (system, _SYSTEM)))
        except ModelFileError as error:
            raise ValueError(f"{no_place} ({error})") from error
        turn, around = self._around(_USER, text), self._around(_USER, marked)
        if _SYSTEM not in around.before:
            raise ValueError(no_place)
        return turn._replace(said=self._where_said(turn.before, around.before, system))

    def _where_said(self, before: str, marked: str, system: str) -> slice:
        """Where the system prompt stands in `before`, of which `marked` is the form with another one. If there is
        nothing in it that could be mistaken for a control token, that need not be known: some templates read switches
        in it and write other words around it."""
        if not self._controls_in(self.encode(system)):
            return slice(0, 0)
        begin = num_alike(before, marked)
        end = num_alike(before[begin:][::-1], marked[begin:][::-1])
        return slice(begin, len(before) - end)

    def next(self) -> Turn:
        """A later turn; `before` starts right after the previous reply's text."""
        if self.is_plain:
            return Turn("", "")
        messages = [_user("?"), {"role": "assistant", "content": _REPLY}, _user(_USER)]
        return self._around(_USER, self._around(_REPLY, self._render(messages)[0]).after)

    def encode_after_document(self) -> list[int]:
        """Ends the turn that a document is, so that the question stands alone in the next one (docs/decisions/0021)."""
        if self.is_plain:
            return self.encode_plain("\n\n")
        return [*self.encode(self.next().after), *self.encode_plain(_READ)]

    def encode_before(self, turn: Turn) -> list[int]:
        """`turn.before` as tokens; a system prompt in it is a person's text."""
        begin, said, rest = turn.before[: turn.said.start], turn.before[turn.said], turn.before[turn.said.stop :]
        if not said:
            return self.encode(turn.before)
        return [*self.encode(begin), *self.encode_plain(said), *self.encode(rest)]

    def encode(self, text: str) -> list[int]:
        """Template text: special tokens are what they look like."""
        return self._encoded(text)[0]

    def encode_plain(self, text: str) -> list[int]:
        """A person's text: control tokens in it are just characters."""
        ids, _ = self._encoded(text, split_special_tokens=True)
        if not self._control.intersection(ids):
            return ids
        # Tokenizers know tokens that are not called special but do the same: their spelling is taken apart. And where
        # the unknown word is a control token itself, unknown words say nothing.
        ids, offsets = self._encoded(text, split_special_tokens=True, return_offsets_mapping=True)
        found = [(token, *span) for token, span in zip(ids, offsets, strict=True) if token in self._control]
        cuts = sorted({a + 1 for token, a, b in found if b > a + 1 and not self._is_unknown(token, text[a:b])})
        if not cuts:
            return [token for token in ids if token not in self._control]
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        return [token for piece in pieces for token in self.encode_plain(piece)]

    def _encoded(self, text: str, **how: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids, and their places in the text if asked for. One thread at a time: the tokenizer keeps in itself
        whether special tokens are split, and another thread's call would change it in between."""
        with _ENCODING:
            found = self._tokenizer(text, add_special_tokens=False, verbose=False, **how)
        return found.input_ids, found.get("offset_mapping", [])

    def _is_unknown(self, token: int, spelled: str) -> bool:
        return token == self._tokenizer.unk_token_id and self._tokenizer.unk_token not in spelled

    @cached_property
    def _control(self) -> frozenset[int]:
        """Ids of tokens that mean something to the model besides their text: those that are called special, and added
        ones that the template writes itself."""
        tokenizer = self._tokenizer
        templates = tokenizer.chat_template or ""
        written = " ".join(templates.values()) if isinstance(templates, dict) else str(templates)
        added = tokenizer.added_tokens_decoder.items()
        unknown = {token for token in (tokenizer.unk_token,) if token not in (tokenizer.bos_token, tokenizer.eos_token)}
        return frozenset(
            number for number, token in added
            if (token.special and token.content not in unknown) or (token.content.strip() and token.content in written)
        ) | {number for number in (tokenizer.bos_token_id, tokenizer.eos_token_id) if number is not None}  # fmt: skip

    def _controls_in(self, ids: list[int]) -> list[int]:
        return [token for token in ids if token in self._control]

    def _around(self, text: str, rendered: str) -> Turn:
        before, found, after = rendered.partition(text)
        if not found:
            raise self._failed("leaves out what is said")
        return Turn(before, after)

    def _render(self, *conversations: list[dict[str, str]]) -> list[str]:
        tokenizer = self._tokenizer
        found = tokenizer.chat_template
        template = found.get("default") if isinstance(found, dict) else found
        if not isinstance(template, str):
            raise self._failed("is no text, and none is called 'default'")
        try:
            return render(template, tuple(tokenizer.special_tokens_map.items()), json.dumps(conversations))
        except TemplateFailedError as error:
            raise self._failed(str(error)) from error

    def _failed(self, why: str) -> ModelFileError:
        folder = Path(self._tokenizer.name_or_path)
        file = folder / "chat_template.jinja"
        if not file.is_file():
            file = folder / "tokenizer_config.json"
        return ModelFileError(f"{file}: chat_template: {why}; mend it, or remove it to talk to the model without one")


def _user(words: str) -> dict[str, str]:
    return {"role": "user", "content": words}


def _system(words: str) -> dict[str, str]:
    return {"role": "system", "content": words}


def num_alike(some: Sequence[Any], others: Sequence[Any]) -> int:
    """How many leading items agree."""
    return next((n for n, (a, b) in enumerate(zip(some, others, strict=False)) if a != b), min(len(some), len(others)))


def as_array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.uint32)
