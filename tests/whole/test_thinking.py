"""Templates that leave the thinking out of earlier replies, and conversations that do so or do not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_models import CHATML
from tokenizer_kinds import render_here

from stratakv.runtime import Chat, KVConfig, Runtime

_HISTORY = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and '</think>' in m.content and not loop.last %}"
    "{{ m.content.split('</think>')[-1].lstrip('\n') }}{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
)
THINKING = {"model begins to think": _HISTORY + "{% endif %}", "template begins": _HISTORY + "<think>\n{% endif %}"}
THOUGHT = "It may be the keeper.\nOr not.\n</think>\n\n"
ANSWER = "The keeper<|im_end|> did."


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(disk_gb=0.05, host_gb=0.05, path=tmp_path_factory.mktemp("kv"))
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as one:
        yield one


@pytest.fixture(params=THINKING)
def runtime(request: Any, loaded: Runtime, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    render_here(monkeypatch)
    loaded.tokenizer.chat_template = THINKING[request.param]
    return loaded


@pytest.fixture
def replies(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the model says, the first one first; then it ends."""
    texts: list[str] = []

    class Scripted:
        def __init__(self, *_: Any) -> None:
            ids = [runtime.tokenizer.convert_tokens_to_ids(list(_letters(texts.pop(0))))]
            self._left = iter([*ids[0], runtime.tokenizer.eos_token_id])

        def choose(self, *_: Any) -> int:
            return next(self._left)

    monkeypatch.setattr("stratakv.runtime.engine.generate.Sampler", Scripted)
    return texts


def _letters(text: str) -> str:
    return text.replace(" ", "Ġ").replace("\n", "Ċ")


def thought(runtime: Runtime) -> str:
    return THOUGHT if "<think>" in runtime.tokenizer.chat_template else "<think>\n" + THOUGHT


def read(chat: Chat, question: str, **how: Any) -> list[int]:
    """The tokens that the question was answered from."""
    stream = chat.stream(question, **how)
    next(stream)
    tokens = chat._sequence.tokens[: stream.reply.usage.prompt_tokens].tolist()
    list(stream)
    return tokens


def rendered(runtime: Runtime, *said: str) -> list[int]:
    messages = [{"role": "assistant" if at % 2 else "user", "content": text} for at, text in enumerate(said)]
    words = str(runtime.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    parts = words.split(ANSWER)  # the control token in it was said in letters
    plain = runtime.tokenizer.convert_tokens_to_ids(list(_letters(ANSWER)))
    ids: list[int] = runtime.tokenizer(parts[0]).input_ids
    for part in parts[1:]:
        ids += [*plain, *runtime.tokenizer(part).input_ids]
    return ids


def test_earlier_thinking_is_dropped_if_asked(runtime: Runtime, replies: list[str]) -> None:
    replies += [thought(runtime) + ANSWER, thought(runtime) + "Yes.", "Done."]
    chat = runtime.chat(system=None)
    chat.generation = type(chat.generation)(drop_thinking=True)
    assert read(chat, "Who?") == rendered(runtime, "Who?")
    assert chat.messages[-1]["content"] == thought(runtime) + ANSWER  # it was said
    assert read(chat, "Sure?") == rendered(runtime, "Who?", ANSWER, "Sure?")
    assert read(chat, "Go on.") == rendered(runtime, "Who?", ANSWER, "Sure?", "Yes.", "Go on.")


def test_a_conversation_remembers_all_it_said_unless_asked(runtime: Runtime, replies: list[str]) -> None:
    replies += [thought(runtime) + "No.", "Yes."]
    chat = runtime.chat()
    read(chat, "Who?")
    assert "Or not." in runtime.tokenizer.decode(read(chat, "Sure?"))


def test_a_reply_whose_thinking_was_dropped_can_be_taken_back(runtime: Runtime, replies: list[str]) -> None:
    replies += ["Well.", thought(runtime) + "No.", thought(runtime) + ANSWER, "Yes."]
    chat = runtime.chat()
    chat.generation = type(chat.generation)(drop_thinking=True)
    chat.send("Hello.")
    chat.send("Who?")
    assert "".join(chat.regenerate()) == thought(runtime) + ANSWER
    twin = chat.fork()
    assert read(twin, "Sure?") == rendered(runtime, "Hello.", "Well.", "Who?", ANSWER, "Sure?")


@pytest.mark.parametrize("how", ["fork", "load"])
def test_a_question_that_is_read_again_is_not_lost_elsewhere(runtime: Runtime, replies: list[str], how: str) -> None:
    """A fork and a resumed session know the question too, where it was taken back together with the thinking."""
    replies += [thought(runtime) + ANSWER, "First.", "Second.", "Third."]
    chat = runtime.chat()
    chat.send("Who?", drop_thinking=True)
    chat.save("who", replace=True)
    other = chat.fork() if how == "fork" else runtime.chat(session="who")
    list(other.regenerate())
    asked = rendered(runtime, "Who?")
    assert other._sequence.tokens[: len(asked)].tolist() == asked
    list(other.regenerate(drop_thinking=True))
    assert read(other, "And?") == rendered(runtime, "Who?", "Second.", "And?")
    assert [message["content"] for message in other.messages] == ["Who?", "Second.", "And?", "Third."]


def test_what_has_no_thinking_is_remembered_as_it_was_said(runtime: Runtime, replies: list[str]) -> None:
    replies += ["  Plain. ", "Yes."]
    chat = runtime.chat()
    chat.generation = type(chat.generation)(drop_thinking=True)
    read(chat, "Who?")
    said = runtime.tokenizer.decode(read(chat, "Sure?"), skip_special_tokens=False)
    assert "  Plain. <|im_end|>" in said


def test_templates_that_leave_nothing_out(runtime: Runtime, replies: list[str]) -> None:
    runtime.tokenizer.chat_template = CHATML
    replies += [thought(runtime) + "No.", "Yes."]
    chat = runtime.chat()
    chat.generation = type(chat.generation)(drop_thinking=True)
    read(chat, "Who?")
    assert "Or not." in runtime.tokenizer.decode(read(chat, "Sure?"))
