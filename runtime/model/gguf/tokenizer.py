"""The tokenizer that a GGUF file describes, as the files of a model directory.

`tokenizer.json` gives the ids that llama.cpp gives for the same text (checked against b11549); what its parts can't say
is told by a warning. Nothing here depends on the model's family, and no library's class for one is used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...api.errors import ModelFileError
from ...untrusted.directory import MAX_TEMPLATE, MAX_TEMPLATES
from ...untrusted.numbers import shown
from ...untrusted.tokenizer import check_tokenizer
from ..tokens import GGUF, MADE_FROM
from .merges import pairs_by_score, stated_pairs
from .vocabulary import SENTENCEPIECE, Kind, Vocabulary, read_vocabulary

_BLANK = "\u2581"
"""The character that stands for a blank in tokens that are spelled in characters."""
_TEMPLATE = "tokenizer.chat_template"
_TEMPLATE_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_CALLED = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}


def write_tokenizer(path: Path, keys: Mapping[str, Any], target: Path) -> None:
    """Make `tokenizer.json`, `tokenizer_config.json`, `generation_config.json` and the chat templates.

    Args:
        path: the file, for messages.
        keys: its keys as plain Python values; `tokenizer.*` and the model's name are looked at.
        target: a directory.

    Raises ModelFileError, naming the key, where that would be another tokenizer than the one that was meant.
    """
    vocabulary = read_vocabulary(path, keys)
    templates = _templates(path, keys)
    _write(target / "tokenizer.json", _tokenizer(path, vocabulary))
    _check(path, target / "tokenizer.json")
    _write(target / "tokenizer_config.json", _settings(vocabulary))
    _write(target / "generation_config.json", _generation(vocabulary))
    for name, template in templates.items():
        file = target / ("chat_template.jinja" if name == "default" else f"additional_chat_templates/{name}.jinja")
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(template.encode())


def _write(file: Path, content: Any) -> None:
    file.write_bytes(json.dumps(content, ensure_ascii=False).encode())


def _check(path: Path, made: Path) -> None:
    """Raise ModelFileError if the made tokenizer breaks the bounds that hold for a directory's."""
    try:
        check_tokenizer(made)
    except ModelFileError as error:
        reason = str(error).removeprefix(f"{made}: ")
        raise ModelFileError(f"{path}: tokenizer.ggml.tokens: larger than can be read again ({reason})") from error


def _tokenizer(path: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [_added(vocabulary, number) for number in vocabulary.added],
        "normalizer": _normalizer(vocabulary),
        "pre_tokenizer": _pre_tokenizer(vocabulary),
        "post_processor": _post_processor(vocabulary),
        "decoder": _decoder(vocabulary),
        "model": _model(path, vocabulary),
    }  # fmt: skip


def _added(vocabulary: Vocabulary, number: int) -> dict[str, Any]:
    return {
        "id": number, "content": vocabulary.tokens[number], "single_word": False, "lstrip": False,
        "rstrip": number in vocabulary.swallows, "normalized": False,
        "special": vocabulary.kinds[number] != Kind.ADDED,
    }  # fmt: skip


def _normalizer(vocabulary: Vocabulary) -> dict[str, Any] | None:
    """The normalizer sees the text between added tokens, each piece by itself: so a blank is put behind each of them,
    too."""
    if vocabulary.rule.byte_level:
        return None
    blanks = {"type": "Replace", "pattern": {"String": " "}, "content": _BLANK}
    if not vocabulary.space_prefix:
        return blanks
    return {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": _BLANK}, blanks]}


def _pre_tokenizer(vocabulary: Vocabulary) -> dict[str, Any] | None:
    steps: list[dict[str, Any]] = [
        {"type": "Split", "pattern": {"Regex": split}, "behavior": "Isolated", "invert": False}
        for split in vocabulary.rule.splits
    ]
    if vocabulary.rule.byte_level:
        steps.append({"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False})
    return {"type": "Sequence", "pretokenizers": steps} if steps else None


def _post_processor(vocabulary: Vocabulary) -> dict[str, Any]:
    names = [name for name, put in (("bos", vocabulary.begins), ("eos", vocabulary.ends)) if put]
    texts = {name: vocabulary.tokens[vocabulary.named[name]] for name in names}

    def around(sequence: str, kind: int) -> list[dict[str, Any]]:
        special = {name: [{"SpecialToken": {"id": text, "type_id": kind}}] for name, text in texts.items()}
        return [*special.get("bos", []), {"Sequence": {"id": sequence, "type_id": kind}}, *special.get("eos", [])]

    return {
        "type": "TemplateProcessing", "single": around("A", 0), "pair": [*around("A", 0), *around("B", 1)],
        "special_tokens": {
            text: {"id": text, "ids": [vocabulary.named[name]], "tokens": [text]} for name, text in texts.items()
        },
    }  # fmt: skip


def _decoder(vocabulary: Vocabulary) -> dict[str, Any]:
    if vocabulary.rule.byte_level:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    steps: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _BLANK}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"}
    ]  # fmt: skip
    if vocabulary.space_prefix:
        steps.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": steps}


def _model(path: Path, vocabulary: Vocabulary) -> dict[str, Any]:
    by_score = vocabulary.model == SENTENCEPIECE
    in_letters = not vocabulary.rule.byte_level
    unknown = vocabulary.named.get("unknown") if in_letters else None
    return {
        "type": "BPE", "dropout": None, "unk_token": None if unknown is None else vocabulary.tokens[unknown],
        "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": in_letters,
        "byte_fallback": in_letters, "ignore_merges": vocabulary.rule.whole_words,
        "vocab": {token: number for number, token in enumerate(vocabulary.tokens)},
        "merges": (pairs_by_score if by_score else stated_pairs)(path, vocabulary),
    }  # fmt: skip


def _settings(vocabulary: Vocabulary) -> dict[str, Any]:
    added = set(vocabulary.added)
    named = {
        setting: vocabulary.tokens[vocabulary.named[name]]
        for name, setting in _CALLED.items()
        if name in vocabulary.named and (name in ("bos", "eos") or vocabulary.named[name] in added)
    }
    return {
        MADE_FROM: GGUF, "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False, **named
    }  # fmt: skip


def _generation(vocabulary: Vocabulary) -> dict[str, Any]:
    names = {"bos": "bos_token_id", "padding": "pad_token_id"}
    named = {name: vocabulary.named[key] for key, name in names.items() if key in vocabulary.named}
    return {**named, "eos_token_id": vocabulary.end_ids}


def _templates(path: Path, keys: Mapping[str, Any]) -> dict[str, str]:
    """The chat templates by name; none without one called `default`, which is the one that is used."""
    found = {key.removeprefix(_TEMPLATE).removeprefix(".") or "default": keys[key] for key in keys if _is_template(key)}
    for name, template in found.items():
        if not _TEMPLATE_NAME.fullmatch(name):
            raise ModelFileError(f"{path}: {_TEMPLATE}: {shown(name)} is no name of a template")
        if not isinstance(template, str) or len(template.encode()) > MAX_TEMPLATE:
            raise ModelFileError(f"{path}: {_TEMPLATE}: {shown(name)}: expected a text of up to {MAX_TEMPLATE} bytes")
    if len(found) > MAX_TEMPLATES:
        raise ModelFileError(f"{path}: {_TEMPLATE}: {len(found)} templates, at most {MAX_TEMPLATES} are allowed")
    return found if found.get("default") else {}


def _is_template(key: str) -> bool:
    return key == _TEMPLATE or key.startswith(f"{_TEMPLATE}.")
