"""The host one step behind the device: replies, their ends and what is kept are those of taking turns."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from device_engines import engine_in, two_layers
from hand_clock import HandClock
from tiny_models import VOCABULARY, moved, save_tiny_model
from torch import Tensor

from stratakv.runtime import GenerationConfig, KVConfig, Reply, Runtime
from stratakv.runtime.engine import generate as module
from stratakv.runtime.engine.begun_step import BegunStep
from stratakv.runtime.engine.device_sampling import DeviceSampler
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.generate import generate, read_prompt
from stratakv.runtime.engine.resident_step import ResidentStep
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.engine.told import Told
from stratakv.storage import CapacityError
from stratakv.storage.transfer import clock

PROMPT = np.arange(3, 43, dtype=np.uint32)
"""Its 41st to 48th token fill a page."""
PAGE = 8


@pytest.fixture(scope="module", params=["llama", "qwen3_5_moe_text"])
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """Layers of pages, and some with states that each token changes."""
    folder = tmp_path_factory.mktemp(request.param)
    model = moved(save_tiny_model(folder / "model", request.param), 0.3)
    settings: dict[str, Any] = {"index": "bounds", "budget": 48, "sink": 8, "local": 16, "page_size": PAGE}
    kv = KVConfig(path=folder / "kv", host_gb=0.05, disk_gb=0, **settings)
    with Runtime.load(model, dtype="float32", kv=kv) as loaded:
        yield loaded
        loaded.store.check_integrity()


class Generated:
    """Replies to a prompt, and the sequences that they are in."""

    def __init__(
        self, engine: Engine, is_ahead: bool, configs: list[GenerationConfig], prompt: np.ndarray = PROMPT
    ) -> None:
        self.engine, self.pieces = engine, list[tuple[int, str]]()
        self.sequences = [self.engine.new_sequence() for _ in configs]
        self.replies = [Reply() for _ in configs]
        pairs = zip(self.sequences, self.replies, strict=True)
        logits = [read_prompt(self.engine, sequence, prompt, reply) for sequence, reply in pairs]
        self.engine.is_ahead = is_ahead
        self.coming = generate(self.engine, self.sequences, logits, configs, self.replies, clock.now())

    def whole(self) -> Generated:
        self.pieces += self.coming
        return self

    def said(self) -> list[tuple[Any, ...]]:
        return [
            (
                one.tokens,
                one.text,
                one.finish_reason,
                one.usage.completion_tokens,
                one.timings.step_n,
                one.timings.predicted_n,
            )
            for one in self.replies
        ]

    def held(self) -> list[tuple[Any, ...]]:
        """What is kept: tokens, origins, pages."""
        return [(s.tokens.tolist(), s.origins.tolist(), list(s.chains)) for s in self.sequences]

    def after(self) -> list[Tensor]:
        """Logits of some steps more, for which all must be there that is read."""
        return [self.engine.decode(self.sequences, [60 + n] * len(self.sequences)).clone() for n in range(PAGE + 1)]

    def close(self) -> None:
        self.engine.is_ahead = False
        assert isinstance(self.coming, Generator)
        self.coming.close()
        for sequence in self.sequences:
            sequence.close()


def both(engine: Engine, configs: list[GenerationConfig], prompt: np.ndarray = PROMPT) -> tuple[Generated, Generated]:
    """In turns, and ahead, to the end; shown to be the same."""
    turns, ahead = (Generated(engine, is_ahead, configs, prompt).whole() for is_ahead in (False, True))
    assert ahead.said() == turns.said()
    assert ahead.pieces == turns.pieces
    assert ahead.held() == turns.held()
    for mine, its in zip(ahead.after(), turns.after(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)
    for one in (turns, ahead):
        one.close()
    return turns, ahead


def drawing(**settings: Any) -> GenerationConfig:
    return GenerationConfig(do_sample=True, temperature=1.5, **{"max_new_tokens": 24, "ignore_eos": True, **settings})


def test_replies_that_end_at_different_steps(runtime: Runtime) -> None:
    """By their limits, by an end of sequence and by stop strings that nobody foresees, some inside a page and some at
    its end, some as the last of their batch."""
    configs = [drawing(seed=n, max_new_tokens=most) for n, most in enumerate((1, 2, 8, 9, 24))]
    turns, _ = both(
        runtime.engine, [*configs, GenerationConfig(max_new_tokens=17, repetition_penalty=1.4, ignore_eos=True)]
    )
    assert [reply.timings.step_n for reply in turns.replies] == [0, 1, 7, 8, 23, 16]
    text = turns.replies[4].text
    stops = [text[at : at + 3] for at in (4, 9, 15)]
    configs = [drawing(seed=4, stop_strings=(stop,)) for stop in stops] + [drawing(seed=4)]
    turns, _ = both(runtime.engine, configs)
    assert {reply.finish_reason for reply in turns.replies[:3]} == {"stop"}
    assert len({len(reply.tokens) for reply in turns.replies}) == 4


@pytest.mark.parametrize("count", [1, 6, 7, 8, 9])
def test_an_end_that_nobody_foresees(count: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the page that is open then begins, of one sequence and of the first of two."""
    (alone,) = Generated(runtime.engine, False, [drawing(seed=2)]).whole().replies
    monkeypatch.setattr(runtime.model, "eos_ids", frozenset({alone.tokens[count]}))
    turns, _ = both(runtime.engine, [drawing(seed=2, ignore_eos=False), drawing(seed=5)][: 1 + count % 2])
    assert turns.replies[0].finish_reason == "eos"
    assert len(turns.replies[0].tokens) <= count + 1


