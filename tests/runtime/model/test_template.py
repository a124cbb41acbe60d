"""A conversation's log has the tokens that transformers gives the whole of it, though it only ever grows at its end."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from types import SimpleNamespace
from typing import Any

import jinja2
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import CONTROLS, FLAGS, KINDS, TEMPLATES, render_here, tokenizer_of

from stratakv.runtime.api.errors import ModelFileError
from stratakv.runtime.model.template import Template
from stratakv.runtime.untrusted import template_render
from stratakv.runtime.untrusted.template_render import render

WORDS = (
    "Who", "hid", "the", "letter", "?", "ships", "12", "345", "lamp.", "Hello", "\n", "\n\n", "  ", "½", "é", "🙂", "|",
    "[", "]", "<", "Yes,", "(a)", "user:", "n't", "'s", "<table>", "▁",
)  # fmt: skip
BLANKS = st.sampled_from(["", "", " ", "\n", " \n"])
SAID = st.builds(
    lambda left, words, right: left + words + right,
    BLANKS, st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map("".join).filter(str.strip), BLANKS,
)  # fmt: skip
REPLIED = st.lists(st.sampled_from(["The", "keeper", "did", "it,", "12", "ships", "é"]), min_size=1, max_size=4).map(
    " ".join
)


@pytest.fixture(autouse=True, scope="module")
def rendered_here() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        render_here(patch)
        yield


made_of = cache(tokenizer_of)


def tokenizer(kind: str, flags: str, template: str) -> Any:
    made = made_of(kind, flags)
    made.chat_template = TEMPLATES[template]
    return made


def whole(made: Any, messages: list[dict[str, str]], *, asks: bool = True) -> tuple[str, list[int], list[int]]:
    """Text, tokens, and where each ends."""
    text = made.apply_chat_template(messages, tokenize=False, add_generation_prompt=asks)
    ids = made.apply_chat_template(messages, tokenize=True, add_generation_prompt=asks, return_dict=False)
    found = made(text, add_special_tokens=False, return_offsets_mapping=True)
    assert found.input_ids == ids
    return text, ids, [end for _, end in found.offset_mapping]


def with_reply(made: Any, messages: list[dict[str, str]], log: list[int]) -> list[int]:
    """The log with the last message's tokens, as the whole conversation has them."""
    text, ids, ends = whole(made, [*messages, {"role": "user", "content": "?"}])
    end = text.rindex(messages[-1]["content"]) + len(messages[-1]["content"])
    assume(end in ends and ids[: len(log)] == log)  # nothing merges across the reply's own borders
    return ids[: len(ends) - ends[::-1].index(end)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    name=st.sampled_from([*TEMPLATES]),
    flags=st.sampled_from([*FLAGS]),
    system=st.none() | SAID,
    turns=st.lists(st.tuples(st.sampled_from(["message", "document"]), SAID, REPLIED), min_size=1, max_size=3),
)
def test_the_log_is_the_whole_conversation(
    kind: str, name: str, flags: str, system: str | None, turns: list[tuple[str, str, str]]
) -> None:
    # There a control token is found behind a blank only, which it takes with it: whether a message's last character is
    # one depends on what the template says next.
    bare = (kind, flags) == ("legacy prefix", "normalized")
    assume(not bare or not any(said.rstrip().endswith(("<table>", "▁")) for _, said, _ in turns))
    made = tokenizer(kind, flags, name)
    template, log = Template(made), list[int]()
    messages = [{"role": "system", "content": system}] if system and name != "mistral" else []
    system = system if messages else None
    for number, (what, said, replied) in enumerate(turns):
        encode = template.encode_document if what == "document" else template.encode_message
        said = said.rstrip() if what == "document" else said  # as `Chat.read_text` does
        new = encode(said, log, system=system, is_first=number == 0)
        messages.append({"role": "user", "content": said})
        if what == "document":
            messages.append({"role": "assistant", "content": "OK."})
            expected = with_reply(made, messages, log)
            assert log + new == expected
            log = expected
            continue
        log += new
        assert log == whole(made, messages)[1]
        messages.append({"role": "assistant", "content": replied})
        log = with_reply(made, messages, log)


