"""Text to tokens, so that a turn has the tokens it would have in the whole conversation.

The tokens of a text depend on the text around it. SentencePiece puts its space at the start of a text
and nowhere else, or after every control token; merges cross the border between a template's words and a person's;
`<|end|>` may swallow the blanks beside it. So a turn is encoded as one text, and behind the end of what the log says
already.

Control tokens come from the template only. A twin of the tokenizer encodes: the same model, normalizer and splitting,
but control tokens are spelled in it as nobody can spell them. Where the template wrote one, that spelling is put in;
their usual spellings are words like any other.
"""

from __future__ import annotations

import re
import secrets
import weakref
from collections.abc import Sequence
from functools import cached_property
from itertools import takewhile
from typing import Any, NewType

import numpy as np
from tokenizers import AddedToken, Tokenizer

Spelled = NewType("Spelled", str)
"""A text in which control tokens are spelled as in the twin. A person's words are such a text as they are."""
Log = Sequence[int] | np.ndarray
"""A sequence of token ids."""

_SECRET = f"\u241e{secrets.randbelow(10**18):018}\u241e"
_CUT = f"{_SECRET}cut\u241e"
_BROKEN = re.compile(f"{_SECRET}(\\d+):\u241e")
"""Matches the number of a character: the first one of a text that must not become a control token."""
_BYTE = re.compile("<0x[0-9A-F]{2}>")
"""Matches one byte of a character that the vocabulary lacks, also where it is called special."""
_FRONT_TOKENS = 64
"""The number of tokens at the end of a log that are looked at: a merge reaches no farther."""
_OTHER_FRONTS = ("\n", "x", "")

_ENCODERS: weakref.WeakKeyDictionary[Any, dict[str, Encoder]] = weakref.WeakKeyDictionary()


def encoder_of(tokenizer: Any, written: str) -> Encoder:
    """The encoder of this tokenizer, for a template whose source is `written`. Making one takes some 50 ms where a
    tokenizer has thousands of added tokens."""
    known = _ENCODERS.setdefault(tokenizer, {})
    if written not in known:
        known.clear()
        known[written] = Encoder(tokenizer, written)
    return known[written]


