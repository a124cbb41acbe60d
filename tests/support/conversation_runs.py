"""Random conversations beside a plain list of what should have been said in them."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stratakv.runtime import Runtime, StratakvError
from stratakv.runtime.api.config import GenerationConfig
from stratakv.runtime.api.reply import Reply
from stratakv.runtime.engine.generate import generate

WORDS = ("tide", "strand", "lamp", "log", "keeper", "<|im_end|>", "storm", "“brass”", "oil", "<|im_start|>user")


@dataclass
class Expected:
    """What was said, by whom, as whoever took part would have written it down."""

    system: str | None
    turns: list[tuple[str, str]] = field(default_factory=list)
    """`("document", text)`, `("user", text)`, `("assistant", text)`."""

    def transcript(self) -> list[dict[str, str]]:
        return [{"role": role, "content": "d" if role == "document" else text} for role, text in self.turns]

    def rendered(self, tokenizer: Any) -> str:
        """As transformers writes it, up to the end of what was said last. Words are put in afterwards, so that control
        tokens among them stay recognisable: `ids` takes those apart."""
        messages = [{"role": "system", "content": "\x01S\x02"}] if self.system else []
        for number, (role, _) in enumerate(self.turns):
            messages.append({"role": "assistant" if role == "assistant" else "user", "content": f"\x01{number}\x02"})
            if role == "document":
                messages.append({"role": "assistant", "content": "\x01R\x02"})
        text = str(tokenizer.apply_chat_template(messages, tokenize=False)) if messages else ""
        return text[: text.rindex("\x02") + 1] if self.turns else ""

    def ids(self, tokenizer: Any) -> list[int]:
        """The tokens a model should remember."""
        found: list[int] = []
        for part in self.rendered(tokenizer).replace("\x02", "\x01").split("\x01"):
            if part in ("S", "R") or part.isdigit():
                found += _plain(tokenizer, self._words(part))
            else:
                found += tokenizer(part, add_special_tokens=False).input_ids
        return found

    def _words(self, part: str) -> str:
        if not part.isdigit():
            return "OK." if part == "R" else self.system or ""
        role, text = self.turns[int(part)]
        return f"Document d:\n\n{text}" if role == "document" else text


def _plain(tokenizer: Any, text: str) -> list[int]:
    """Byte by byte: every byte is a token of the tiny models' tokenizers."""
    alphabet = [tokenizer.convert_tokens_to_ids(token) for token in _byte_tokens()]
    return [alphabet[byte] for byte in text.encode()]


def _byte_tokens() -> list[str]:
    """How byte-level tokenizers write the bytes 0 to 255 (GPT-2's table)."""
    seen = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in seen else chr(next(others)) for byte in range(256)]


class Trouble:
    """Something that goes wrong at a random moment inside the model."""

    def __init__(self, runtime: Runtime) -> None:
        self._left, self._what = -1, ""
        model = runtime.model
        for name in ("run_layer", "step_layer"):
            setattr(model, name, self._watched(getattr(model, name)))

    def _watched(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any) -> Any:
            self._left -= 1
            if self._left == 0:
                if self._what == "error":
                    raise RuntimeError("trouble")
                os.kill(os.getpid(), signal.SIGINT)
            return call(*args)

        return watched

    @contextmanager
    def at(self, moment: int, what: str) -> Iterator[None]:
        """`what` is `error` or `interrupt`; it comes with the `moment`-th layer that is computed, if so many are."""
        self._left, self._what = moment, what
        try:
            yield
        finally:
            self._left = -1


