"""A GGUF file's statements about its tokens: `tokenizer.ggml.*`, checked before anything is made from them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeVar

from ...api.errors import ModelFileError
from ...untrusted.numbers import shown
from ...untrusted.settings import MAX_ADDED
from ..ends import FILE_ENDS, TURN_ENDS, well_known_ends
from .pre_tokenizers import RULES, Rule

logger = logging.getLogger(__name__)

MAX_TOKENS = 1 << 19
MAX_ENDS = 128
MAX_LETTERS = 1 << 10
"""The most letters of a token. The longest in known files are runs of blanks and lines, a few hundred long."""
MAX_ADDED_LETTERS = 1 << 20
"""The most letters of all control and added tokens together: they are searched for in every text at once."""
SENTENCEPIECE = "llama"
"""The vocabulary's model in files whose merges follow from the tokens' scores."""
_MODELS = {"gpt2": None, SENTENCEPIECE: None, "gemma4": "gemma4"}
"""Kinds of vocabulary, each with the splitting rule that it always has, whatever the file says."""
_NAMED = ("bos", "eos", "unknown", "padding")
_NAMED_ENDS = ("eot", "eom", "fim_pad", "fim_rep", "fim_sep")
_DEFAULT_IDS = {"bos": 1, "eos": 2, "unknown": 0}
"""Token ids of a SentencePiece vocabulary that does not state them."""
_USED = frozenset({
    "model", "pre", "tokens", "token_type", "scores", "merges", "add_bos_token", "add_eos_token", "add_space_prefix",
    "eos_token_ids", *(f"{name}_token_id" for name in (*_NAMED, *_NAMED_ENDS)),
})  # fmt: skip
_NOT_NEEDED = frozenset({
    "token_type_count", "add_sep_token", "remove_extra_whitespaces", "precompiled_charsmap", "seperator_token_id",
    "mask_token_id", "cls_token_id", "fim_pre_token_id", "fim_suf_token_id", "fim_mid_token_id", "prefix_token_id",
    "suffix_token_id", "middle_token_id",
})  # fmt: skip
"""Keys of other kinds of vocabulary, or of tokens that no text gets by itself."""
_SHOWN = frozenset({"<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"})
"""Tokens that gpt-oss writes around its channels. Whoever shows a reply reads them, so they are no control tokens."""
_GAPS = frozenset({
    "<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>",
    "<|prefix|>", "<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>",
    "<|code_suffix|>", "<|suffix|>", "<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>",
    "▁<MID>", "<|code_middle|>", "<|middle|>",
})  # fmt: skip
"""Tokens that stand around a gap in a text."""


class Kind(IntEnum):
    """The values of `tokenizer.ggml.token_type`."""

    WORD = 1
    UNKNOWN = 2
    CONTROL = 3
    ADDED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """A file's tokens and their meaning."""

    model: str
    """A key of `_MODELS`."""
    tokens: list[str]
    kinds: list[int]
    """The `Kind` of each token; numbers that are none are kept."""
    scores: list[float]
    """The score of each token if `model` is `SENTENCEPIECE`, which joins letters by scores; otherwise empty."""
    merges: list[str]
    rule: Rule
    named: dict[str, int]
    """Ids of `bos`, `eos`, `unknown`, `padding` and others, where there is one."""
    end_ids: list[int]
    """Ids of the tokens that end a reply."""
    added: list[int]
    """Ids of the tokens that are found in a text before it is split."""
    swallows: frozenset[int]
    """Ids of the added tokens that take the blanks behind them with them."""
    begins: bool
    """True if BOS is put before a text."""
    ends: bool
    """True if EOS is put behind a text."""
    space_prefix: bool
    """True if text after the beginning or after an added token gets a blank."""


_T = TypeVar("_T", str, int, bool)
_N = TypeVar("_N", int, float)


