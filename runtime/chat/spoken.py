"""The tokens that say the text of a reply: a conversation remembers what was shown, no more and no less.

A reply ends inside what was generated when a stop string cut it, when its stream was closed, or when the last
character is not whole. It keeps every token whose text was shown, and then the rest of the text, spelled anew.
"""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers.decoders import DecodeStream

from ..model.template import Template


def spoken(template: Template, generated: Sequence[int], text: str) -> list[int]:
    """Tokens that read `text`, the longest possible prefix of `generated` first.

    Args:
        generated: the tokens of a reply, of whose text `text` is a prefix.
    """
    tokens, said = _whole_tokens(template, generated, len(text))
    rest = text[said:]
    for spelled in _spellings(template, rest):
        if _text(template, [*tokens, *spelled]) == text:
            return [*tokens, *spelled]
    return tokens


def _whole_tokens(template: Template, generated: Sequence[int], length: int) -> tuple[list[int], int]:
    """The leading tokens that are wholly within `length` characters, and how many characters they have."""
    decoder, said, whole, at = DecodeStream(skip_special_tokens=True), 0, 0, 0
    for number, token in enumerate(generated, start=1):
        piece = decoder.step(template.backend, token)
        if not piece:  # a control token, or part of a character: kept if something after it is
            continue
        said += len(piece)
        if said > length:
            break
        whole, at = number, said
    return list(generated[:whole]), at


def _spellings(template: Template, text: str) -> list[list[int]]:
    """Ways to encode a continuation. Some tokenizers put a space before a text that begins: a line break takes it."""
    if not text:
        return [[]]
    line = template.encode_plain("\n")
    after_line = template.encode_plain("\n" + text)
    return [template.encode_plain(text), after_line[len(line) :] if after_line[: len(line)] == line else []]


def _text(template: Template, tokens: list[int]) -> str:
    decoder = DecodeStream(skip_special_tokens=True)
    return "".join(decoder.step(template.backend, token) or "" for token in tokens)
