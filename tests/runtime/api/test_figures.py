"""What a reply says about itself, against a clock that the test moves: reading a prompt takes 10 s, a step 1 s,
choosing a token 0.25 s, and nothing else takes any time."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hand_clock import HandClock

from stratakv.runtime import CapacityError, KVConfig, Runtime
from stratakv.runtime.api.figures import Stopwatch, per_second, shown, to_json
from stratakv.runtime.api.reply import Reply, Timings
from stratakv.runtime.cli.repl_report import status
from stratakv.runtime.engine.engine import Engine

READ_S, STEP_S, CHOICE_S = 10.0, 1.0, 0.25
TEXT = "Every tide leaves something on the strand. " * 12
FREE: dict[str, Any] = {"ignore_eos": True}


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path_factory.mktemp("kv"), budget=112)) as it:
        yield it


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> HandClock:
    found = HandClock(monkeypatch)
    found.takes(Engine, "_prefill", READ_S)
    found.takes(Engine, "_step", STEP_S)
    found.takes(Sampler, "choose", CHOICE_S)
    monkeypatch.setattr("stratakv.runtime.engine.generate.Sampler", Sampler)
    return found


class Sampler:
    """Of each batch's sequences in turn: ends a reply after so many tokens, where `lengths` says so."""

    lengths: tuple[int, ...] = ()
    _number = itertools.count()

    def __init__(self, *_: Any) -> None:
        self._left = Sampler.lengths[next(Sampler._number) % len(Sampler.lengths)] if Sampler.lengths else -1

    def choose(self, *_: Any) -> int:
        self._left -= 1
        return 2 if self._left == 0 else 100 - self._left % 50  # 2 is <|im_end|>


def steps_of(timings: Timings) -> tuple[int, float, float | None]:
    return timings.step_n, timings.predicted_ms, timings.steps_per_second


@pytest.mark.parametrize("tokens", [1, 2, 3, 20])
def test_a_rate_is_steps_over_the_time_spent_in_them(runtime: Runtime, clock: HandClock, tokens: int) -> None:
    """The first token comes out of the prompt: it is no step, and one token alone has no rate."""
    reply = runtime.chat().send("Hello.", max_new_tokens=tokens, **FREE)
    steps = tokens - 1
    assert steps_of(reply.timings) == (steps, 1250 * steps, 0.8 if steps else None)
    assert (reply.timings.predicted_n, reply.usage.completion_tokens, len(reply.tokens)) == (tokens,) * 3
    assert reply.timings.predicted_per_second == (0.8 if steps else 0.0)  # a number in any case
    assert reply.timings.ttft_ms == 1000 * (READ_S + CHOICE_S)
    assert reply.timings.prompt_ms == 1000 * READ_S


def test_a_slow_reader_slows_no_figure(runtime: Runtime, clock: HandClock) -> None:
    chat = runtime.chat()
    pieces = chat.stream("Hello.", max_new_tokens=8, **FREE)
    clock.passes(500)  # nobody has asked for a piece yet
    for _ in pieces:
        clock.passes(100)
    assert steps_of(chat.last.timings) == (7, 8750, 0.8)
    assert chat.last.timings.ttft_ms == 1000 * (READ_S + CHOICE_S)


