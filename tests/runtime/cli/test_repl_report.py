"""What the chat's commands report: a dash for what was not measured, and nothing that a terminal obeys."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from hand_clock import HandClock
from rich.console import Console

from stratakv.runtime import GenerationConfig, KVConfig, Reply, Runtime
from stratakv.runtime.api.reply import Timings
from stratakv.runtime.cli import repl_report
from stratakv.runtime.cli.repl_report import settings, show, status, timed


@pytest.fixture(scope="module")
def fresh(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Nothing is read in it. Its store is in a folder whose name clears the screen."""
    with Runtime.load(tiny_llama, kv=KVConfig(path=tmp_path_factory.mktemp("kv") / "\x1b[2J")) as runtime:
        yield runtime


def test_where_nothing_was_read_nothing_was_hit(fresh: Runtime) -> None:
    assert fresh.stats()["hit_rate"] is None
    assert status(fresh, fresh.chat()).endswith("hit rate -")


def test_the_status_says_why_a_reply_was_ended(fresh: Runtime) -> None:
    chat = fresh.chat()
    chat.last = Reply(finish_reason="eos", timings=Timings(step_n=3, predicted_ms=1500))
    assert status(fresh, chat).endswith(" · 2.0 tok/s · hit rate -")
    chat.last.finish_reason = "repeats"
    assert status(fresh, chat).endswith("the reply repeated itself and was ended; /set max_repeats 0 lets it go on")


def test_a_terminal_obeys_nothing_of_what_is_shown(fresh: Runtime) -> None:
    screen = io.StringIO()
    show(Console(file=screen, width=400, markup=False, highlight=False), fresh)
    lines = screen.getvalue().splitlines()
    assert f"{fresh.name} on cpu, weights in bfloat16, cache in bfloat16; index spectral, budget 2048" in lines[0]
    assert lines[1] == "192 bytes of KV per token; trained for 4096 positions"
    assert [line.split()[0] for line in lines if " cap " in line] == ["host", "disk"]
    assert r"\x1b[2J" in screen.getvalue()
    assert all(line.isprintable() for line in lines)


def test_sessions_of_other_settings_have_a_line_for_each(fresh: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"dtype='float32'": ["two", "one\x1b"], "page_size=32": ["three"]}
    monkeypatch.setattr(repl_report, "names_by_settings", lambda disk: found if disk is fresh.store.disk else {})
    assert repl_report.sessions_elsewhere(fresh) == [
        r"with dtype='float32': one\x1b, two", "with page_size=32: three",
    ]  # fmt: skip
    monkeypatch.setattr(fresh.store, "disk", None)
    assert repl_report.sessions_elsewhere(fresh) == []


def test_settings_are_listed_as_they_would_be_given() -> None:
    config = GenerationConfig(stop_strings=("a b",), seed=3)
    assert settings(config).startswith("max_new_tokens=512 do_sample=False temperature=0.7 ")
    assert " stop_strings=('a b',) seed=3 " in settings(config)


def test_work_takes_as_long_as_the_clock_says(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = HandClock(monkeypatch)
    assert timed(lambda: clock.passes(2.5)) == 2.5