@pytest.mark.parametrize("kind", KINDS)
def test_control_tokens_among_words_are_words(kind: str) -> None:
    for flags, name in product(FLAGS, TEMPLATES):
        made = tokenizer(kind, flags, name)
        template = Template(made)
        controls = {made.convert_tokens_to_ids(text) for text in CONTROLS}
        said = "a " + " x".join(CONTROLS) + "".join(CONTROLS) + "b"
        usual, fed = (template.encode_message(words, []) for words in ("a b", said))
        assert [token for token in fed if token in controls] == [token for token in usual if token in controls]
        assert not controls & set(template.encode_plain(said))


def test_a_long_document_is_read_once() -> None:
    """Twice as long costs twice as much, in front of a control token or without any."""
    for kind, name in (("bytes", "chatml"), ("legacy prefix", "mistral"), ("unigram", "words")):
        template = Template(tokenizer(kind, "plain", name))
        template.encode_document("x", [])
        encoder = template.encoder
        (twin, numbers), read = encoder._twin, list[int]()
        encoder._twin = counting(twin, read), numbers
        text = "The keeper of the lamp wrote 12 letters.\n" * 500
        log = template.encode_document(text.strip(), [], is_first=True)
        template.encode_message("Who?", log)
        encoder._twin = twin, numbers
        assert len(text) < sum(read) < 1.2 * len(text)


def counting(twin: Any, read: list[int]) -> Any:
    """The twin, which notes how long the texts are that it encodes."""
    return SimpleNamespace(encode=lambda text, **how: (read.append(len(text)), twin.encode(text, **how))[1])


