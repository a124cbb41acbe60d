"""From logits to text: a reply has the tokens that were chosen, and ends where it should, with all its text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stratakv.runtime import GenerationConfig, KVConfig, Reply, Runtime
from stratakv.runtime.engine import generate as module
from stratakv.runtime.engine.generate import Stream, generate, read_prompt
from stratakv.storage.transfer import clock

TEXT = "Every tide leaves something on the strand. " * 30


@pytest.fixture(scope="module")
def runtime(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), host_gb=0.05, disk_gb=0, index="bounds", budget=112, local=32)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as loaded:
        yield loaded
        loaded.store.check_integrity()


def test_a_batch_of_ragged_prompts_equals_each_alone(runtime: Runtime) -> None:
    prompts = ["Short.", TEXT[:400], TEXT, "A prompt of middling length, nothing more."]
    together = runtime.generate(prompts, max_new_tokens=24, ignore_eos=True)
    for prompt, reply in zip(prompts, together, strict=True):
        (alone,) = runtime.generate([prompt], max_new_tokens=24, ignore_eos=True)
        assert alone.tokens == reply.tokens
        assert reply.usage.completion_tokens == 24
        assert reply.finish_reason == "length"


def test_a_stop_string_ends_the_reply_and_is_not_part_of_it(runtime: Runtime) -> None:
    (whole,) = runtime.generate([TEXT[:90]], max_new_tokens=40, ignore_eos=True)
    readable = [piece for piece in whole.text.replace("\ufffd", "\n").split("\n") if len(piece) >= 3]
    stop = readable[0][1:3]
    (reply,) = runtime.generate([TEXT[:90]], max_new_tokens=40, ignore_eos=True, stop_strings=[stop])
    assert reply.finish_reason == "stop"
    assert reply.text == whole.text[: whole.text.index(stop)]


def test_stop_strings_may_span_tokens(runtime: Runtime) -> None:
    stream = Stream(runtime.tokenizer, ("tide",))
    ids = runtime.tokenizer("low tide", add_special_tokens=False).input_ids
    assert "".join(stream.push(token) for token in ids) + stream.rest() == "low "
    assert stream.stopped


def test_half_a_character_is_held_back_until_it_is_whole(runtime: Runtime) -> None:
    stream = Stream(runtime.tokenizer, ())
    assert [stream.push(token) for token in spelled(runtime, "é!")] == ["", "é", "!"]


def test_of_stop_strings_that_end_together_the_one_that_begins_first_counts(runtime: Runtime) -> None:
    stream = Stream(runtime.tokenizer, ("de", "ide"))
    assert "".join(stream.push(token) for token in spelled(runtime, "tide")) == "t"
    assert (stream.stopped, stream.rest()) == (True, "")


class Script:
    """Chooses what was written for it."""

    def __init__(self, tokens: list[int]) -> None:
        self._left = iter(tokens)

    def choose(self, *_: Any) -> int:
        return next(self._left)


class Generated:
    """What comes of a prompt of 40 tokens for each script, when these are the tokens that are chosen."""

    def __init__(self, runtime: Runtime, patch: pytest.MonkeyPatch, *scripts: list[int], **settings: Any) -> None:
        left = iter(scripts)
        patch.setattr(module, "Sampler", lambda *_: Script(next(left)))
        engine, config = runtime.engine, GenerationConfig(**settings)
        self.replies = [Reply() for _ in scripts]
        prompt = np.arange(3, 43, dtype=np.uint32)
        with ExitStack() as held:
            sequences = [held.enter_context(closing(engine.new_sequence())) for _ in scripts]
            pairs = zip(sequences, self.replies, strict=True)
            logits = [read_prompt(engine, sequence, prompt, reply) for sequence, reply in pairs]
            configs = [config] * len(scripts)
            self.pieces = list(generate(engine, sequences, logits, configs, self.replies, clock.now()))
            self.fed = [sequence.num_tokens - len(prompt) for sequence in sequences]


def spelled(runtime: Runtime, text: str) -> list[int]:
    """A token for each byte."""
    ids: list[int] = runtime.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def test_each_token_has_a_piece_and_the_last_one_is_fed_by_whoever_goes_on(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = spelled(runtime, "tide")
    found = Generated(runtime, monkeypatch, tokens, max_new_tokens=4)
    (reply,) = found.replies
    assert found.pieces == [(0, "t"), (0, "i"), (0, "d"), (0, "e")]
    assert (reply.text, reply.tokens, reply.finish_reason, found.fed) == ("tide", tokens, "length", [3])
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (40, 4)


@pytest.mark.parametrize("end", ["eos", "length"])
def test_what_was_held_back_for_a_stop_string_comes_at_the_end(
    end: str, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [*spelled(runtime, "an en"), runtime.tokenizer.eos_token_id]
    limit = len(tokens) if end == "eos" else len(tokens) - 1
    found = Generated(runtime, monkeypatch, tokens, max_new_tokens=limit, stop_strings=("end!",))
    assert [piece for _, piece in found.pieces][:4] == ["", "", "", "a"]
    assert "".join(piece for _, piece in found.pieces) == found.replies[0].text == "an en"
    assert found.replies[0].finish_reason == end


def test_an_end_may_be_ignored_and_is_no_text(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = [*spelled(runtime, "a"), runtime.tokenizer.eos_token_id, *spelled(runtime, "b")]
    for ignore_eos, outcome in ((False, ("a", "eos", 2)), (True, ("ab", "length", 3))):
        (reply,) = Generated(runtime, monkeypatch, tokens, max_new_tokens=3, ignore_eos=ignore_eos).replies
        assert (reply.text, reply.finish_reason, len(reply.tokens)) == outcome


def test_a_reply_that_goes_round_in_circles_is_ended_unless_nobody_minds(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = spelled(runtime, "tide" * 20)
    for settings, outcome in (
        ({"max_repeats": 3}, ("tide" * 12, "repeats")),
        ({"max_repeats": 3, "ignore_eos": True}, ("tide" * 20, "length")),
        ({}, ("tide" * 20, "length")),
    ):
        (reply,) = Generated(runtime, monkeypatch, tokens, max_new_tokens=80, **settings).replies
        assert (reply.text, reply.finish_reason) == outcome


def test_each_of_a_batch_ends_by_itself(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    short, long = [*spelled(runtime, "no"), runtime.tokenizer.eos_token_id], spelled(runtime, "tides")
    found = Generated(runtime, monkeypatch, short, long, max_new_tokens=5)
    assert found.pieces == [(0, "n"), (1, "t"), (0, "o"), (1, "i"), (0, ""), (1, "d"), (1, "e"), (1, "s")]
    assert [reply.finish_reason for reply in found.replies] == ["eos", "length"]
    assert (found.fed, [reply.timings.step_n for reply in found.replies]) == ([2, 4], [2, 4])
