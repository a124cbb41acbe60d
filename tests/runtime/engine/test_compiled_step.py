"""Decode in compiled loops against PyTorch's step: the same logits to rounding, for every family and index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import FAMILIES, VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import tiered_layers

BUDGET, PAGE, PROMPT, STEPS = 96, 8, 200, 20


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "1")


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), request.param, max_position_embeddings=2048)


def opened(model: Path, index: str = "bounds", **settings: Any) -> Runtime:
    dtype, weights = settings.pop("dtype", "float32"), settings.pop("weights", "own")
    settings["dtype"] = settings.pop("kv_dtype", "auto")
    kv = {"index": index, "budget": BUDGET, "sink": 8, "local": 16, "page_size": PAGE, "disk_gb": 0, "host_gb": 0.05}
    return Runtime.load(model, dtype=dtype, weights=weights, kv=KVConfig(**{**kv, **settings}))


def prompted(engine: Engine, length: int = PROMPT) -> Sequence:
    sequence = engine.new_sequence()
    engine.prefill(sequence, np.random.default_rng(length).integers(3, VOCABULARY, length).astype(np.uint32))
    return sequence


def decoded(engine: Engine, sequences: list[Sequence], steps: int = STEPS) -> torch.Tensor:
    """Logits `[steps, B, V]` of the same tokens every time."""
    rng = np.random.default_rng(3)
    return torch.stack([
        engine.decode(sequences, [int(rng.integers(3, VOCABULARY))] * len(sequences)) for _ in range(steps)
    ])  # fmt: skip


def without(engine: Engine, sequences: list[Sequence]) -> torch.Tensor:
    """The same by PyTorch's operations."""
    compiled, engine.compiled = engine.compiled, None
    try:
        return decoded(engine, sequences)
    finally:
        engine.compiled = compiled


def both_agree(model: Path, index: str, rtol: float = 1e-3, atol: float = 2e-3, **settings: Any) -> None:
    with opened(model, index, **settings) as runtime:
        engine = runtime.engine
        assert engine.compiled is not None
        first = prompted(engine)
        torch.testing.assert_close(
            decoded(engine, [engine.fork(first)]), without(engine, [first]), rtol=rtol, atol=atol
        )


def test_logits_of_every_family_are_those_of_pytorchs_step(family: Path) -> None:
    both_agree(family, "spectral")


def test_a_16_bit_cache_under_an_fp32_model(family: Path) -> None:
    """Layers with a window keep the model's dtype: in one step both kinds of numbers are written."""
    both_agree(family, "bounds", rtol=2e-2, atol=2e-2, kv_dtype="bfloat16")


@pytest.mark.parametrize("index", ["bounds", "window", "dense", "magicpig"])
def test_logits_of_every_kind_of_index_are_those_of_pytorchs_step(tiny_llama: Path, index: str) -> None:
    both_agree(tiny_llama, index)


