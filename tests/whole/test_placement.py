"""Placements on a tiny model: what is kept, what is read, and what comes back, whichever placement it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from example_placement import EXAMPLE, register
from placements import PLACEMENT_CASES
from tiny_models import VOCABULARY, save_tiny_model

from stratakv.runtime import KVConfig, Runtime
from stratakv.runtime.engine.engine import Engine
from stratakv.runtime.engine.sequence import Sequence
from stratakv.runtime.evaluation.harness import Harness
from stratakv.runtime.evaluation.variants import Variant
from stratakv.runtime.layers.placed import Placed
from stratakv.runtime.layers.tiered import tiered_layers
from stratakv.runtime.sessions import session

TOKENS = np.random.default_rng(3).integers(3, VOCABULARY, 440).astype(np.uint32)
PROMPT, MORE, KNOWN = TOKENS[:360], TOKENS[360:400], TOKENS[400:430]
KEEP = 112
SETTINGS = KVConfig(sink=8, local=16, budget=144, disk_gb=0.1)


@pytest.fixture(autouse=True)
def _example(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    register(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def runtime(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    kv = KVConfig(path=tmp_path_factory.mktemp("kv"), sink=8, local=16, budget=144, disk_gb=0.1)
    with Runtime.load(model, dtype="float32", kv=kv) as runtime:
        yield runtime
        runtime.store.check_integrity()


def engine_of(runtime: Runtime, placement: str | None, index: str = "spectral") -> Engine:
    from dataclasses import replace

    return runtime.reading(replace(runtime.config, placement=placement, index=index))


def prefilled(engine: Engine, tokens: np.ndarray = PROMPT, *, reuse: bool = False) -> Sequence:
    sequence = engine.new_sequence()
    engine.prefill(sequence, tokens, want_logits=False, reuse=reuse)
    return sequence


def decoded(engine: Engine, sequence: Sequence, tokens: np.ndarray = KNOWN) -> torch.Tensor:
    return torch.stack([engine.decode([sequence], [token])[0] for token in tokens.tolist()])


def placed(sequence: Sequence) -> list[Placed]:
    return [layer.placed for layer in tiered_layers(sequence.layers) if layer.placed is not None]


@pytest.mark.parametrize("name", [*PLACEMENT_CASES, EXAMPLE])
def test_a_placement_from_first_to_last(runtime: Runtime, name: str) -> None:
    """The budget is kept, two runs agree, a fork, known tokens at once and a saved session go on alike, and a rollback
    finds what was there."""
    engine = engine_of(runtime, f"{name}:keep={KEEP}")
    sequence = prefilled(engine)
    kept = [one.kept for one in placed(sequence)]
    counts = torch.stack([(one.positions >= 0).sum(1) for one in kept]).float()
    assert counts.mean() <= KEEP
    assert counts.max() < len(PROMPT), "nothing was let go of"
    for one in kept:
        for row in one.positions:
            there = set(row[row >= 0].tolist())
            assert {*range(8), *range(len(PROMPT) - 16, len(PROMPT))} <= there
    called = name.partition(":")[0]
    session.save(engine, sequence, called, {})
    point = sequence.snapshot()
    fork, known = engine.fork(sequence), engine.fork(sequence)
    expected = decoded(engine, sequence)
    assert torch.equal(decoded(engine, fork), expected)
    torch.testing.assert_close(engine.decode_known(known, KNOWN), expected, rtol=1e-4, atol=1e-4)
    for one, other in zip(placed(fork), placed(sequence), strict=True):
        assert torch.equal(one.kept.positions, other.kept.positions)
    again = prefilled(engine)
    assert torch.equal(decoded(engine, again), expected)
    loaded, _, _ = session.load(engine, called)
    assert torch.equal(decoded(engine, loaded), expected)
    engine.rollback(sequence, point)
    assert torch.equal(decoded(engine, sequence), expected)
    engine.prefill(sequence, MORE, reuse=False)  # a second turn
    total = torch.stack([(one.kept.positions >= 0).sum(1) for one in placed(sequence)]).float().mean()
    assert total <= KEEP + 16
    for each in (sequence, fork, known, again, loaded):
        each.close()


@pytest.mark.parametrize("first", [None, f"snapkv:keep={KEEP}"])
def test_a_step_takes_texts_that_are_kept_whole_and_others_together(runtime: Runtime, first: str | None) -> None:
    """In either order, and beside an index that estimates: each gets what it gets alone."""
    second = f"snapkv:keep={KEEP}" if first is None else None
    engines = [engine_of(runtime, first), engine_of(runtime, second), engine_of(runtime, None, "magicpig")]
    together, alone = ([prefilled(engine) for engine in engines] for _ in range(2))
    for token in KNOWN[:3].tolist():
        found = runtime.engine.decode(together, [token] * 3)
        expected = torch.cat([engine.decode([one], [token]) for engine, one in zip(engines, alone, strict=True)])
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for each in (*together, *alone):
        each.close()


def test_a_fork_of_an_exact_prefill_keeps_as_if_it_had_prefilled_itself(runtime: Runtime) -> None:
    """One prefill serves all placements and budgets: it keeps the prompt's queries."""
    compared = [Variant(name, keep) for name in ("h2o", "snapkv:window=40") for keep in (96, 144)]
    harness = Harness(runtime, compared)
    with harness.prefilled(PROMPT[:300]) as base:
        harness.extend(base, PROMPT[300:])
        for variant in compared:
            own = prefilled(harness.engines[variant])
            with harness.fork(variant, base) as fork, harness.fork(variant, fork) as twin:
                for one, other, third in zip(placed(fork), placed(own), placed(twin), strict=True):
                    assert torch.equal(one.kept.positions, other.kept.positions)
                    assert third.kept is one.kept
                torch.testing.assert_close(decoded(harness.engines[variant], fork, KNOWN[:4]),
                                           decoded(harness.engines[variant], own, KNOWN[:4]))  # fmt: skip
                assert harness.tokens_read(variant) <= variant.budget + 16
            own.close()


@pytest.fixture(scope="module")
def without(runtime: Runtime) -> dict[str, torch.Tensor]:
    """What `dense` and `spectral` say without a placement."""
    found = {}
    for index in ("dense", "spectral"):
        engine = engine_of(runtime, None, index)
        with closing(prefilled(engine)) as sequence:
            found[index] = decoded(engine, sequence)
    return found


@pytest.mark.parametrize("name", [*PLACEMENT_CASES, EXAMPLE])
def test_all_of_a_text_that_is_kept_whole_is_dense(
    runtime: Runtime, without: dict[str, torch.Tensor], name: str
) -> None:
    """And `hot` changes no bit of what an index gives."""
    for index, placement in (("dense", f"{name}:keep=1"), ("spectral", f"{name}:keep={KEEP},mode=hot")):
        engine = engine_of(runtime, placement)
        with closing(prefilled(engine)) as sequence:
            assert torch.equal(decoded(engine, sequence), without[index])
