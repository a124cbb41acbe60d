"""Saved, killed, resumed: the conversation goes on as if nothing had happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
from tiny_models import save_tiny_model

from stratakv.runtime import Chat, KVConfig, Runtime, SessionError

TEXT = "The lighthouse keeper wrote the log every evening, and hid the letter under the lamp. " * 9
KV: dict[str, Any] = {"index": "bounds", "budget": 112, "local": 32}

CHILD = """
import json, sys, time
from stratakv.runtime import KVConfig, Runtime
runtime = Runtime.load(sys.argv[1], dtype="float32", kv=KVConfig(path=sys.argv[2], **json.loads(sys.argv[3])))
chat = runtime.chat()
chat.read_text(sys.argv[4])
chat.send("Where is the letter?", max_new_tokens=21, ignore_eos=True)
chat.save("keeper")
reply = chat.send("And who wrote the log?", max_new_tokens=64, ignore_eos=True)
print(json.dumps(reply.tokens), flush=True)
time.sleep(600)
"""


def load(model: Path, store: Path, **changes: Any) -> Runtime:
    return Runtime.load(model, dtype="float32", kv=KVConfig(path=store, **{**KV, **changes}))


def second_question(chat: Chat) -> list[int]:
    return chat.send("And who wrote the log?", max_new_tokens=64, ignore_eos=True).tokens


@pytest.fixture(scope="module", params=["llama", "gemma3_text"])
def killed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[int]]:
    """A model, a store whose process was killed after `save`, and the reply it went on to give."""
    folder = tmp_path_factory.mktemp(request.param)
    model, store = save_tiny_model(folder / "model", request.param), folder / "kv"
    command = [sys.executable, "-c", CHILD, str(model), str(store), json.dumps(KV), TEXT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        tokens = json.loads(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
    return model, store, tokens


def test_a_resumed_session_prefills_nothing_and_continues_identically(killed: tuple[Path, Path, list[int]]) -> None:
    model, store, tokens = killed
    with load(model, store) as runtime:
        chat = runtime.chat(session="keeper")
        assert chat.restored == chat.num_tokens > 700
        assert second_question(chat) == tokens
        assert chat.last.timings.cache_n >= chat.restored
        assert chat.last.timings.prompt_n < 60
        runtime.store.check_integrity()


def test_a_second_conversation_prefills_no_full_page_of_the_document(killed: tuple[Path, Path, list[int]]) -> None:
    model, store, _ = killed
    with load(model, store) as runtime:
        done = runtime.chat().read_text(TEXT)
        assert done.tokens - done.cached < runtime.config.page_size


def test_another_process_may_use_another_index(killed: tuple[Path, Path, list[int]]) -> None:
    model, store, _ = killed
    with load(model, store, index="dense") as runtime:
        chat = runtime.chat(session="keeper")
        assert chat.restored == chat.num_tokens
        assert len(second_question(chat)) == 64


def test_other_settings_miss(killed: tuple[Path, Path, list[int]]) -> None:
    model, store, _ = killed
    with load(model, store, page_size=8) as runtime:
        assert runtime.sessions() == []
        assert runtime.chat().read_text(TEXT).cached == 0
        with pytest.raises(SessionError, match="no session 'keeper' for this model"):
            runtime.chat(session="keeper")


def test_pages_that_may_be_approximate_are_not_found_by_a_lossless_run(tmp_path: Path, tiny_llama: Path) -> None:
    for codec, cached in (("adaptive", False), ("zstd", False), ("raw", True), ("adaptive", True)):
        with load(tiny_llama, tmp_path, codec=codec) as runtime:
            assert bool(runtime.chat().read_text(TEXT).cached) == cached, codec


def test_a_store_made_by_another_model_misses(killed: tuple[Path, Path, list[int]], tmp_path: Path) -> None:
    _, store, _ = killed
    with load(save_tiny_model(tmp_path / "model", "qwen2"), store, sink=32) as runtime:
        chat = runtime.chat()
        cached = chat.read_text("Something else entirely. " * 20).cached
        assert cached == 0


def _damage(store: Path, every: int, change: Any) -> int:
    """Apply `change(bytes) -> bytes | None` to every n-th page record of the only model in `store`."""
    (folder,) = store.iterdir()
    done = 0
    with lmdb.open(str(folder), max_dbs=3, map_size=1 << 30) as environment:
        pages = environment.open_db(b"pages")
        with environment.begin(db=pages, write=True) as transaction:
            for number, (key, value) in enumerate(list(transaction.cursor())):
                if number % every == 0:
                    changed = change(bytearray(value))
                    transaction.delete(key) if changed is None else transaction.put(key, bytes(changed))
                    done += 1
    return done


def _flip(record: bytearray) -> bytearray:
    record[len(record) // 2] ^= 4
    return record


def _saved_then_damaged(model: Path, store: Path, change: Any) -> list[int]:
    """What the session `keeper` answered before every seventh of its pages was changed on disk."""
    with load(model, store, index="dense") as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT)
        chat.save("keeper")
        tokens = second_question(chat)
    assert _damage(store, 7, change) > 10
    return tokens


@pytest.mark.parametrize("change", [_flip, lambda record: None], ids=["flipped bit", "missing record"])
def test_damaged_pages_are_recomputed(
    tmp_path: Path, tiny_llama: Path, change: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Prompt pages come back to the very bits' worth of tokens; nothing wrong is ever read."""
    tokens = _saved_then_damaged(tiny_llama, tmp_path, change)
    with load(tiny_llama, tmp_path, index="dense") as runtime:
        chat = runtime.chat(session="keeper")
        assert second_question(chat) == tokens
        runtime.store.check_integrity()
        if change is _flip:
            assert runtime.stats()["pages_recomputed"] > 10
            assert "was damaged: recomputing it" in caplog.text
        else:
            assert chat.restored < chat.num_tokens


