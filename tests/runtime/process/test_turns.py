"""Threads take turns at a model; what is published was computed by whoever publishes it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from places import RECALL
from recall import make_context

from stratakv.runtime import Chat, ConversationError, KVConfig, Runtime
from stratakv.runtime.api.progress import Progress
from stratakv.runtime.engine.sequence import PROMPT
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.process.turns import Turns

MODEL = RECALL


def load(store: Path) -> Runtime:
    return Runtime.load(MODEL, kv=KVConfig(path=store, host_gb=0.3, disk_gb=0.5))


def documents(tokenizer: object, count: int) -> list[str]:
    rng = np.random.default_rng(5)
    return [tokenizer.decode(make_context(rng, 900, 60)[0]) for _ in range(count)]


def ask(runtime: Runtime, text: str) -> tuple[str, int]:
    """An answer, and how many tokens of the document were stored already."""
    chat = runtime.chat()
    read = chat.read_text(text, "d")
    return chat.send("? k3", max_new_tokens=8, ignore_eos=True).text, read.cached


def together(runtime: Runtime, texts: list[str]) -> list[tuple[str, int]]:
    found: dict[int, tuple[str, int]] = {}
    threads = [
        threading.Thread(target=lambda i=i, text=text: found.setdefault(i, ask(runtime, text)))
        for i, text in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[i] for i in range(len(texts))]


def test_threads_get_the_answers_of_one_after_another(tmp_path: Path) -> None:
    with load(tmp_path / "serial") as runtime:
        texts = documents(runtime.tokenizer, 3)
        expected = [ask(runtime, text)[0] for text in texts]
    with load(tmp_path / "threads") as runtime:
        assert [text for text, _ in together(runtime, texts)] == expected
    with load(tmp_path / "threads") as later:  # what the threads stored is what it says it is
        assert [ask(later, text) for text in texts] == [(text, 896) for text in expected]


def test_without_turns_nothing_wrong_is_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is one way to keep calls apart. If it fails, the code that publishes pages notices."""

    @contextmanager
    def no_lock(self: Turns, check: object = None) -> Iterator[None]:
        self._holder = threading.get_ident()
        self.number += 1
        yield

    errors: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda found: errors.append(found.exc_type))
    with load(tmp_path) as runtime:
        texts = documents(runtime.tokenizer, 2)
        with monkeypatch.context() as patched:
            patched.setattr(Turns, "taken", no_lock)
            patched.setattr(Turns, "require_free", lambda self: None)
            for _ in range(3):
                threads = [threading.Thread(target=ask, args=(runtime, text)) for text in texts]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
        monkeypatch.undo()
        runtime.engine.turns._holder = None
    assert set(errors) <= {ConversationError}
    with load(tmp_path / "fresh") as fresh:
        expected = [ask(fresh, text)[0] for text in texts]
    with load(tmp_path) as later:
        assert [ask(later, text)[0] for text in texts] == expected


def span_of(runtime: Runtime) -> tuple[TieredLayer, TieredLayer]:
    layers = [runtime.engine.new_sequence().layers[0] for _ in range(2)]
    assert all(isinstance(layer, TieredLayer) for layer in layers)
    return layers[0], layers[1]


def test_a_span_that_another_call_came_between_is_not_published(tmp_path: Path) -> None:
    with load(tmp_path) as runtime:
        mine, theirs = span_of(runtime)
        turns, named = runtime.engine.turns, runtime.engine.new_sequence().name_pages(np.arange(2, 34), PROMPT)
        with turns.taken():
            mine.begin()
            mine.span.rows(0, 20)
        with turns.taken():
            theirs.begin()
            theirs.span.rows(0, 32)
        with turns.taken(), pytest.raises(ConversationError, match="another call came between"):
            mine.span.rows(20, 12)
        with turns.taken(), pytest.raises(ConversationError, match="another call came between"):
            mine.finish(named.chains, named.tokens, 32)
        assert len(mine.pids) == 0
        assert runtime.store.num_known(named.chains, [0]) == 0


def test_a_span_with_rows_left_out_is_not_published(tmp_path: Path) -> None:
    with load(tmp_path) as runtime:
        layer, _ = span_of(runtime)
        named = runtime.engine.new_sequence().name_pages(np.arange(2, 34), PROMPT)
        with runtime.engine.turns.taken():
            layer.begin()
            layer.span.rows(0, 16)
            with pytest.raises(ConversationError):
                layer.finish(named.chains, named.tokens, 32)
        with pytest.raises(ConversationError, match="out of turn"):
            layer.begin()
        assert runtime.store.num_known(named.chains, [0]) == 0