def test_a_reply_that_goes_round_in_circles(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DeviceSampler, "choose", lambda self, logits: torch.full((len(logits),), 50))
    monkeypatch.setattr("stratakv.runtime.engine.sampling.Sampler.choose", lambda *_: 50)
    turns, _ = both(runtime.engine, [GenerationConfig(max_new_tokens=90, max_repeats=3)])
    assert (turns.replies[0].finish_reason, len(turns.replies[0].tokens)) == ("repeats", 48)


class Order:
    """Says what happens when."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self._patch = patch
        self.calls: Callable[[str], None] = self.seen.append

    def notes(self, owner: Any, method: str, name: str) -> Order:
        work = getattr(owner, method)

        def noting(*args: Any, **kwargs: Any) -> Any:
            self.calls(name)
            return work(*args, **kwargs)

        self._patch.setattr(owner, method, noting)
        return self


def test_a_step_is_begun_before_anybody_asks_what_the_last_one_led_to(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = Order(monkeypatch).notes(BegunStep, "__init__", "begin").notes(Told, "read", "read")
    order.notes(BegunStep, "settle", "settle").notes(Sequence, "seal", "seal")
    found = Generated(runtime.engine, True, [drawing(max_new_tokens=4, seed=0)])
    for _ in found.coming:
        order.seen.append("piece")
    found.close()
    step = ["settle", "seal"]
    assert order.seen == [
        "read", "piece", "begin", *step,
        "begin", "read", *step, "piece",
        "begin", "read", *step, "piece",
        "read", "piece",
    ], "the last token's limit is known, so nothing is begun behind it"  # fmt: skip


class Device:
    """A device that takes ten milliseconds for a step and does one after another, while the host's clock goes on."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.clock, self.free = HandClock(patch), 0.0
        device = self

        class Timed(Told):
            start = 0.0

            def __enter__(self) -> Told:
                self.start = max(clock.now(), device.free)
                return super().__enter__()

            def note(self, tokens: Tensor) -> None:
                if self.start:
                    device.free = self.start + 0.01
                self.ready = device.free
                super().note(tokens)

            def read(self) -> list[int]:
                device.clock.passes(max(0.0, self.ready - clock.now()))
                return super().read()

            @property
            def seconds(self) -> float:
                return self.ready - self.start

        patch.setattr(module, "Told", Timed)


