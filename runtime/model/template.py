"""Chat templates as words around a message, so that history is never rendered again.

A conversation is an append-only token log. Each turn adds: what the template puts between the last reply and the
user's text, that text as the template writes it, and what follows it up to where the reply begins; `encoder` makes
the tokens of it that the whole conversation would have there.

Control tokens (whatever the tokenizer calls special, ends a turn, or the template writes) come from the template
only: what a person, a document or its name says is never one, however it is spelled.

A template comes with the model and is not trusted: `template_render` says how it is bounded.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..api.errors import ModelFileError
from ..untrusted.template_render import Rendered, TemplateFailedError, remembered, render
from .encoder import Encoder, Log, Spelled, encoder_of

_READ = "OK."
"""The reply that the model is taken to have given to a document: short, and true of any."""
_MARK = f"\u241e{secrets.randbelow(10**18):018}\u241e"
_ASKED, _REPLY, _USER, _SYSTEM = (f"{number}{_MARK}" for number in range(4))
"""Stand-ins for people's words while a template is rendered. Nobody says them, and they have no letters, which a
template might write large."""

Message = dict[str, str]


class Around(NamedTuple):
    """The template's text before and after a user's words, or before and after any other text."""

    before: str
    after: str


class _Said(NamedTuple):
    """A turn with the words in it."""

    text: Spelled
    after: Spelled
    """The template's text after the words; empty where the template rewrote the turn so that it cannot be told from
    `text`."""


class Template:
    """A tokenizer's chat template, or plain text for a base model without one."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    @property
    def backend(self) -> Any:
        """The `tokenizers.Tokenizer` behind the tokenizer."""
        return self._tokenizer.backend_tokenizer

    @property
    def is_plain(self) -> bool:
        return not self._tokenizer.chat_template

    def check(self) -> None:
        """Render a small conversation. Raises ModelFileError, naming the file, if the template cannot do that."""
        if not self.is_plain:
            self.first(None)
            if _MARK in self.next().before:
                raise self._failed("repeats what was said in turns after it")

    # Text

    def first(self, system: str | None) -> Around:
        """The text around the first user message. Raises ValueError if the template has no place for a system
        prompt."""
        if self.is_plain:
            return Around(f"{system}\n\n" if system else "", "")
        return self._around(_USER, self._first(system, _USER).texts[0])

    def next(self) -> Around:
        """The text around a later user message; `before` starts right after the previous reply's text."""
        if self.is_plain:
            return Around("", "")
        return self._around(_USER, self._around(_REPLY, self._next(_USER).texts[0]).after)

    @property
    def turn_end(self) -> int | None:
        """The control token that the template writes right after a reply; None if there is none."""
        if self.is_plain:
            return None
        text = self._next(_USER).texts[0]
        end = text.index(_REPLY) + len(_REPLY)
        following = ((token, text[end:start]) for token, start, _ in self.encoder.found_in(text) if start >= end)
        token, between = next(following, (None, ""))
        return None if between.strip() else token

    def habits(self) -> list[str]:
        """Say how the template rewrites earlier turns, which our conversations do not (docs/TEMPLATES.md)."""
        if self.is_plain:
            return []
        found = []
        with suppress(ModelFileError):  # the template refuses system prompts, or thinking
            if not self._keeps_system:
                found.append("it moves the system prompt to the newest message; here it stays at the first")
        with suppress(ModelFileError):
            later = self.later_form(f"<think>\n{_SYSTEM}\n</think>\n\n{_REPLY}")
            if later is not None:
                what = (
                    "begins earlier replies otherwise"
                    if _SYSTEM in later
                    else "leaves the thinking out of earlier replies"
                )
                found.append(f"it {what}; here it stays unless drop_thinking is set")
        return found

    # Tokens

    def encode_message(self, words: str, log: Log, *, system: str | None = None, is_first: bool = False) -> list[int]:
        """Encode a user's turn, up to the place where the reply begins.

        Args:
            log: the conversation until then; it includes `system` unless this turn `is_first`.
        """
        said = self._said(words, system, is_first=is_first)
        return self._encode(Spelled(said.text + said.after), log)

    def encode_document(self, words: str, log: Log, *, system: str | None = None, is_first: bool = False) -> list[int]:
        """Encode a document as a turn of its own: the question stands alone in the next one (docs/decisions/0021)."""
        text = self._said(words, system, is_first=is_first).text
        reply = "\n\n" if self.is_plain else self._reply_begins(system).replace(_ASKED, words.strip()) + _READ
        return self._encode(Spelled(text + reply), log)

    def encode_told(
        self, words: str, later: Spelled, log: Log, *, system: str | None = None, is_first: bool = False
    ) -> list[int]:
        """Encode a user's turn and the reply to it in its `later_form`."""
        return self._encode(Spelled(self._said(words, system, is_first=is_first).text + later), log)

    def later_form(self, reply: str, *, system: str | None = None) -> Spelled | None:
        """The template's text from a user's words to the end of a reply that is not the last any more. None if that is
        the same text as before, and the reply."""
        if self.is_plain:
            return None
        system = self._for_template(system)
        said, usual = reply.strip(), self._around(_REPLY, self._next(_USER, system).texts[0]).after
        end, asks = self._around(_USER, usual)
        before, rest = self._around(_ASKED, self._next(_USER, system, render, reply).texts[0])
        later = self._around(_USER, rest).before
        body = later.removesuffix(end)
        answered = len(body.rstrip()) - num_alike(said[::-1], body.rstrip()[::-1])
        opening, answer = body[:answered], body[answered:]
        if not later.endswith(end) or (answer.strip() == said and opening.strip() == asks.strip()):
            return None
        spelled = self.encoder.spelled(before + _ASKED + opening)  # the rest of the reply is the model's own words
        return Spelled(self._around(_ASKED, spelled).after + answer)

    def encode_prompt(self, text: str) -> list[int]:
        """Encode a whole prompt with control tokens in it, as the tokenizer reads it, with its BOS once and no EOS
        behind: the prompt is to be continued. Empty if the text is."""
        ids, begin = self.encode(text), self.encoder.begin
        return [*begin, *ids] if ids and ids[: len(begin)] != begin else ids

    def encode(self, text: str) -> list[int]:
        """Encode template text by itself: special tokens are what they look like."""
        found = self._tokenizer(text, add_special_tokens=False, split_special_tokens=False, verbose=False)
        ids: list[int] = found.input_ids
        return ids

    def encode_plain(self, text: str) -> list[int]:
        """Encode a person's text by itself: control tokens in it are just characters."""
        return self.encoder.encode(Spelled(text))

    @property
    def encoder(self) -> Encoder:
        found = self._tokenizer.chat_template or ""
        return encoder_of(self._tokenizer, " ".join(found.values()) if isinstance(found, dict) else str(found))

    def _encode(self, text: Spelled, log: Log) -> list[int]:
        begin = self.encoder.begin if self.is_plain and not len(log) else []
        return [*begin, *self.encoder.encode(text, log)]

    # What a template makes of words

    def _said(self, words: str, system: str | None, *, is_first: bool) -> _Said:
        """The turn in which somebody says `words`. They are put in after rendering, unless the template looks for a
        text that is in them."""
        if self.is_plain:
            return _Said(Spelled((self.first(system).before if is_first else "") + words), Spelled(""))
        system = self._for_template(system)
        core = words.strip()
        left, right = words[: len(words) - len(words.lstrip())], words[len(words.rstrip()) :]

        def spelled(words: str, how: Callable[..., Rendered]) -> tuple[Spelled, tuple[str, ...] | None]:
            """Render the turn and find control tokens where they stand in the whole."""
            found = self._first(system, words, how) if is_first else self._next(words, system, how)
            text = self.encoder.spelled(found.texts[0])
            return text if is_first else Spelled(self._around(_REPLY, text).after), found.looked

        text, looked = spelled(left + _USER + right, remembered)
        before, after = self._around(_USER, text)
        after = after.replace(_USER, core)  # the template may say it twice
        if looked is not None and not any(sought in core for sought in looked):
            return _Said(Spelled(before + core), Spelled(after))
        text, _ = spelled(self.encoder.broken(words), render)
        return _Said(*map(Spelled, (text.removesuffix(after), after) if text.endswith(after) else (text, "")))

    def _for_template(self, system: str | None) -> str | None:
        return self.encoder.broken(system) if system else None

    def _reply_begins(self, system: str | None) -> Spelled:
        """The template's text between a user's words and a reply that has been given."""
        text = self.encoder.spelled(self._next(_USER, self._for_template(system)).texts[0])
        return Spelled(self._around(_REPLY, self._around(_ASKED, text).after).before)

    def _first(self, system: str | None, words: str, how: Callable[..., Rendered] = remembered) -> Rendered:
        alone = [_user(words)]
        if not system:
            return self._rendered(how, alone)
        no_place = "this model's chat template has no place for a system prompt"
        try:
            found = self._rendered(how, [_system(system), *alone], [_system(_SYSTEM), *alone])
        except ModelFileError as error:
            raise ValueError(f"{no_place} ({error})") from error
        if _SYSTEM not in found.texts[1]:
            raise ValueError(no_place)
        return found

    def _next(
        self, words: str, system: str | None = None, how: Callable[..., Rendered] = remembered, reply: str = _REPLY
    ) -> Rendered:
        """Render a later turn. The system prompt may decide how it is written (SmolLM3's `/no_think`)."""
        talk = [_user(_ASKED), {"role": "assistant", "content": reply}, _user(words)]
        return self._rendered(how, [_system(system), *talk] if system and self._keeps_system else talk)

    @property
    def _keeps_system(self) -> bool:
        """True if the system prompt stays before the first message. Raises ModelFileError if it has no place."""
        talk = [_system(_SYSTEM), _user(_ASKED), {"role": "assistant", "content": _REPLY}, _user(_USER)]
        text = self._rendered(remembered, talk).texts[0]
        return text.find(_SYSTEM) < text.find(_REPLY)

    def _around(self, text: str, rendered: str) -> Around:
        before, found, after = rendered.partition(text)
        if not found:
            raise self._failed("leaves out what is said")
        return Around(before, after)

    def _rendered(self, how: Callable[..., Rendered], *conversations: list[Message]) -> Rendered:
        tokenizer = self._tokenizer
        found = tokenizer.chat_template
        template = found.get("default") if isinstance(found, dict) else found
        if not isinstance(template, str):
            raise self._failed("is no text, and none is called 'default'")
        try:
            return how(template, tuple(tokenizer.special_tokens_map.items()), json.dumps(conversations))
        except TemplateFailedError as error:
            raise self._failed(str(error)) from error

    def _failed(self, why: str) -> ModelFileError:
        folder = Path(self._tokenizer.name_or_path)
        file = folder / "chat_template.jinja"
        if not file.is_file():
            file = folder / "tokenizer_config.json"
        return ModelFileError(f"{file}: chat_template: {why}; mend it, or remove it to talk to the model without one")


def _user(words: str) -> Message:
    return {"role": "user", "content": words}


def _system(words: str) -> Message:
    return {"role": "system", "content": words}


def num_alike(some: Sequence[Any], others: Sequence[Any]) -> int:
    """The number of leading items that agree."""
    return next((n for n, (a, b) in enumerate(zip(some, others, strict=False)) if a != b), min(len(some), len(others)))


def as_array(ids: list[int]) -> np.ndarray:
    return np.array(ids, dtype=np.uint32)
