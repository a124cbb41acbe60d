"""A conversation's log has the tokens that transformers gives the whole of it, though it only ever grows at its end."""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from tokenizer_kinds import CONTROLS, FLAGS, KINDS, TEMPLATES, tokenizer_of

from stratakv.runtime import template_child
from stratakv.runtime.template import Template

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
    """Templates are rendered in this process: these are ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("stratakv.runtime.template_render._answer", lambda request: template_child.rendered(**request))
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
    assume(
        (kind, flags) != ("legacy prefix", "normalized") or not any(said.endswith("<table>") for _, said, _ in turns)
    )
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
