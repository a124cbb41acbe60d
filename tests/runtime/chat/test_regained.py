"""A reply can be regenerated where nobody remembers the point before it: after a session was resumed, and in a fork."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest
from tiny_models import save_tiny_model

from stratakv.runtime import Chat, KVConfig, Runtime
from stratakv.runtime.engine.sampling import Sampler

DOCUMENT = "The keeper of the light wrote the log every evening. " * 9


@pytest.fixture(scope="module", params=["bounds", "spectral", "shadowkv", "sliding windows"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    folder = tmp_path_factory.mktemp("regained")
    has_windows = request.param == "sliding windows"
    model = save_tiny_model(folder / "model", "gemma3_text" if has_windows else "llama")
    index = "bounds" if has_windows else request.param
    kv = KVConfig(path=folder / "kv", host_gb=0.05, disk_gb=0.05, index=index, budget=256)
    with Runtime.load(model, dtype="float32", kv=kv) as loaded:
        yield loaded
        loaded.store.check_integrity()


def regenerated(chat: Chat) -> str:
    return "".join(chat.regenerate(max_new_tokens=9, ignore_eos=True))


@pytest.mark.parametrize("length", [1, 40])
def test_another_reply_is_the_one_that_it_would_have_been(runtime: Runtime, length: int) -> None:
    chat = runtime.chat()
    chat.read_text(DOCUMENT)
    chat.send("What did he write?", max_new_tokens=5, ignore_eos=True)
    chat.send("And when, and where?", max_new_tokens=length, ignore_eos=True)
    chat.save("s")
    fork, expected = chat.fork(), regenerated(chat)
    for other in (runtime.chat(session="s"), fork):
        assert regenerated(other) == expected
        usage = other.last.usage
        assert usage.prompt_tokens == chat.last.usage.prompt_tokens
        assert usage.cached_tokens == (chat.last.usage.cached_tokens if other is fork else usage.prompt_tokens)
        assert other.messages == chat.messages
        assert other.num_tokens == chat.num_tokens
        assert other.send("Why?", max_new_tokens=3).text == chat.fork().send("Why?", max_new_tokens=3).text


def test_without_a_piece_received_the_last_reply_stays(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = runtime.chat()
    chat.read_text(DOCUMENT)
    chat.send("What did he write?", max_new_tokens=20, ignore_eos=True)
    chat.save("kept")
    resumed = runtime.chat(session="kept")

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(Sampler, "choose", interrupt)
    with pytest.raises(KeyboardInterrupt):
        regenerated(resumed)
    monkeypatch.undo()
    assert resumed.messages == chat.messages
    for each in (resumed, chat):
        each.send("Why?", max_new_tokens=3, ignore_eos=True)
    assert resumed.num_tokens == chat.num_tokens, "the reply's tokens are computed again"


def test_what_does_not_end_with_a_reply_has_none(runtime: Runtime) -> None:
    chat = runtime.chat()
    chat.send("What did he write?", max_new_tokens=3, ignore_eos=True)
    chat.read_text(DOCUMENT)
    chat.save("s")
    for other in (runtime.chat(), chat, runtime.chat(session="s")):
        with pytest.raises(ValueError, match="no reply to regenerate"):
            other.regenerate()