def test_pages_are_named_by_the_tokens_that_are_there(tmp_path: Path) -> None:
    """A sequence that changes while its next pages are computed, and names that are not those of the tokens."""
    with load(tmp_path) as runtime:
        sequence = runtime.engine.new_sequence()
        tokens = np.arange(2, 42, dtype=np.uint32)
        named = sequence.name_pages(tokens, PROMPT)
        named.require_right(sequence)
        named.tokens[1, 3] += 1
        with pytest.raises(ConversationError, match="was changed while its pages were computed"):
            named.require_right(sequence)
        named = sequence.name_pages(tokens, PROMPT)
        sequence.commit(sequence.name_pages(tokens[:1], PROMPT))
        with pytest.raises(ConversationError, match="was changed while its pages were computed"):
            named.require_right(sequence)


def test_a_sequence_used_by_a_callback_meanwhile_publishes_nothing(tmp_path: Path) -> None:
    with load(tmp_path) as runtime:
        sequence, tokens = runtime.engine.new_sequence(), np.arange(2, 102, dtype=np.uint32)

        def meddle(_: Progress) -> None:
            sequence.commit(sequence.name_pages(tokens[:3], PROMPT))

        with pytest.raises(ConversationError):
            runtime.engine.prefill(sequence, tokens, on_progress=meddle)
        assert sequence.num_tokens == 0
        assert runtime.store.num_known(sequence.name_pages(tokens, PROMPT).chains[:1], [0]) == 0


@pytest.mark.parametrize("what", ["send", "read", "other", "generate", "close"])
def test_a_callback_that_calls_back_is_told(tmp_path: Path, what: str) -> None:
    with load(tmp_path) as runtime:
        chat, other = runtime.chat(), runtime.chat()
        calls = {
            "send": lambda: chat.send("? k1"), "read": lambda: chat.read_text("f1"),
            "other": lambda: other.send("? k1"), "generate": lambda: runtime.generate("f1"), "close": runtime.close,
        }  # fmt: skip
        with pytest.raises(ConversationError, match="not from inside on_progress"):
            chat.read_text("f1 f2 f3", on_progress=lambda _: calls[what]())
        assert (chat.messages, chat.num_tokens, other.num_tokens) == ([], 0, 0)
        assert chat.send("? k1", max_new_tokens=2, ignore_eos=True).text


def test_a_stream_that_nobody_reads_holds_nothing(tmp_path: Path) -> None:
    with load(tmp_path) as runtime:
        waiting, busy = runtime.chat(), runtime.chat()
        pieces = waiting.stream("? k1", max_new_tokens=30, ignore_eos=True)
        first = next(pieces)
        found: list[str] = []
        thread = threading.Thread(
            target=lambda: found.append(busy.send("? k2", max_new_tokens=30, ignore_eos=True).text)
        )
        thread.start()
        thread.join(60)
        assert found
        assert len((first + "".join(pieces)).split()) == 30


def test_turns_are_taken_in_order() -> None:
    turns, order, asked = Turns("it"), [], []
    waiting = threading.Barrier(2)

    def take(number: int) -> None:
        waiting.wait()
        with turns.taken():
            order.append(number)

    with turns.taken():
        for number in range(6):
            asked.append(threading.Thread(target=take, args=(number,)))
            asked[-1].start()
            waiting.wait()
            while len(turns._waiting) <= number:  # until it has asked
                threading.Event().wait(0.001)
    for thread in asked:
        thread.join()
    assert order == list(range(6))


def test_waiting_can_be_given_up() -> None:
    turns = Turns("it")
    held, done = threading.Event(), threading.Event()

    def hold() -> None:
        with turns.taken():
            held.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), turns.taken(stop):
        raise AssertionError("it is not free")
    done.set()
    thread.join()
    with turns.taken():
        turns.require()
    assert not turns._waiting


def test_a_closed_conversation_says_so(tmp_path: Path) -> None:
    with load(tmp_path) as runtime:
        chat = runtime.chat()
        pieces = chat.stream("? k1", max_new_tokens=9, ignore_eos=True)
        next(pieces)
        chat.close()
        chat.close()
        assert list(pieces) == []
        for call in (lambda: chat.send("? k1"), lambda: chat.read_text("f1"), chat.fork, lambda: chat.save("x")):
            with pytest.raises(ConversationError, match="this conversation is closed"):
                call()


def test_two_threads_in_one_conversation_take_whole_turns(tmp_path: Path) -> None:
    with load(tmp_path) as runtime:
        chat: Chat = runtime.chat()
        send = lambda key: chat.send(f"? k{key}", max_new_tokens=6, ignore_eos=True)  # noqa: E731
        threads = [threading.Thread(target=send, args=(key,)) for key in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [message["role"] for message in chat.messages] == ["user", "assistant"] * 4
        assert all(len(message["content"].split()) == 6 for message in chat.messages[1::2])