@pytest.mark.parametrize(("reads_for", "takes"), [(0.004, 0.194), (0.03, 0.6)])
def test_while_somebody_reads_the_device_goes_on(
    reads_for: float, takes: float, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply takes as long as the device or the reader does, not both; its steps take what the device takes."""
    device = Device(monkeypatch)
    found = Generated(runtime.engine, True, [drawing(max_new_tokens=20, seed=0)])
    began = clock.now()
    for _ in found.coming:
        device.clock.passes(reads_for)
    timings = found.replies[0].timings
    assert clock.now() - began == pytest.approx(
        takes + 0.004 * (reads_for < 0.01), abs=0.0201 if reads_for > 0.01 else 1e-6
    )
    assert (timings.step_n, timings.predicted_ms) == (19, pytest.approx(190))
    found.close()


FAILS = [
    (Engine, "decode_ahead"), (BegunStep, "__init__"), (DeviceSampler, "choose"), (Told, "read"),
    (module.Stream, "push"), (Sequence, "seal"),
]  # fmt: skip
PLACES = [
    (Told, "read", "Ctrl-C", 1),
    *((*place, "Ctrl-C", 8) for place in [*FAILS, (BegunStep, "settle"), (Sequence, "commit")]),
    *((*place, "an error", 8) for place in FAILS),
]


@pytest.mark.parametrize(("owner", "method", "fault", "number"), PLACES, ids=[f"{p[1]}-{p[2]}-{p[3]}" for p in PLACES])
def test_wherever_it_ends_log_and_layers_are_at_one(
    owner: Any, method: str, fault: str, number: int, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And at most the last token that is known is not in them."""
    order, found = (
        Order(monkeypatch).notes(owner, method, ""),
        Generated(runtime.engine, True, [drawing(seed=n) for n in (0, 1)]),
    )
    left = iter(range(number, -1, -1))

    def strike(name: str) -> None:
        if next(left, -1) == 0:
            if fault == "Ctrl-C":
                signal.raise_signal(signal.SIGINT)
            else:
                raise RuntimeError("no device")

    order.calls = strike
    with pytest.raises(KeyboardInterrupt if fault == "Ctrl-C" else RuntimeError):
        found.whole()
    order.calls = lambda name: None
    for sequence, reply in zip(found.sequences, found.replies, strict=True):
        fed = sequence.tokens[len(PROMPT) :].tolist()
        assert fed in (reply.tokens, reply.tokens[:-1])
        assert len(sequence.chains) == sequence.num_tokens // PAGE
    twin = Generated(runtime.engine, False, [drawing(seed=0)] * 2)
    for sequence, other in zip(found.sequences, twin.sequences, strict=True):
        for token in sequence.tokens[len(PROMPT) :].tolist():
            runtime.engine.decode([other], [token])
    assert found.held() == twin.held()
    for mine, its in zip(found.after(), twin.after(), strict=True):
        torch.testing.assert_close(mine, its, atol=1e-5, rtol=1e-4)
    for one in (found, twin):
        one.close()


def test_a_step_that_cannot_be_begun_ahead_is_taken_when_its_tokens_are_known(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full tier may be no harm: the reply that would have needed a page may end with the token."""
    begin, refused = Engine._begin, []

    def refuses(self: Engine, sequences: list[Sequence], tokens: Any) -> BegunStep:
        if isinstance(tokens, Tensor) and len(refused) % 3 != 1:
            refused.append(len(sequences))
            raise CapacityError("full")
        refused.append(0)
        return begin(self, sequences, tokens)

    monkeypatch.setattr(Engine, "_begin", refuses)
    both(runtime.engine, [drawing(seed=0), drawing(seed=1, max_new_tokens=9)])
    assert {0, 1, 2} <= set(refused)


def test_a_page_that_finds_no_room_costs_no_token_from_before(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal = Sequence.seal

    def full(self: Sequence, named: Any) -> None:
        if len(self.chains) == 6 and named.chains:
            raise CapacityError("full")
        seal(self, named)

    monkeypatch.setattr(Sequence, "seal", full)
    outcomes = []
    for is_ahead in (False, True):
        found = Generated(runtime.engine, is_ahead, [drawing(seed=0), drawing(seed=1)])
        with pytest.raises(CapacityError):
            found.whole() if not is_ahead else found.pieces.extend(found.coming)
        outcomes.append((found.said(), found.held()))
        found.close()
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("place", "waits"), [("roomy", False), ("entries", False), ("pressed", True)])
def test_steps_that_are_the_devices_own(
    place: str, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are begun ahead unless the host finds what they read; the first of a batch is not, whatever it reads."""
    begun: list[bool] = []
    asks = ResidentStep.waits

    def noting(self: ResidentStep, sequences: list[Sequence]) -> bool:
        begun.append(not asks(self, sequences))
        return not begun[-1]

    monkeypatch.setattr(ResidentStep, "waits", noting)
    prompt = np.random.default_rng(1).integers(3, VOCABULARY, 20 * PAGE + 3).astype(np.uint32)
    with engine_in(two_layers(tmp_path), "bounds", place) as engine:
        both(engine, [drawing(seed=n, max_new_tokens=most) for n, most in enumerate((24, 6, 13))], prompt)
    assert begun.count(True) == (0 if waits else 22 - 2)


def test_a_chat_whose_reader_stops_goes_on(tmp_path: Path, tiny_llama: Path) -> None:
    found = []
    for is_ahead in (False, True):
        kv = KVConfig(path=tmp_path / f"{is_ahead}", index="bounds", budget=112, local=32)
        with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
            runtime.engine.is_ahead = is_ahead
            chat = runtime.chat()
            log = []
            for pieces in (1, 5, 9):
                stream = chat.stream("Which tide?", max_new_tokens=40, ignore_eos=True)
                assert len(list(islice(stream, pieces))) == pieces
                stream.close()
                log.append((stream.reply.finish_reason, len(stream.reply.text) > 0))
            last = chat.send("And now?", max_new_tokens=5, ignore_eos=True)
            found.append((log, chat.messages, last.text, chat._sequence.tokens.tolist()))
    assert found[0] == found[1]
