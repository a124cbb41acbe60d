"""A good guest in someone's process: it changes nothing there, works whatever was changed, and says where it cannot."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from places import RECALL, SUPPORT

from stratakv.runtime import Chat, ForkedError, GenerationConfig, KVConfig, Reply, Runtime, StratakvError
from stratakv.runtime.api import errors as runtime_errors
from stratakv.storage import errors as storage_errors

DOCUMENT = " ".join(f"k{number % 128} v{7 * number % 128}" for number in range(300))
"""As long as a prompt has to be for what an index learns from it to be kept: it reads the second time as the first."""


def test_importing_loading_and_using_change_nothing_around_them(tmp_path: Path) -> None:
    """In a process of its own: a test runner has changed what there is to change already."""
    done = subprocess.run(
        [sys.executable, str(SUPPORT / "surroundings.py"), str(RECALL)],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    steps = json.loads(done.stdout.splitlines()[-1])
    assert steps == {"import": [], "load": [], "use": [], "close": []}


@pytest.fixture(scope="module")
def runtime(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("store"), host_gb=0.05, disk_gb=0.05, budget=128, index="spectral")
    with Runtime.load(RECALL, device="cpu", kv=kv) as runtime:
        yield runtime


def said(runtime: Runtime) -> list[str]:
    chat = runtime.chat()
    chat.read_text(DOCUMENT)
    sampled = chat.send("? k1", max_new_tokens=4, do_sample=True, seed=3, top_p=0.9, repetition_penalty=1.1, min_p=0.1)
    return [sampled.text, chat.send("? k2", max_new_tokens=4).text]


@contextlib.contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND: dict[str, Callable[[], contextlib.AbstractContextManager[Any]]] = {
    "float64 by default": lambda: default_dtype(torch.float64),
    "float16 by default": lambda: default_dtype(torch.float16),
    "another device by default": lambda: torch.device("meta"),
    "autocast": lambda: torch.autocast("cpu"),
    "inference": torch.inference_mode,
    "gradients": torch.enable_grad,
    "deterministic": deterministic,
    "numpy raises": lambda: np.errstate(all="raise"),
}


@pytest.mark.parametrize("what", AROUND)
def test_replies_are_the_same_whatever_the_application_has_set(what: str, runtime: Runtime, tmp_path: Path) -> None:
    expected = said(runtime)
    with AROUND[what]():
        assert said(runtime) == expected
        kv = KVConfig(path=tmp_path, host_gb=0.05, disk_gb=0.05, budget=128, index="spectral")
        with Runtime.load(RECALL, device="cpu", kv=kv) as other:
            assert said(other) == expected


ERRORS = [
    kind
    for module in (storage_errors, runtime_errors)
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, StratakvError)
]


@pytest.mark.parametrize("kind", dict.fromkeys(ERRORS), ids=lambda kind: kind.__name__)
def test_errors_are_copied_with_their_fields(kind: type[StratakvError]) -> None:
    arguments: dict[str, tuple[Any, ...]] = {"CorruptPageError": ([3, 4],)}
    error = kind("what is wrong", *arguments.get(kind.__name__, ()))
    error.add_note("seen in passing")
    for twin in (pickle.loads(pickle.dumps(error)), copy.deepcopy(error), copy.copy(error)):
        assert type(twin) is kind
        assert (str(twin), twin.args, vars(twin)) == (str(error), error.args, vars(error))


def test_settings_and_replies_are_copied(runtime: Runtime) -> None:
    reply = runtime.chat().send("? k1", max_new_tokens=3)
    for value in (KVConfig(path="x"), GenerationConfig(seed=3, stop_strings=("a",)), reply):
        assert pickle.loads(pickle.dumps(value)) == copy.deepcopy(value) == value


def test_what_cannot_be_copied_says_what_to_do(runtime: Runtime) -> None:
    chat = runtime.chat()
    stream = chat.stream("? k1")
    for value, remedy in ((runtime, "Runtime.load"), (chat, "`fork` makes a copy here"), (stream, "its `reply` can")):
        for copied in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match=remedy):
                copied(value)


def test_what_a_notebook_shows_is_short_and_tells_nothing_of_what_was_said(runtime: Runtime) -> None:
    chat = runtime.chat("a secret")
    chat.send("? k1", max_new_tokens=3)
    assert repr(runtime) == f"<Runtime of {RECALL} on cpu>"
    assert repr(chat) == f"<Chat with {RECALL}: 2 messages, {chat.num_tokens} tokens>"
    assert len(repr(Reply(tokens=list(range(10_000))))) < 400


# Other ways to run


def test_coroutines_hand_calls_to_threads(runtime: Runtime) -> None:
    alone = [said(runtime), said(runtime)]

    async def both() -> list[list[str]]:
        return list(await asyncio.gather(*(asyncio.to_thread(said, runtime) for _ in range(2))))

    assert asyncio.run(both()) == alone


def test_a_coroutine_receives_a_reply_in_pieces(runtime: Runtime) -> None:
    async def pieces(chat: Chat) -> str:
        stream, text = chat.stream("? k1", max_new_tokens=4), ""
        while (piece := await asyncio.to_thread(next, stream, None)) is not None:
            text += piece
        return text

    async def wrongly(chat: Chat) -> None:
        async for _ in chat.stream("? k1"):
            pass

    assert asyncio.run(pieces(runtime.chat())) == runtime.chat().send("? k1", max_new_tokens=4).text
    with pytest.raises(TypeError, match=r"await asyncio\.to_thread"):
        asyncio.run(wrongly(runtime.chat()))


def test_a_coroutine_may_also_call_and_wait(runtime: Runtime) -> None:
    async def call() -> list[str]:
        return said(runtime)

    assert asyncio.run(call()) == said(runtime)


def test_a_whole_program_may_run_in_another_thread(tmp_path: Path, runtime: Runtime) -> None:
    found: list[list[str]] = []

    def program() -> None:
        kv = KVConfig(path=tmp_path, host_gb=0.05, disk_gb=0.05, budget=128, index="spectral")
        with Runtime.load(RECALL, device="cpu", kv=kv) as other:
            found.append(said(other))

    thread = threading.Thread(target=program)
    thread.start()
    thread.join()
    assert found == [said(runtime)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
@pytest.mark.parametrize("index", ["bounds", "leoam", "magicpig", "shadowkv", "window"])
def test_no_index_asks_for_the_applications_default_dtype(index: str, dtype: torch.dtype, runtime: Runtime) -> None:
    engine = runtime.reading(KVConfig(budget=128, index=index))
    tokens = np.arange(2, 302, dtype=np.uint32) % 128 + 2

    def logits() -> torch.Tensor:
        with contextlib.closing(engine.new_sequence()) as sequence:
            engine.prefill(sequence, tokens, reuse=False)
            return torch.cat([engine.decode([sequence], [7]) for _ in range(3)])

    expected = logits()
    with default_dtype(dtype):
        assert torch.equal(logits(), expected)


# Forks


def in_child(work: Callable[[], object]) -> Any:
    """What `work` gives in a forked child, or the type and message of what it raises."""
    hear, say = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            answer: Any = work()
        except BaseException as error:
            answer = [type(error).__name__, str(error)]
        with os.fdopen(say, "w") as pipe:
            json.dump(answer, pipe)
        os._exit(0)
    os.close(say)
    with os.fdopen(hear) as pipe:
        answer = json.load(pipe)
    os.waitpid(pid, 0)
    return answer


@pytest.fixture(scope="module", params=[0, 0.05], ids=["memory", "disk"])
def parents(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("store"), host_gb=0.05, disk_gb=request.param)
    with Runtime.load(RECALL, device="cpu", kv=kv) as runtime:
        yield runtime


USES: dict[str, Callable[[Runtime, Chat], Any]] = {
    "send": lambda runtime, chat: chat.send("? k1"),
    "read_text": lambda runtime, chat: chat.read_text("k1 v1"),
    "stream": lambda runtime, chat: next(chat.stream("? k1")),
    "regenerate": lambda runtime, chat: next(chat.regenerate()),
    "fork": lambda runtime, chat: chat.fork(),
    "save": lambda runtime, chat: chat.save("a"),
    "chat": lambda runtime, chat: runtime.chat(),
    "resume": lambda runtime, chat: runtime.chat(session="a"),
    "generate": lambda runtime, chat: runtime.generate("k1"),
}


@pytest.mark.forks
@pytest.mark.parametrize("use", USES)
def test_a_forked_child_is_told_that_the_runtime_is_its_parents(use: str, parents: Runtime) -> None:
    chat = parents.chat()
    chat.send("? k1", max_new_tokens=2)
    kind, message = in_child(lambda: USES[use](parents, chat))
    assert kind == "ForkedError"
    assert f"belongs to process {os.getpid()}" in message
    assert "load the runtime in the child" in message
    assert chat.send("? k2", max_new_tokens=2).tokens


@pytest.mark.forks
def test_a_child_of_a_fork_in_the_middle_of_a_turn_does_not_wait_for_it(parents: Runtime) -> None:
    """The thread that has the turn, and the store's lock, is not there to give them back."""
    answers: list[Any] = []

    def fork(_: Any) -> None:
        if not answers:
            with parents.store._lock:
                thread = threading.Thread(target=lambda: answers.append(in_child(lambda: parents.chat().send("? k1"))))
                thread.start()
                thread.join()

    parents.chat().read_text(DOCUMENT, on_progress=fork)
    assert answers[0][0] == "ForkedError"


@pytest.mark.forks
def test_a_child_closes_and_ends_without_a_word(parents: Runtime) -> None:
    chat = parents.chat()

    def work() -> str:
        parents.close()
        parents._finalizer()
        return "closed"

    assert in_child(work) == "closed"
    assert chat.send("? k1", max_new_tokens=2).tokens


@pytest.mark.forks
def test_a_child_may_load_its_own(parents: Runtime, tmp_path: Path) -> None:
    """Also where the parent has computed with several threads, which are not there any more."""
    torch_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = parents.chat().send("? k1", max_new_tokens=2).text

        def work() -> list[Any]:
            kv = KVConfig(path=parents.config.path, host_gb=0.05, disk_gb=parents.config.disk_gb)
            with Runtime.load(RECALL, device="cpu", kv=kv) as own:
                return [own.chat().send("? k1", max_new_tokens=2).text, torch.get_num_threads()]

        assert in_child(work) == [expected, 1]
    finally:
        torch.set_num_threads(torch_threads)


def test_forked_errors_are_ours() -> None:
    assert issubclass(ForkedError, StratakvError)
