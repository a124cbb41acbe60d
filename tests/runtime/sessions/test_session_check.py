"""A session's record fits the model that goes on from it, or the field that does not is named."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from payloads import Payload

from stratakv.runtime import Chat, KVConfig, Runtime
from stratakv.runtime.sessions.session_check import read_session
from stratakv.storage import RecordError

VOCABULARY, WINDOW = 259, 4096
"""Of the tiny model."""


@pytest.fixture(scope="module")
def chat(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chat]:
    kv = KVConfig(path=tmp_path_factory.mktemp("check") / "kv", index="bounds", host_gb=0.01, disk_gb=0.05)
    with Runtime.load(tiny_llama, dtype="float32", kv=kv) as runtime:
        chat = runtime.chat()
        chat.read_text("The keeper hid the letter. " * 3)
        chat.save("keeper")
        yield chat


def read(chat: Chat, change: Callable[[Payload], None] = lambda payload: None) -> tuple[object, ...]:
    """What is read of the session once it is changed, for a sequence that is as empty as before."""
    engine = chat._runtime.engine
    assert engine.store.disk is not None
    stored = engine.store.disk.get_session("keeper")
    assert stored is not None
    payload = Payload(stored)
    change(payload)
    sequence = engine.new_sequence()
    try:
        return read_session(engine, sequence, payload.bytes())
    finally:
        assert len(sequence.tokens) == 0
        sequence.close()


def test_what_was_saved_is_read(chat: Chat) -> None:
    engine, sequence = chat._runtime.engine, chat._runtime.engine.new_sequence()
    assert engine.store.disk is not None
    payload = engine.store.disk.get_session("keeper")
    assert payload is not None
    header, chains, tensors = read_session(engine, sequence, payload)
    sequence.close()
    assert header["num_tokens"] == chat.num_tokens
    assert chains == chat._sequence.chains
    assert np.array_equal(tensors["tokens"].numpy(), chat._sequence.tokens)
    assert {"layer.0.tail", "layer.1.tail", "layer.2.tail"} < tensors.keys()


def fill(name: str, value: bytes) -> Callable[[Payload], None]:
    return lambda payload: payload.fill(name, value)


def unfed(tokens: list[int]) -> Callable[[Payload], None]:
    return lambda payload: payload.header["notes"].update(unfed=tokens)


def renamed(payload: Payload) -> None:
    payload.layout["layer.3.tail"] = payload.layout.pop("layer.0.index.bounds")


CHANGES: dict[str, tuple[Callable[[Payload], None], str]] = {
    "a page twice": (fill("chains", b"\7"), r"num_pages: \d+ tokens have \d+ whole pages, all different"),
    "a reach": (lambda payload: payload.header.update(reach=1), "reach: 1, which this model has none of for"),
    "a token": (fill("tokens", struct.pack("<q", VOCABULARY)), f"tokens: a token id that a vocabulary of {VOCABULARY}"),
    "an unfed token": (unfed([VOCABULARY]), f"notes.unfed: a token id that a vocabulary of {VOCABULARY} has not"),
    "unfed tokens": (unfed([1] * (WINDOW + 1)), f"notes.unfed: {WINDOW + 1} tokens"),
    "an origin": (fill("origins", b"\2"), "origins: not a 0 or 1 for each token"),
    "no origins": (lambda payload: payload.drop("origins"), "origins: not a 0 or 1"),
    "no tail": (lambda payload: payload.drop("layer.2.tail"), r"layer\.2\.tail: nothing, expected torch.float32"),
    "a fourth layer": (renamed, r"tensor 'layer\.3\.tail': this model has none of that name"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_this_model_cannot_go_on_from_is_named(chat: Chat, name: str) -> None:
    change, says = CHANGES[name]
    with pytest.raises(RecordError, match=f"^{says}"):
        read(chat, change)


@pytest.mark.parametrize(
    "change",
    [
        fill("tokens", struct.pack("<q", VOCABULARY - 1)), fill("origins", b"\1"), unfed([VOCABULARY - 1] * WINDOW),
        fill("layer.0.index.bounds", struct.pack("<f", float("inf"))),
    ],
    ids=["the last token", "all origins 1", "as many unfed as may be", "a state of an index, whatever is in it"],
)  # fmt: skip
def test_what_it_can_go_on_from_passes(chat: Chat, change: Callable[[Payload], None]) -> None:
    read(chat, change)
