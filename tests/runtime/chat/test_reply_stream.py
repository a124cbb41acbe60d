"""A reply that somebody reads piece by piece: nothing begins before it is asked for, what was handed over stays, and of
what was not the conversation keeps nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from stratakv.runtime import GenerationConfig, Reply
from stratakv.runtime.chat.points import Point
from stratakv.runtime.chat.reply_stream import ReplyStream
from stratakv.runtime.engine.sequence import Snapshot

CONFIG = GenerationConfig()


class Talk:
    """A conversation whose replies are written beforehand: texts, or an exception that comes instead of one. With each
    text its memory grows by a page."""

    def __init__(self, *script: str | BaseException) -> None:
        self.script = script
        self.before = self.last = Reply("the reply before")
        self.open_reply: ReplyStream | None = None
        self.begun: list[Reply] = []
        self.said = ""
        self.settled: list[tuple[str, list[int]]] = []
        """What was kept of replies, with the points inside them to go back to."""
        self.returned: list[Point] = []
        self.tokens = 0
        self.is_taken = self.is_interrupted = False
        self.stream = ReplyStream(self, self._begin, CONFIG)

    def _begin(self, reply: Reply) -> Point:
        self.begun.append(reply)
        point = Point(Snapshot(0, 0, [], None), [], self.last, [], None)
        self.last = reply
        return point

    @contextmanager
    def alone(self, *, even_if_interrupted: bool = False) -> Iterator[None]:
        assert not self.is_taken
        self.is_taken = True
        try:
            yield
            if self.is_interrupted and not even_if_interrupted:
                raise KeyboardInterrupt
        finally:
            self.is_taken = False

    def check_interrupts(self) -> None: ...

    def end_reply(self) -> None:
        if self.open_reply is not None:
            self.open_reply.end()

    def pieces(self, reply: Reply, config: GenerationConfig, asked: float) -> Iterator[str]:
        for text in self.script:
            if isinstance(text, BaseException):
                raise text
            reply.text += text
            self.tokens += 16
            yield text
        reply.finish_reason = "eos"

    def say(self, text: str) -> None:
        self.said = text

    def settle(self, reply: Reply, shown: str, page_ends: list[Snapshot], config: GenerationConfig) -> None:
        assert (reply, config, self.is_taken) == (self.last, CONFIG, True)
        reply.text = shown
        self.settled.append((shown, [point.num_tokens for point in page_ends]))

    def return_to(self, point: Point) -> None:
        self.returned.append(point)
        self.last = point.last

    def point_at_page_end(self) -> Snapshot | None:
        return Snapshot(self.tokens, self.tokens // 16, [], None)


def test_a_reply_comes_in_pieces_that_are_never_empty() -> None:
    talk = Talk("Low ", "", "tide", "", ".")
    assert next(talk.stream) == "Low "
    assert (talk.said, talk.open_reply, talk.settled) == ("Low ", talk.stream, [])
    assert list(talk.stream) == ["tide", "."]
    assert (talk.said, talk.open_reply, talk.last) == ("Low tide.", None, talk.stream.reply)
    assert [text for text, _ in talk.settled] == ["Low tide."]
    assert talk.stream.reply.finish_reason == "eos"
    talk.stream.close()
    assert (next(talk.stream, None), len(talk.settled)) == (None, 1)


def test_nothing_begins_before_the_first_piece_is_asked_for() -> None:
    talk = Talk("Low tide.")
    talk.stream.close()
    assert (next(talk.stream, None), talk.begun, talk.last) == (None, [], talk.before)
    assert (talk.settled, talk.returned) == ([], [])


def test_what_was_received_stays_and_the_rest_is_not_there() -> None:
    talk = Talk("Low ", "tide", ".")
    assert next(talk.stream) == "Low "
    talk.stream.reply.text, talk.stream.reply.finish_reason = "Low tide.", "eos"  # made, and not handed over
    talk.stream.close()
    assert [text for text, _ in talk.settled] == ["Low "]
    assert (talk.last.text, talk.last.finish_reason, talk.open_reply) == ("Low ", "interrupted", None)


def test_another_question_ends_the_reply_that_is_open() -> None:
    talk = Talk("Low ", "tide")
    next(talk.stream)
    another = ReplyStream(talk, talk._begin, CONFIG)
    assert next(another) == "Low "
    assert [text for text, _ in talk.settled] == ["Low "]
    assert (talk.open_reply, next(talk.stream, None)) == (another, None)


@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()])
def test_an_error_before_the_first_piece_leaves_the_conversation_as_it_was(error: BaseException) -> None:
    talk = Talk("", error)
    with pytest.raises(type(error)):
        next(talk.stream)
    assert [point.last for point in talk.returned] == [talk.before]
    assert (talk.settled, talk.open_reply, talk.stream.reply.text) == ([], None, "")
    assert next(talk.stream, None) is None


def test_an_error_later_leaves_what_was_handed_over() -> None:
    talk = Talk("Low ", "tide", RuntimeError("no memory"))
    assert [next(talk.stream), next(talk.stream)] == ["Low ", "tide"]
    with pytest.raises(RuntimeError, match="no memory"):
        next(talk.stream)
    assert [text for text, _ in talk.settled] == ["Low tide"]
    assert talk.returned == []


def test_a_piece_that_never_reached_its_reader_is_not_kept() -> None:
    """An interrupt comes when the piece is made."""
    talk = Talk("Low ", "tide")
    next(talk.stream)
    talk.is_interrupted = True
    with pytest.raises(KeyboardInterrupt):
        next(talk.stream)
    assert talk.said == "Low tide"
    assert [text for text, _ in talk.settled] == ["Low "]


def test_whoever_waits_for_the_whole_gets_all_or_nothing() -> None:
    talk = Talk("Low ", "tide")
    assert (talk.stream.whole(), talk.last.text) == (talk.last, "Low tide")
    failing = Talk("Low ", "tide", RuntimeError("no memory"))
    with pytest.raises(RuntimeError, match="no memory"):
        failing.stream.whole()
    assert (failing.last, failing.settled, failing.open_reply) == (failing.before, [], None)


def test_the_newest_page_ends_are_remembered_each_once() -> None:
    talk = Talk(*"abcdef")
    assert "".join(talk.stream) == "abcdef"
    assert talk.settled == [("abcdef", [48, 64, 80, 96])]
    paused: Any = Talk("a", "b", "c")
    paused.point_at_page_end = lambda: Snapshot(16, 1, [], None)
    assert "".join(paused.stream) == "abc"
    assert paused.settled == [("abc", [16])]
