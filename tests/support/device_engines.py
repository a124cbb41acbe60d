"""Engines whose store has a device pool, played by ordinary memory: whole steps run as they do on a device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from kv_pages import arena, disk_tier
from profiles import a2ats_profile
from tiny_models import VOCABULARY, save_tiny_model
from torch import Tensor

from stratakv.runtime import KVConfig
from stratakv.runtime.chat.runtime import page_layout
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.indexes import make_indexes
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.page_reader import PageReader
from stratakv.runtime.layers.prefetch import Prefetcher
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.layers.workspace import Workspace
from stratakv.runtime.model.model import Model
from stratakv.storage import TieredStore

CHUNK = 128
PAGE, BUDGET = 8, 56


@dataclass(frozen=True)
class Tiers:
    """Pages of each layer that the tiers have room for, tokens of a span, and buffers for blocks of the past."""

    gpu: int = 120
    host: int = 200
    disk: bool = False
    span: int = 512
    past: int = 0


@contextmanager
def device_engine(model: Model, kv: KVConfig, tiers: Tiers, folder: Path | None = None) -> Iterator[Engine]:
    layout = page_layout(model, kv.page_size, str(model.dtype).removeprefix("torch."))
    layers = len(model.tiered)
    store = TieredStore(
        layout, layers, host=arena("host", layout, layers * tiers.host), gpu=arena("gpu", layout, layers * tiers.gpu),
        disk=disk_tier(folder) if tiers.disk and folder is not None else None, codec="raw",
    )  # fmt: skip
    workspace = Workspace(layout, tiers.span, torch.device("cpu"), model.turns, num_past=tiers.past)
    prefetcher = Prefetcher(is_forced=True)
    groups, dim = layout.num_heads, layout.head_dim
    profile = dict.fromkeys(model.tiered, a2ats_profile((groups, model.num_heads // groups, dim)))
    engine = Engine(model, store, make_indexes(model, kv, profile), kv, workspace, CHUNK, prefetcher)
    engine.compiled = None
    try:
        yield engine
        store.check_integrity()
    finally:
        prefetcher.close()
        store.close()


def config(index: str, **settings: Any) -> KVConfig:
    return KVConfig(
        **{"index": index, "budget": BUDGET, "sink": 8, "local": 16, "page_size": PAGE, "disk_gb": 0, **settings}
    )


EVERYWHERE = {
    "roomy": Tiers(gpu=200),
    "entries": Tiers(gpu=160),
    "pressed": Tiers(gpu=24, host=40, disk=True),
    "span": Tiers(gpu=20),
}
"""Where units are read from: pages in the pool, entries that the device finds, those or others as it comes, the span
buffer where one sequence's entries leave no room for others'."""


def two_layers(folder: Path) -> Model:
    save_tiny_model(folder, max_position_embeddings=4096, num_hidden_layers=2)
    return Model.load(folder, torch.device("cpu"), torch.float32)


@contextmanager
def engine_in(model: Model, index: str, place: str) -> Iterator[Engine]:
    kv = config(index)
    with (
        TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        device_engine(model, kv, EVERYWHERE[place], Path(folder)) as engine,
    ):
        if place == "entries":
            near = PageReader._near
            patch.setattr(PageReader, "_near", lambda self: None if self._store is engine.store else near(self))
        assert engine.resident is not None
        run = engine.resident.run

        def always(*given: Any) -> Tensor:
            found = run(*given)
            assert found is not None, "a step was not the device's"
            return found

        patch.setattr(engine.resident, "run", always)
        yield engine


def kinds(sequence: Sequence) -> set[str]:
    return {
        type(pages).__name__
        for steps in sequence.past.device_steps.values()
        for of_layer in steps.form.readings
        for reading in of_layer
        for pages in reading.found
    }


class World:
    """Sequences of one engine, which go through the same as those of others."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sequences = [engine.new_sequence() for _ in range(4)]
        self.points: list[Any] = [None] * 4
        for number, sequence in enumerate(self.sequences):
            self.prompt(number, 30 + 47 * number, number)
            self.points[number] = sequence.snapshot()

    def prompt(self, number: int, count: int, seed: int) -> None:
        tokens = np.random.default_rng(seed).integers(3, VOCABULARY, count).astype(np.uint32)
        self.engine.prefill(self.sequences[number], tokens, reuse=False)

    def step(self, numbers: list[int], count: int, seed: int) -> Tensor:
        rng, some = np.random.default_rng(seed), [self.sequences[number] for number in numbers]
        return torch.stack([
            self.engine.decode(some, rng.integers(3, VOCABULARY, len(some)).tolist()) for _ in range(count)
        ])  # fmt: skip

    def undo(self, number: int) -> None:
        self.engine.rollback(self.sequences[number], self.points[number])

    def mark(self, number: int) -> None:
        self.points[number] = self.sequences[number].snapshot()

    def cut(self, number: int) -> None:
        sequence = self.sequences[number]
        sequence.truncate(max(2, len(sequence.chains) - 2))
        self.mark(number)

    def fork(self, number: int) -> None:
        self._put(number, self.engine.fork(self.sequences[number]))

    def reload(self, number: int) -> None:
        """As a session that was saved is loaded."""
        old, new = self.sequences[number], self.engine.new_sequence()
        kept = [layer.export() for layer in tiered_layers(old.layers)]
        new.restore(old.tokens.copy(), old.origins.copy(), list(old.chains))
        pages = old.tokens[: old.num_sealed].reshape(-1, PAGE)
        for layer, tensors in zip(new.layers, kept, strict=True):
            layer.restore(tensors, new.chains, pages, old.num_tokens, has_state=True)
        self._put(number, new)

    def _put(self, number: int, sequence: Sequence) -> None:
        self.sequences[number].close()
        self.sequences[number] = sequence
        self.mark(number)