def read_vocabulary(path: Path, keys: Mapping[str, Any]) -> Vocabulary:
    """Read the vocabulary. Raises ModelFileError, which names the key, unless it can be rebuilt as it was."""
    model = _value(path, keys, "model", str, "")
    if model not in _MODELS:
        raise ModelFileError(
            f"{path}: tokenizer.ggml.model: a vocabulary of the kind {shown(model)} is not supported, "
            f"only {', '.join(_MODELS)}; take the model's directory of safetensors instead"
        )
    _warn_of_unused(path, keys)
    by_score = model == SENTENCEPIECE
    tokens = _tokens(path, keys)
    kinds = _numbers(path, keys, "token_type", len(tokens), int, int(Kind.WORD))
    ids = {token: number for number, token in enumerate(tokens)}
    named = _named(path, keys, len(tokens), _DEFAULT_IDS if by_score else {})
    end_ids = _end_ids(path, keys, ids, named)
    _correct_kinds(ids, kinds, end_ids)
    added = [number for number, kind in enumerate(kinds) if kind in (Kind.UNKNOWN, Kind.CONTROL, Kind.ADDED)]
    letters = sum(len(tokens[number]) for number in added)
    if len(added) > MAX_ADDED or letters > MAX_ADDED_LETTERS:
        raise ModelFileError(
            f"{path}: tokenizer.ggml.token_type: {len(added)} control and added tokens of {letters} letters together, "
            f"at most {MAX_ADDED} of {MAX_ADDED_LETTERS} are allowed"
        )
    rule = _rule(path, keys, model)
    return Vocabulary(
        model=model, tokens=tokens, kinds=kinds,
        scores=_numbers(path, keys, "scores", len(tokens), float, 0.0) if by_score else [],
        merges=[] if by_score else _merges(path, keys),
        rule=rule, named=named, end_ids=end_ids, added=added, swallows=_swallowing(keys, ids, added),
        begins=_is_put(path, keys, "bos", by_score or rule.begins, named) or model == "gemma4",
        ends=_is_put(path, keys, "eos", False, named),
        space_prefix=_value(path, keys, "add_space_prefix", bool, by_score),
    )  # fmt: skip


def _warn_of_unused(path: Path, keys: Mapping[str, Any]) -> None:
    found = [key for key in keys if key.startswith("tokenizer.ggml.")]
    unused = sorted(key for key in found if key.removeprefix("tokenizer.ggml.") not in _USED | _NOT_NEEDED)
    if unused:
        logger.warning("%s: not used, since it is not known what is meant: %s", path, shown(", ".join(unused)))


def _value(path: Path, keys: Mapping[str, Any], name: str, kind: type[_T], default: _T) -> _T:
    found = keys.get(f"tokenizer.ggml.{name}", default)
    if type(found) is not kind:
        raise ModelFileError(f"{path}: tokenizer.ggml.{name}: {shown(found)}, expected a {kind.__name__}")
    return found


def _tokens(path: Path, keys: Mapping[str, Any]) -> list[str]:
    found = _texts(path, keys, "tokens", MAX_TOKENS)
    if not found:
        raise ModelFileError(f"{path}: tokenizer.ggml.tokens: the file has none")
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(found)]
    longest = max(tokens, key=len)
    if len(longest) > MAX_LETTERS:
        raise ModelFileError(
            f"{path}: tokenizer.ggml.tokens: one is {len(longest)} letters long, at most {MAX_LETTERS} are allowed"
        )
    if len(set(tokens)) < len(tokens):
        twice = next(token for token, count in Counter(tokens).most_common(1) if count > 1)
        raise ModelFileError(
            f"{path}: tokenizer.ggml.tokens: {shown(twice)} is there twice, so that one of its ids cannot be meant"
        )
    return tokens


def _merges(path: Path, keys: Mapping[str, Any]) -> list[str]:
    if "tokenizer.ggml.merges" not in keys:
        raise ModelFileError(
            f"{path}: tokenizer.ggml.merges: the file does not say them, and nothing else tells how to join letters"
        )
    return _texts(path, keys, "merges", MAX_TOKENS)


def _texts(path: Path, keys: Mapping[str, Any], name: str, most: int) -> list[str]:
    found = keys.get(f"tokenizer.ggml.{name}")
    if not isinstance(found, list) or len(found) > most or not all(isinstance(text, str) for text in found):
        raise ModelFileError(f"{path}: tokenizer.ggml.{name}: expected a list of up to {most} texts")
    return found


