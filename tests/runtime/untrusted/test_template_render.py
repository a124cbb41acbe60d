"""Chat templates of models: rendered as transformers does, within bounds, and refused by file and field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHATML, save_tiny_model

from stratakv.runtime import KVConfig, ModelFileError, Runtime
from stratakv.runtime.model.template import Template
from stratakv.runtime.untrusted.template_render import render

USUAL = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content | trim }}\n{% endfor %}"
FEATURES = {
    "namespace": "{%- set ns = namespace(n=0) -%}" + USUAL + "{% set ns.n = ns.n + 1 %}{{ ns.n }}",
    "tojson": USUAL + "{{ {'a': ['é', 1]} | tojson(indent=2) }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 9 %}{% break %}{% endif %}{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{% set a = m.role %}{{ a }}\n{% endgeneration %}{% endfor %}",
    "date": USUAL + "{{ strftime_now('%Y') }}{% if tools is not none %}tools{% endif %}",
    "macro": "{% macro say(m) %}<{{ m['role'] }}>{% endmacro %}{% for m in messages %}{{ say(m) }}{% endfor %}",
    "prompt": CHATML,
    "blocks": "  {% if true %}\n  a\n  {% endif %}\n" + USUAL,
}  # fmt: skip
HOSTILE = {
    "syntax": ("{% for m in messages %}", "TemplateSyntaxError"),
    "unknown filter": ("{{ messages | nosuch }}", "nosuch"),
    "undefined": (USUAL + "{{ a.b.c }}", "UndefinedError"),
    "division": (USUAL + "{{ 1 // 0 }}", "ZeroDivisionError"),
    "its own error": ("{{ raise_exception('no\x1b[2J\nway') }}", "no"),
    "long range": ("{% for i in range(10**9) %}{% endfor %}" + USUAL, "Range too big"),
    "nested loops": ("{% for i in range(99999) %}" * 3 + "{% endfor %}" * 3 + USUAL, "too much time or memory"),
    "endless recursion": ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    "a large power": ("{{ 7 ** (7 ** 77) }}" + USUAL, "too much time or memory"),
    "a doubling text": ("{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}"
                        + USUAL, "MemoryError"),
    "a wide text": ("{{ 'a'.center(10**10) }}" + USUAL, "MemoryError"),
    "a long output": ("{% for i in range(99999) %}aaaaaaaaaa{% endfor %}" + USUAL, "more than"),
    "a long template": ("a" * (257 << 10) + USUAL, "at most 262144"),
    "Python's insides": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
    "an attribute by format": ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "SecurityError"),
    "a change of the messages": ("{{ messages.append(1) }}" + USUAL, "SecurityError"),
    "nothing said": ("hello", "leaves out what is said"),
    "no last question": ("{% for m in messages[:2] %}{{ m.content }}{% endfor %}", "leaves out what is said"),
}  # fmt: skip


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(save_tiny_model(tmp_path_factory.mktemp("templates") / "model"))


@pytest.mark.parametrize("name", FEATURES)
def test_what_honest_templates_use_is_rendered_as_transformers_does(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template = FEATURES[name]
    messages = [
        {"role": "user", "content": " ?"},
        {"role": "assistant", "content": "é"},
        {"role": "user", "content": "x"},
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert Template(tokenizer)._rendered(render, messages).texts == (expected,)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_template_is_refused(tokenizer: Any, name: str) -> None:
    tokenizer.chat_template, why = HOSTILE[name]
    with pytest.raises(
        ModelFileError, match=r"(tokenizer_config\.json|chat_template\.jinja): chat_template: "
    ) as caught:
        Template(tokenizer).check()
    assert why in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("wrong", [7, {"tool_use": CHATML}, ["a"]], ids=str)
def test_a_template_that_is_no_text_is_refused(tokenizer: Any, wrong: Any) -> None:
    tokenizer.chat_template = wrong
    with pytest.raises(ModelFileError, match="chat_template: is no text"):
        Template(tokenizer).check()


def test_several_templates_have_a_default(tokenizer: Any) -> None:
    tokenizer.chat_template = {"default": USUAL, "tool_use": "{{ no.such }}"}
    assert "user: hello" not in Template(tokenizer).first("hello").before
    assert Template(tokenizer).first("hello").before.endswith("system: hello\nuser: ")


def test_a_template_that_refuses_a_system_prompt_is_a_value_error(tokenizer: Any) -> None:
    refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    tokenizer.chat_template = refuses + USUAL
    Template(tokenizer).check()
    with pytest.raises(ValueError, match=r"no place for a system prompt .*System role not supported"):
        Template(tokenizer).first("Be brief.")


def test_a_model_with_a_hostile_template_is_refused_at_load(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    (model / "chat_template.jinja").write_text(HOSTILE["division"][0])
    with pytest.raises(ModelFileError, match=r"chat_template\.jinja: chat_template: ZeroDivisionError"):
        Runtime.load(model, dtype="float32", kv=KVConfig(path=tmp_path / "kv", host_gb=0.01, disk_gb=0.05))
    assert not (tmp_path / "kv").exists()
