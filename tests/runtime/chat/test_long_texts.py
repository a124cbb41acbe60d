"""Texts without an end, or far beyond any window, are refused before much of them was read or made tokens of."""

from __future__ import annotations

import io
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import DoesNotFitError, KVConfig, Runtime
from stratakv.runtime.chat.documents import read_text_file
from stratakv.runtime.chat.long_texts import LONG
from stratakv.runtime.process.standard_input import MOST_BYTES, read_whole


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path) -> Iterator[Runtime]:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(host_gb=0.05, disk_gb=0)) as loaded:
        yield loaded


@pytest.fixture
def pieces(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Lengths of the texts that are made tokens of, as that happens."""
    seen, real = list[int](), runtime.tokenizer.backend_tokenizer

    class Spy:
        def encode(self, text: str, **how: Any) -> Any:
            seen.append(len(text))
            return real.encode(text, **how)

        def __getattr__(self, name: str) -> Any:
            return getattr(real, name)

    monkeypatch.setattr(type(runtime.tokenizer), "backend_tokenizer", Spy())
    return seen


@pytest.mark.parametrize("use", ["read_text", "send"])
def test_a_text_beyond_the_window_is_refused_after_its_beginning(runtime: Runtime, pieces: list[int], use: str) -> None:
    chat = runtime.chat()
    with pytest.raises(
        DoesNotFitError, match=rf"\(its first {LONG} characters\) does not fit: 0 tokens .* was trained"
    ):
        getattr(chat, use)("A letter for the keeper. " * 400_000)
    assert pieces == [LONG]
    assert chat.messages == []


def test_so_is_a_prompt_of_a_batch(runtime: Runtime, pieces: list[int]) -> None:
    with pytest.raises(DoesNotFitError, match=r"prompt 1 \(its first \d+ characters\) does not fit"):
        runtime.generate(["A letter.", "A letter for the keeper. " * 400_000])
    assert pieces == [LONG]


def test_looking_at_a_long_text_can_be_interrupted(
    runtime: Runtime, pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime.model, "max_positions", 1 << 40)
    monkeypatch.setattr(runtime, "room_tokens", lambda held: 1 << 40)
    real, rung = runtime.engine.interrupts.check, list[int]()

    def check() -> None:
        if len(pieces) == 2 and not rung:
            rung.append(1)
            signal.raise_signal(signal.SIGINT)
        real()

    monkeypatch.setattr(runtime.engine.interrupts, "check", check)
    with pytest.raises(KeyboardInterrupt):
        runtime.chat().read_text("A letter for the keeper. " * 60_000)
    assert pieces == [LONG, LONG]


def test_a_pipe_that_never_ends_is_not_read_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stratakv.runtime.process.standard_input.MOST_BYTES", 1 << 20)
    os.mkfifo(tmp_path / "pipe")

    def write() -> None:
        try:
            with open(tmp_path / "pipe", "wb") as file:
                while True:
                    file.write(b"y\n" * 4096)
        except BrokenPipeError:
            return

    thread = threading.Thread(target=write)
    thread.start()
    with pytest.raises(ValueError, match="pipe has more than 1 MiB, or never ends: no model could read it"):
        read_text_file(tmp_path / "pipe")
    thread.join()


def test_what_ends_is_read_whole() -> None:
    assert MOST_BYTES >= 100 << 20, "ten million tokens, say"
    assert read_whole(io.BytesIO(b"x" * 1000), "stdin") == b"x" * 1000
