"""Decode steps that fill a page when host memory has no room for it: nothing has happened, in any layer or sequence."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.tiered import TieredLayer
from stratakv.runtime.layers.workspace import Workspace
from stratakv.storage import CapacityError, PageLayout

PAGE, LAYERS = 8, 3
LAYOUT = PageLayout(num_heads=2, page_size=PAGE, head_dim=8, dtype="float32")
LENGTHS = (30 * PAGE - 1, 25 * PAGE - 1)
"""The next token fills a page of either sequence."""
HELD = LAYERS * sum(length // PAGE for length in LENGTHS)
OTHER = 4
"""Pages per layer of a third sequence, which makes room when it is closed."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), max_position_embeddings=2048, num_hidden_layers=LAYERS)


@contextmanager
def runtime_with(model: Path, folder: Path, host_pages: int, index: str, gpu_pages: int = 200) -> Iterator[Runtime]:
    """`gpu_pages` a layer, and no disk: the host tier is what fills up."""
    gpu_bytes = Workspace.bytes_for(LAYOUT, 512) + LAYERS * gpu_pages * LAYOUT.page_bytes
    caps = {"gpu_gb": gpu_bytes / 1e9, "host_gb": (host_pages + 0.5) * LAYOUT.page_bytes / 1e9, "disk_gb": 0}
    kv = KVConfig(path=folder, index=index, budget=96, sink=8, local=16, page_size=PAGE, **caps)
    with Runtime.load(model, dtype="float32", kv=kv) as runtime:
        yield runtime
        runtime.store.check_integrity()


def two_sequences(runtime: Runtime) -> list[Sequence]:
    rng, sequences = np.random.default_rng(3), [runtime.engine.new_sequence() for _ in LENGTHS]
    for sequence, length in zip(sequences, LENGTHS, strict=True):
        runtime.engine.prefill(sequence, rng.integers(3, VOCABULARY, length).astype(np.uint32), want_logits=False)
    return sequences


def steps(runtime: Runtime, sequences: list[Sequence]) -> torch.Tensor:
    return torch.stack([runtime.engine.decode(sequences, [token, token + 1]) for token in range(5, 5 + 2 * PAGE)])


def held(sequence: Sequence) -> tuple[Any, ...]:
    """What a step changes."""
    layers: list[Any] = sequence.layers
    kept = [(layer.pids.tolist(), layer.tail_len, layer.indexed, layer.pages.tail_copy().tolist()) for layer in layers]
    return sequence.num_tokens, list(sequence.chains), sequence.tokens.tolist(), kept


@pytest.fixture(scope="module")
def with_room(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], torch.Tensor]:
    """Logits of an index's steps where memory has room for them."""

    @cache
    def expected(index: str) -> torch.Tensor:
        with runtime_with(model, tmp_path_factory.mktemp("large"), 2 * HELD, index) as runtime:
            return steps(runtime, two_sequences(runtime))

    return expected


@pytest.mark.parametrize(
    ("room", "index", "gpu_pages"),
    [
        *((room, "bounds", 10) for room in range(2 * LAYERS)),
        (1, "bounds", 200),
        (4, "bounds", 200),
        (2, "spectral", 10),
        (5, "spectral", 10),
    ],
)
def test_a_page_that_only_some_layers_could_seal(
    model: Path,
    with_room: Callable[[str], torch.Tensor],
    tmp_path: Path,
    room: int,
    index: str,
    gpu_pages: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Host memory has room for the pages of `room` layers, over both sequences."""
    expected = with_room(index)
    with runtime_with(model, tmp_path / "small", HELD + LAYERS * OTHER + room, index, gpu_pages) as runtime:
        sequences, other = two_sequences(runtime), runtime.engine.new_sequence()
        runtime.engine.prefill(other, np.arange(3, 3 + OTHER * PAGE, dtype=np.uint32), want_logits=False)
        before, sealed = [held(sequence) for sequence in sequences], []
        seal = TieredLayer.seal
        with monkeypatch.context() as patched:
            patched.setattr(TieredLayer, "seal", lambda self, *page: (seal(self, *page), sealed.append(self.layer)))
            with pytest.raises(CapacityError, match="the host tier is full"):
                runtime.engine.decode(sequences, [5, 6])
        assert sealed == [*range(LAYERS), *range(LAYERS)][:room]
        assert [held(sequence) for sequence in sequences] == before
        runtime.store.check_integrity()
        other.close()
        assert torch.equal(steps(runtime, sequences), expected)


def test_logits_that_cannot_be_computed_undo_the_step(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last thing that a step computes: all layers have its token by then, and a page is full."""
    with runtime_with(model, tmp_path, 2 * HELD, "bounds") as runtime:
        sequences = two_sequences(runtime)
        twins = [runtime.engine.fork(sequence) for sequence in sequences]
        before = [held(sequence) for sequence in sequences]

        compiled = runtime.engine.compiled

        def fail(*arguments: Any) -> torch.Tensor:
            if compiled is not None:
                type(compiled).run(compiled, *arguments)
            raise MemoryError("for logits")

        with monkeypatch.context() as patched:
            last = (runtime.model, "step_logits") if compiled is None else (compiled, "run")
            patched.setattr(*last, fail)
            with pytest.raises(MemoryError, match="for logits"):
                runtime.engine.decode(sequences, [5, 6])
        assert [held(sequence) for sequence in sequences] == before
        assert torch.equal(steps(runtime, sequences), steps(runtime, twins))
