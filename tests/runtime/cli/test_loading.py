"""The model loads in a thread: whoever waits gets it or what is wrong with it, and whoever leaves waits for nothing."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import KVConfig
from stratakv.runtime.cli import chat_setup
from stratakv.runtime.cli.chat_setup import ChatOptions
from stratakv.runtime.cli.loading import LOADER, load_behind


def options(folder: Path) -> ChatOptions:
    return ChatOptions("none", "abacus", "auto", KVConfig(path=folder), [], None, None, {})


def test_whoever_asks_goes_on_while_it_loads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, loaded = threading.Event(), (object(), object())

    def load(*_: Any) -> Any:
        assert may_end.wait(60)
        return loaded

    monkeypatch.setattr(chat_setup, "load", load)
    opening = load_behind(options(tmp_path))
    (thread,) = (thread for thread in threading.enumerate() if thread.name == LOADER)
    assert (opening.done(), thread.daemon) == (False, True)  # the process may end without it
    may_end.set()
    assert opening.result(60) is loaded
    thread.join(60)


def test_what_is_wrong_comes_to_whoever_waits(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="device is auto, cpu, cuda or cuda:N, not 'abacus'"):
        load_behind(options(tmp_path)).result(60)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_nobody_waits_for_ever(error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also what Python lets pass through other handlers ends the wait, and the thread says nothing of its own."""

    def load(*_: Any) -> Any:
        raise error

    monkeypatch.setattr(chat_setup, "load", load)
    assert load_behind(options(tmp_path)).exception(60) is error
