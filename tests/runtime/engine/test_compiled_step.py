"""Decode in compiled loops against PyTorch's step: the same logits to rounding, for every family and index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_steps import BUDGET, PROMPT, STEPS, decoded, opened, prompted
from tiny_models import FAMILIES, FORMS, save_tiny_model

from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.layers.step import Step
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.untrusted.families import FAMILIES as SUPPORTED


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STRATAKV_COMPILED", "1")


COMPILED = [name for name in FAMILIES if not SUPPORTED[name.split("-")[0]].form.is_latent]


@pytest.fixture(scope="module", params=COMPILED)
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), request.param, max_position_embeddings=2048)


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


@pytest.mark.parametrize("name", FORMS)
def test_a_16_bit_cache_under_an_fp32_model(name: str, tmp_path: Path) -> None:
    """Layers with a window keep the model's dtype: in one step both kinds of numbers are written."""
    model = save_tiny_model(tmp_path, name, max_position_embeddings=2048)
    both_agree(model, "bounds", rtol=2e-2, atol=2e-2, kv_dtype="bfloat16")


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