def test_other_threads_turns_are_waited_for_and_are_no_steps(
    runtime: Runtime, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The person waits for them too; the rate is the model's."""
    waits: list[int] = []
    take = runtime.engine.turns._take

    def wait_first(*args: Any) -> None:
        waits.append(1)
        clock.passes(7)
        take(*args)

    chat = runtime.chat()
    monkeypatch.setattr(runtime.engine.turns, "_take", wait_first)
    pieces = chat.stream("Hello.", max_new_tokens=4, **FREE)
    next(pieces)
    until_first = len(waits)
    list(pieces)
    assert until_first > 0
    assert len(waits) > until_first
    assert steps_of(chat.last.timings) == (3, 3750, 0.8)
    assert chat.last.timings.ttft_ms == 1000 * (READ_S + CHOICE_S + 7 * until_first)


def test_the_conversation_is_waited_for_too(
    runtime: Runtime, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = runtime.chat()
    clock.takes(chat._turns, "_take", 60)
    assert chat.send("Hello.", max_new_tokens=1, **FREE).timings.ttft_ms == 1000 * (60 + READ_S + CHOICE_S)


def test_each_reply_of_a_batch_has_its_own_time(
    runtime: Runtime, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Sampler, "lengths", (1, 3, 5))
    monkeypatch.setattr(Sampler, "_number", itertools.count())
    replies = runtime.generate(["One tide.", "Two tides.", "Three tides."], max_new_tokens=9)
    assert [reply.finish_reason for reply in replies] == ["eos"] * 3
    two, one = STEP_S + 2 * CHOICE_S, STEP_S + CHOICE_S  # steps of two sequences, then of one
    assert [steps_of(reply.timings)[:2] for reply in replies] == [
        (0, 0.0), (2, 1000 * 2 * two), (4, 1000 * (2 * two + 2 * one)),
    ]  # fmt: skip
    assert [reply.timings.ttft_ms for reply in replies] == [1000 * (3 * READ_S + 3 * CHOICE_S)] * 3
    assert [reply.timings.prompt_ms for reply in replies] == [1000 * READ_S] * 3


def test_a_reply_that_was_closed_counts_what_was_made(runtime: Runtime, clock: HandClock) -> None:
    chat = runtime.chat()
    with_pieces = chat.stream("Hello.", max_new_tokens=50, **FREE)
    for _ in range(3):
        next(with_pieces)
    made = len(chat.last.tokens)
    with_pieces.close()
    assert chat.last.finish_reason == "interrupted"
    assert steps_of(chat.last.timings) == (made - 1, 1250 * (made - 1), 0.8)
    assert chat.last.usage.completion_tokens == made


def test_a_step_that_failed_is_no_step(runtime: Runtime, clock: HandClock, monkeypatch: pytest.MonkeyPatch) -> None:
    chat, step, left = runtime.chat(), Engine._step, iter(range(3))

    def failing(engine: Engine, *args: Any) -> Any:
        clock.passes(STEP_S)
        if next(left, None) is None:
            raise CapacityError("the tiers are full")
        return step(engine, *args)

    pieces = chat.stream("Hello.", max_new_tokens=50, **FREE)
    first = next(pieces)
    monkeypatch.setattr(Engine, "_step", failing)
    before = chat.last.timings.step_n
    with pytest.raises(CapacityError):
        list(pieces)
    timings = chat.last.timings
    assert (first, timings.predicted_n) != ("", 0)
    assert timings.step_n == before + 3 == timings.predicted_n - 1
    assert timings.steps_per_second is not None
    assert timings.predicted_ms % 250 == 0
    assert timings.predicted_ms <= 1000 * (2 * STEP_S + CHOICE_S) * timings.step_n


def test_a_message_that_failed_leaves_the_last_reply_as_it_was(
    runtime: Runtime, clock: HandClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = runtime.chat()
    kept = chat.send("Hello.", max_new_tokens=3, **FREE)
    figures = kept.timings.as_dict()

    def failing(*_: Any, **__: Any) -> Any:
        clock.passes(READ_S)
        raise CapacityError("the tiers are full")

    monkeypatch.setattr(Engine, "_prefill", failing)
    with pytest.raises(CapacityError):
        chat.send("And?")
    assert chat.last is kept
    assert kept.timings.as_dict() == figures


def test_cached_tokens_came_from_the_store(runtime: Runtime, clock: HandClock) -> None:
    """What a conversation has computed itself is none of them, however often it is looked back on."""
    first, second = runtime.chat(), runtime.chat()
    read = first.read_text(TEXT, "cached.txt")
    assert (read.cached, read.ms) == (0, 1000 * READ_S)
    replies = [first.send(text, max_new_tokens=3, **FREE) for text in ("One?", "Two?")]
    assert [reply.usage.cached_tokens for reply in replies] == [0, 0]
    again = second.read_text(TEXT, "cached.txt")
    assert again.tokens == read.tokens
    assert 0 < again.cached <= again.tokens
    for reply in (*replies, second.send("One?", max_new_tokens=3, **FREE)):
        timings, usage = reply.timings, reply.usage
        assert timings.prompt_n + timings.cache_n == usage.prompt_tokens
        assert usage.cached_tokens <= timings.cache_n
    found_now = second.last.timings.cache_n - again.tokens  # the same question once more: the rest of a page
    assert second.last.usage.cached_tokens == again.cached + found_now


def test_a_fork_and_a_regenerated_reply_look_back_on_the_same(runtime: Runtime, clock: HandClock) -> None:
    chat = runtime.chat()
    runtime.chat().read_text(TEXT, "forked.txt")
    cached = chat.read_text(TEXT, "forked.txt").cached
    reply = chat.send("One?", max_new_tokens=4, **FREE)
    assert reply.usage.cached_tokens == cached > 0
    another = chat.regenerate(max_new_tokens=6, **FREE).whole()
    assert (another.usage.prompt_tokens, another.usage.cached_tokens) == (reply.usage.prompt_tokens, cached)
    assert (another.timings.prompt_n, another.timings.prompt_ms) == (0, 0)
    assert another.timings.cache_n == another.usage.prompt_tokens
    assert steps_of(another.timings) == (5, 6250, 0.8)
    assert another.timings.ttft_ms == 1000 * CHOICE_S
    assert chat.fork().send("Two?", max_new_tokens=1, **FREE).usage.cached_tokens == cached


def test_a_resumed_conversation_came_from_the_store(runtime: Runtime, clock: HandClock) -> None:
    chat = runtime.chat()
    chat.read_text(TEXT, "resumed.txt")
    chat.send("One?", max_new_tokens=3, **FREE)
    chat.save("figures")
    resumed = runtime.chat(session="figures")
    assert resumed.restored == chat.num_tokens
    reply = resumed.send("Two?", max_new_tokens=1, **FREE)
    assert reply.usage.cached_tokens == resumed.restored
    assert reply.timings.prompt_n == reply.usage.prompt_tokens - resumed.restored


def test_what_was_cut_off_is_read_again_and_said_once(runtime: Runtime, clock: HandClock) -> None:
    """The sequence goes back to a page's end inside what was shown; the next message's prompt has the rest."""
    chat = runtime.chat()
    with closing(chat.stream("Hello.", max_new_tokens=20, **FREE)) as pieces:
        for _ in range(5):
            next(pieces)
    cut, held = chat.last, chat.num_tokens
    after = chat.send("And?", max_new_tokens=1, **FREE)
    assert held < cut.usage.prompt_tokens + cut.usage.completion_tokens
    assert (after.timings.cache_n, after.timings.prompt_n) == (held, after.usage.prompt_tokens - held)
    assert cut.usage.completion_tokens == cut.timings.predicted_n == cut.timings.step_n + 1
    assert after.usage.completion_tokens == 1


def test_a_session_that_is_partly_gone_restores_what_the_store_has(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = runtime.chat()
    chat.read_text(TEXT, "partly.txt")
    chat.save("partly")
    known = runtime.store.num_known
    monkeypatch.setattr(runtime.store, "num_known", lambda chains, layers: min(3, known(chains, layers)))
    resumed = runtime.chat(session="partly")
    assert resumed.restored == 2 * 3 * runtime.store.layout.page_size  # the rest is read as any prompt: three more
    assert resumed.send("And?", max_new_tokens=1, **FREE).usage.cached_tokens == resumed.restored


def test_the_status_line_says_what_the_reply_says(runtime: Runtime, clock: HandClock) -> None:
    chat = runtime.chat()
    assert " · - tok/s · " in status(runtime, chat)
    chat.send("Hello.", max_new_tokens=1, **FREE)
    assert " · - tok/s · " in status(runtime, chat)
    chat.send("Hello.", max_new_tokens=9, **FREE)
    assert " · 0.8 tok/s · " in status(runtime, chat)


def test_what_was_not_measured_is_null_and_a_dash() -> None:
    nothing = json.loads(to_json(Reply().timings.as_dict()))
    assert (nothing["ttft_ms"], nothing["predicted_per_second"]) == (None, None)
    assert json.loads(to_json({"a": float("nan"), "b": [float("inf"), 1.5], "c": (0, "x", True)})) == {
        "a": None, "b": [None, 1.5], "c": [0, "x", True],
    }  # fmt: skip
    assert (per_second(0, 1.0), per_second(3, 0.0), per_second(3, 2.0)) == (None, None, 1.5)
    assert (shown(None, ".1f"), shown(2.0, ".1f")) == ("-", "2.0")


def test_a_stopwatch_counts_no_block_that_failed(clock: HandClock) -> None:
    class Failing(Stopwatch):
        def fail(self) -> None:
            raise OSError("no")

    watch = Failing()
    with watch:
        clock.passes(2)
    clock.takes(watch, "fail", 3)
    with pytest.raises(OSError, match="no"), watch:
        watch.fail()
    with watch:
        clock.passes(4)
    assert watch.seconds == 6
