"""Counts and times of a reply add up."""

from __future__ import annotations

from stratakv.runtime.api.reply import Reply, Timings


def test_a_prompt_is_what_was_there_and_what_was_computed() -> None:
    reply = Reply()
    reply.note_prompt(100, cached=30, computed=20, seconds=0.5)
    assert (reply.usage.prompt_tokens, reply.usage.cached_tokens) == (100, 30)
    assert (reply.timings.prompt_n, reply.timings.cache_n, reply.timings.prompt_ms) == (20, 80, 500)


def test_the_first_token_takes_no_step() -> None:
    timings = Timings()
    assert (timings.steps_per_second, timings.predicted_per_second) == (None, 0.0)
    timings.note_first(0.25)
    for _ in range(4):
        timings.note_step(0.125)
    assert (timings.predicted_n, timings.step_n, timings.ttft_ms, timings.predicted_ms) == (5, 4, 250, 500)
    assert timings.steps_per_second == timings.predicted_per_second == 8
    assert timings.as_dict()["predicted_per_second"] == 8


def test_json_has_a_null_where_there_is_no_rate() -> None:
    assert Timings().as_dict()["predicted_per_second"] is None


def test_a_reply_is_its_text() -> None:
    assert str(Reply("hello")) == "hello"
    assert "tokens" not in repr(Reply(tokens=[1, 2])).replace("_tokens", "")
