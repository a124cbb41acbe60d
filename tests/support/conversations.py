"""One scripted conversation per seed: what a child that gets killed does, and what an untroubled run says."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stratakv.runtime import Chat, KVConfig, Runtime
from stratakv.runtime.layers.tiered import tiered_layers

NUM_TURNS = 4
_WORDS = [
    "lamp",
    "letter",
    "keeper",
    "log",
    "storm",
    "harbour",
    "stair",
    "brass",
    "oil",
    "night",
    "ship",
    "signal",
    "door",
]
_SETTINGS: dict[str, Any] = {"index": "bounds", "budget": 112, "local": 32, "state_every": 128}
HOST_GB = 0.0009
"""Room for fewer pages than a conversation has: it is written behind and read back all the time."""


def load(model: Path, store: Path | None, *, host_gb: float = 0.05, **changes: Any) -> Runtime:
    """The same settings every time; without a store, nothing ever leaves memory."""
    disk: dict[str, Any] = {"disk_gb": 0} if store is None else {"path": store}
    kv = KVConfig(**{**_SETTINGS, "host_gb": host_gb, **disk, **changes})
    return Runtime.load(model, dtype="float32", kv=kv)


def document(seed: int) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(_WORDS) for _ in range(160))


def begin(runtime: Runtime, seed: int) -> Chat:
    """No two seeds share a page: with a prefix found in the store, sums are added up in another order."""
    return runtime.chat(system=f"{seed:08d}")


def take_turn(chat: Chat, seed: int, turn: int) -> None:
    """Turn 0 reads a document; later ones ask."""
    if turn == 0:
        chat.read_text(document(seed))
    else:
        chat.send(f"{turn}: who kept the {_WORDS[(seed + turn) % len(_WORDS)]}?", max_new_tokens=9, ignore_eos=True)


@dataclass(frozen=True)
class State:
    """A conversation after a turn: its tokens, and a digest of all its sealed pages' bytes in every layer."""

    tokens: list[int]
    pages: str


def pages_of(chat: Chat) -> np.ndarray:
    """Every sealed page of every layer that has pages, read through the store: uint8 `[layers, pages, page_bytes]`."""
    sequence, store = chat._sequence, chat._runtime.store
    layers = []
    for layer in tiered_layers(sequence.layers):
        pids = layer.pids
        out = torch.empty(len(pids), store.layout.page_bytes, dtype=torch.uint8)
        for start in range(0, len(pids), 8):  # few at a time: the host tier may be small
            some = pids[start : start + 8]
            parts = np.zeros(len(some), dtype=np.int64)
            store.gather(some, np.arange(len(some)), parts, 1, out[start : start + 8])
        layers.append(out.numpy())
    return np.stack(layers)


def state_of(chat: Chat) -> State:
    digest = hashlib.blake2b(pages_of(chat).tobytes(), digest_size=16)
    return State(chat._sequence.tokens.tolist(), digest.hexdigest())


def untroubled(runtime: Runtime, seed: int) -> list[State]:
    """The state after each turn, by a runtime without a disk."""
    chat, states = begin(runtime, seed), []
    for turn in range(NUM_TURNS + 1):
        take_turn(chat, seed, turn)
        states.append(state_of(chat))
    chat.close()
    return states
