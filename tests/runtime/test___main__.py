"""`python -m stratakv.runtime`: Ctrl-C while the command is imported ends it without a word, afterwards it is an
exception."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import pytest

from stratakv.runtime.__main__ import main

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None


class App(ModuleType):
    """The command's module, which notes who has Ctrl-C while it is imported and when it runs."""

    seen: list[Handler]

    @property
    def main(self) -> Callable[[], None]:
        self.note()
        return self.note

    def note(self) -> None:
        self.seen.append(signal.getsignal(signal.SIGINT))


@pytest.fixture
def app(monkeypatch: pytest.MonkeyPatch) -> Iterator[App]:
    name, before = "stratakv.runtime.cli.app", signal.getsignal(signal.SIGINT)
    found = App(name)
    found.seen = []
    monkeypatch.setitem(sys.modules, name, found)
    yield found
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_the_systems_until_the_command_is_there(app: App) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
    assert app.seen == [signal.SIG_DFL, signal.default_int_handler]


def test_where_it_is_ignored_it_stays_so(app: App) -> None:
    """As in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    main()
    assert app.seen == [signal.SIG_IGN, signal.SIG_IGN]


def test_another_handler_stays(app: App) -> None:
    def handler(*_: Any) -> None: ...

    signal.signal(signal.SIGINT, handler)
    main()
    assert app.seen == [handler, handler]
