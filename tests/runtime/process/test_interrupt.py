"""Ctrl-C waits for a safe point, and goes to whoever was to have it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.api.progress import Progress
from stratakv.runtime.process.interrupt import Interrupts


@pytest.fixture(autouse=True)
def _handler() -> Iterator[None]:
    before = signal.getsignal(signal.SIGINT)
    yield
    assert signal.signal(signal.SIGINT, before) is not None


def interrupt() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_it_waits_for_a_safe_point() -> None:
    interrupts, reached = Interrupts(), []

    def work() -> None:
        with interrupts.deferred():
            interrupt()
            with interrupts.deferred():
                reached.append("inside")
            reached.append("after the inner one")
            interrupts.check()
            reached.append("too far")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert reached == ["inside", "after the inner one"]


def test_what_is_left_at_the_end_is_handed_on_once() -> None:
    interrupts, seen = Interrupts(), []
    signal.signal(signal.SIGINT, lambda number, frame: seen.append((number, frame is not None)))
    with interrupts.deferred():
        interrupt()
        interrupt()
        assert not seen
    interrupts.check()
    assert seen == [(signal.SIGINT, True)]
    interrupt()
    assert len(seen) == 2  # the application's handler is back


def test_an_error_inside_does_not_swallow_it() -> None:
    interrupts, seen = Interrupts(), []
    signal.signal(signal.SIGINT, lambda *_: seen.append(1))

    def work() -> None:
        with interrupts.deferred():
            interrupt()
            raise ValueError("another")

    with pytest.raises(ValueError, match="another"):
        work()
    assert seen == [1]


def test_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with Interrupts().deferred():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
        interrupt()


def test_other_threads_are_left_alone() -> None:
    interrupts, done = Interrupts(), []

    def elsewhere() -> None:
        with interrupts.deferred():
            interrupts.check()
            done.append(1)

    def work() -> None:
        with interrupts.deferred():
            interrupt()
            thread = threading.Thread(target=elsewhere)
            thread.start()
            thread.join()
            assert done == [1]  # the signal was not raised there

    with pytest.raises(KeyboardInterrupt):
        work()


@pytest.mark.parametrize("what", ["read", "send"])
def test_an_applications_handler_may_let_the_work_go_on(tiny_llama: Path, tmp_path: Path, what: str) -> None:
    """It is called, in the middle; what it does not raise ends nothing."""
    seen: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, host_gb=0.05)) as runtime:
        chat = runtime.chat()
        calls: dict[str, Callable[[Callable[[Progress], None]], Any]] = {
            "read": lambda step: chat.read_text("Some words.", on_progress=step),
            "send": lambda step: chat.send("Some words.", max_new_tokens=3, on_progress=step),
        }
        calls[what](_once(interrupt))
        assert (seen, len(chat.messages)) == ([signal.SIGINT], {"read": 1, "send": 2}[what])


def _once(call: Callable[[], None]) -> Callable[[Progress], None]:
    left = [1]

    def step(_: Progress) -> None:
        if left:
            left.pop()
            call()

    return step


def test_an_interrupted_read_of_a_text_that_is_partly_stored_leaves_nothing(tiny_llama: Path, tmp_path: Path) -> None:
    """What the store had is adopted first; an interrupt gives that back too."""
    text = "Every tide leaves something on the strand. " * 20
    with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, host_gb=0.05)) as runtime:
        runtime.chat().read_text(text)
        chat = runtime.chat()
        with pytest.raises(KeyboardInterrupt):
            chat.read_text(text + "A last line.", on_progress=lambda _: interrupt())
        assert (chat.num_tokens, chat.messages) == (0, [])
        chat.send("Hi", max_new_tokens=2)
        assert chat._sequence.tokens.tolist().count(1) == 2  # one turn's <|im_start|> for each of the two
        assert chat.fork().read_text(text).tokens


def test_a_handler_that_a_handler_installs_stays() -> None:
    """The first Ctrl-C is noted, the next one ends: a common pattern, also while we compute."""
    interrupts, seen = Interrupts(), []

    def first(number: int, frame: Any) -> None:
        seen.append("first")
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> None:
        with interrupts.deferred():
            interrupt()
            interrupts.check()
            interrupt()
            seen.append("deferred")
            interrupts.check()
            seen.append("too far")

    signal.signal(signal.SIGINT, first)
    with pytest.raises(KeyboardInterrupt):
        work()
    assert seen == ["first", "deferred"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_handler_that_a_callback_installs_stays() -> None:
    seen: list[int] = []
    with Interrupts().deferred():
        found = signal.signal(signal.SIGINT, lambda number, _: seen.append(number))
    interrupt()
    assert seen == [signal.SIGINT]
    signal.signal(signal.SIGINT, found)  # what it found is ours, and we are done: it is as if it had found Python's
    with pytest.raises(KeyboardInterrupt):
        interrupt()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize("name", ["SIGTERM", "SIGALRM", "SIGUSR1"])
def test_another_signals_handler_that_raises_waits_too(name: str) -> None:
    number, interrupts, reached = getattr(signal, name), Interrupts(), []

    def raises(*_: Any) -> None:
        raise TimeoutError("over")

    def work() -> None:
        with interrupts.deferred():
            os.kill(os.getpid(), number)
            reached.append(1)
            interrupts.check()
            reached.append(2)

    before = signal.signal(number, raises)
    try:
        with pytest.raises(TimeoutError, match="over"):
            work()
        assert signal.getsignal(number) is raises
    finally:
        signal.signal(number, before)
    assert reached == [1]


def test_signals_that_the_system_handles_are_left_alone() -> None:
    with Interrupts().deferred():
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_two_signals_are_both_handed_on_though_the_first_one_raises() -> None:
    interrupts, seen = Interrupts(), []
    before = signal.signal(signal.SIGTERM, lambda number, _: seen.append(number))

    def work() -> None:
        with interrupts.deferred():
            os.kill(os.getpid(), signal.SIGTERM)
            interrupt()

    try:
        with pytest.raises(KeyboardInterrupt):
            work()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM]


@pytest.mark.parametrize("what", ["read", "send", "stream", "generate"])
def test_a_time_limit_takes_back_what_was_not_finished(tiny_llama: Path, tmp_path: Path, what: str) -> None:
    """A handler of SIGALRM that raises, as a program sets it around a call that may take too long."""

    def over(*_: Any) -> None:
        raise TimeoutError("over")

    def limit(_: Progress) -> None:
        os.kill(os.getpid(), signal.SIGALRM)

    before = signal.signal(signal.SIGALRM, over)
    try:
        with Runtime.load(tiny_llama, dtype="float32", kv=KVConfig(path=tmp_path, host_gb=0.05)) as runtime:
            chat = runtime.chat()
            chat.send("Who?", max_new_tokens=2, ignore_eos=True)
            was = chat.num_tokens, list(chat.messages), chat.last
            calls: dict[str, Callable[[], Any]] = {
                "read": lambda: chat.read_text("Some words.", on_progress=limit),
                "send": lambda: chat.send("Some words.", on_progress=limit),
                "stream": lambda: list(chat.stream("Some words.", on_progress=limit)),
                "generate": lambda: (signal.setitimer(signal.ITIMER_REAL, 1e-4), runtime.generate(["a" * 3000] * 9)),
            }
            with pytest.raises(TimeoutError, match="over"):
                calls[what]()
            assert (chat.num_tokens, chat.messages, chat.last) == was
            runtime.store.check_integrity()
            assert chat.send("Who?", max_new_tokens=2).tokens
    finally:
        signal.signal(signal.SIGALRM, before)


FORKING = """
import os, signal
from stratakv.runtime.process.interrupt import Interrupts
with Interrupts().deferred():
    pid = os.fork()
    if not pid:
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            os._exit(7)
        os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_child_that_is_forked_meanwhile_can_be_interrupted() -> None:
    """In a small process: this one may have grown too large to be forked."""
    found = subprocess.run([sys.executable, "-c", FORKING], capture_output=True, text=True, check=True)
    assert (found.stdout, found.stderr) == ("7\n", "")