def test_a_fork_repairs_damage_when_its_original_is_closed(
    tmp_path: Path, tiny_llama: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = _saved_then_damaged(tiny_llama, tmp_path, _flip)
    with load(tiny_llama, tmp_path, index="dense") as runtime:
        chat = runtime.chat(session="keeper")
        fork = chat.fork()
        chat.close()
        assert second_question(fork) == tokens
        assert "was damaged: recomputing it" in caplog.text


def test_a_failed_load_leaves_the_conversation_alone(tmp_path: Path, tiny_llama: Path) -> None:
    with load(tiny_llama, tmp_path) as runtime:
        chat = runtime.chat()
        chat.read_text("A short text to keep. " * 10)
        before = chat.num_tokens
        for name in ("nothing", "../x", "", "a" * 300, "a\nb"):
            with pytest.raises(SessionError):
                runtime.chat(session=name)
        assert chat.num_tokens == before


def test_without_disk_nothing_is_saved(tmp_path: Path, tiny_llama: Path) -> None:
    with load(tiny_llama, tmp_path, disk_gb=0) as runtime:
        chat = runtime.chat()
        chat.read_text(TEXT)
        with pytest.raises(SessionError, match="disk tier"):
            chat.save("keeper")
        assert len(second_question(chat)) == 64


def test_unicode_names_round_trip(tmp_path: Path, tiny_llama: Path) -> None:
    with load(tiny_llama, tmp_path) as runtime:
        chat = runtime.chat()
        chat.read_text("Ein kurzer Text. " * 8)
        chat.send("Wie geht es weiter?", max_new_tokens=5, ignore_eos=True)
        chat.save("мой разговор 📖")
        assert runtime.sessions() == ["мой разговор 📖"]
        resumed = runtime.chat(session="мой разговор 📖")
        assert resumed.messages == chat.messages
        assert np.array_equal(resumed._sequence.tokens, chat._sequence.tokens)
        assert np.array_equal(resumed._sequence.origins, chat._sequence.origins)
        assert resumed._sequence.origins.any()
