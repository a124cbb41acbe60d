"""The pieces of one reply, while somebody reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import NoReturn, Protocol

from ...storage.transfer import clock
from ..api.config import GenerationConfig
from ..api.reply import Reply
from ..engine.sequence import Snapshot
from .points import Point

_POINTS = 4
"""The number of page ends that are remembered: the part of a reply not shown yet is rarely longer. If it is, more is
computed again."""


class Conversation(Protocol):
    """The part of a conversation that its reply uses; `chat.Chat` is one."""

    last: Reply
    open_reply: ReplyStream | None

    def alone(self, *, even_if_interrupted: bool = False) -> AbstractContextManager[None]: ...
    def check_interrupts(self) -> None: ...
    def end_reply(self) -> None: ...
    def pieces(self, reply: Reply, config: GenerationConfig, asked: float) -> Iterator[str]: ...
    def say(self, text: str) -> None: ...
    def settle(self, reply: Reply, shown: str, page_ends: list[Snapshot], config: GenerationConfig) -> None: ...
    def return_to(self, point: Point) -> None: ...
    def point_at_page_end(self) -> Snapshot | None: ...


class ReplyStream(Iterator[str]):
    """The text of a reply as pieces to iterate over; `reply` is the `Reply` as far as it has come.

        not begun --first next--> open --last piece, close, or anything else asked of the conversation--> over

    Nothing is held while the reader thinks: other conversations go on, and this one may be asked something else, which
    ends the reply. Any thread may ask for the next piece. A reply that ends early keeps what was received; if that is
    nothing, the conversation is as it was before.

    Args:
        begin: brings the conversation to the place where the given reply begins; returns the point to go back to.
    """

    def __init__(self, chat: Conversation, begin: Callable[[Reply], Point], config: GenerationConfig) -> None:
        self.reply = Reply()
        self._chat, self._begin, self._config = chat, begin, config
        self._pieces: Iterator[str] | None = None
        self._point: Point | None = None
        self._shown = ""
        self._page_ends: list[Snapshot] = []
        self._is_over = False

    def __next__(self) -> str:
        """The next piece, never empty. Raises StopIteration at the end, and as `Chat.stream` says."""
        before, piece, asked = self._shown, None, clock.now()
        try:
            with self._chat.alone():
                before = self._shown
                piece = None if self._is_over else self._next_piece(asked)
                self._shown += piece or ""
        except BaseException:
            with self._chat.alone(even_if_interrupted=True):
                if not self._is_over:
                    self._shown = before  # the piece was made, and never handed over
                self.end()
            raise
        if piece is None:
            raise StopIteration
        return piece

    def __aiter__(self) -> NoReturn:
        raise TypeError(
            "a reply's pieces take a thread while they are computed, and do not come in an async for; in a coroutine, "
            "`await asyncio.to_thread(next, stream, None)` gives the next one, None at the end"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError("a reply that is being generated can be neither copied nor sent; its `reply` can")

    def whole(self) -> Reply:
        """Wait for the reply and return it complete; nobody reads it before. An exception takes the message back."""
        point, asked = None, clock.now()
        try:
            with self._chat.alone():
                while (piece := self._next_piece(asked)) is not None:
                    point = self._point
                    self._shown += piece
        except BaseException:
            with self._chat.alone(even_if_interrupted=True):
                self._shown = ""
                self.end()
                if point is not None:  # also if it was complete: the interrupt came with its last token
                    self._chat.return_to(point)
            raise
        return self.reply

    def close(self) -> None:
        """End the reply with what was received. Safe to call twice, and before the first piece."""
        with self._chat.alone():
            self.end()

    def end(self) -> None:
        """Do what `close` does, for a caller who has the conversation to itself."""
        if self._is_over:
            return
        if self._pieces is not None:
            if self._shown != self.reply.text:
                self.reply.finish_reason = "interrupted"
            if self._shown:
                self._chat.settle(self.reply, self._shown, self._page_ends, self._config)
            else:
                assert self._point is not None
                self._chat.return_to(self._point)
                self._chat.last = self.reply
                self.reply.text = ""
        self._leave()

    def _next_piece(self, asked: float) -> str | None:
        """The next piece; None at the end. `asked` is the time at which somebody began to wait for it, first of all for
        the conversation."""
        chat = self._chat
        if self._pieces is None:
            chat.end_reply()
            self._point = self._begin(self.reply)
            self._pieces, chat.open_reply = chat.pieces(self.reply, self._config, asked), self
        while True:
            chat.check_interrupts()
            piece = next(self._pieces, None)
            if piece is None:
                chat.settle(self.reply, self._shown, self._page_ends, self._config)
                self._leave()
                return None
            self._note_page_end()
            if piece:
                chat.check_interrupts()
                chat.say(self._shown + piece)
                return piece

    def _note_page_end(self) -> None:
        """Remember a point to go back to, should the reply end before what was generated. At a page's end points cost
        little."""
        point = self._chat.point_at_page_end()
        if point is not None and not any(point.num_tokens == other.num_tokens for other in self._page_ends):
            self._page_ends = [*self._page_ends[1 - _POINTS :], point]

    def _leave(self) -> None:
        self._is_over = True
        self._pieces, self._point, self._page_ends = iter(()), None, []
        if self._chat.open_reply is self:
            self._chat.open_reply = None
