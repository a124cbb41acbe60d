"""Tokenizers of every kind that language models have, trained on the spot, and well-known chat templates."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from stratakv.runtime.untrusted import template_child

CONTROLS = (
    "<s>", "</s>", "<bos>", "<eos>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|start_header_id|>",
    "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>",
    "<|end|>", "[B_INST]", "[E_INST]",
)  # fmt: skip
_TEXT = """The keeper of the lamp wrote a letter. user: Who hid it? assistant: The keeper did, he said. system
Document d: Be brief. [INST] Hello world [/INST] OK. In 1847 there were 12 ships,   and  345 men.\n\nAnd then?\n
"Yes," said he; "no more!" model\n\nuser\nassistant\nThe end. It's <told> | once [more] and more. User: Assistant:
"""
_SPLIT = r"""'s|'t|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_SPM_DECODER = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]


def _byte_level(*, add_prefix_space: bool = False) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = (
        pre_tokenizers.ByteLevel(add_prefix_space=True)
        if add_prefix_space
        else pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ])
    )  # fmt: skip
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        [_TEXT], trainers.BpeTrainer(vocab_size=450, show_progress=False, initial_alphabet=alphabet)
    )
    return backend


def _sentencepiece(how: Callable[[Tokenizer], None], *, words: tuple[str, ...] = ()) -> Tokenizer:
    """Merges inside words, looked for in whole texts; bytes where a character is unknown."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.BpeTrainer(vocab_size=650, show_progress=False, special_tokens=["<unk>", *_BYTES, *words])
    backend.train_from_iterator(_TEXT.splitlines(), trainer)
    backend = Tokenizer(backend.model)
    how(backend)
    return backend


def _metaspace(scheme: str, *, split: bool = False) -> Callable[[Tokenizer], None]:
    def how(backend: Tokenizer) -> None:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)
        backend.decoder = decoders.Sequence([*_SPM_DECODER, decoders.Strip(" ", 1, 0)])

    return how


def _legacy(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence([*_SPM_DECODER, decoders.Strip(" ", 1, 0)])


def _gemma(backend: Tokenizer) -> None:
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    backend.decoder = decoders.Sequence(_SPM_DECODER)


def _unigram() -> Tokenizer:
    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.NFKC()
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    backend.decoder = decoders.Metaspace(prepend_scheme="first", split=True)
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", "<|im_end|>"], unk_token="<unk>", show_progress=False
    )
    backend.train_from_iterator(_TEXT.splitlines(), trainer)
    return backend


KINDS: dict[str, Callable[[], Tokenizer]] = {
    "bytes": _byte_level,
    "bytes, space in front": lambda: _byte_level(add_prefix_space=True),
    "metaspace first": lambda: _sentencepiece(_metaspace("first")),
    "metaspace always": lambda: _sentencepiece(_metaspace("always", split=True)),
    "metaspace never": lambda: _sentencepiece(_metaspace("never")),
    "legacy prefix": lambda: _sentencepiece(_legacy),
    "gemma": lambda: _sentencepiece(_gemma, words=CONTROLS),
    "unigram": _unigram,
}
FLAGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rstrip": {"rstrip": True},
    "lstrip": {"lstrip": True},
    "both": {"lstrip": True, "rstrip": True},
    "normalized": {"normalized": True},
}


@cache
def _trained(kind: str) -> str:
    trained = json.loads(KINDS[kind]().to_str())
    return json.dumps({**trained, "added_tokens": []})  # what the trainer was given, it calls special


def tokenizer_of(kind: str, flags: str = "plain", *, bos: bool = False, eos: bool = False, special: bool = True) -> Any:
    """A transformers tokenizer of that kind, whose control tokens have those flags.

    Args:
        bos, eos: what it puts around a text.
    """
    import transformers

    backend = Tokenizer.from_str(_trained(kind))
    given = {"normalized": False, "special": special, **FLAGS[flags]}
    backend.add_special_tokens([AddedToken(text, **given) for text in CONTROLS])
    backend.add_tokens([AddedToken("\n\n", normalized=False), AddedToken("<table>", normalized=False)])
    if bos or eos:
        ids = [(text, backend.token_to_id(text)) for text in ("<s>", "</s>")]
        single = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
        backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
    unknown = "<unk>" if backend.token_to_id("<unk>") is not None else None
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token=unknown
    )


def render_here(patch: pytest.MonkeyPatch) -> None:
    """Templates are rendered in this process from now on: these are ours."""
    patch.setattr(
        "stratakv.runtime.untrusted.template_render._answer", lambda request: template_child.rendered(**request)
    )


TEMPLATES = {
    "chatml": (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>' + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama 3": (
        "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
        "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
        "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} "
        "[/INST]{% else %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral 3": (
        "{% if messages[0].role == 'system' %}{% set sys = messages[0].content %}{% set messages = messages[1:] %}"
        "{% endif %}{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[B_INST]{% if loop.first and sys %}"
        "{{ sys + '\n\n' }}{% endif %}{{ m.content }}[E_INST]{% else %}{{ m.content }}{{ eos_token }}{% endif %}"
        "{% endfor %}"
    ),
    "gemma": (
        "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{% set prefix = messages[0]['content'] + '\n\n' %}"
        "{% set messages = messages[1:] %}{% else %}{% set prefix = '' %}{% endif %}{% for m in messages %}"
        "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
        "{% set role = 'model' if m['role'] == 'assistant' else m['role'] %}"
        "{{ '<start_of_turn>' + role + '\n' + (prefix if loop.first else '') }}{{ m['content'] | trim }}"
        "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "phi 3": (
        "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
    ),
    "told by the system": (
        "{% set how = '(briefly) ' if messages[0].role == 'system' else '' %}{% for m in messages %}<|im_start|>"
        "{{ m.role + '\n' }}{{ how if m.role == 'assistant' }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' + how }}{% endif %}"
    ),
    "words": (
        "{% for m in messages %}{% if m.role == 'assistant' %}Assistant: {{ m.content.strip() }}\n{% else %}"
        "{{ m.role | capitalize }}: {{ m.content.strip() | replace('ship', 'boat') }}\n{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}Assistant:{% endif %}"
    ),
    "lines": (
        "{{ bos_token }}{% for m in messages %}\n[{{ m.role }}]\n{{ m.content.rstrip() }}\n{% endfor %}\n"
        "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    ),
}  # fmt: skip
