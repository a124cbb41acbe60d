"""A conversation over documents.

Three things are kept in step, whatever happens in between: the transcript (`messages`), what the person was shown, and
what the model remembers (the sequence, and `_unfed` tokens that join it with the next turn). An operation either
happens as a whole or leaves everything as it was; of a reply that was cut short, all three keep what was shown.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from ...storage.files.file_names import as_text
from ..api import typed
from ..api.config import GenerationConfig
from ..api.errors import ConversationError, WrongTypeError
from ..api.figures import Stopwatch
from ..api.progress import OnProgress
from ..api.reply import Reply
from ..engine.generate import generate, read_prompt
from ..engine.repetition import CHAT_COPIES
from ..engine.sequence import Sequence, Snapshot
from ..model.encoder import Spelled
from ..model.template import Template, as_array, num_alike
from ..process.turns import Turns
from ..sessions import session
from ..sessions.names import check_name
from ..sessions.saved_generation import from_notes, to_notes
from .documents import Read, document_name, read_text_file
from .loaded import Loaded
from .long_texts import refuse_long
from .points import Draft, Point
from .regained import forgotten_draft
from .reply_stream import ReplyStream
from .spoken import spoken


class Chat:
    """One conversation. Made by `Runtime.chat`. Several threads may use it: they take turns.

    Attributes:
        messages: the transcript, `{"role", "content"}`; documents appear by name.
        last: the newest `Reply`, also when it was interrupted.
        restored: number of tokens that a resumed session brought back without prefill; 0 otherwise.
    """

    def __init__(self, runtime: Loaded, sequence: Sequence, *, system: str | None = None) -> None:
        self._runtime, self._sequence, self._system = runtime, sequence, system
        self._template = Template(runtime.tokenizer)
        self.messages: list[dict[str, str]] = []
        self.last = Reply()
        self.restored = 0
        self._generation = GenerationConfig()
        self._unfed: list[int] = []
        self._draft: Draft | None = None
        self.open_reply: ReplyStream | None = None
        self._turns, self._is_closed = Turns("this conversation"), False
        self._seen: dict[str, session.Seen] = {}  # what this conversation loaded or saved, by name
        self._template.first(system)  # a template without a place for it is refused here
        weakref.finalize(self, runtime.engine.pasts.abandoned.append, sequence).atexit = False

    def __repr__(self) -> str:
        return f"<Chat with {self._runtime.name}: {len(self.messages)} messages, {self.num_tokens} tokens>"

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Chat can be neither copied nor sent to another process: its KV is in its runtime's store; `fork` makes "
            "a copy here, and what `save` keeps can be resumed there with Runtime.chat(session=...)"
        )

    @property
    def generation(self) -> GenerationConfig:
        """The settings that `send` and `stream` use where their arguments do not say otherwise; another one may be
        set."""
        return self._generation

    @generation.setter
    def generation(self, config: GenerationConfig) -> None:
        if not isinstance(config, GenerationConfig):
            raise WrongTypeError(f"generation is a GenerationConfig, not {typed.shown(config)}")
        self._generation = config

    # Talking

    def read(self, path: str | bytes | os.PathLike[str], *, on_progress: OnProgress | None = None) -> Read:
        """Add a document to the conversation, ahead of the next message. A reply that is still open ends here.

        Raises:
            OSError: it cannot be read. ValueError: it is empty or not UTF-8 text.
            DoesNotFitError: it exceeds the model's window or the tiers; nothing was done.
            CapacityError: the tiers are full; the conversation is as it was, as after any other exception.
        """
        path = Path(typed.path("the document's path", os.fsdecode(path) if isinstance(path, bytes) else path))
        return self.read_text(read_text_file(path), document_name(path), on_progress=on_progress)

    def read_text(
        self, text: str, name: str | os.PathLike[str] = "text", *, on_progress: OnProgress | None = None
    ) -> Read:
        r"""Add a text at hand, as `read` does a file's. Raises WrongTypeError if it is no text.

        Args:
            name: the conversation's name for it. In a file's name, a byte that is no text becomes `\xe9`.
        """
        text = typed.text("the document", text)
        name = as_text(name) if isinstance(name, str | os.PathLike) else typed.text("its name", name)
        typed.called("on_progress", on_progress)
        if not text.strip():
            raise ValueError(f"{name} is empty")
        with Stopwatch() as reading, self.alone():
            self.end_reply()
            with self._all_or_nothing():
                refuse_long(self._runtime, self._sequence.num_tokens, text, name)
                ids = self._new(self._template.encode_document, f"Document {name}:\n\n{text.strip()}")
                self._check_fits(len(ids), 0, name)
                engine = self._runtime.engine
                done = engine.prefill(self._sequence, as_array(ids), want_logits=False, on_progress=on_progress)
                self._unfed, self._draft = [], None
                self.messages.append({"role": "document", "content": name})
        return Read(len(ids), done.num_cached, 1000 * reading.seconds)

    def send(self, text: str, *, on_progress: OnProgress | None = None, **generation: Any) -> Reply:
        """Ask and wait for the whole reply; generation arguments as in Hugging Face.

        Raises as `stream`. After an exception or Ctrl-C the message was never sent: nobody saw any of the reply.
        """
        return self.stream(text, on_progress=on_progress, **generation).whole()

    def stream(self, text: str, *, on_progress: OnProgress | None = None, **generation: Any) -> ReplyStream:
        """Ask and receive the reply in pieces; `self.last` is the `Reply`, complete at the end.

        Work begins with the first piece. Whatever is asked of the conversation before the last piece ends the reply
        there, as `ReplyStream.close` does: what was received stays, in the transcript and in memory.

        Raises:
            ValueError: the text is empty, or a generation argument is unknown or out of range.
            WrongTypeError: the text is none, or a generation argument is of another type.
            DoesNotFitError: the message exceeds the model's window or the tiers; nothing was done.
            CapacityError: the tiers are full; without a piece received the message was never sent.
            ConversationError: the conversation is closed, or asked from inside one of its own calls.
        """
        config = GenerationConfig.from_kwargs(self.generation, **generation)
        text = typed.text("the message", text)
        typed.called("on_progress", on_progress)
        if not text.strip():
            raise ValueError("the message is empty")
        return ReplyStream(self, partial(self._ask, text, on_progress), config)

    def regenerate(self, **generation: Any) -> ReplyStream:
        """Take the last reply back and stream another one. Without a piece received, the last one stays.

        Raises ValueError if there is no reply to take back, and as `stream`.
        """
        self._require_reply()
        return ReplyStream(self, self._take_back, GenerationConfig.from_kwargs(self.generation, **generation))

    def _require_reply(self) -> None:
        if not self.messages or self.messages[-1]["role"] != "assistant":
            raise ValueError("there is no reply to regenerate")

    # What a `ReplyStream` does to the conversation, having it to itself (`alone`)

    def _ask(self, text: str, on_progress: OnProgress | None, reply: Reply) -> Point:
        """Add the message, so that the reply can begin. Returns the point to go back to if nothing of the reply is
        shown."""
        with self._all_or_nothing() as point:
            refuse_long(self._runtime, self._sequence.num_tokens, text, "the message")
            ids = self._new(self._template.encode_message, text)
            self._check_fits(len(ids), 1, "the message")
            logits = read_prompt(self._runtime.engine, self._sequence, as_array(ids), reply, on_progress)
            carried, self._unfed = self._unfed, []
            self.messages.append({"role": "user", "content": text})
            self._draft = Draft(self._sequence.snapshot(), logits, len(self.messages), [], point.snapshot, carried)
            self.last = reply
        return point

    def _take_back(self, reply: Reply) -> Point:
        """Remove the last reply, so that another can begin. Returns the point at which it is back, if need be by
        computing the KV of its text anew with the next turn."""
        self._require_reply()
        if self._draft is None:
            engine, template = self._runtime.engine, self._template
            self._draft = forgotten_draft(engine, template, self._sequence, self.messages, self._unfed, self._system)
        draft = self._draft
        point = Point(draft.snapshot, list(self.messages), self.last, draft.said, draft)
        self._runtime.engine.rollback(self._sequence, draft.snapshot)  # from here on there is no way back but `point`
        del self.messages[draft.num_messages :]
        self._unfed, self.last = [], reply
        if draft.prompt is None:
            reply.note_prompt(self._sequence.num_tokens, self._sequence.num_from_store, 0, 0.0)
            return point
        try:
            logits = read_prompt(self._runtime.engine, self._sequence, draft.prompt, reply)
        except BaseException:
            self.return_to(point)
            raise
        self._draft = dataclasses.replace(draft, snapshot=self._sequence.snapshot(), logits=logits, prompt=None)
        return point

    def pieces(self, reply: Reply, config: GenerationConfig, asked: float) -> Iterator[str]:
        """Yield the reply's text as tokens come; empty where a token adds none. `asked` is the time of the request, by
        `clock`."""
        draft = self._draft
        assert draft is not None
        assert draft.logits is not None
        room = self._runtime.room_tokens(self._sequence.num_tokens)
        if config.max_repeats is None:
            config = GenerationConfig.from_kwargs(config, max_repeats=CHAT_COPIES)
        if not 0 < config.max_new_tokens <= room:
            config = GenerationConfig.from_kwargs(config, max_new_tokens=max(1, room))
        generating = generate(self._runtime.engine, [self._sequence], [draft.logits], [config], [reply], asked)
        return (piece for _, piece in generating)

    def say(self, text: str) -> None:
        """Make `text` the reply so far in the transcript."""
        assert self._draft is not None
        self.messages[self._draft.num_messages :] = [{"role": "assistant", "content": text}]

    def point_at_page_end(self) -> Snapshot | None:
        """A snapshot of the sequence if no page is open there, else None."""
        return None if self._sequence.tail_len else self._sequence.snapshot()

    def settle(self, reply: Reply, shown: str, page_ends: list[Snapshot], config: GenerationConfig) -> None:
        """End the reply with what was `shown`: transcript and memory keep that, except for thinking that memory is to
        drop.

        Args:
            page_ends: points of the sequence inside the reply, to go back to the last one that fits.
        """
        draft = self._draft
        assert draft is not None
        reply.text = shown
        self.say(shown)
        later = self._template.later_form(shown, system=self._system) if config.drop_thinking else None
        if later is not None and draft.begin is not None:
            self._say_again(draft, draft.begin, later)
            return
        kept, start = spoken(self._template, reply.tokens, shown), draft.snapshot.num_tokens
        fed = self._sequence.num_tokens - start
        same = num_alike(kept, reply.tokens[:fed])
        if same < fed:
            fitting = (point for point in page_ends if point.num_tokens - start <= same)
            point = max(fitting, key=lambda point: point.num_tokens, default=draft.snapshot)
            self._runtime.engine.rollback(self._sequence, point)
            same = point.num_tokens - start
        self._unfed, self._draft = kept[same:], dataclasses.replace(draft, said=kept)

    def _say_again(self, draft: Draft, begin: Snapshot, later: Spelled) -> None:
        """Take memory back to the last whole token before what the template leaves out of an earlier turn. The rest of
        the turn in its `later` form comes with the next one."""
        words, start = self.messages[draft.num_messages - 1]["content"], begin.num_tokens
        prompt = self._sequence.tokens[start : draft.snapshot.num_tokens].copy()
        log = np.concatenate([self._sequence.tokens[:start], as_array(draft.carried)])
        is_first = draft.num_messages == 1
        told = self._template.encode_told(words, later, log, system=self._system, is_first=is_first)
        turn = [*draft.carried, *told]
        if num_alike(turn, prompt.tolist()) == len(prompt):
            self._draft = dataclasses.replace(draft, said=turn[len(prompt) :])
        else:
            self._draft = dataclasses.replace(draft, snapshot=begin, said=turn, prompt=prompt)
        self._runtime.engine.rollback(self._sequence, self._draft.snapshot)
        self._unfed = list(self._draft.said)

    # Keeping in step

    @contextmanager
    def alone(self, *, even_if_interrupted: bool = False) -> Iterator[None]:
        """Have the conversation to oneself inside the block, with interrupts only where nothing is half done.

        Raises ConversationError: this thread is inside a call on it or on its model already.
        """
        engine = self._runtime.engine
        engine.turns.require_free()
        check = (lambda: None) if even_if_interrupted else engine.interrupts.check
        with engine.interrupts.deferred(), self._turns.taken(check):
            yield

    def end_reply(self) -> None:
        """End a reply that is still open, before anything else. Raises ConversationError if the chat is closed."""
        if self._is_closed:
            raise ConversationError("this conversation is closed; begin another one")
        if self.open_reply is not None:
            self.open_reply.end()

    def check_interrupts(self) -> None:
        """A safe point for interrupts inside `alone`."""
        self._runtime.engine.interrupts.check()

    @contextmanager
    def _all_or_nothing(self) -> Iterator[Point]:
        """Leave the conversation as it was if the block raises or is interrupted."""
        point = self._point()
        try:
            yield point
            self.check_interrupts()
        except BaseException:
            self.return_to(point)
            raise

    def _point(self) -> Point:
        return Point(self._sequence.snapshot(), list(self.messages), self.last, self._unfed, self._draft)

    def return_to(self, point: Point) -> None:
        """Make the conversation what it was at `point`."""
        self.messages[:] = point.messages
        self.last, self._unfed, self._draft = point.last, list(point.unfed), point.draft
        if self._sequence.num_tokens != point.snapshot.num_tokens:
            self._runtime.engine.rollback(self._sequence, point.snapshot)

    def _new(self, encode: Callable[..., list[int]], words: str) -> list[int]:
        """The tokens that a turn adds to the sequence: the end of the last reply if that lacks it, then the turn as
        `encode` writes it. Raises ValueError if the tokenizer knows nothing of it."""
        log = np.concatenate([self._sequence.tokens, as_array(self._unfed)])
        ids = [*self._unfed, *encode(words, log, system=self._system, is_first=not self.messages)]
        if not ids:
            raise ValueError("the model's tokenizer knows nothing of this text: there is no token to read")
        return ids

    def _check_fits(self, new: int, reply: int, what: str) -> None:
        """Raise DoesNotFitError, with the sum, before any work on what cannot be held."""
        self._runtime.check_fits(self._sequence.num_tokens, new + reply, what)

    # Keeping

    @property
    def num_tokens(self) -> int:
        """The number of tokens in the conversation's cache."""
        return self._sequence.num_tokens

    def save(self, name: str, *, replace: bool = False) -> None:
        """Keep the conversation with its KV; `Runtime.chat(session=name)` resumes it without prefill.

        Args:
            replace: replace what somebody else saved under that name after this conversation loaded or saved it. A
                conversation that never did replaces what it finds there, with a warning (`would_replace` asks first).

        Raises SessionError if it cannot be saved, or such another session is there.
        """
        name, replace = check_name(name), typed.flag("replace", replace)
        with self.alone():
            self.end_reply()
            notes = {
                "messages": self.messages, "system": self._system, "unfed": self._unfed,
                "generation": to_notes(self.generation),
            }  # fmt: skip
            seen = self._seen.setdefault(name, session.Seen())
            session.save(self._runtime.engine, self._sequence, name, notes, seen=seen, replace=replace)

    def would_replace(self, name: str) -> session.StoredSession | None:
        """The session that `save(name)` would replace and that this conversation has not seen; None if nothing is lost.

        Raises SessionError if no session can be called that, or there is no disk tier.
        """
        found = session.stored(self._runtime.engine, name)
        known = self._seen.get(check_name(name))
        return None if found is None or (known is not None and known.knows(found.version)) else found

    @classmethod
    def resume(cls, runtime: Loaded, name: str) -> Chat:
        """The conversation saved as `name`. Raises SessionError, or WrongTypeError if that is no text."""
        with runtime.engine.interrupts.deferred():
            return cls._resume(runtime, name)

    @classmethod
    def _resume(cls, runtime: Loaded, name: str) -> Chat:
        seen = session.Seen()
        sequence, notes, computed = session.load(runtime.engine, name, seen=seen)
        chat = cls(runtime, sequence, system=notes["system"])
        chat.messages, chat._unfed = notes["messages"], notes["unfed"]
        chat.restored = sequence.num_tokens - computed
        chat.generation = from_notes(notes.get("generation", {}))
        chat._seen[check_name(name)] = seen
        return chat

    def fork(self) -> Chat:
        """An independent conversation with the same past; pages are shared, not copied."""
        with self.alone():
            self.end_reply()
            twin = Chat(self._runtime, self._runtime.engine.fork(self._sequence), system=self._system)
            twin.messages = [dict(message) for message in self.messages]
            twin._unfed = list(self._unfed)
            twin.generation, twin.restored = self.generation, self.restored
            twin._seen = copy.deepcopy(self._seen)
        return twin

    def close(self) -> None:
        """Forget the conversation. Its pages stay in the store as cache. Safe to call twice."""
        with self.alone():
            if not self._is_closed:
                self.end_reply()
                self._is_closed, self._draft = True, None
                self._sequence.close()