class Encoder:
    """Encodes for one tokenizer and one template.

    Attributes:
        control: ids of tokens that mean something to the model besides their text: those that are called special, and
            added ones that the template writes itself.

    Args:
        written: the template's source.
    """

    def __init__(self, tokenizer: Any, written: str) -> None:
        self._weak_tokenizer = weakref.ref(tokenizer)
        self._backend: Tokenizer = tokenizer.backend_tokenizer
        self._added: dict[int, AddedToken] = dict(sorted(tokenizer.added_tokens_decoder.items()))
        ends = {number for number in (tokenizer.bos_token_id, tokenizer.eos_token_id) if number is not None}
        self._unknown: tuple[str | None, int | None] = (tokenizer.unk_token, tokenizer.unk_token_id)
        means = {number: token for number, token in self._added.items() if not _BYTE.fullmatch(token.content)}
        self.control = frozenset(
            number for number, token in means.items()
            if (token.special and number != self._unknown[1]) or (token.content.strip() and token.content in written)
        ) | ends  # fmt: skip
        self._meant = self.control | {number for number, token in means.items() if token.special}
        """`control`, and the unknown word if that is called special."""
        model = self._backend.model
        self._in_words = {number for number in self.control if model.id_to_token(number) is not None}
        """Control tokens that the model's own vocabulary may make of words."""

    @property
    def _tokenizer(self) -> Any:
        tokenizer = self._weak_tokenizer()
        assert tokenizer is not None  # whoever has the encoder has the tokenizer
        return tokenizer

    @cached_property
    def begin(self) -> list[int]:
        """The tokens that the tokenizer puts before a text: its BOS, or nothing. Tokens that it puts behind one are not
        used: a conversation goes on, and text after an end of text is another text."""
        found = self._tokenizer("a", return_special_tokens_mask=True, verbose=False)
        marked = zip(found.input_ids, found.special_tokens_mask, strict=True)
        return [token for token, _ in takewhile(lambda pair: pair[1], marked)]

    def spelled(self, text: str) -> Spelled:
        """Spell a template's text: control tokens are what they look like, except for those that are `broken`."""
        pieces, end = [], 0
        for token, start, stop in self.found_in(text):
            pieces += [text[end:start], self._spelling(token)]
            end = stop
        return Spelled(_BROKEN.sub(lambda found: chr(int(found[1])), "".join([*pieces, text[end:]])))

    def broken(self, text: str) -> str:
        """Break up control tokens in a person's text, for a template that looks into it. `spelled` finds none in the
        result, and makes the text whole again."""
        while starts := [start for _, start, _ in self.found_in(text)]:
            pieces = [text[a:b] for a, b in zip([0, *starts], [*starts, len(text)], strict=True)]
            text = pieces[0] + "".join(f"{_SECRET}{ord(piece[0])}:\u241e{piece[1:]}" for piece in pieces[1:])
        return text

    def found_in(self, text: str) -> list[tuple[int, int, int]]:
        """Find the control tokens that a template would write with this text. Returns token, start and stop of each."""
        found = self._tokenizer(
            text, add_special_tokens=False, split_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        places = []
        for token, (start, stop) in zip(found.input_ids, found.offset_mapping, strict=True):
            content = text[start:stop].strip()
            if content and token in self._meant and not self._is_unknown(token, content):
                start += text[start:stop].index(content)  # blanks beside it may belong to the token
                places.append((token, start, start + len(content)))
        return places

    def encode(self, text: Spelled, log: Log = ()) -> list[int]:
        """The tokens of `text` where it goes on from `log`, as they are in the encoding of the whole. `log` stays as it
        is, also where the whole would be split another way across the border."""
        for front in self._fronts(log):
            known, found = self._ids(front), self._ids(front + text)
            if found[: len(known)] == known:
                return found[len(known) :]
        raise AssertionError("an empty front has no tokens")

    def _fronts(self, log: Log) -> list[str]:
        """Texts to encode behind, the best first: the end of the log, or a text that nothing merges with."""
        if not len(log):
            return [""]
        tail = [int(token) for token in log[-_FRONT_TOKENS:]]
        last = max((at for at, token in enumerate(tail) if token in self.control), default=-1)
        before = self._spelling(tail[last]) if last >= 0 else ""
        return [before + self._backend.decode(tail[last + 1 :], skip_special_tokens=False), *_OTHER_FRONTS]

    def _ids(self, text: str) -> list[int]:
        """Encode as the tokenizer numbers its tokens. Where the vocabulary makes a control token of words, they are
        taken apart."""
        twin, numbers = self._twin
        while True:
            encoded = twin.encode(text, add_special_tokens=False)
            ids: list[int] = encoded.ids
            if self._in_words.isdisjoint(ids):
                break
            found = [(token, *span) for token, span in zip(ids, encoded.offsets, strict=True)]
            made = [(text[a:b], token, a) for token, a, b in found if token in self._in_words and b > a + 1]
            cuts = sorted({a + 1 for spelled, token, a in made if not self._is_unknown(token, spelled)})
            if not cuts:  # where the unknown word is a control token itself, unknown words say nothing
                ids = [token for token in ids if token not in self._in_words]
                break
            text = _CUT.join(text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True))
        return [number for token in ids if (number := numbers.get(token, token)) >= 0]

    def _is_unknown(self, token: int, spelled: str) -> bool:
        text, number = self._unknown
        return token == number and text is not None and text not in spelled

    def _spelling(self, token: int) -> str:
        return f"{_SECRET}{token}\u241e"

    @cached_property
    def _twin(self) -> tuple[Tokenizer, dict[int, int]]:
        """The twin, and a map of its token numbers to the tokenizer's where they differ; -1 for tokens to leave out."""
        twin, numbers = self._made(0)
        model = self._backend.model
        if any(model.id_to_token(number) is not None for number in numbers):  # the vocabulary has gaps
            ids = self._backend.get_vocab(with_added_tokens=False).values()
            twin, numbers = self._made(max(ids) + 1 - len(ids))
        return twin, numbers

    def _made(self, gaps: int) -> tuple[Tokenizer, dict[int, int]]:
        twin = Tokenizer(self._backend.model)  # shared, not copied
        twin.normalizer, twin.pre_tokenizer = self._backend.normalizer, self._backend.pre_tokenizer
        twin.add_tokens([f"{_SECRET}gap{number}\u241e" for number in range(gaps)])
        twin.add_tokens([AddedToken(_CUT, normalized=False)])
        contents = {number: self._content(number) for number in sorted(self._meant | self._added.keys())}
        twin.add_tokens([
            AddedToken(
                contents[number], normalized=token.normalized, single_word=token.single_word, lstrip=token.lstrip,
                rstrip=token.rstrip,
            )
            for number, token in ((number, self._added.get(number, _PLAIN)) for number in contents)
        ])  # fmt: skip
        found = {_id(twin, _CUT): -1} | {_id(twin, content): number for number, content in contents.items()}
        return twin, {mine: number for mine, number in found.items() if mine != number}

    def _content(self, token: int) -> str:
        is_word = token not in self._meant
        return self._added[token].content if is_word else self._spelling(token)


def _id(tokenizer: Tokenizer, content: str) -> int:
    number = tokenizer.token_to_id(content)
    assert number is not None  # the caller has added it
    return number


_PLAIN = AddedToken("", normalized=False)