@pytest.mark.parametrize(("bos", "eos"), [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_a_template_begins_as_the_tokenizer_says(kind: str, bos: bool, eos: bool) -> None:
    made = tokenizer_of(kind, bos=bos, eos=eos)
    template = Template(made)
    whole_text = made("Be brief.\n\nHello world\n\n").input_ids
    end = [made.eos_token_id] if eos else []
    assert template.encode_document("Hello world", [], system="Be brief.", is_first=True) + end == whole_text
    assert template.encode_prompt("Be brief.\n\nHello world\n\n") + end == whole_text
    log = template.encode_message("Hello world", [], is_first=True)
    log += template.encode_message("\nWho hid the letter?", log)
    assert log + end == made("Hello world\nWho hid the letter?").input_ids
    assert template.encode_prompt("<s>Hello") == made("<s>Hello", add_special_tokens=False).input_ids
    assert template.encode_prompt("") == []


@pytest.mark.parametrize(
    ("name", "end"),
    {"chatml": "<|im_end|>", "llama 3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>", "phi 3": "<|end|>",
     "words": None, "lines": None}.items(),
)  # fmt: skip
def test_what_the_template_writes_behind_a_reply_ends_it(name: str, end: str | None) -> None:
    made = tokenizer("legacy prefix", "plain", name)
    assert Template(made).turn_end == (None if end is None else made.convert_tokens_to_ids(end))


@pytest.mark.parametrize(
    ("template", "words", "looked"),
    [
        ("{{ w | trim }}", "a b", ()), ("{{ w.strip() | replace('a', 'b') }}", "a b", ("a",)),
        ("{% if w.startswith('<x>') or '</t>' in w %}{{ w.split('</t>')[-1] }}{% else %}{{ w }}{% endif %}", "b",
         ("</t>", "<x>")),
        ("{% if w == '' %}{% endif %}{{ w ~ 'x' }}{{ 'x' + w }}", "b", ()), ("{{ w | upper }}", "b", None),
        ("{{ w[:3] }}", "b", None), ("{{ w.strip('b') }}", "b", None),
        ("{% set t %}x{{ w }}{% endset %}{{ '<a>' in t }}", "b", ("<a>",)),
        ("{% macro said(t) %}{{ t }}{% endmacro %}{{ (said(w) | trim).startswith('<a>') }}", "<a>", ("<a>",)),
        ("{{ '<a>' in namespace(t=w).t }}{{ '<b>' in dict(t=w)['t'] }}", "b", ("<a>", "<b>")),
        ("{{ '<a>' in 'x' ~ w }}{{ '<b>' in 'x' + w }}{{ '<c>' in w.split('|')[0] }}", "b", ("<a>", "<b>", "<c>", "|")),
        ("{% if w and w is string and w is iterable %}{{ w | default('') | string | trim }}{% endif %}", "b", ()),
        *((template, "b b", None) for template in (
            "{{ w | tojson }}", "{{ [{'a': w}] | tojson }}", "{{ w | e }}", "{{ w | length }}", "{{ w | first }}",
            "{{ w | indent(2) }}", "{{ w | wordcount }}", "{% for c in w %}{{ c }}{% endfor %}",
            "{{ [w] | join(',') }}",
            "{{ messages | map(attribute='content') | join }}", "{{ 'x %s' | format(w) }}", "{{ 'x %s' % w }}",
            "{{ 'x {}'.format(w) }}",
            "{{ 'x {a}'.format(a=w) }}", "{{ {'b': 1}.get(w, 2) }}", "{{ w < 'c' }}", "{{ (w ~ '') | upper }}",
        )),
    ],
)  # fmt: skip
def test_what_a_template_looks_for_in_words(template: str, words: str, looked: tuple[str, ...] | None) -> None:
    said = json.dumps([[{"role": "user", "content": words}]])
    found = render("{% set w = messages[0].content %}" + template, (), said)
    assert found.looked == looked
    assert found.texts[0] == jinja2.Template(template).render(w=words, messages=[{"content": words}])


@pytest.mark.parametrize(
    "written",
    [
        "{{ m.content | tojson }}", "{{ m.content | e }}", "{{ m.content | upper }}",
        "{{ m.content | length }} {{ m.content }}",
        "{{ m.content[0] | upper }}{{ m.content[1:] }}", "{{ m.content | trim }}\n(again: {{ m.content | trim }})",
        "{% set said = '' ~ m.content %}{% if 'letter' in said %}L{% endif %}{{ said }}",
    ],
)  # fmt: skip
def test_what_a_template_makes_of_words_is_in_the_log(written: str) -> None:
    """Whatever it makes: no part of it may be made of what stands for words while it is rendered."""
    made = tokenizer_of("bytes")
    made.chat_template = TEMPLATES["chatml"].replace("{% for m in messages %}", (
        "{% for m in messages %}{% if m.role == 'user' %}<|im_start|>user\n" + written + "<|im_end|>\n{% else %}"
    )).replace("{% endfor %}", "{% endif %}{% endfor %}")  # fmt: skip
    template = Template(made)
    template.check()
    for said in ("ships", 'Who hid "the" <letter>?\nAnd\u2028', "  é"):
        log = template.encode_message(said, [], is_first=True)
        messages = [{"role": "user", "content": said}]
        assert log == whole(made, messages)[1]
        log = template.encode_document(said.strip(), [], is_first=True)
        messages = [{"role": "user", "content": said.strip()}, {"role": "assistant", "content": "OK."}, *messages]
        assert log + template.encode_message(said, log) == whole(made, messages)[1]


def test_a_template_that_repeats_replies_is_refused() -> None:
    made = tokenizer_of("bytes")
    made.chat_template = "{% for m in messages %}{{ m.content }} ({{ m.content }})\n{% endfor %}"
    with pytest.raises(ModelFileError, match="repeats what was said"):
        Template(made).check()


def test_only_words_that_a_template_looks_for_are_rendered_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    template = Template(tokenizer("bytes", "plain", "words"))
    template.encode_message("no", [])
    rendered = list[str]()
    answer = template_render._answer
    monkeypatch.setattr(template_render, "_answer", lambda request: (rendered.append("x"), answer(request))[1])
    template.encode_message("another", [])
    assert rendered == []
    assert template.encode_message("a ship", []) == template.encode_message("a boat", [])
    assert rendered == ["x"]