@pytest.mark.parametrize("index", ["bounds", "spectral", "magicpig"])
def test_a_batch_is_its_sequences_one_by_one(tiny_llama: Path, index: str) -> None:
    lengths = (5, PROMPT, 77)
    with opened(tiny_llama, index) as runtime:
        each = torch.cat([decoded(runtime.engine, [prompted(runtime.engine, length)]) for length in lengths], 1)
    with opened(tiny_llama, index) as runtime:  # another store: who finds pages there may have learned other things
        together = decoded(runtime.engine, [prompted(runtime.engine, length) for length in lengths])
    torch.testing.assert_close(together, each, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_number_of_threads_changes_no_bit(tiny_llama: Path, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tiny_llama, "spectral", dtype=dtype) as runtime:
        engine = runtime.engine
        assert engine.compiled is not None
        run, found, first = type(engine.compiled).run, [], prompted(engine)
        for threads in (1, 2):
            monkeypatch.setattr(engine.compiled, "run", lambda *a, n=threads: run(engine.compiled, *a[:-1], n))
            found.append(decoded(engine, [engine.fork(first)]))
        assert torch.equal(*found)


def test_what_is_scored_is_of_the_dtype_of_the_cache(tiny_llama: Path) -> None:
    """Readers on a CPU widen 16-bit keys for products; what an index keeps of them stays half as long."""
    with opened(tiny_llama, kv_dtype="bfloat16") as runtime:
        sequence = prompted(runtime.engine)
        upkeeps = [layer.upkeep for layer in tiered_layers(sequence.layers)]
        assert {upkeep.state.data.dtype for upkeep in upkeeps} == {torch.bfloat16}
        for upkeep in upkeeps:
            upkeep.indexed = 0
            upkeep.add_stored()
        assert {upkeep.state.data.dtype for upkeep in upkeeps} == {torch.bfloat16}


@pytest.mark.parametrize("page_size", [3, 96, 100, 129])
def test_pages_of_any_size(tiny_llama: Path, page_size: int) -> None:
    with opened(tiny_llama, "bounds", page_size=page_size, budget=500, sink=0, local=0) as runtime:
        engine = runtime.engine
        first = prompted(engine, 1500)
        twin = engine.fork(first)
        torch.testing.assert_close(decoded(engine, [twin]), without(engine, [first]), rtol=1e-3, atol=2e-3)


def test_what_is_not_in_memory_is_fetched_and_no_bit_differs(tiny_llama: Path, tmp_path: Path) -> None:
    found = []
    for settings in ({}, {"host_gb": 0.0006, "disk_gb": 0.1, "path": str(tmp_path / "kv")}, {"gpu_gb": 0.0009}):
        with opened(tiny_llama, **settings) as runtime:
            found.append(decoded(runtime.engine, [prompted(runtime.engine, 600)]))
            if "disk_gb" in settings:
                assert runtime.store.counters.disk_reads > 0
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


@pytest.mark.parametrize("index", ["bounds", "spectral"])
def test_whoever_watches_is_told_and_nothing_changes(tiny_llama: Path, index: str) -> None:
    with opened(tiny_llama, index) as runtime:
        engine = runtime.engine
        first = prompted(engine)
        watched, seen = engine.fork(first), list[Step]()
        for layer in tiered_layers(watched.layers):
            layer.watch = lambda _, step: seen.append(step)
        assert torch.equal(decoded(engine, [watched]), decoded(engine, [first]))
        assert len(seen) == STEPS * 3
        step = seen[-1]
        assert step.ids is not None
        assert step.ids.shape[1] * step.unit <= BUDGET
        assert step.lse.shape == step.out.shape[:2] == (2, 3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("index", ["bounds", "spectral"])
def test_rows_that_stay_are_those_that_would_be_made_anew(
    tiny_llama: Path, index: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sequence's rows outlive a step; those of a fork of it are made anew. Both compute the same bits, whatever has
    happened before: tokens read, steps undone, pages given up, a batch in another order, room that had to grow."""
    rng = np.random.default_rng(seed)
    with opened(tiny_llama, index) as runtime:
        engine = runtime.engine
        sequences = [prompted(engine, 60 + 7 * seed), prompted(engine, PROMPT)]
        points = [sequence.snapshot() for sequence in sequences]
        for _ in range(25):
            chosen = [sequences[b] for b in rng.permutation(2)[: rng.integers(1, 3)]]
            some = int(rng.integers(2))
            match rng.integers(6):
                case 0:
                    tokens = rng.integers(3, VOCABULARY, rng.integers(1, 150)).astype(np.uint32)
                    engine.prefill(sequences[some], tokens)
                case 1:
                    engine.rollback(sequences[some], points[some])
                case 2:
                    points[some] = sequences[some].snapshot()
                case 3:
                    with monkeypatch.context() as patch:
                        patch.setattr(chosen[0].layers[1], "begin_step", lambda *_: 1 // 0)
                        with pytest.raises(ZeroDivisionError):
                            engine.decode(chosen, [5] * len(chosen))
            for token in rng.integers(3, VOCABULARY, rng.integers(1, 2 * PAGE)).tolist():
                anew = [engine.fork(sequence) for sequence in chosen]
                expected = engine.decode(anew, [token] * len(anew))
                assert torch.equal(engine.decode(chosen, [token] * len(chosen)), expected)
                for sequence in anew:
                    sequence.close()


def test_whoever_switches_it_off_decodes_by_pytorch(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "0")
    with opened(tiny_llama) as runtime:
        assert runtime.engine.compiled is None
        decoded(runtime.engine, [prompted(runtime.engine)], 2)