class Run:
    """One conversation and what is expected of it. Every method is one operation."""

    def __init__(self, runtime: Runtime, trouble: Trouble, seed: int) -> None:
        self.runtime, self.trouble, self.seed = runtime, trouble, seed
        self.random = random.Random(seed)
        system = self.random.choice([None, self._words(3)])
        self.chat, self.expected = runtime.chat(system=system), Expected(system)
        self._num_saved = 0

    def _words(self, count: int) -> str:
        return " ".join(self.random.choice(WORDS) for _ in range(count))

    def _options(self) -> dict[str, Any]:
        stop = self.random.choice([None, None, "ab", "e", self.random.choice("stx") + self.random.choice("aeiou")])
        return {"max_new_tokens": self.random.randint(1, 40), "ignore_eos": True, "stop": stop}

    def read(self) -> None:
        text = f"{self.seed} {self._words(self.random.randint(1, 25))}"
        self.chat.read_text(text, "d")
        self.expected.turns.append(("document", text))

    def send(self) -> None:
        text = self._words(4)
        reply = self.chat.send(text, **self._options())
        self.expected.turns += [("user", text), ("assistant", reply.text)]

    def stream_in_part(self) -> None:
        """Some pieces are read; then the stream is closed, dropped, or left for the next operation to end."""
        text, shown = self._words(3), ""
        pieces = self.chat.stream(text, **self._options())
        count, is_done = self.random.randint(0, 12), False
        for _ in range(count):
            piece = next(pieces, None)
            shown, is_done = shown + (piece or ""), piece is None
        ending = self.random.choice(["close", "drop", "read on later"] if count else ["close", "drop"])
        if ending == "close":
            pieces.close()
        elif ending == "read on later":
            self.chat.fork().close()  # anything else asked of the conversation
            assert list(pieces) == []
        if shown or is_done:
            self.expected.turns += [("user", text), ("assistant", shown)]

    def regenerate(self) -> None:
        if self.expected.turns and self.expected.turns[-1][0] == "assistant" and self.chat._draft is not None:
            shown = "".join(self.chat.regenerate(**self._options()))
            self.expected.turns[-1] = ("assistant", shown)

    def regenerate_in_vain(self) -> None:
        if self.expected.turns and self.expected.turns[-1][0] == "assistant" and self.chat._draft is not None:
            pieces = self.chat.regenerate(**self._options())
            with self.trouble.at(1, self._trouble()):
                _expect_trouble(lambda: list(pieces))
            self._keep_partly(pieces.reply.text)

    def _keep_partly(self, shown: str) -> None:
        if shown:
            self.expected.turns[-1] = ("assistant", shown)

    def refused(self) -> None:
        for call in (
            lambda: self.chat.send(" "), lambda: self.chat.send("x", temperature=-1), lambda: self.chat.read_text(""),
            lambda: self.chat.send("y" * 5000), lambda: self.chat.read_text("y" * 5000), lambda: self.chat.send(None),
        ):  # fmt: skip
            try:
                call()
            except (ValueError, StratakvError):
                continue
            raise AssertionError("was not refused")

    def troubled_read(self) -> None:
        text = f"{self.seed} {self._words(self.random.randint(1, 25))}"
        with self.trouble.at(self.random.randint(1, 4), self._trouble()):
            if _expect_trouble(lambda: self.chat.read_text(text, "d")):
                self.expected.turns.append(("document", text))

    def troubled_send(self) -> None:
        text, options = self._words(4), self._options()
        with self.trouble.at(self.random.randint(1, 60), self._trouble()):
            if _expect_trouble(lambda: self.chat.send(text, **options)):
                self.expected.turns += [("user", text), ("assistant", self.chat.last.text)]

    def troubled_stream(self) -> None:
        text, shown = self._words(4), []
        pieces = self.chat.stream(text, **self._options())

        def take_all() -> None:
            for piece in pieces:
                shown.append(piece)

        with self.trouble.at(self.random.randint(1, 60), self._trouble()):
            is_done = _expect_trouble(take_all)
        if is_done or shown:
            self.expected.turns += [("user", text), ("assistant", "".join(shown))]

    def _trouble(self) -> str:
        is_main = threading.current_thread() is threading.main_thread()
        return self.random.choice(["error", "interrupt"]) if is_main else "error"

    def save_and_load(self) -> None:
        self._num_saved += 1
        name = f"{self.seed} {self._num_saved}"
        self.chat.save(name)
        if self.random.random() < 0.5:
            self.chat.close()
        self.chat = self.runtime.chat(session=name)

    def fork(self) -> None:
        twin = self.chat.fork()
        kept, other = (self.chat, twin) if self.random.random() < 0.5 else (twin, self.chat)
        self.chat = kept
        other.send("Something else.", max_new_tokens=5, ignore_eos=True)
        other.close()

    SAFE = (read, send, stream_in_part, refused, regenerate, save_and_load, fork)
    ALL = (*SAFE, troubled_read, troubled_send, troubled_stream, regenerate_in_vain)

    def check(self, fresh: Runtime) -> None:
        """Transcript, memory and next answer are those of a fresh conversation given the same words."""
        tokenizer = self.runtime.tokenizer
        assert self.chat.messages == self.expected.transcript(), (
            f"the transcript {self.chat.messages} is not {self.expected.transcript()}"
        )
        twin = self.chat.fork()  # ends a reply that is still open
        remembered = [*self.chat._sequence.tokens.tolist(), *self.chat._unfed]
        expected = self.expected.ids(tokenizer)
        assert remembered == expected, f"remembers {tokenizer.decode(remembered)!r}, not {tokenizer.decode(expected)!r}"
        if len(expected) < 3500:
            answer = twin.send("And?", max_new_tokens=6, ignore_eos=True)
            asked = twin._sequence.tokens[: answer.usage.prompt_tokens].tolist()
            assert answer.tokens == _greedy(fresh, asked, 6), "the next answer is another one"
        twin.close()


def _greedy(runtime: Runtime, prompt: list[int], count: int) -> list[int]:
    sequence, reply = runtime.engine.new_sequence(), Reply()
    logits = runtime.engine.prefill(sequence, np.array(prompt, dtype=np.uint32)).logits
    assert logits is not None
    config = GenerationConfig(max_new_tokens=count, ignore_eos=True)
    for _ in generate(runtime.engine, [sequence], [logits], [config], [reply], 0.0):
        pass
    sequence.close()
    return reply.tokens


def _expect_trouble(call: Callable[[], object]) -> bool:
    """Whether the call was done before the trouble came."""
    try:
        call()
    except (RuntimeError, KeyboardInterrupt):
        return False
    return True


def choose_letter(_: object, logits: torch.Tensor, tokens: np.ndarray) -> int:
    """In place of `Sampler.choose`: the likeliest letter of the tiny models' vocabulary."""
    letters = torch.arange(3 + 64, 3 + 64 + 26)  # a to z
    return int(letters[logits[letters].argmax()])


def in_two_threads(first: Callable[[], None], second: Callable[[], None]) -> None:
    """Both at once; what either raises is raised."""
    errors: list[BaseException] = []

    def work() -> None:
        try:
            second()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        first()
    finally:
        thread.join()
    if errors:
        raise errors[0]
