"""A document is a turn of its own: what a model reads is what transformers renders of such a conversation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import Chat, KVConfig, Runtime

ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT = "The lighthouse at Aldwick burns oil of rape seed."


@pytest.fixture
def runtime(tiny_llama: Path) -> Iterator[Runtime]:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(disk_gb=0, index="bounds", budget=112, local=32)) as one:
        yield one


def prompt(chat: Chat, question: str) -> list[int]:
    reply = chat.send(question, max_new_tokens=2, ignore_eos=True)
    return chat._sequence.tokens[: reply.usage.prompt_tokens].tolist()


def of(name: str, text: str = TEXT) -> list[dict[str, str]]:
    return [
        {"role": "user", "content": f"Document {name}:\n\n{text}"},
        {"role": "assistant", "content": "OK."},
    ]


def rendered(runtime: Runtime, messages: list[dict[str, str]]) -> list[int]:
    text = runtime.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids: list[int] = runtime.tokenizer(text, add_special_tokens=False).input_ids
    return ids


@pytest.mark.parametrize(("template", "system"), [(None, None), (None, "Be brief."), (ALTERNATING, None)])
def test_documents_come_in_turns_of_their_own(runtime: Runtime, template: str | None, system: str | None) -> None:
    if template is not None:
        runtime.tokenizer.chat_template = template
    chat = runtime.chat(system=system)
    chat.read_text(f"\n{TEXT}\n\n", "one")
    chat.read_text(TEXT, "two")
    said: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
    question = {"role": "user", "content": "What burns?"}
    assert prompt(chat, "What burns?") == rendered(runtime, [*said, *of("one"), *of("two"), question])
    assert [message["role"] for message in chat.messages] == ["document", "document", "user", "assistant"]


def test_a_document_after_an_answer(runtime: Runtime) -> None:
    chat = runtime.chat()
    chat.send("Hello.", max_new_tokens=2, ignore_eos=True)
    chat.read_text(TEXT, "late")
    end = f"<|im_end|>\n<|im_start|>user\nDocument late:\n\n{TEXT}<|im_end|>\n<|im_start|>assistant\nOK."
    expected = runtime.tokenizer(end, add_special_tokens=False).input_ids
    assert chat._sequence.tokens.tolist()[-len(expected) :] == expected


def test_without_a_template_a_blank_line_parts_document_and_question(runtime: Runtime) -> None:
    runtime.tokenizer.chat_template = None
    chat = runtime.chat()
    chat.read_text(TEXT, "one")
    said = runtime.tokenizer.decode(prompt(chat, "What burns?"))
    assert said.endswith(f"Document one:\n\n{TEXT}\n\nWhat burns?")
