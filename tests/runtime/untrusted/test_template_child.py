"""What a template makes of conversations, told to whoever asked: texts, what it looked for in words, or its mistake."""

from __future__ import annotations

import pytest

from stratakv.runtime.untrusted.template_child import MOST_LOOKED, rendered

SAID = "{% for m in messages %}{{ m.content }}{% endfor %}"
PLENTY = 1000


def conversation(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(texts)]


def looked(template: str, *texts: str) -> list[str] | None:
    found: list[str] | None = rendered(template, {}, [conversation(*texts)], PLENTY)["looked"]
    return found


def test_each_conversation_is_rendered_up_to_a_reply() -> None:
    template = "{{ bos }}" + SAID + "{% if add_generation_prompt and tools is none %}>{% endif %}"
    said = [conversation("a"), conversation("b", "c", "d")]
    assert rendered(template, {"bos": "^"}, said, PLENTY) == {"texts": ["^a>", "^bcd>"], "looked": []}


@pytest.mark.parametrize(
    ("template", "error"),
    [
        ("{{ raise_exception('no system prompt') }}", "TemplateError: no system prompt"),
        ("{{ raise_exception('x' * 999) }}", "TemplateError: " + "x" * 200),
        ("{{ a.b.c }}", "UndefinedError: 'a' is undefined"),
        ("{{ 1 // 0 }}", "ZeroDivisionError: integer division or modulo by zero"),
        ("{{ ''.__class__.mro() }}", "SecurityError: access to attribute '__class__' of 'str' object is unsafe."),
    ],
)
def test_a_mistake_is_told_by_its_kind_and_in_short(template: str, error: str) -> None:
    assert rendered(template, {}, [conversation("a")], PLENTY) == {"error": error}


def test_a_text_has_as_many_characters_as_may_be_and_no_more() -> None:
    said = [conversation("a" * 6), conversation("b" * 9)]
    assert rendered(SAID, {}, said, 9)["texts"] == ["a" * 6, "b" * 9]
    assert rendered(SAID, {}, said, 8) == {"error": "makes more than 8 characters of a small conversation"}


def test_only_what_is_looked_for_in_a_users_words_is_noted() -> None:
    template = "{% for m in messages %}{% if m.role == 'ROLE' and '<x>' in m.content %}{% endif %}{% endfor %}" + SAID
    assert looked(template.replace("ROLE", "assistant"), "a", "b") == []
    assert looked(template.replace("ROLE", "user"), "a", "b") == ["<x>"]
    assert looked("{{ messages[1].content | upper }}", "a", "b") == []
    assert looked("{{ messages[0].content | upper }}", "a", "b") is None


def test_what_one_template_asked_is_not_held_against_the_next() -> None:
    assert looked("{{ messages[0].content | length }}", "a") is None
    assert looked("{{ '<x>' in messages[0].content }}", "a") == ["<x>"]
    assert looked(SAID, "a") == []


def test_of_a_template_that_looks_for_much_it_is_not_told_what() -> None:
    template = "{{ 'x' * %d in messages[0].content }}"
    assert looked(template % MOST_LOOKED, "a") == ["x" * MOST_LOOKED]
    assert looked(template % (MOST_LOOKED + 1), "a") is None


def test_what_marks_replies_for_training_changes_nothing() -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    assert rendered(template, {}, [conversation("a", "b")], PLENTY) == {"texts": ["ab"], "looked": []}