def _numbers(path: Path, keys: Mapping[str, Any], name: str, count: int, kind: type[_N], default: _N) -> list[_N]:
    """One number for each token; `default` for all if the file has none."""
    found = keys.get(f"tokenizer.ggml.{name}")
    if found is None:
        return [default] * count
    if not isinstance(found, list) or len(found) < count or not all(isinstance(item, int | kind) for item in found):
        raise ModelFileError(f"{path}: tokenizer.ggml.{name}: expected one {kind.__name__} for each of {count} tokens")
    return [kind(item) for item in found[:count]]


def _named(path: Path, keys: Mapping[str, Any], count: int, defaults: Mapping[str, int]) -> dict[str, int]:
    """Ids of tokens by what they are for, as far as there are such tokens."""
    found = {name: number for name, number in defaults.items() if number < count}
    for name in (*_NAMED, *_NAMED_ENDS):
        number = _value(path, keys, f"{name}_token_id", int, found.get(name, -1))
        if 0 <= number < count:
            found[name] = number
        elif f"tokenizer.ggml.{name}_token_id" in keys:
            logger.warning(
                "%s: tokenizer.ggml.%s_token_id: %d is not used, there are %d tokens", path, name, number, count
            )
    return found


def _is_put(path: Path, keys: Mapping[str, Any], name: str, default: bool, named: Mapping[str, int]) -> bool:
    """True if a text has the token, `bos` or `eos`, at its border."""
    key = f"add_{name}_token"
    put = _value(path, keys, key, bool, default)
    if put and name not in named:
        if f"tokenizer.ggml.{key}" in keys:
            raise ModelFileError(
                f"{path}: tokenizer.ggml.{name}_token_id: the file says no token of the vocabulary, though "
                f"tokenizer.ggml.{key} is true"
            )
        logger.warning("%s: tokenizer.ggml.%s_token_id: not there, so no text has it", path, name)
        return False
    return put


def _rule(path: Path, keys: Mapping[str, Any], model: str) -> Rule:
    if model == SENTENCEPIECE:
        return Rule((), byte_level=False)
    name = _MODELS[model] or _value(path, keys, "pre", str, "")
    if not name:
        logger.warning(
            "%s: tokenizer.ggml.pre: the file does not say how texts are split; split by the default rule, which may "
            "be another than the model's; a file converted anew says it", path,
        )  # fmt: skip
        name = "default"
    if name not in RULES:
        raise ModelFileError(
            f"{path}: tokenizer.ggml.pre: the rule {shown(name)} for splitting texts is not known here, and any other "
            "would give other tokens; take the model's directory of safetensors instead, or a later version"
        )
    return RULES[name]


def _end_ids(path: Path, keys: Mapping[str, Any], ids: Mapping[str, int], named: Mapping[str, int]) -> list[int]:
    listed = keys.get("tokenizer.ggml.eos_token_ids", [])
    if not isinstance(listed, list) or len(listed) > MAX_ENDS or not all(type(number) is int for number in listed):
        raise ModelFileError(f"{path}: tokenizer.ggml.eos_token_ids: expected a list of up to {MAX_ENDS} token ids")
    stated = [named[name] for name in ("eos", *_NAMED_ENDS) if name in named]
    return well_known_ends(ids, [*stated, *(number for number in listed if 0 <= number < len(ids))])


def _correct_kinds(ids: Mapping[str, int], kinds: list[int], end_ids: list[int]) -> None:
    """Correct the kinds of tokens that a template writes and that files call words, or added words."""
    for text in (TURN_ENDS | FILE_ENDS | _GAPS) & ids.keys():
        if ids[text] in end_ids or text in _GAPS:
            kinds[ids[text]] = Kind.CONTROL
    for text in _SHOWN & ids.keys():
        kinds[ids[text]] = Kind.ADDED
    for text, kind in (("<|end|>", Kind.ADDED), ("</s>", Kind.WORD)):
        if text in ids and ids[text] not in end_ids:
            kinds[ids[text]] = kind


def _swallowing(keys: Mapping[str, Any], ids: Mapping[str, int], added: list[int]) -> frozenset[int]:
    """The ids of Phi-3's control tokens that take the blanks behind them with them; only the model's name tells."""
    called = " ".join(str(keys.get(f"general.{name}", "")) for name in ("name", "basename")).lower()
    if not any(name in called for name in ("phi-3", "phi3", "phi 3")):
        return frozenset()
    return frozenset(added) - {ids[text] for text in ("<unk>", "<s>", "<|endoftext|>") if text in ids}
