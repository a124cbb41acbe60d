"""What callers hand to a runtime and its conversations: refused by name before any work, or taken as what it means."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from stratakv.runtime import Chat, GenerationConfig, KVConfig, Runtime, StratakvError, WrongTypeError

NO_TEXT: list[Any] = [5, None, b"text", ["text"], object()]
NO_FUNCTION: list[Any] = [5, "print", True]
Call = Callable[[Chat, Any], Any]
CALLS: dict[str, tuple[str, Call, list[Any]]] = {
    "send text": ("message", lambda chat, value: chat.send(value, max_new_tokens=1), [*NO_TEXT, "", "  ", "\ud800"]),
    "stream text": ("message", lambda chat, value: chat.stream(value), [*NO_TEXT, "", "\ud800"]),
    "send on_progress": ("on_progress", lambda chat, value: chat.send("Hi", on_progress=value), NO_FUNCTION),
    "send temperature": ("temperature", lambda chat, value: chat.send("Hi", temperature=value), ["1", True, -1, None]),
    "send max_tokens": ("max_new_tokens", lambda chat, value: chat.send("Hi", max_tokens=value), [0, 1.5, "5", True]),
    "send stop": ("stop_strings", lambda chat, value: chat.send("Hi", stop=value), [5, [5], b"x", {"a": 1}]),
    "send seed": ("seed", lambda chat, value: chat.send("Hi", seed=value), [-1, "1", 10**5000, float("nan")]),
    "send unknown": ("unknown", lambda chat, value: chat.send("Hi", temprature=value), [1]),
    "regenerate": ("top_k", lambda chat, value: chat.regenerate(top_k=value), [-1, "x", 0.5]),
    "generation": ("generation", lambda chat, value: setattr(chat, "generation", value), [None, {"seed": 3}, 5]),
    "read path": ("path", lambda chat, value: chat.read(value), [5, None, "", b"", "a\0b"]),
    "read_text text": ("document", lambda chat, value: chat.read_text(value), [*NO_TEXT, "\ud800"]),
    "read_text name": ("name", lambda chat, value: chat.read_text("text", value), NO_TEXT),
    "read_text on_progress": ("on_progress", lambda chat, value: chat.read_text("a", on_progress=value), NO_FUNCTION),
    "save name": ("name", lambda chat, value: chat.save(value), [*NO_TEXT, "", "a/b", "\ud800"]),
    "save replace": ("replace", lambda chat, value: chat.save("a", replace=value), ["no", 0, None]),
    "chat system": ("system", lambda chat, value: chat._runtime.chat(value), [5, b"x", ["x"], "\ud800"]),
    "chat session": ("session", lambda chat, value: chat._runtime.chat(session=value), [5, b"x", "", "no such one"]),
    "generate prompts": (
        "prompt",
        lambda chat, value: chat._runtime.generate(value),
        [5, None, b"x", {"a": "b"}, [5], ["a", None], [""], np.array(5), ["\ud800"]],
    ),
    "generate seed": ("seed", lambda chat, value: chat._runtime.generate("a", seed=value), [-1, "1"]),
}  # fmt: skip
LOADED: dict[str, list[Any]] = {
    "model": [5, None, b"x", "", "a\0b", "~nobody-of-this-name/x"],
    "device": [5, None, "no such device", b"cpu", torch.float32],
    "dtype": [5, None, "no such dtype", torch.float64, np.float32],
    "weights": [5, None, "no such weights"],
    "kv": [5, {"host_gb": 1}, "x"],
    "local_files_only": ["no", 0, None],
    "on_convert": NO_FUNCTION,
    "on_compile": NO_FUNCTION,
}


@pytest.fixture(scope="module")
def chat(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    kv = KVConfig(path=tmp_path_factory.mktemp("store"), host_gb=0.05, disk_gb=0.05)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.send("Who?", max_new_tokens=2, ignore_eos=True)
        yield chat


@pytest.mark.parametrize("what", CALLS)
def test_what_means_nothing_is_refused_before_any_work(what: str, chat: Chat) -> None:
    name, call, values = CALLS[what]
    steps, engine = [chat.num_tokens, list(chat.messages), chat.last, chat.generation], chat._runtime.engine
    before = engine.num_steps, chat._runtime.store.counters.pages_written, len(chat._runtime.store._table.pids)
    for value in values:
        with pytest.raises((ValueError, StratakvError)) as caught:
            call(chat, value)
        assert name in str(caught.value), str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        assert len(str(caught.value)) < 600
    assert steps == [chat.num_tokens, chat.messages, chat.last, chat.generation]
    assert before == (
        engine.num_steps, chat._runtime.store.counters.pages_written, len(chat._runtime.store._table.pids),
    )  # fmt: skip


@pytest.mark.parametrize("name", LOADED)
def test_a_runtime_is_not_loaded_with_what_means_nothing(name: str, tiny_llama: Path, tmp_path: Path) -> None:
    for value in LOADED[name]:
        arguments = {"model": tiny_llama, "kv": KVConfig(path=tmp_path / "store"), name: value}
        with pytest.raises((ValueError, StratakvError)) as caught:
            Runtime.load(**arguments)
        if name == "kv" or value is not None:
            assert name in str(caught.value), str(caught.value)
    assert not (tmp_path / "store").exists()


class Folder:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __fspath__(self) -> str:
        return str(self.path)


def test_objects_that_mean_the_same_are_taken(tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("Every tide leaves something.")
    kv = KVConfig(path=Folder(tmp_path / "store"), dtype=torch.float32, host_gb=np.float32(0.05), disk_gb=0.05)
    with Runtime.load(Folder(tiny_llama), device=torch.device("cpu"), dtype=torch.float32, kv=kv) as runtime:
        chat = runtime.chat(np.str_("Be brief."))
        assert chat.read(Folder(tmp_path / "a.txt")).tokens
        settings: dict[str, Any] = {
            "max_new_tokens": np.int64(2), "temperature": 1, "repetition_penalty": 2, "do_sample": np.bool_(True),
            "top_k": np.array(5), "seed": torch.tensor(3), "stop": np.array(["never"]), "min_p": np.float32(0),
        }  # fmt: skip
        chat.generation = GenerationConfig.from_kwargs(**settings)
        twin = chat.fork()
        twin.generation = GenerationConfig(
            max_new_tokens=2, temperature=1.0, repetition_penalty=2.0, do_sample=True, top_k=5, seed=3
        )
        assert chat.fork().send("Who?").text == twin.send("Who?").text
        chat.save(np.str_("mine"))
        assert runtime.chat(session=np.str_("mine")).generation == chat.generation
        replies = runtime.generate(np.array(["a", "b"]), max_new_tokens=np.int32(1))
        assert [len(reply.tokens) for reply in replies] == [1, 1]
    assert os.listdir(tmp_path / "store")


def test_a_wrong_type_is_a_type_error_of_ours(chat: Chat) -> None:
    with pytest.raises(WrongTypeError, match=r"generation is a GenerationConfig, not \{'temperature': 1\}"):
        chat.generation = {"temperature": 1}
