"""A conversation over documents."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from . import session
from .config import GenerationConfig
from .documents import read_text_file
from .engine import OnProgress
from .generate import generate
from .names import check_name
from .reply import Reply
from .saved_generation import from_notes, to_notes
from .sequence import Sequence, Snapshot
from .template import Template, Turn, as_array

if TYPE_CHECKING:
    from .runtime import Runtime


@dataclass(frozen=True, slots=True)
class Read:
    """What reading a document cost: `cached` of its `tokens` were in the store already."""

    tokens: int
    cached: int
    ms: float


@dataclass(slots=True)
class _Draft:
    """The point before a reply, to regenerate it from."""

    snapshot: Snapshot
    logits: Tensor
    num_messages: int


class Chat:
    """One conversation. Made by `Runtime.chat`.

    Attributes:
        messages: the transcript, `{"role", "content"}`; documents appear by name.
        last: the newest `Reply`, also when it was interrupted.
        restored: how many tokens a resumed session brought back without prefill; 0 otherwise.
    """

    def __init__(self, runtime: Runtime, sequence: Sequence, *, system: str | None = None) -> None:
        self._runtime, self._sequence, self._system = runtime, sequence, system
        self._template = Template(runtime.tokenizer)
        self.messages: list[dict[str, str]] = []
        self.last = Reply()
        self.restored = 0
        self.generation = GenerationConfig()
        self._turn_open = False
        self._unfed: list[int] = []
        self._draft: _Draft | None = None
        self._seen: dict[str, session.Seen] = {}  # what this conversation loaded or saved, by name
        self._first_turn()  # a template without a place for `system` is refused here

    # Talking

    def read(self, path: str | Path, *, on_progress: OnProgress | None = None) -> Read:
        """A document joins the conversation, ahead of the next message.

        Raises:
            OSError: it cannot be read. ValueError: it is empty or not UTF-8 text.
            DoesNotFitError: it exceeds the model's window or the tiers; nothing was done.
        """
        path = Path(path)
        return self.read_text(read_text_file(path), path.name, on_progress=on_progress)

    def read_text(self, text: str, name: str = "text", *, on_progress: OnProgress | None = None) -> Read:
        """As `read`, for text that is at hand."""
        if not text.strip():
            raise ValueError(f"{name} is empty")
        started = time.perf_counter()
        opening = [] if self._turn_open else self._opening()
        ids = [*opening, *self._template.encode_plain(f"Document {name}:\n\n{text.strip()}\n\n")]
        self._check_fits(len(ids), 0, name)
        done = self._runtime.engine.prefill(self._sequence, as_array(ids), want_logits=False, on_progress=on_progress)
        self._unfed, self._turn_open, self._draft = [], True, None
        self.messages.append({"role": "document", "content": name})
        return Read(len(ids), done.num_cached, 1000 * (time.perf_counter() - started))

    def send(self, text: str, **generation: Any) -> Reply:
        """Ask and wait for the whole reply; generation arguments as in Hugging Face."""
        for _ in self.stream(text, **generation):
            pass
        return self.last

    def stream(self, text: str, *, on_progress: OnProgress | None = None, **generation: Any) -> Iterator[str]:
        """Ask and receive the reply in pieces; `self.last` is the `Reply`, complete at the end.

        Raises:
            ValueError: the text is empty, or a generation argument is unknown or out of range.
            DoesNotFitError: the message exceeds the model's window or the tiers; nothing was done.
        """
        config = GenerationConfig.from_kwargs(self.generation, **generation)
        if not text.strip():
            raise ValueError("the message is empty")
        started = time.perf_counter()
        opening = [] if self._turn_open else self._opening()
        ids = [*opening, *self._template.encode_plain(text), *self._template.encode(self._turn().after)]
        self._check_fits(len(ids), 1, "the message")
        reply = self.last = Reply()
        before = self._sequence.num_tokens
        done = self._runtime.engine.prefill(self._sequence, as_array(ids), on_progress=on_progress)
        assert done.logits is not None
        reply.timings.prompt_ms = 1000 * (time.perf_counter() - started)
        reply.timings.prompt_n, reply.timings.cache_n = done.num_computed, before + done.num_cached
        reply.usage.prompt_tokens = before + len(ids)
        reply.usage.cached_tokens = before + done.num_cached
        self._unfed, self._turn_open = [], False
        self.messages.append({"role": "user", "content": text})
        self._draft = _Draft(self._sequence.snapshot(), done.logits, len(self.messages))
        yield from self._reply(reply, config, started)

    def regenerate(self, **generation: Any) -> Iterator[str]:
        """Take the last reply back and stream another one.

        Raises ValueError if there is no reply to take back.
        """
        if self._draft is None:
            raise ValueError("there is no reply to regenerate")
        config = GenerationConfig.from_kwargs(self.generation, **generation)
        started = time.perf_counter()
        self._sequence.rollback(self._draft.snapshot)
        del self.messages[self._draft.num_messages :]
        usage = self.last.usage
        reply = self.last = Reply()
        reply.usage.prompt_tokens = reply.usage.cached_tokens = usage.prompt_tokens
        reply.timings.cache_n = usage.prompt_tokens
        yield from self._reply(reply, config, started)

    def _reply(self, reply: Reply, config: GenerationConfig, started: float) -> Iterator[str]:
        draft = self._draft
        assert draft is not None
        room = self._runtime.plan.capacity_tokens() - self._sequence.num_tokens
        if room < config.max_new_tokens:
            config = GenerationConfig.from_kwargs(config, max_new_tokens=max(1, room))
        try:
            for _, piece in generate(
                self._runtime.engine, [self._sequence], [draft.logits], [config], [reply], started
            ):
                yield piece
        finally:
            fed = self._sequence.num_tokens - draft.snapshot.num_tokens
            ended = reply.finish_reason == "eos"
            self._unfed = reply.tokens[fed : len(reply.tokens) - int(ended)]
            self.messages.append({"role": "assistant", "content": reply.text})

    def _first_turn(self) -> Turn:
        return self._template.first(self._system)

    def _turn(self) -> Turn:
        return self._template.next() if self.messages else self._first_turn()

    def _opening(self) -> list[int]:
        """What comes before the next user text: the reply's last token if the cache lacks it, then
        the template's words."""
        return [*self._unfed, *self._template.encode(self._turn().before)]

    def _check_fits(self, new: int, reply: int, what: str) -> None:
        """Refuse before any work what cannot be held, with the sum."""
        self._runtime.check_fits(self._sequence.num_tokens, new + reply, what)

    # Keeping

    @property
    def num_tokens(self) -> int:
        """Tokens in the conversation's cache."""
        return self._sequence.num_tokens

    def save(self, name: str, *, replace: bool = False) -> None:
        """Keep the conversation with its KV; `Runtime.chat(session=name)` resumes it without prefill.

        Args:
            replace: replace what somebody else saved under that name after this conversation loaded or saved it. A
                conversation that never did replaces what it finds there, with a warning (`would_replace` asks first).

        Raises SessionError if it cannot be saved, or such another session is there.
        """
        notes = {
            "messages": self.messages, "system": self._system, "turn_open": self._turn_open, "unfed": self._unfed,
            "generation": to_notes(self.generation),
        }  # fmt: skip
        seen = self._seen.setdefault(check_name(name), session.Seen())
        session.save(self._runtime.engine, self._sequence, name, notes, seen=seen, replace=replace)

    def would_replace(self, name: str) -> session.Stored | None:
        """What `save(name)` would take the place of and this conversation has not seen; None if nothing is lost.

        Raises SessionError if no session can be called that, or there is no disk tier.
        """
        found = session.stored(self._runtime.engine, name)
        known = self._seen.get(check_name(name))
        return None if found is None or (known is not None and known.knows(found.version)) else found

    @classmethod
    def resume(cls, runtime: Runtime, name: str) -> Chat:
        """The conversation saved as `name`. Raises SessionError."""
        seen = session.Seen()
        sequence, notes, computed = session.load(runtime.engine, name, seen=seen)
        chat = cls(runtime, sequence, system=notes["system"])
        chat.messages, chat._turn_open, chat._unfed = notes["messages"], notes["turn_open"], notes["unfed"]
        chat.restored = sequence.num_tokens - computed
        chat.generation = from_notes(notes.get("generation", {}))
        chat._seen[check_name(name)] = seen
        return chat

    def fork(self) -> Chat:
        """An independent conversation with the same past; pages are shared, not copied."""
        twin = Chat(self._runtime, self._runtime.engine.fork(self._sequence), system=self._system)
        twin.messages = [dict(message) for message in self.messages]
        twin._turn_open, twin._unfed = self._turn_open, list(self._unfed)
        twin.generation, twin.restored = self.generation, self.restored
        twin._seen = copy.deepcopy(self._seen)
        return twin

    def close(self) -> None:
        """Forget the conversation. Its pages stay in the store as cache."""
        self._sequence.close()
        self._draft = None
